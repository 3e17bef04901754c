"""The title of one session, read by itself, is the one that the whole store tells."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store
from app.sources.opencode.title import title
from tests.sources.opencode.test_store import built
from tests.support import recorded, stores
from tests.support.newer_store import NewerStore


@pytest.mark.parametrize("name", recorded.exported())
def test_it_is_that_of_the_whole_store(tmp_path: Path, name: str) -> None:
    store = Store(stores.put(tmp_path / "opencode.db", recorded.export(name)))
    for session, head in store.heads().items():
        assert title(store.path, session) == head.title
    assert title(store.path, "ses_unknown") is None


def test_one_that_lies_in_a_file_beside_it_is_found(tmp_path: Path) -> None:
    built(tmp_path / "opencode.db", recorded.export("a_simple"))
    beside = Store(built(tmp_path / "opencode-dev.db", recorded.export("b_tools")))
    (session,) = [one.id for one in beside.roots() if one.id == recorded.export("b_tools")["root"]]
    assert title(tmp_path / "opencode.db", session) == beside.heads()[session].title


def test_where_nothing_is_it_is_none_and_what_is_no_store_is_told(tmp_path: Path) -> None:
    assert title(tmp_path / "opencode.db", "ses_1") is None
    (tmp_path / "opencode.db").write_bytes(b"no database at all" * 1_000)
    with pytest.raises(StoreError):
        title(tmp_path / "opencode.db", "ses_1")


def test_a_title_that_is_none_is_empty(tmp_path: Path) -> None:
    path = stores.put(tmp_path / "opencode.db", recorded.export("a_simple"))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("update session set title = x'ff'")
    assert title(path, recorded.export("a_simple")["root"]) == "\ufffd"


def test_of_a_session_of_opencode_2_too(tmp_path: Path) -> None:
    newer = NewerStore(tmp_path / "opencode.db", recorded.export("a_simple"))
    session = newer.session("ses_2", title="Mend the login")
    assert title(tmp_path / "opencode.db", session) == "Mend the login"
    old = recorded.export("a_simple")["root"]
    head = Store(tmp_path / "opencode.db").head(old)
    assert title(tmp_path / "opencode.db", old) == (head.title if head else None)
