"""The real OpenCode starts, works and is killed by the hundred while its store is read all the time.

    python -m tests.stress.starts [starts] [VERSION]

Two readers ask in a tight loop what a hook asks: root, outline, turns, changes. None of the starts may fail, none may
say that its database is locked, and the write-ahead log may grow to twice of what it is without readers. Each tenth
start is killed in mid-turn. Exits with 1 where that is not so. `AT_A_TIME=2` starts two at once. `READ_WITH=pysqlite3`
has the readers use the SQLite that this wheel brings (`pip install pysqlite3`), not Python's.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Event
from pathlib import Path

python_sqlite = importlib.import_module("sqlite3")
sys.modules["sqlite3"] = sqlite3 = importlib.import_module(os.environ.get("READ_WITH", "sqlite3"))
for name, value in vars(python_sqlite).items():
    if name.startswith("SQLITE_") and not hasattr(sqlite3, name):
        setattr(sqlite3, name, value)  # codes of errors, which pysqlite3 does not name

from app.sources.opencode.access import StoreError  # noqa: E402 - after which SQLite it gets
from app.sources.opencode.store import Store  # noqa: E402 - after which SQLite it gets
from tests.support.opencode import VERSION, OpenCode, installed_opencode  # noqa: E402 - the same

STARTS = 200
KILLED_EACH = 10
READERS = 2
AT_A_TIME = int(os.environ.get("AT_A_TIME", "1"))
"""With two, one may lock out the other: OpenCode sets its journal mode before its busy timeout."""
WAL_RATIO_MAX = 2


def read(path: Path, directory: str, ended: Event, asked: multiprocessing.Queue[int]) -> None:
    """Until the end; how often something was asked."""
    count = 0
    store = Store(path)
    while not ended.is_set():
        with suppress(StoreError):  # it may be about to be made
            for session in store.changes(directory):
                root = store.root_of(session)
                outline = None if root is None else store.outline(root)
                if root is not None and outline is not None and outline.turns:
                    store.transcript(root, {outline.turns[-1].turn})
                count += 1
    asked.put(count)


@contextmanager
def reading(path: Path, directory: str) -> Iterator[multiprocessing.Queue[int]]:
    context = multiprocessing.get_context("spawn")
    ended, asked = context.Event(), context.Queue()
    readers = [context.Process(target=read, args=(path, directory, ended, asked)) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    try:
        yield asked
    finally:
        ended.set()
        for reader in readers:
            reader.join(60)


def start(opencode: OpenCode, project: Path, number: int) -> list[str]:
    """Some at a time; what any of them said of a lock, or how it failed."""
    script = "slow:200" if number % KILLED_EACH == 0 else "hello"
    running = [opencode.start(project, "run", f"[[script:{script}]] {number}") for _ in range(AT_A_TIME)]
    if script != "hello":
        time.sleep(4)
        for process in running:
            process.kill()
    said = []
    for process in running:
        output, errors = process.communicate(timeout=120)
        if "is locked" in output + errors or (script == "hello" and process.returncode != 0):
            said.append(f"start {number}: exit code {process.returncode}: {errors.strip()[-200:]}")
    return said


def play(opencode: OpenCode, project: Path, starts: int) -> tuple[list[str], int]:
    """What went wrong, and the largest write-ahead log that was seen in bytes."""
    log = opencode.home / ".local" / "share" / "opencode" / "opencode.db-wal"
    wrong, largest = [], 0
    for number in range(1, starts // AT_A_TIME + 1):
        wrong += start(opencode, project, number)
        with suppress(OSError):
            largest = max(largest, log.stat().st_size)
        if number % 10 == 0:
            print(f"  {number * AT_A_TIME} starts, {len(wrong)} failed, log {largest >> 10} KiB", flush=True)
    return wrong, largest


def main() -> int:
    starts = int(sys.argv[1]) if len(sys.argv) > 1 else STARTS
    version = sys.argv[2] if len(sys.argv) > 2 else VERSION
    print(f"OpenCode {version}, SQLite {sqlite3.sqlite_version} reads")
    with tempfile.TemporaryDirectory() as folder, installed_opencode(Path(folder), version) as opencode:
        project = opencode.project(Path(folder) / "project")
        alone, unread = play(opencode, project, max(starts // 5, AT_A_TIME))
        path = opencode.home / ".local" / "share" / "opencode" / "opencode.db"
        with reading(path, str(project)) as asked:
            wrong, largest = play(opencode, project, starts)
        sessions = sum(asked.get(timeout=60) for _ in range(READERS))
    print(
        f"{starts} starts while {sessions} sessions were read: {len(wrong)} failed ({len(alone)} with nobody reading)"
    )
    print(f"write-ahead log: {largest} bytes at most, {unread} with nobody reading")
    for one in wrong[:5]:
        print(one)
    return 1 if wrong or not sessions or largest > WAL_RATIO_MAX * unread else 0


if __name__ == "__main__":
    sys.exit(main())
