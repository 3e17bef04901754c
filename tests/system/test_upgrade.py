"""The next version, with another schema and another mapping, is installed over this one while all of it runs."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from app import __version__
from app.runtime.liveness import present
from app.sources.opencode.store import store_file
from tests.support.installation import MAPPING, NEXT_SCHEMA, NEXT_VERSION, Installation, installed, next_version
from tests.support.processes import PROJECT, HookProcess, Station, hook, procfile_command, worker
from tests.support.recorded import export
from tests.support.servers import Receiver, receiving
from tests.support.stores import put
from tests.support.waiting import wait_until

Snapshot = dict[str, Any]
SIMPLE = "a_simple"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver" / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, receiver.url, variables={"OPENCODE_HELICONE_WORKER": "auto"})


@contextmanager
def consumer(installation: Installation, station: Station) -> Iterator[subprocess.Popen[bytes]]:
    with (station.home / "consumer.log").open("ab") as output:
        command = [str(installation.python), *procfile_command()]
        process = subprocess.Popen(command, env=station.environ, cwd=station.home, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(300)


@contextmanager
def ledger(station: Station) -> Iterator[sqlite3.Connection]:
    """As it is, whatever its schema."""
    with closing(sqlite3.connect(station.spool / "ledger.db", isolation_level=None)) as db:
        yield db


def states(station: Station) -> Counter[str]:
    with ledger(station) as db:
        return Counter(state for (state,) in db.execute("select state from job"))


def says(station: Station, folder: str, fact: str) -> list[object]:
    return [one.says.get(fact) for one in present(station.spool / folder)]


def another(snapshot: Snapshot, n: int) -> Snapshot:
    """The same conversation in a session of other ids."""
    copy: Snapshot = json.loads(re.sub(r'"((?:ses|msg|prt)_\w+)\w{6}"', rf'"\g<1>{n:06}"', json.dumps(snapshot)))
    return copy


def unfinished(snapshot: Snapshot) -> Snapshot:
    info = snapshot["sessions"][0]["messages"][-1]["info"]
    del info["time"]["completed"]
    info.pop("finish", None)
    return snapshot


class Traffic:
    """An OpenCode that goes on as if nothing happened: a new session, again and again."""

    def __init__(self, hook: HookProcess) -> None:
        self.sessions = 0
        self._hook = hook
        self._one_at_a_time = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def burst(self, sessions: int) -> None:
        for _ in range(sessions):
            with self._one_at_a_time:
                self.sessions += 1
                self._hook.show(another(export(SIMPLE), self.sessions))

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            self.burst(1)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def end_automatic_workers(station: Station) -> None:
    with ledger(station) as db:
        db.execute("update destination set worker_wanted = 'none'")
    wait_until(lambda: not present(station.spool / "workers"))


def test_a_new_version_takes_over_from_everything_that_runs_and_every_turn_is_sent_once(
    tmp_path: Path, station: Station, receiver: Receiver
) -> None:
    installation = installed(tmp_path / "environment")
    following = next_version(tmp_path / "following")
    waits, early = unfinished(another(export(SIMPLE), 900_001)), another(export("b_tools"), 900_002)
    with hook(station, str(installation.python)) as process:
        process.show(early)
        process.show(waits)
        wait_until(lambda: receiver.sends() and states(station)["pending"] == 0)
        with consumer(installation, station) as external:
            wait_until(lambda: says(station, "workers", "version") == [__version__] * 2)
            receiver.fault({"delay_ms": 150, "times": 10_000})  # something is always on its way
            with Traffic(process) as traffic:
                installation.begin(following)
                traffic.burst(20)
                wait_until(lambda: station.text("hook.log").count("does not start") == 1)
                installation.finish(following)
                traffic.burst(20)
                wait_until(lambda: says(station, "hooks", "version") == [NEXT_VERSION])
                wait_until(lambda: says(station, "workers", "version") == [NEXT_VERSION] * 2)
            process.show({**early, "sessions": [retitled(one) for one in early["sessions"]]})
            wait_until(lambda: not zombies(process.process.pid))
            assert process.end() == 0
            # The renamed session's own record is a new version of it; its turn is not.
            jobs = 2 * (traffic.sessions + 2)
            wait_until(lambda: states(station) == {"delivered": jobs, "superseded": 1})
            assert external.poll() is None
        end_automatic_workers(station)
    with ledger(station) as db:
        assert db.execute("pragma user_version").fetchone()[0] == NEXT_SCHEMA
    again = [row.log for row in receiver.rows() if row.sends != 1]
    assert [(log.model, log.properties["Helicone-Session-Id"]) for log in again] == [
        ("opencode/session", early["root"])
    ]
    assert mapped(receiver, waits["root"])
    assert not mapped(receiver, early["root"])


def zombies(parent: int) -> list[str]:
    states = subprocess.run(["ps", "-A", "-o", "ppid=,stat="], capture_output=True, text=True, check=True).stdout
    return [line for line in states.splitlines() if line.split()[0] == str(parent) and "Z" in line]


def retitled(entry: Snapshot) -> Snapshot:
    info = entry["info"]
    return {**entry, "info": {**info, "title": f"{info['title']}, renamed", "version": f"{info['version']}.1"}}


def mapped(receiver: Receiver, session: str) -> bool:
    """Whether the next version made the session's records."""
    rows = [row.log for row in receiver.rows() if row.log.properties["Helicone-Session-Id"] == session]
    return any(json.loads(f"{{{MAPPING}}}").items() <= json.loads(log.request_body).items() for log in rows)


