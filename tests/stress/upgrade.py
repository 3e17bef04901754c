"""The program of an earlier commit is replaced by today's while its hook and its worker run, in the middle of a turn.

    python -m tests.stress.upgrade [REVISION]

Both are wheels, installed with pip into one environment, one over the other. What was delivered before, what was unread
and the turn that went on meanwhile have to arrive, each record once. Exits with 1 where they do not.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.support.checkout import ROOT
from tests.support.processes import Station, hook, procfile_command
from tests.support.recorded import export
from tests.support.servers import Receiver, receiving
from tests.support.waiting import wait_until
from tests.system.wheel import build, install

BEFORE = "4d13a2b"
"""The last commit before the modules moved into packages."""
BETWEEN = ("c_second_prompt", "f_subagent", "d_error_400")


@contextmanager
def checked_out(revision: str, folder: Path) -> Iterator[Path]:
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


@contextmanager
def consumer(programs: Path, station: Station) -> Iterator[None]:
    program, *arguments = procfile_command()
    with (station.home / "consumer.log").open("ab") as output:
        command = [str(programs / Path(program).name), *arguments]
        process = subprocess.Popen(command, env=station.environ, cwd=station.home, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(300)


def half(name: str) -> dict[str, Any]:
    """The recording before its last answer has ended."""
    snapshot = export(name)
    told = snapshot["sessions"][0]["messages"][-1]["info"]
    del told["time"]["completed"]
    told.pop("finish", None)
    return snapshot


def settled(station: Station) -> bool:
    """Read as it is: opened by today's program, the ledger would be today's before its worker is."""
    path = station.spool / "ledger.db"
    if not path.exists():
        return False
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as db:
        try:
            states = {row[0] for row in db.execute("select distinct state from job")}
        except sqlite3.OperationalError:  # its tables are not made yet
            return False
    return "delivered" in states and "pending" not in states


def play(programs: Path, wheel: Path, station: Station, receiver: Receiver) -> list[str]:
    """What went wrong."""
    with consumer(programs, station), hook(station, str(programs / "python")) as opencode:
        opencode.show(export("b_tools"))
        wait_until(lambda: settled(station))
        opencode.show(half("a_simple"))
        over = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--force-reinstall", "--no-deps"]
        subprocess.run([programs / "python", *over, wheel], check=True)
        for name in BETWEEN:
            opencode.show(export(name))
        wait_until(lambda: "makes way" in station.text("hook.log") and "takes over" in station.text("worker.log"))
        opencode.show(export("a_simple"))
        opencode.wait_for_ack()
        opencode.end()
        wait_until(lambda: settled(station))
    stored = {row.log.request_id for row in receiver.rows()}
    sent = Counter(send.request_id for send in receiver.sends())
    counts = station.counts()
    print(f"{counts.delivered} jobs delivered, {len(stored)} records stored, {sum(sent.values())} sent")
    roots = {export(name)["root"] for name in ("a_simple", "b_tools", *BETWEEN)}
    with station.ledger() as db:
        told = {row[0] for row in db.execute("select s.name from job j join session s on s.id = j.session_id")}
    wrong = [f"session {root} has no job" for root in sorted(roots - told)]
    wrong += [f"record {name} was sent {times} times" for name, times in sent.items() if times > 1]
    if counts.dead or counts.dropped:
        wrong.append(f"{counts.dead} jobs are dead, {counts.dropped} dropped")
    return wrong


def main() -> int:
    revision = sys.argv[1] if len(sys.argv) > 1 else BEFORE
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-upgrade-") as name:
        folder = Path(name)
        with checked_out(revision, folder / "before") as source:
            programs = install(build(folder / "old", source), folder)
        wheel = build(folder / "new")
        home = folder / "home"
        home.mkdir()
        with receiving(folder / "receiver" / "store.db") as receiver:
            wrong = play(programs, wheel, Station(home, receiver.url), receiver)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
