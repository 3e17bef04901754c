"""OpenCode's own store, rebuilt from recordings with the tables that OpenCode 1.18.33 has."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.errors import ExportError
from app.sources.opencode import tables
from app.sources.opencode.access import AbsentError, Access, StoreError
from app.sources.opencode.export_files import examine, families, snapshot
from app.sources.opencode.rows import subagent
from app.sources.opencode.store import Store, databases, store_file
from app.transcript.model import UNREADABLE, Json, Other
from app.transcript.parse import parse
from tests.support import snapshots
from tests.support.recorded import export, exported
from tests.support.snapshots import Fields

TABLES = """
create table session (id text primary key, project_id text, parent_id text, slug text, directory text, title text,
    version text, time_created integer, time_updated integer, time_archived integer);
create table message (id text primary key, session_id text, time_created integer, time_updated integer, data text);
create table part (id text primary key, message_id text, session_id text, time_created integer, time_updated integer,
    data text);
create index session_parent_idx on session (parent_id);
create index part_session_idx on part (session_id);
create index message_session_time_created_id_idx on message (session_id, time_created, id);
create index part_message_id_id_idx on part (message_id, id);
"""


def without(value: dict[str, Any], *names: str) -> str:
    return json.dumps({name: inner for name, inner in value.items() if name not in names})


def built(path: Path, *snapshots: dict[str, Any]) -> Path:
    """A store with these families of sessions."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("pragma synchronous = off")  # each table would wait for the disk, and nobody cuts the power here
        db.executescript(TABLES)
        for one in (one for snapshot in snapshots for one in snapshot["sessions"]):
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
    files = Store(built(tmp_path / "opencode.db", wanted)).files(wanted["root"])
    (family,) = families([examine(file) for file in files])
    assert parse(snapshot(family)) == parse(wanted)


@pytest.mark.parametrize("name", exported())
def test_a_turn_read_alone_is_the_turn_of_the_whole_session(tmp_path: Path, name: str) -> None:
    wanted = export(name)
    store = Store(built(tmp_path / "opencode.db", wanted))
    whole = parse(wanted)
    for turn in whole.turns:
        found = store.turn(wanted["root"], turn.id)
        assert found is not None
        assert (found.session, found.turns) == (whole.session, (turn,))
        assert store.holds(wanted["root"], turn.id)
    first = store.turn(wanted["root"], None)
    assert (first.turns if first else ()) == whole.turns[:1]
    assert not store.holds(wanted["root"], "msg_nowhere")
    assert store.turn(wanted["root"], "msg_nowhere") is None


@pytest.mark.parametrize("name", exported())
def test_roots_are_listed_and_subagents_are_not(tmp_path: Path, name: str) -> None:
    wanted = export(name)
    store = Store(built(tmp_path / "opencode.db", wanted))
    called = {one["info"]["id"] for one in wanted["sessions"] if one["info"].get("parentID")}
    roots = store.roots()
    assert {one.id for one in roots} == {one["info"]["id"] for one in wanted["sessions"]} - called
    assert [one.id for one in store.roots(roots[0].directory)] == [one.id for one in roots]
    assert store.roots("/elsewhere") == []


@pytest.mark.parametrize("named", [None, "{", "ses_other", 4], ids=["no call", "no JSON", "another", "no name"])
def test_a_subagent_that_no_call_of_its_parent_names_is_a_root(tmp_path: Path, named: object) -> None:
    wanted = export("f_subagent")
    store = Store(built(tmp_path / "opencode.db", wanted))
    (child,) = [one["info"]["id"] for one in wanted["sessions"] if one["info"].get("parentID")]
    told = named if named == "{" else json.dumps({"type": "tool", "state": {"metadata": {"sessionId": named}}})
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("update part set data = ? where session_id = ? and data like '%sessionId%'", (told, wanted["root"]))
    assert {one.id for one in store.roots()} == {wanted["root"], child}
    assert {one.id for one in store.roots(store.roots()[0].directory)} == {wanted["root"], child}
    assert [one.id for one in store.roots(among={child})] == [child]