def test_an_automatic_worker_that_ends_because_another_is_wanted_finishes_its_post(
    station: Station, receiver: Receiver
) -> None:
    external = replace(station, variables={})
    with hook(external) as process:
        process.show(export(SIMPLE))
        assert process.end() == 0
    receiver.fault({"delay_ms": 1_500, "times": 1})
    command = [sys.executable, "-I", "-m", "app", "worker", "--automatic"]
    with subprocess.Popen(command, env=station.environ) as automatic:
        wait_until(receiver.sends)
        with ledger(station) as db:
            db.execute("update destination set worker_wanted = 'none'")
        assert automatic.wait(300) == 0
    assert receiver.sends()[0].status == 200
    with ledger(station) as db:
        acknowledged = db.execute("select count(*) from acknowledgement").fetchone()[0]
    assert acknowledged == len(receiver.sends())


# --- over the first protocol, whose plugin sent whole sessions


def said_before(snapshot: Snapshot) -> Snapshot:
    """The same session with other words: what an old plugin says is not what is exported."""
    copy = json.loads(json.dumps(snapshot))
    for part in (part for message in copy["sessions"][0]["messages"] for part in message["parts"]):
        if "text" in part:
            part["text"] = "as the old plugin has it"
    return dict(copy)


def texts(receiver: Receiver) -> list[str]:
    return [row.log.request_body + row.log.response_body for row in receiver.rows()]


def is_owed(station: Station, session: str) -> bool:
    """Whether something of it was noticed and is not in the ledger yet."""
    with station.ledger() as db:
        return db.execute("select 1 from notice where session = ?", (session,)).fetchone() is not None


def test_a_plugin_of_the_first_protocol_goes_on_in_mid_turn_and_the_stores_text_is_exported(
    station: Station, receiver: Receiver
) -> None:
    station = replace(station, variables={})
    whole, begun = export(SIMPLE), unfinished(export(SIMPLE))
    with worker(station), hook(station) as process:
        process.store.put(begun)
        process.say("open", session=whole["root"])
        process.say("snapshot", **said_before(begun))
        wait_until(lambda: is_owed(station, whole["root"]))  # its turn goes on
        process.store.put(whole)
        process.say("snapshot", **said_before(whole))
        wait_until(lambda: station.delivered(2))
        # What was too large for that plugin is not for the store.
        process.say("refused", session=process.store.put(export("b_tools")), reason="too large")
        wait_until(lambda: station.delivered(4))
        assert process.end() == 0
    assert station.delivered(4)
    assert {row.sends for row in receiver.rows()} == {1}
    assert not any("as the old plugin has it" in text for text in texts(receiver))
    assert any(whole["sessions"][0]["messages"][-1]["parts"][1]["text"] in text for text in texts(receiver))


