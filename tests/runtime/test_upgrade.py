"""Noticing that the program was installed anew, and what goes along when a hook becomes another one."""

from __future__ import annotations

import json
import os
import select
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from app import __version__
from app.capture.daemon import Daemon
from app.capture.messages import LineError
from app.capture.pipe_reader import QUEUE_BYTES_MAX, PipeReader
from app.database.open import open_ledger
from app.database.schema import SchemaError, is_newer, migrations, require_known
from app.delivery.lifetime import MAKE_WAY_S_MAX
from app.ledger import incidents
from app.runtime import clock
from app.runtime.clock import Reading
from app.runtime.liveness import present
from app.runtime.upgrade import (
    LOOK_S,
    PAUSE_S_MAX,
    WHOLE_LOOK_S,
    NewVersion,
    Stamp,
    Upgrade,
    is_replaced,
    stamp,
)
from app.settings.lookup import unattended
from app.sources.opencode.store import store_file
from app.worker import Worker
from tests.support.processes import PROJECT, Station
from tests.support.recorded import export
from tests.support.stores import put
from tests.support.waiting import wait_until
from tests.system.test_held import asked

NOWHERE = "http://127.0.0.1:9"
SIMPLE = "a_simple"
NEWER = NewVersion("9.9.9", 99)


@dataclass(slots=True)
class Program:
    """Files of a program, and a process that was started from them and looks at them."""

    package: Path
    newer: NewVersion | None = NEWER
    asked: int = 0
    told: list[str] = field(default_factory=list)
    now_s: float = 1_000.0

    def __post_init__(self) -> None:
        self.package.mkdir()
        self.install(__version__)

    def install(self, version: str) -> None:
        (self.package / "__init__.py").write_text(f'"""Doc."""\n\n__version__ = "{version}"\n')

    def ask(self) -> NewVersion | None:
        self.asked += 1
        return self.newer

    def start(self) -> Upgrade:
        return Upgrade(migrations()[-1][0], self.package, self.ask)

    def look(self, upgrade: Upgrade, after_s: float = LOOK_S) -> NewVersion | None:
        self.now_s += after_s
        return upgrade.new_version(self.now_s, self.told.append)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "app")


def test_a_program_that_stays_has_no_heir_and_starts_no_process(program: Program) -> None:
    upgrade = program.start()
    assert [program.look(upgrade) for _ in range(10)] == [None] * 10
    assert program.asked == 0


def test_it_makes_way_when_the_new_files_are_at_rest(program: Program) -> None:
    upgrade = program.start()
    program.look(upgrade)
    for version in ("9.9.8", "9.9.99"):
        program.install(version)
        assert program.look(upgrade) is None
    assert program.asked == 0
    assert program.look(upgrade) == NEWER


def test_other_code_under_the_same_version_is_another_program(program: Program) -> None:
    upgrade = program.start()
    (program.package / "hook.py").write_text("")
    assert [program.look(upgrade), program.look(upgrade)] == [None, NEWER]


def test_between_two_looks_it_does_not_look(program: Program) -> None:
    upgrade = program.start()
    program.look(upgrade)
    program.install("9.9.9")
    assert program.look(upgrade, LOOK_S / 2) is None
    assert program.look(upgrade, LOOK_S / 2) is None
    assert program.look(upgrade, LOOK_S / 2) is None
    assert program.look(upgrade, LOOK_S / 2) == NEWER