def test_a_subagent_whose_call_was_deleted_with_its_message_is_a_root(tmp_path: Path) -> None:
    wanted = export("f_subagent")
    store = Store(built(tmp_path / "opencode.db", wanted))
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("delete from message where session_id = ?", (wanted["root"],))  # its parts stay behind
    assert len(store.roots()) == 2


def test_a_change_inside_a_subagent_is_a_change_of_its_root(tmp_path: Path) -> None:
    wanted = export("f_subagent")
    store = Store(built(tmp_path / "opencode.db", wanted))
    (child,) = [one["info"]["id"] for one in wanted["sessions"] if one["info"].get("parentID")]
    assert store.changed_ms("ses_nowhere") is None
    before = store.changed_ms(wanted["root"])
    assert before is not None
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("update part set time_updated = ? where session_id = ?", (before + 5, child))
    assert store.changed_ms(wanted["root"]) == before + 5
    assert store.changes(store.roots()[0].directory) == {wanted["root"]: before + 5, child: before + 5}
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("delete from session where id = ?", (wanted["root"],))
    assert store.changed_ms(wanted["root"]) is None  # whatever is left of its subagents


@pytest.mark.parametrize(
    "rubbish",
    ["{", "[1]", "null", "[" * 5_000 + "]" * 5_000, b"\xff secret-word", None],
    ids=["cut", "list", "null", "deep", "no UTF-8", "no text"],
)
@pytest.mark.parametrize("table", ["message", "part"])
def test_a_row_that_cannot_be_read_costs_its_own_session_alone_and_is_not_quoted(
    tmp_path: Path, rubbish: str | bytes | None, table: str
) -> None:
    bad, good = export("a_simple"), export("b_tools")
    store = Store(built(tmp_path / "opencode.db", bad, good))
    with closing(sqlite3.connect(store.path)) as db, db:
        text = rubbish.decode("latin-1") if isinstance(rubbish, bytes) else rubbish
        value = "cast(? as text)" if isinstance(rubbish, bytes) else "?"
        raw: object = rubbish if isinstance(rubbish, bytes) else text
        db.execute(f"update {table} set data = {value} where session_id = ?", (raw, bad["root"]))  # noqa: S608
    assert len(store.roots()) == 2
    assert store.transcript(good["root"]) == parse(good)
    assert store.changed_ms(bad["root"]) is not None
    turn = parse(bad).turns[0].id
    assert store.holds(bad["root"], turn)
    found = store.transcript(bad["root"])
    assert found is not None
    assert "secret-word" not in str((found.unreadable, [turn.faults for turn in found.turns]))
    if table == "message":
        assert {one.turn for one in found.unreadable} == {message["info"]["id"] for message in messages_of(bad)}
    else:
        parts = [part for turn in found.turns for message in turn.messages for part in message.parts]
        assert {part.type for part in parts if isinstance(part, Other)} == {UNREADABLE}
    assert [file.name for file in store.files(bad["root"])] == [bad["root"]]


def messages_of(snapshot: Fields) -> list[Fields]:
    found: list[Fields] = snapshot["sessions"][0]["messages"]
    return found


@pytest.mark.parametrize("time", ["soon", 1 << 62, -5])
def test_a_time_that_is_none_has_no_say_in_when_a_session_changed(tmp_path: Path, time: object) -> None:
    wanted = export("a_simple")
    store = Store(built(tmp_path / "opencode.db", wanted))
    before = store.changed_ms(wanted["root"])
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("insert into part values ('prt_x', 'msg_x', ?, 0, ?, '{}')", (wanted["root"], time))
    assert store.changed_ms(wanted["root"]) == before


