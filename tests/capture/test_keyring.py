"""What a process knows to be secret: read again whenever it was written, and never forgotten."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.capture.config import capture
from app.capture.keyring import Keyring
from app.settings.model import Settings
from app.sources.opencode import config
from app.sources.opencode.logins import FILE_BYTES_MAX, Logins
from tests.support.fake_secrets import noise
from tests.support.opencode import OpenCode

pytest_plugins = ["tests.support.opencode"]

FILES = ["auth.json", "mcp-auth.json"]
OLD, NEW = (noise(name, "abcdefghijkmnopqrstuvwxyz", 24) for name in ("old", "new"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "data" / "opencode").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "XDG_DATA_HOME": str(home / "data"), "XDG_CONFIG_HOME": str(home / "config")}


@pytest.fixture
def store(home: Path) -> Iterator[sqlite3.Connection]:
    """An OpenCode's connection to its store, which holds no sessions, as that of a fresh OpenCode 2."""
    with closing(sqlite3.connect(home / "data" / "opencode" / "opencode.db", isolation_level=None)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("create table credential (id text primary key, value text not null)")
        yield db


def hold(home: Path, name: str, value: str) -> None:
    (home / "data" / "opencode" / name).write_text(json.dumps({"a": {"type": "api", "key": value}}), "utf-8")


def keep(store: sqlite3.Connection, value: str) -> None:
    told = json.dumps({"type": "key", "key": value})
    store.execute("insert or replace into credential values ('cre_1', ?)", [told])


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_changed_is_read_again_and_what_it_held_stays_known(
    home: Path, environ: dict[str, str], name: str
) -> None:
    keyring = Keyring(environ)
    assert keyring.look() == ()
    hold(home, name, OLD)
    assert keyring.look() == (OLD,)
    hold(home, name, NEW)  # as long, and within the same tick of the file system's clock
    assert set(keyring.look()) == {OLD, NEW}
    (home / "data" / "opencode" / name).unlink()
    assert set(keyring.look()) == {OLD, NEW}


def test_a_row_of_the_store_that_changed_is_read_again(environ: dict[str, str], store: sqlite3.Connection) -> None:
    keyring = Keyring(environ)
    assert keyring.look() == ()
    keep(store, OLD)
    assert keyring.look() == (OLD,)
    keep(store, NEW)
    assert set(keyring.look()) == {OLD, NEW}
    store.execute("pragma wal_checkpoint(truncate)")
    store.execute("delete from credential")
    assert set(keyring.look()) == {OLD, NEW}


def test_what_it_tells_is_the_same_object_for_as_long_as_nothing_is_new(
    home: Path, environ: dict[str, str], store: sqlite3.Connection
) -> None:
    hold(home, "auth.json", OLD)
    keyring = Keyring(environ)
    first = keyring.look()
    hold(home, "mcp-auth.json", OLD)
    store.execute("create table other (a)")
    assert keyring.look() is first
    keep(store, NEW)
    assert keyring.look() is not first


def test_what_was_not_written_is_not_read_again(home: Path, environ: dict[str, str], store: sqlite3.Connection) -> None:
    hold(home, "auth.json", OLD)
    keep(store, NEW)
    logins = Logins(environ)
    assert len(list(logins.changed())) == 2
    assert list(logins.changed()) == []
    keep(store, NEW)
    assert len(list(logins.changed())) == 1


@pytest.mark.parametrize(
    "content", [b"", b"no store", b"SQLite format 3\x00" + b"\xff" * 5000], ids=["empty", "text", "torn"]
)
def test_a_store_that_cannot_be_read_says_nothing(home: Path, environ: dict[str, str], content: bytes) -> None:
    (home / "data" / "opencode" / "opencode.db").write_bytes(content)
    hold(home, "auth.json", OLD)
    assert Keyring(environ).look() == (OLD,)


def test_files_that_are_none_say_nothing_but_that(home: Path, environ: dict[str, str]) -> None:
    (home / "data" / "opencode" / "auth.json").mkdir()
    os.mkfifo(home / "data" / "opencode" / "mcp-auth.json")
    keyring = Keyring({**environ, "A_KEY": OLD})
    assert keyring.look() == (OLD,)
    assert [name in problem for name, problem in zip(FILES, keyring.problems, strict=True)] == [True, True]


def test_a_file_that_is_large_is_read(home: Path, environ: dict[str, str]) -> None:
    hold(home, "auth.json", "x" * 2_000_000 + OLD)
    keyring = Keyring(environ)
    assert [value[-len(OLD) :] for value in keyring.look()] == [OLD]
    assert keyring.problems == ()


def test_a_file_that_is_too_large_is_said_to_be_and_others_are_read(home: Path, environ: dict[str, str]) -> None:
    hold(home, "auth.json", "x" * FILE_BYTES_MAX)
    hold(home, "mcp-auth.json", OLD)
    keyring = Keyring(environ)
    assert keyring.look() == (OLD,)
    (problem,) = keyring.problems
    assert "auth.json: it is larger than" in problem
    hold(home, "auth.json", NEW)
    assert set(keyring.look()) == {OLD, NEW}
    assert keyring.problems == ()


def test_a_look_at_the_store_that_failed_is_repeated(home: Path, environ: dict[str, str]) -> None:
    """Also where the store looks as it did then: who had locked it left no trace."""
    path = home / "data" / "opencode" / "opencode.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("create table credential (id text primary key, value text not null)")
        keep(db, OLD)
    whole, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(b"x" * 100 + whole[100:])
    os.utime(path, ns=times)
    keyring = Keyring(environ)
    assert keyring.look() == ()
    assert ["cannot be read" in problem for problem in keyring.problems] == [True]
    path.write_bytes(whole)
    os.utime(path, ns=times)
    assert keyring.look() == (OLD,)
    assert keyring.problems == ()


def test_what_cannot_be_read_in_the_store_hides_nothing_else(home: Path, environ: dict[str, str]) -> None:
    path = home / "data" / "opencode" / "opencode.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("create table credential (id text primary key, value text not null)")
        db.execute("create table account (id text primary key, access_token text, refresh_token blob)")
        db.execute("insert into credential values ('cre_0', '{broken'), ('cre_1', x'ff22'), ('cre_2', 'a')")
        db.execute("insert into credential values ('cre_3', ?)", [f'{{"key": "{OLD}"'])
        db.execute("insert into account values ('acc_1', ?, ?)", [NEW.upper(), NEW.encode()])
        root, page = db.execute("select rootpage, (select page_size from pragma_page_size) from sqlite_master"
                                " where name = 'credential'").fetchone()  # fmt: skip
    assert set(Keyring(environ).look()) == {OLD, NEW, NEW.upper()}
    with path.open("r+b") as file:
        file.seek((root - 1) * page)
        file.write(b"\xff" * page)
    keyring = Keyring(environ)
    assert set(keyring.look()) == {NEW, NEW.upper()}
    assert ["is damaged in credential" in problem for problem in keyring.problems] == [True]


def test_a_store_behind_a_symbolic_link_is_read_with_its_log(
    home: Path, environ: dict[str, str], store: sqlite3.Connection
) -> None:
    (home / "link.db").symlink_to(home / "data" / "opencode" / "opencode.db")
    keyring = Keyring({**environ, "OPENCODE_DB": str(home / "link.db")})
    keep(store, OLD)
    assert keyring.look() == (OLD,)
    keep(store, NEW)
    assert set(keyring.look()) == {OLD, NEW}


def test_what_a_configuration_no_longer_holds_stays_known(home: Path, environ: dict[str, str]) -> None:
    keyring = Keyring(environ)
    path = home / "config" / "opencode" / "opencode.json"
    path.parent.mkdir(parents=True)
    for value in (OLD, NEW):
        path.write_text(json.dumps({"provider": {"x": {"options": {"apiKey": value}}}}), "utf-8")
        keyring.learn(config.read(environ, None).documents, ())
    assert set(keyring.look()) == {OLD, NEW}


def test_a_key_of_our_own_that_was_replaced_stays_known(environ: dict[str, str]) -> None:
    keyring = Keyring(environ)
    assert [set(keyring.learn((), [value])) for value in (OLD, NEW)] == [{OLD}, {OLD, NEW}]


def test_what_is_known_is_in_no_policy() -> None:
    """Else a token that is refreshed would export every session anew."""
    loose, strict = (capture(Settings(), known) for known in ((), (OLD, NEW)))
    assert loose.policy == strict.policy
    assert loose.policy.digest("") == strict.policy.digest("")


def test_logins_in_the_environment_are_known(environ: dict[str, str]) -> None:
    login = json.dumps({"openai": {"type": "api", "key": OLD}})
    assert Keyring({**environ, "OPENCODE_AUTH_CONTENT": login}).look() == (OLD,)


def test_a_keyring_does_not_show_what_it_holds(environ: dict[str, str]) -> None:
    keyring = Keyring({**environ, "A_KEY": OLD})
    assert OLD in keyring.look()
    assert OLD not in repr(keyring)


@pytest.mark.opencode
def test_the_tables_of_the_real_store_are_read_while_opencode_has_it_open(opencode: OpenCode, tmp_path: Path) -> None:
    project = opencode.project(tmp_path / "project")
    keyring = Keyring({"HOME": str(opencode.home), "XDG_DATA_HOME": str(opencode.home / ".local" / "share")})
    rows: dict[str, dict[str, Any]] = {
        "credential": {"id": "cre_1", "label": "", "value": json.dumps({"type": "key", "key": OLD})},
        "account": {"id": "acc_1", "email": "a@example.com", "url": "u", "access_token": NEW, "refresh_token": ""},
    }
    with opencode.serve(project) as server:
        server.new_session()
        keyring.look()
        path = opencode.home / ".local" / "share" / "opencode" / "opencode.db"
        with closing(sqlite3.connect(path)) as db, db:
            for table, row in rows.items():
                told = {**row, "time_created": 0, "time_updated": 0}
                marks = ",".join("?" * len(told))
                db.execute(f"insert into {table} ({','.join(told)}) values ({marks})", [*told.values()])  # noqa: S608
        assert {OLD, NEW} <= set(keyring.look())
        server.new_session()  # nobody stands in its way


@pytest.mark.opencode
def test_a_key_that_the_real_opencode_is_given_is_known_at_once(opencode: OpenCode, tmp_path: Path) -> None:
    project = opencode.project(tmp_path / "project")
    keyring = Keyring({"HOME": str(opencode.home), "XDG_DATA_HOME": str(opencode.home / ".local" / "share")})
    with opencode.serve(project) as server:
        for value in (OLD, NEW):
            server.request("PUT", "/auth/anthropic", {"type": "api", "key": value})
            assert value in keyring.look()