def test_a_program_at_rest_is_looked_at_whole_now_and_then_alone(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[Path] = []

    def counted(package: Path) -> Stamp | None:
        whole.append(package)
        return stamp(package)

    code = program.package / "hook.py"
    code.write_text("1")
    os.utime(program.package / "__init__.py", (1, 1))
    os.utime(program.package, (1, 1))
    upgrade = program.start()
    monkeypatch.setattr("app.runtime.upgrade.stamp", counted)
    for _ in range(round(WHOLE_LOOK_S / LOOK_S)):
        assert program.look(upgrade) is None
    assert len(whole) == 1
    code.write_text("2")  # in place, which no folder tells
    looks = [program.look(upgrade) for _ in range(round(2 * WHOLE_LOOK_S / LOOK_S))]
    assert NEWER in looks


def test_a_file_that_comes_is_seen_by_the_next_look(program: Program) -> None:
    os.utime(program.package / "__init__.py", (1, 1))
    os.utime(program.package, (1, 1))
    upgrade = program.start()
    assert [program.look(upgrade) for _ in range(3)] == [None] * 3
    (program.package / "hook.py").write_text("")
    assert [program.look(upgrade), program.look(upgrade)] == [None, NEWER]


def test_a_program_that_was_taken_away_has_no_heir(program: Program) -> None:
    upgrade = program.start()
    (program.package / "__init__.py").unlink()
    program.package.rmdir()
    assert [program.look(upgrade) for _ in range(3)] == [None] * 3
    assert program.asked == 0


def test_a_process_started_in_the_middle_of_an_installation_makes_way_too(program: Program) -> None:
    program.install("9.9.9")
    assert program.look(program.start()) == NEWER


def test_a_program_that_does_not_start_is_told_once_and_tried_with_growing_pauses(program: Program) -> None:
    upgrade = program.start()
    program.newer = None
    program.install("9.9.9")
    looks = 2_000
    assert not any(program.look(upgrade) for _ in range(looks))
    assert len(program.told) == 1
    assert looks * LOOK_S / PAUSE_S_MAX < program.asked < 20
    # Repaired: at once.
    program.newer = NEWER
    program.install("9.9.10")
    assert [program.look(upgrade), program.look(upgrade)] == [None, NEWER]


def test_nobody_makes_way_for_a_program_that_does_not_know_the_ledger(program: Program) -> None:
    upgrade = program.start()
    program.newer = NewVersion("0.0.1", migrations()[-1][0] - 1)
    program.install("0.0.1")
    assert [program.look(upgrade) for _ in range(9)] == [None] * 9
    assert ["0.0.1, which does not know this ledger" in line for line in program.told] == [True]


@pytest.mark.parametrize(
    ("mine", "wanted", "ends"),
    [
        ("1.2.0 [a]", "", False),
        ("1.2.0 [a]", "1.2.0 [a]", False),
        ("1.2.0 [a]", "1.2.0 [b]", True),
        ("1.2.0 [a]", "1.10.0 [a]", True),
        ("1.10.0 [a]", "1.2.0 [a]", False),
        ("1.10.0 [a]", "1.2.0 [b]", False),
        ("1.2.0 [a]", "none", True),
    ],
    ids=["nobody", "the same", "other settings", "newer", "older", "older with other settings", "no version"],
)
def test_a_worker_is_replaced_by_other_settings_and_newer_versions(mine: str, wanted: str, ends: bool) -> None:  # noqa: FBT001
    assert is_replaced(mine, wanted) is ends


# --- the pipe --------------------------------------------------------------------------------------------------------


def drained(pipe_reader: PipeReader) -> list[bytes | str]:
    found: list[bytes | str] = []
    while True:
        try:
            line = pipe_reader.next(20)
        except EOFError:
            return found
        assert line is not None
        found.append(str(line) if isinstance(line, LineError) else line)


def test_what_was_read_and_not_taken_and_what_is_still_in_the_pipe_follow_each_other() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"one\ntwo\nthree\nfo")
    pipe_reader = PipeReader(reader)
    assert pipe_reader.next(20) == b"one"
    wait_until(lambda: len(pipe_reader) == 2 and pipe_reader._held)
    pending = pipe_reader.leave()
    os.write(writer, b"ur\nfive\nsi")
    os.close(writer)
    assert drained(PipeReader(pipe_of(b"zero\n", *pending), reader)) == [
        b"zero",
        b"two",
        b"three",
        b"four",
        b"five",
        "cut off",
    ]


def pipe_of(*pieces: bytes) -> int:
    reader, writer = os.pipe()
    for piece in pieces:
        os.write(writer, piece)
    os.close(writer)
    return reader


def test_leaving_before_the_bequest_was_read_leaves_nothing_of_it_behind() -> None:
    reader, writer = os.pipe()
    bequest, feeder = os.pipe()
    pipe_reader = PipeReader(bequest, reader)
    os.write(feeder, b"first\n")
    wait_until(lambda: len(pipe_reader) == 1)
    os.write(writer, b"later\n")
    os.write(feeder, b"second\n")
    os.close(feeder)
    assert b"".join(pipe_reader.leave()) in {b"first\nsecond\n", b"first\nsecond\nlater\n"}
    os.close(writer)


def test_a_full_inbox_can_be_left() -> None:
    reader, writer = os.pipe()
    pipe_reader = PipeReader(reader)
    pipe_reader._bytes = QUEUE_BYTES_MAX
    os.write(writer, b"one\ntwo\n")
    wait_until(lambda: not select.select([reader], [], [], 0)[0])
    assert b"".join(pipe_reader.leave()) == b"one\ntwo\n"
    os.close(writer)