def test_a_store_of_another_kind_is_named_with_the_way_in(tmp_path: Path) -> None:
    path = tmp_path / "opencode.db"
    path.write_bytes(b"no database at all, however long it is" * 100)
    with pytest.raises(StoreError, match="cannot be read: file is not a database"):
        Store(path).roots()
    path.unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript("create table session (id text, parent_id text); create table entry (id text);")
    with pytest.raises(StoreError, match=r"no store of OpenCode 1\.18 .*opencode export ID > FILE"):
        Store(path).roots()


# --- several files beside each other


def beside(tmp_path: Path) -> tuple[Store, Fields, Fields]:
    """The store, and what opencode.db and opencode-dev.db hold."""
    own, dev = export("a_simple"), export("f_subagent")
    built(tmp_path / "opencode.db", own)
    built(tmp_path / "opencode-dev.db", dev)
    return Store(tmp_path / "opencode.db"), own, dev


def test_the_stores_of_all_channels_are_read_as_one(tmp_path: Path) -> None:
    store, own, dev = beside(tmp_path)
    assert {root.id for root in store.roots()} == {own["root"], dev["root"]}
    directory = dev["sessions"][0]["info"]["directory"]
    assert {root.id for root in store.roots(directory)} == {own["root"], dev["root"]}
    child = dev["sessions"][1]["info"]["id"]
    assert set(store.changes(directory)) == {own["root"], dev["root"], child}
    for wanted in (own, dev):
        whole = parse(wanted)
        assert store.transcript(wanted["root"]) == whole
        assert store.holds(wanted["root"], whole.turns[0].id)
        assert store.changed_ms(wanted["root"]) is not None
        assert store.files(wanted["root"])
        outline = store.outline(wanted["root"])
        assert outline is not None
        assert [one.turn for one in outline.turns] == [turn.id for turn in whole.turns]
    assert store.root_of(child) == dev["root"]


def test_a_channel_of_which_nothing_else_is_there_is_found(tmp_path: Path) -> None:
    store, _, dev = beside(tmp_path)
    store.path.unlink()
    assert [root.id for root in store.roots()] == [dev["root"]]
    assert store.transcript(dev["root"]) == parse(dev)


def test_a_session_in_two_of_them_is_that_of_the_first(tmp_path: Path) -> None:
    store, own, _ = beside(tmp_path)
    copied = export("a_simple")
    copied["sessions"][0]["info"]["title"] = "a copy"
    built(tmp_path / "opencode-copy.db", copied)
    assert [root.id for root in store.roots()].count(own["root"]) == 1
    assert store.transcript(own["root"]) == parse(own)


def test_a_file_of_another_name_stands_alone(tmp_path: Path) -> None:
    _, own, dev = beside(tmp_path)
    store = Store(tmp_path / "opencode-dev.db")
    assert [root.id for root in store.roots()] == [dev["root"]]
    assert store.root_of(own["root"]) is None
    with pytest.raises(StoreError, match="is not there"):
        Store(tmp_path / "opencode-beta.db").roots()


def test_one_that_cannot_be_read_is_told_unless_another_has_what_is_asked_for(tmp_path: Path) -> None:
    store, own, dev = beside(tmp_path)
    (tmp_path / "opencode-dev.db").write_bytes(b"no database at all, however long it is" * 100)
    assert store.transcript(own["root"]) == parse(own)
    asked = (
        store.roots,
        lambda: store.changes("/d"),
        lambda: store.root_of(dev["root"]),
        lambda: store.outline(dev["root"]),
        lambda: store.holds("ses_nowhere", None),
    )
    for ask in asked:
        with pytest.raises(StoreError, match=r"opencode-dev\.db cannot be read"):
            ask()


def test_one_that_opencode_has_only_begun_holds_nothing(tmp_path: Path) -> None:
    store, own, _ = beside(tmp_path)
    (tmp_path / "opencode-dev.db").write_bytes(b"")
    assert [root.id for root in store.roots()] == [own["root"]]
    assert store.root_of("ses_nowhere") is None


