"""Two OpenCodes that start in the same instant lock each other out; does reading the store make it worse?

    python -m tests.stress.pairs [pairs]

OpenCode sets its journal mode before its busy timeout (1.18.33), so that one of two starts may end with `database is
locked` whoever reads. To see enough of them, its own program is run as the Bun that it is built of, and opens a small
database with OpenCode's own statements, ten times as fast as OpenCode starts: by twos and one at a time, with nobody
reading, and with two readers in a tight loop, who open it for each question or keep it open. Exits with 1 where a
single start failed, or where more pairs failed than with nobody reading by more than chance gives. `READ_WITH` as in
`tests.stress.starts`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.synchronize import Event
from pathlib import Path

from tests.stress.starts import sqlite3  # it says which SQLite the next ones read with

# isort: split
from app.sources.opencode.access import Access, StoreError
from tests.support.opencode import install_opencode

PAIRS = 300
READERS = 2
NOBODY, OPENING, KEEPING = "nobody reads", "two open it for each question", "two keep it open"
DEVIATIONS_MAX = 3
"""By how many standard deviations the share of failures may exceed the one with nobody reading."""
START = """
import {Database} from "bun:sqlite";
const db = new Database(process.argv[2], {create: true});
db.run("PRAGMA journal_mode = WAL");
db.run("PRAGMA synchronous = NORMAL");
db.run("PRAGMA busy_timeout = 5000");
db.run("PRAGMA cache_size = -64000");
db.run("PRAGMA foreign_keys = ON");
db.run("PRAGMA wal_checkpoint(PASSIVE)");
db.run("create table if not exists t (bytes blob)");
for (let i = 0; i < 20; i++) db.run("insert into t values (randomblob(20000))");
db.close();
"""


def read(path: Path, who: str, ended: Event, asked: multiprocessing.Queue[int]) -> None:
    """Until the end; how often something was asked."""
    count = 0
    store = Access(path)
    with store.kept_open() if who == KEEPING else nullcontext():
        while not ended.is_set():
            with suppress(StoreError):
                store.ask(lambda db: db.execute("select max(rowid) from t").fetchall())
                count += 1
    asked.put(count)


@contextmanager
def reading(path: Path, who: str) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    ended, asked = context.Event(), context.Queue()
    readers = 0 if who == NOBODY else READERS
    processes = [context.Process(target=read, args=(path, who, ended, asked)) for _ in range(readers)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        ended.set()
        questions = sum(asked.get(timeout=60) for _ in processes)
        assert bool(questions) == bool(readers), "the readers read nothing"


def failed(bun: Path, at_a_time: int, starts: int, who: str) -> tuple[int, int]:
    """How many starts said that the database is locked, and the largest write-ahead log in bytes.

    Raises AssertionError where one failed otherwise.
    """
    count = log_bytes = 0
    with tempfile.TemporaryDirectory() as folder:
        path, script = Path(folder) / "opencode.db", Path(folder) / "start.js"
        script.write_text(START)
        environ = {**os.environ, "BUN_BE_BUN": "1"}
        command = [str(bun), "run", str(script), str(path)]
        with reading(path, who):
            for _ in range(starts // at_a_time):
                running = [
                    subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                    for _ in range(at_a_time)
                ]
                for process in running:
                    said = process.communicate(timeout=60)[0]
                    assert process.returncode == 0 or "is locked" in said, said
                    count += process.returncode != 0
                with suppress(OSError):
                    log_bytes = max(log_bytes, path.with_name(f"{path.name}-wal").stat().st_size)
    return count, log_bytes


def more_than_chance(read: int, alone: int, starts: int) -> bool:
    """Whether a share exceeds another by more than the two samples differ by chance."""
    share = (read + alone) / (2 * starts)
    return read - alone > DEVIATIONS_MAX * math.sqrt(2 * starts * share * (1 - share))


def main() -> int:
    starts = 2 * (int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS)
    bun = install_opencode().resolve()
    print(f"{starts} starts each; SQLite {sqlite3.sqlite_version} reads")
    wrong = alone = 0
    for at_a_time in (2, 1):
        for who in (NOBODY, OPENING, KEEPING):
            count, log_bytes = failed(bun, at_a_time, starts, who)
            print(f"{at_a_time} at a time, {who}: {count} told `database is locked`; log {log_bytes >> 10} KiB at most")
            alone = count if who == NOBODY else alone
            wrong += count > 0 if at_a_time == 1 else more_than_chance(count, alone, starts)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