@pytest.mark.slow
def test_a_bequest_larger_than_a_pipe_is_fed_and_its_feeder_ends() -> None:
    code = (
        "import os\n"
        "from app.runtime.upgrade import pipe_of\n"
        "reader, feeder = pipe_of([b'x' * 1_000_000, b'y'])\n"
        "print(len(open(reader, 'rb').read()), os.waitpid(feeder, 0)[1])\n"
        "reader, feeder = pipe_of([b'x' * 1_000_000])\n"
        "os.close(reader)\n"
        "print(os.waitpid(feeder, 0)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["1000001", "0", "0"]


# --- a hook that makes way -------------------------------------------------------------------------------------------


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, NOWHERE)


class Plugin:
    """A pipe and who reads it, in this process: a hook, and the one that it makes way for."""

    def __init__(self, station: Station) -> None:
        self.sources = unattended(station.environ)
        self.reader, self._writer = os.pipe()

    def say(self, session: str, why: str = "idle", **message: Any) -> None:
        line = {"v": 2, "type": "notice", "why": why, "session": session, "directory": PROJECT, "options": {}}
        os.write(self._writer, json.dumps({**line, **message}).encode() + b"\n")

    def show(self, snapshot: dict[str, Any], **message: Any) -> None:
        """OpenCode writes it to its store, and the plugin gives notice of it."""
        put(store_file(self.sources.environ), snapshot)
        self.say(snapshot["root"], **message)

    def end(self) -> None:
        os.close(self._writer)


@pytest.fixture
def plugin(station: Station) -> Iterator[Plugin]:
    plugin = Plugin(station)
    yield plugin
    os.close(plugin.reader)


class WhenEmpty(Upgrade):
    """Makes way when everything that was said has been worked off."""

    def __init__(self, pipe_reader: PipeReader, lines: int) -> None:
        super().__init__(migrations()[-1][0])
        self._pipe_reader = pipe_reader
        self._left = lines

    def new_version(self, *_: object) -> NewVersion | None:
        self._left -= 1
        return NEWER if self._left < 0 else None


class Replaced(Upgrade):
    """Of a process whose program was installed anew before its plugin said anything."""

    def __init__(self) -> None:
        super().__init__(migrations()[-1][0])
        self._looks = 0

    @property
    def is_untouched(self) -> bool:
        return False

    def new_version(self, *_: object) -> NewVersion | None:
        self._looks += 1
        return NEWER if self._looks > 2 else None  # the files were not at rest yet


class Listener(Upgrade):
    """Hears between the lines which sessions a hook owns; nobody has to make way."""

    def __init__(self, station: Station) -> None:
        super().__init__(migrations()[-1][0])
        self._hooks = station.spool / "hooks"
        self.heard: list[object] = []

    def new_version(self, *_: object) -> NewVersion | None:
        self.heard += [one.says["sessions"] for one in present(self._hooks)]
        return None


def made_way(plugin: Plugin, lines: int) -> list[bytes]:
    """A hook that takes so many lines and makes way then."""
    pipe_reader = PipeReader(plugin.reader)
    wait_until(lambda: len(pipe_reader) >= lines)
    pending = Daemon(pipe_reader, plugin.sources, WhenEmpty(pipe_reader, lines)).serve()
    assert pending is not None
    return pending


def unfinished(name: str) -> dict[str, Any]:
    snapshot = export(name)
    info = snapshot["sessions"][0]["messages"][-1]["info"]
    del info["time"]["completed"]
    info.pop("finish", None)
    return snapshot


def jobs(station: Station) -> dict[str, int]:
    with station.ledger() as db:
        return dict(db.execute("select state, count(*) from job group by state").fetchall())


def test_a_hook_takes_its_reading_half_from_no_later_installation(station: Station, plugin: Plugin) -> None:
    plugin.say("ses_1")
    pipe_reader = PipeReader(plugin.reader)
    wait_until(lambda: len(pipe_reader) == 1)
    daemon = Daemon(pipe_reader, plugin.sources, Replaced())
    pending = daemon.serve()
    assert pending is not None
    assert b"ses_1" in b"".join(pending)  # for the new program
    assert not (station.spool / "ledger.db").exists()