def test_all_of_them_are_kept_open(tmp_path: Path) -> None:
    store, own, dev = beside(tmp_path)
    with store.kept_open():
        for wanted in (own, dev):
            assert store.transcript(wanted["root"]) == parse(wanted)
        with closing(sqlite3.connect(tmp_path / "opencode-dev.db")) as opencode, opencode:
            opencode.execute("update session set time_updated = 7")
        assert 7 in {root.updated_ms for root in store.roots()}


def test_a_store_is_not_changed_by_reading(tmp_path: Path) -> None:
    path = built(tmp_path / "opencode.db", export("a_simple"))
    before = path.read_bytes()
    Store(path).transcript(export("a_simple")["root"])
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["opencode.db"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is not there"):
        Store(tmp_path / "opencode.db").files("ses_1")
    with pytest.raises(ExportError, match="holds no session ses_1"):
        Store(built(tmp_path / "opencode.db", export("a_simple"))).files("ses_1")


def test_a_place_that_nobody_may_look_into_is_none_that_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 300)
    store = Store(folder / "opencode.db")
    assert store.is_there()
    for ask in (store.roots, lambda: store.root_of("ses_1"), lambda: store.outline("ses_1")):
        with pytest.raises(StoreError, match="cannot be read: File name too long") as told:
            ask()
        assert not isinstance(told.value, AbsentError)
    assert databases(folder / "another.db") == [folder / "another.db"]


def test_a_channel_that_nobody_may_look_at_costs_itself(tmp_path: Path) -> None:
    own = export("a_simple")
    store = Store(built(tmp_path / "opencode.db", own))
    (tmp_path / "opencode-dev.db").symlink_to(tmp_path / ("x" * 300))
    assert store.transcript(own["root"]) == parse(own)
    with pytest.raises(StoreError, match=r"opencode-dev\.db cannot be read"):
        store.root_of("ses_nowhere")


def test_the_store_lies_where_opencode_says() -> None:
    assert store_file({"HOME": "/home/dev"}) == Path("/home/dev/.local/share/opencode/opencode.db")
    assert store_file({"HOME": "/home/dev", "XDG_DATA_HOME": "/data"}) == Path("/data/opencode/opencode.db")
    assert store_file({"OPENCODE_DB": "/elsewhere/my.db"}) == Path("/elsewhere/my.db")


def test_without_a_home_in_the_environment_it_is_the_one_that_the_system_knows() -> None:
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert store_file({}) == home / ".local/share/opencode/opencode.db"
    assert store_file({"HOME": ""}) == home / ".local/share/opencode/opencode.db"


START = """
import os, sqlite3, sys
from collections import Counter
def start():
    child = os.fork()
    if child == 0:  # as OpenCode 1.18.33 opens its store; it leaves the log when it ends
        try:
            db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
            db.execute("pragma journal_mode = wal").fetchall()
            db.execute("pragma busy_timeout = 5000")
            db.execute("update session set title = title || '.'")
        except sqlite3.Error as error:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(Counter(start() for _ in range(int(sys.argv[2]))))
"""
READ = """
import sys
from pathlib import Path
from app.sources.opencode.store import Store
store = Store(Path(sys.argv[1]))
store.roots()
print("reading", flush=True)
while True:
    store.roots()
"""


def started(path: Path, times: int) -> str:
    done = subprocess.run([sys.executable, "-c", START, path, str(times)], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.slow
def test_no_start_of_opencode_fails_because_its_store_is_read(tmp_path: Path) -> None:
    path = built(tmp_path / "opencode.db", export("a_simple"))
    started(path, 1)
    assert path.with_name("opencode.db-wal").stat().st_size
    with subprocess.Popen([sys.executable, "-c", READ, path], stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
            assert started(path, 300) == "Counter({0: 300})\n"
            assert reader.poll() is None  # no read failed either
        finally:
            reader.kill()


@pytest.mark.slow
def test_what_is_only_in_the_log_is_found_also_behind_a_symbolic_link(tmp_path: Path) -> None:
    path = built(tmp_path / "opencode.db", export("a_simple"))
    started(path, 1)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "opencode.db"
    link.symlink_to(path)
    (file,) = Store(link).files(export("a_simple")["root"])
    assert file.data is not None
    assert json.loads(file.data)["info"]["title"].endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 20, 32, 1000, -700])