def test_a_hook_that_takes_over_from_the_first_protocols_loses_nothing_that_was_left_to_it(
    station: Station, receiver: Receiver
) -> None:
    """As that one handed over: a pipe with the lines of its sessions, unfinished snapshots and what waited unread."""
    station = replace(station, variables={})
    begun, unread = unfinished(export(SIMPLE)), export("b_tools")
    put(store_file(station.environ), begun, unread)
    head = {"v": 1, "directory": PROJECT, "options": {}}
    left = [
        {**head, "type": "open", "session": begun["root"], "spool": None},
        {**head, "type": "snapshot", **said_before(begun)},
        {**head, "type": "deleted", "session": "ses_gone"},
        {**head, "type": "snapshot", **said_before(unread)},
    ]
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        pipe.writelines(json.dumps(line) + "\n" for line in left)
    with worker(station), hook(station, arguments=("--inbox", str(reader)), pass_fds=[reader]) as process:
        os.close(reader)
        wait_until(lambda: station.delivered(2) and is_owed(station, begun["root"]))
        process.store.put(export(SIMPLE))
        process.say("snapshot", **said_before(export(SIMPLE)))
        wait_until(lambda: station.delivered(4))
        assert process.end() == 0
    assert {row.sends for row in receiver.rows()} == {1}
    assert not any("as the old plugin has it" in text for text in texts(receiver))


def test_a_notice_that_nobody_acknowledged_is_said_to_the_next_hook_and_done_once(
    station: Station, receiver: Receiver
) -> None:
    station = replace(station, variables={})
    with worker(station):
        with hook(station) as process:
            process.show(export(SIMPLE))
            process.wait_for_ack()
            process.process.send_signal(signal.SIGSTOP)
            process.show(export("b_tools"))
            process.process.kill()
        with hook(station) as process:
            for name in (SIMPLE, "b_tools"):  # what its OpenCode owns
                process.notice(export(name)["root"])
            process.wait_for_ack()
            wait_until(lambda: station.delivered(4))
            assert process.end() == 0
    assert station.delivered(4)
    assert {row.sends for row in receiver.rows()} == {1}


# --- what is loaded

RUN = """
import os, sys
sys.argv = ["app", "hook"]
import app.capture.daemon, app.capture.handler, app.worker
from app.settings.lookup import unattended
before = set(sys.modules)
app.capture.daemon.main()
worker = app.worker.Worker(unattended(os.environ))
worker.run_until(lambda: not worker.db.execute("select 1 from job where state = 'pending'").fetchone())
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - sys.stdlib_module_names))
"""


def test_what_a_hook_and_a_worker_need_is_loaded_when_they_start(station: Station) -> None:
    """So that files which an installer exchanges under them are none of theirs.

    `app.capture.handler` is what a hook loads with its first line, if the installation is still the one that it was
    started from.
    """
    external = {"OPENCODE_HELICONE_WORKER": "external", "OPENCODE_HELICONE_REDACT_PATTERNS": r'["a\\d"]'}
    station = replace(station, variables=external)
    told = {"v": 2, "type": "notice", "why": "idle", "directory": PROJECT, "options": {}}
    snapshots = [export(name) for name in (SIMPLE, "b_tools", "f_subagent")]
    put(store_file(station.environ), *snapshots)
    lines = [{**told, "n": number, "session": one["root"]} for number, one in enumerate(snapshots, 1)]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env=station.environ,
        input="\n".join(map(json.dumps, [*lines, {}])),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert set(states(station)) == {"delivered"}