def test_an_unfinished_turn_an_owned_session_and_a_deletion_go_along(station: Station, plugin: Plugin) -> None:
    waiting, deleted, late = unfinished(SIMPLE), export("b_tools"), export("c_second_prompt")
    plugin.say("ses_other", "busy")
    plugin.show(waiting)
    plugin.say(deleted["root"], "deleted")
    pending = made_way(plugin, 3)
    assert present(station.spool / "hooks") == []
    pipe_reader = PipeReader(pipe_of(*pending), plugin.reader)
    plugin.say(deleted["root"])
    plugin.show(late)
    plugin.end()
    listener = Listener(station)
    Daemon(pipe_reader, plugin.sources, listener).serve()
    assert listener.heard[-1] == sorted([waiting["root"], "ses_other", late["root"]])
    # The session's record and the turn, interrupted; two turns and a record of the late one; nothing of the deleted.
    assert jobs(station) == {"pending": 5}


def test_unfinished_turns_of_several_spools_go_along(station: Station, plugin: Plugin) -> None:
    sources = unattended({**station.environ, "OPENCODE_HELICONE_SPOOL_DIRECTORY": ""})
    pipe_reader = PipeReader(plugin.reader)
    for name, recording in (("one", SIMPLE), ("two", "b_tools")):
        project = str(station.home / name)
        plugin.show(unfinished(recording), directory=project, options={"spoolDirectory": "spool"})
    wait_until(lambda: len(pipe_reader) == 2)
    pending = Daemon(pipe_reader, sources, WhenEmpty(pipe_reader, 2)).serve()
    assert pending is not None
    plugin.end()
    Daemon(PipeReader(pipe_of(*pending), plugin.reader), sources).serve()
    for name in ("one", "two"):
        with closing(open_ledger(station.home / name / "spool")) as db:
            assert dict(db.execute("select state, count(*) from job group by state").fetchall()) == {"pending": 2}


@pytest.mark.parametrize(
    "is_right", [False, True], ids=["settings that are right later", "that are right for the new version"]
)
def test_what_was_said_while_settings_could_not_be_used_comes_after_a_succession_too(
    station: Station, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, *, is_right: bool
) -> None:
    config = station.home / "config.toml"
    config.write_text("maxRetries = \n")
    plugin.sources = replace(plugin.sources, own=station.home)
    wanted = asked_soon(station, monkeypatch)
    plugin.say(wanted["root"], directory=str(station.home / "shop"))
    pending = made_way(plugin, 1)
    put(store_file(station.environ), wanted)
    config.write_text("" if is_right else "maxRetries = \n")
    later_ms = clock.now_ms() + 3_600_000
    monkeypatch.setattr(clock, "now_ms", lambda: later_ms)
    pipe_reader = PipeReader(pipe_of(*pending), plugin.reader)
    wait_until(lambda: len(pipe_reader) == 1)
    again = Daemon(pipe_reader, plugin.sources, WhenEmpty(pipe_reader, 1)).serve()
    assert again is not None
    config.write_text("")
    plugin.end()
    Daemon(PipeReader(pipe_of(*again), plugin.reader), plugin.sources).serve()
    assert jobs(station) == {"pending": 2}