def test_a_log_that_was_cut_costs_what_it_held(tmp_path: Path, size: int) -> None:
    path = built(tmp_path / "opencode.db", export("a_simple"))
    started(path, 1)
    log = path.with_name("opencode.db-wal")
    log.write_bytes(log.read_bytes()[:size])
    assert [one.id for one in Store(path).roots()] == [export("a_simple")["root"]]


def test_a_copy_with_a_transaction_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = built(tmp_path / "opencode.db", export("i_long_session"))
    (tmp_path / "copy").mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("pragma cache_size = 1")
        other.execute("begin")
        other.execute("update part set data = data || ' '")
        for name in ("opencode.db", "opencode.db-journal"):
            shutil.copy(tmp_path / name, tmp_path / "copy" / name)
    with pytest.raises(StoreError, match="cannot be read"):
        Store(tmp_path / "copy" / "opencode.db").roots()


def test_a_store_without_a_log_is_read_without_any_lock_and_again_if_it_is_written_meanwhile(tmp_path: Path) -> None:
    path = built(tmp_path / "opencode.db", export("a_simple"))
    asked: list[str] = []

    def question(db: sqlite3.Connection) -> str:
        (title,) = db.execute("select title from session").fetchone()
        if not asked:
            with closing(sqlite3.connect(path, timeout=0)) as opencode, opencode:
                opencode.execute("update session set title = 'another'")
        asked.append(title)
        return asked[-1]

    assert Access(path).ask(question) == "another"
    assert len(asked) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_kept_open_tells_what_is_written_to_it_meanwhile(tmp_path: Path) -> None:
    path = built(tmp_path / "opencode.db", export("a_simple"))
    store = Store(path)
    with store.kept_open():
        (before,) = store.roots()
        with closing(sqlite3.connect(path, isolation_level=None)) as opencode:
            for ms in (1, 2, 3):  # to the file, then to a log, then to one that is shared
                opencode.execute("update session set time_updated = ?", [ms])
                opencode.execute("pragma journal_mode = wal").fetchall()
                assert [one.updated_ms for one in store.roots()] == [ms]
        assert [one.updated_ms for one in store.roots()] == [3]
    assert before.updated_ms > 3


def test_what_is_read_is_written_to_no_file_of_sqlites_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # SQLite sorts what is longer than its cache in a file without a name, in a folder for all.
    output = "a secret, not yet masked" * 50_000
    messages = [
        snapshots.assistant(
            f"msg_{number}b",
            number,
            snapshots.tool(f"prt_{number}", output=output, metadata={"sessionId": f"ses_{number}"}),
            parent=f"msg_{number}a",
        )
        for number in range(1, 5)
    ]
    path = built(tmp_path / "opencode.db", snapshots.snapshot(snapshots.entry(*messages, id="ses_root")))
    held = set[str]()

    def noting(part: Json) -> str | None:
        descriptors = Path("/proc/self/fd")
        held.update(str(one.readlink()) for one in descriptors.iterdir() if one.is_symlink())
        return subagent(part)

    monkeypatch.setattr(tables, "subagent", noting)
    called = Store(path)._where("ses_root", lambda rows: rows.calls("ses_root", rows.listed("ses_root")))
    assert called is not None
    assert [*called.values()] == [(f"ses_{number}",) for number in range(1, 5)]
    assert not [name for name in held if "etilqs" in name]
