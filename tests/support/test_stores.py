"""The builder of OpenCode's stores: what is put in is read back as it is, and what changed is told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.sources.opencode.store import Store
from app.transcript.parse import parse
from tests.support.recorded import export, exported, replayed
from tests.support.snapshots import CREATED_MS, SESSION, assistant, entry, snapshot, task, text, user
from tests.support.stores import WrittenStore, put


def rows(path: Path, table: str) -> dict[str, int]:
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute(f"select id, time_updated from {table} order by id"))  # noqa: S608 - a table's name


@pytest.mark.parametrize("name", exported())
def test_what_is_put_is_read_as_the_snapshot_is(tmp_path: Path, name: str) -> None:
    for wanted in (export(name), *replayed(name).values()):
        path = put(tmp_path / wanted["root"] / "opencode.db", wanted)
        assert Store(path).transcript(wanted["root"]) == parse(wanted)


def talk(answer: str = "so!", **info: Any) -> dict[str, Any]:
    root = entry(user("msg_1", 10, text("why?", "prt_1")), assistant("msg_2", 20, text(answer, "prt_2")), **info)
    return snapshot(root)


def test_what_changed_is_written_later_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "opencode.db"
    put(path, talk(), at_ms=100)
    put(path, talk("no!"), at_ms=100)
    assert rows(path, "part") == {"prt_1": 100, "prt_2": 101}
    put(path, talk("no!", title="renamed"), at_ms=200)
    assert rows(path, "part") == {"prt_1": 100, "prt_2": 101}
    assert rows(path, "message") == {"msg_1": 100, "msg_2": 100}
    found = Store(path).transcript(SESSION)
    assert found is not None
    assert found.session.title == "renamed"
    assert rows(path, "session") == {SESSION: CREATED_MS + 2}


def test_what_is_not_shown_is_left_unless_all_is_shown(tmp_path: Path) -> None:
    path = put(tmp_path / "opencode.db", talk())
    less = snapshot(entry(user("msg_1", 10)))
    put(path, less)
    assert rows(path, "part").keys() == {"prt_1", "prt_2"}
    put(path, less, whole=True)
    assert [*rows(path, "message"), *rows(path, "part")] == ["msg_1"]


def test_a_deleted_session_takes_its_subagents_along_and_a_live_store_has_a_log(tmp_path: Path) -> None:
    child = entry(user("msg_3", 15, text("do", "prt_3")), id="ses_child", parentID=SESSION)
    with closing(WrittenStore(tmp_path / "opencode.db")) as store:
        store.put(snapshot(entry(user("msg_1", 10), assistant("msg_2", 20, task("ses_child"))), child))
        assert (tmp_path / "opencode.db-wal").stat().st_size > 0
        store.delete(SESSION)
        assert [rows(store.path, table) for table in ("session", "message", "part")] == [{}, {}, {}]
    assert not (tmp_path / "opencode.db-wal").exists()


def test_half_a_character_comes_back(tmp_path: Path) -> None:
    wanted = talk("half of it: \ud83d, all of it: 😀")
    assert Store(put(tmp_path / "opencode.db", wanted)).transcript(SESSION) == parse(wanted)