def asked_soon(station: Station, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A session whose turn ends in a minute: after a hook has heard of it."""
    soon_ms = clock.now_ms() + 60_000
    with monkeypatch.context() as then:
        then.setattr(clock, "now_ms", lambda: soon_ms)
        return asked(station.home / "shop")


class Mending(Upgrade):
    """Has the settings mended an hour after the first line, just before the end is read."""

    def __init__(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(migrations()[-1][0])
        self._config = config
        self._monkeypatch = monkeypatch
        self._looks = 0

    def new_version(self, *_: object) -> NewVersion | None:
        self._looks += 1
        if self._looks > 1:
            later_ms = clock.now_ms() + 3_600_000
            self._monkeypatch.setattr(clock, "now_ms", lambda: later_ms)
            self._config.write_text("")
        return None


@pytest.mark.parametrize("unusable", ["maxRetries = \n", 'redactPatterns = ["("]\n'], ids=["no TOML", "a pattern"])
def test_settings_that_are_right_again_count_from_when_they_were_wrong(
    station: Station, plugin: Plugin, monkeypatch: pytest.MonkeyPatch, unusable: str
) -> None:
    config = station.home / "config.toml"
    config.write_text(unusable)
    wanted = asked_soon(station, monkeypatch)
    plugin.show(wanted, directory=str(station.home / "shop"))
    plugin.end()
    pipe_reader = PipeReader(plugin.reader)
    wait_until(lambda: pipe_reader.ended)
    Daemon(pipe_reader, replace(plugin.sources, own=station.home), Mending(config, monkeypatch)).serve()
    assert jobs(station) == {"pending": 2}


def test_a_line_refused_before_is_counted_by_the_next_hook_under_its_own_reason(
    station: Station, plugin: Plugin
) -> None:
    pipe_reader = PipeReader(plugin.reader)
    plugin.say("ses_1", "busy")
    pipe_reader._put(LineError("too long"))
    wait_until(lambda: len(pipe_reader) == 2)
    pending = Daemon(pipe_reader, plugin.sources, WhenEmpty(pipe_reader, 0)).serve()
    assert pending is not None
    plugin.end()
    Daemon(PipeReader(pipe_of(*pending), plugin.reader), plugin.sources).serve()
    with station.ledger() as db:
        assert [reason for reason, *_ in incidents.refusals(db)] == ["too long"]


# --- a ledger that is newer ------------------------------------------------------------------------------------------


def make_newer(station: Station) -> None:
    with station.ledger() as db:
        db.execute(f"pragma user_version = {migrations()[-1][0] + 1}")


def test_a_ledger_is_newer_only_when_its_schema_is(station: Station) -> None:
    with station.ledger() as db:
        require_known(db)
        assert not is_newer(db)
        make_newer(station)
        assert is_newer(db)
        with pytest.raises(SchemaError):
            require_known(db)


class Newer(Upgrade):
    """Another program makes the ledger newer after so many lines; then the hook's own is installed anew."""

    def __init__(self, station: Station, lines: int) -> None:
        super().__init__(migrations()[-1][0])
        self._station = station
        self._left = lines

    def new_version(self, *_: object) -> NewVersion | None:
        self._left -= 1
        if self._left == -1:
            make_newer(self._station)
        return NEWER if self._left < -1 else None


def test_lines_for_a_ledger_that_becomes_newer_are_kept_for_the_program_that_knows_it(
    station: Station, plugin: Plugin
) -> None:
    plugin.say("ses_other", "busy")
    plugin.show(export(SIMPLE))
    pipe_reader = PipeReader(plugin.reader)
    wait_until(lambda: len(pipe_reader) == 2)
    pending = Daemon(pipe_reader, plugin.sources, Newer(station, 1)).serve()
    assert pending is not None
    told = [json.loads(line) for line in pending if line]
    assert [(line["session"], line["why"]) for line in told] == [
        ("", "busy"),
        ("ses_other", "busy"),
        (export(SIMPLE)["root"], "idle"),
    ]
    assert "trying again: SchemaError" in station.text("hook.log")
    with closing(sqlite3.connect(station.spool / "ledger.db")) as db:
        assert db.execute("select count(*) from job").fetchone()[0] == 0
    plugin.end()


def test_without_such_a_program_what_is_left_when_opencode_ends_is_given_up_by_name(
    station: Station, plugin: Plugin
) -> None:
    plugin.say(export(SIMPLE)["root"], "busy")
    made_way(plugin, 1)
    make_newer(station)
    plugin.show(export(SIMPLE))
    plugin.end()
    pipe_reader = PipeReader(plugin.reader)
    wait_until(lambda: pipe_reader.ended)
    hook_daemon = Daemon(pipe_reader, plugin.sources)
    hook_daemon._tries_left = 1
    assert hook_daemon.serve() is None
    assert "this program knows up to" in station.text("hook.log").splitlines()[-1]


def test_a_worker_whose_ledger_becomes_newer_posts_nothing_waits_and_then_ends(station: Station) -> None:
    worker = Worker(unattended(station.environ))
    worker.huey.prepare()

    def next_step(now_s: int) -> str:
        return worker.lifetime.next_step(worker.db, Reading(0, now_s * 1_000), is_automatic=False)

    try:
        assert next_step(0) == "work"
        make_newer_below(worker)
        worker._answer("0" * 64)
        assert "this program knows up to" in station.text("worker.log")
        assert [next_step(1), next_step(int(MAKE_WAY_S_MAX))] == ["wait", "wait"]
        assert next_step(1 + int(MAKE_WAY_S_MAX)) == "restart"
        assert station.text("worker.log").count("waits to be replaced") == 1
    finally:
        worker.close()


def make_newer_below(worker: Worker) -> None:
    worker.db.execute(f"pragma user_version = {migrations()[-1][0] + 1}")


@pytest.mark.slow
def test_a_worker_that_starts_on_a_newer_ledger_refuses_it_with_one_line(station: Station) -> None:
    make_newer(station)
    done = station.run("worker")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "install the newer version again" in done.stderr
