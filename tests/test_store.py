"""OpenCode's own store, rebuilt from recordings with the tables that OpenCode 1.18.33 has."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.opencode import ExportError, examine, families, snapshot
from app.parse import parse
from app.store import store_file, stored
from tests.recorded import export, exported

TABLES = """
create table session (id text primary key, project_id text, parent_id text, slug text, directory text, title text,
    version text, time_created integer, time_updated integer, time_archived integer);
create table message (id text primary key, session_id text, time_created integer, time_updated integer, data text);
create table part (id text primary key, message_id text, session_id text, time_created integer, time_updated integer,
    data text);
"""


def without(value: dict[str, Any], *names: str) -> str:
    return json.dumps({name: inner for name, inner in value.items() if name not in names})


def built(path: Path, snapshot: dict[str, Any]) -> Path:
    """A store with one family of sessions."""
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(TABLES)
        for one in snapshot["sessions"]:
            info = one["info"]
            times = [info["time"].get(name) for name in ("created", "updated", "archived")]
            facts = [info["id"], "project", info.get("parentID"), "slug", info["directory"], info["title"]]
            db.execute("insert into session values (?,?,?,?,?,?,?,?,?,?)", [*facts, info["version"], *times])
            for message in one["messages"]:
                told = message["info"]
                created = told["time"]["created"]
                data = without(told, "id", "sessionID")
                db.execute("insert into message values (?,?,?,?,?)", [told["id"], info["id"], created, created, data])
                for part in message["parts"]:
                    ids = [part["id"], told["id"], info["id"], created, created]
                    data = without(part, "id", "messageID", "sessionID")
                    db.execute("insert into part values (?,?,?,?,?,?)", [*ids, data])
    return path


@pytest.mark.parametrize("name", exported())
def test_the_store_tells_what_the_export_tells(tmp_path: Path, name: str) -> None:
    wanted = export(name)
    files = stored(built(tmp_path / "opencode.db", wanted), wanted["root"])
    (family,) = families([examine(file) for file in files])
    assert parse(snapshot(family)) == parse(wanted)


def test_a_store_is_not_changed_by_reading(tmp_path: Path) -> None:
    path = built(tmp_path / "opencode.db", export("a_simple"))
    before = path.read_bytes()
    stored(path, export("a_simple")["root"])
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["opencode.db"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not there"):
        stored(tmp_path / "opencode.db", "ses_1")
    with pytest.raises(ExportError, match="holds no session ses_1"):
        stored(built(tmp_path / "opencode.db", export("a_simple")), "ses_1")


def test_the_store_lies_where_opencode_says() -> None:
    assert store_file({"HOME": "/home/dev"}) == Path("/home/dev/.local/share/opencode/opencode.db")
    assert store_file({"HOME": "/home/dev", "XDG_DATA_HOME": "/data"}) == Path("/data/opencode/opencode.db")
    assert store_file({"OPENCODE_DB": "/elsewhere/my.db"}) == Path("/elsewhere/my.db")
