"""From a notice to the committed job of a turn of 10 kB, against a raw insert of as many bytes; and what a turn writes.

A hook in this process, with a session that grows by a turn each time: its line is taken, OpenCode's store is read, the
turn redacted, encoded and committed, the notice settled. Beside it a table of one column in a database of its own, with
the same pragmas: one insert, one commit. Both are counted from call to return.
"""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from app.capture.handler import Hook
from app.capture.messages import Line
from app.database.connection import connect
from app.privacy.redact import Redaction
from app.runtime import clock
from app.settings.lookup import Sources
from app.sources.opencode.store import store_file
from benchmarks.table import Row
from tests.support import snapshots
from tests.support.stores import WrittenStore

TURN_BYTES = 10_000
GOAL = 4.0
WORDS = ("the", "parser", "reads", "a", "line", "of", "some", "file", "and", "returns", "what", "it", "has", "found")
SESSION = "ses_measured0000"


class Person:
    """Writes turns into OpenCode's store, and has a hook in this process."""

    def __init__(self, home: Path) -> None:
        environ = {
            "HOME": str(home),
            "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(home / "spool"),
            "OPENCODE_HELICONE_WORKER": "external",
        }
        sources = Sources(environ, home, home / "config")
        self.line = Line("notice", str(home), {}, SESSION, "idle", 1)
        self.store = WrittenStore(store_file(environ))
        self.hook = Hook(sources, self.line, sources.load(str(home)))
        self._dice = random.Random(13)  # noqa: S311 - words, no secrets
        self._turns = 0

    def finish_turn(self) -> None:
        """One more turn of about TURN_BYTES: a prompt, a tool's output and an answer."""
        self._turns += 1
        at_ms = clock.now_ms() - 1_000
        name = f"{self._turns:08d}"
        output = " ".join(self._dice.choices(WORDS, k=TURN_BYTES // 6))
        call = snapshots.tool(f"prt_{name}b", output=output, time={"start": at_ms + 20, "end": at_ms + 30})
        answer = snapshots.assistant(
            f"msg_{name}b", at_ms + 10, call, snapshots.text("done", f"prt_{name}c"), parent=f"msg_{name}a"
        )
        asked = snapshots.user(f"msg_{name}a", at_ms, snapshots.text(f"prompt {name}", f"prt_{name}a"))
        times = {"created": at_ms, "updated": at_ms}
        shown = snapshots.entry(asked, answer, id=SESSION, directory=self.line.directory, time=times)
        self.store.put(snapshots.snapshot(shown))

    def notice(self) -> None:
        """As `daemon` does it with a line when no other one waits."""
        self.hook.take(self.line)
        while self.hook.acknowledged is not None:
            self.hook.catch_up()

    @property
    def jobs(self) -> int:
        return int(self.hook.opened.db.execute("select count(*) from job").fetchone()[0])


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as benchmarks/table.py says
    turns = 3 if short else 60
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        person = Person(home)
        path = home / "raw.db"
        with closing(sqlite3.connect(path)) as making:
            making.execute("pragma journal_mode = wal")
            making.execute("create table message (id integer primary key, body blob not null)")
        taken: dict[str, list[float]] = defaultdict(list)
        wal = home / "spool" / "ledger.db-wal"
        with closing(connect(path)) as raw:
            raw.execute("pragma wal_autocheckpoint = 1000")
            for number in range(turns + 3):
                person.finish_turn()
                before, wal_bytes = person.jobs, wal.stat().st_size
                began = time.process_time(), time.perf_counter()
                person.notice()
                ours = time.process_time() - began[0], time.perf_counter() - began[1]
                assert person.jobs > before
                body = os.urandom(TURN_BYTES // 2).hex().encode()
                began = time.process_time(), time.perf_counter()
                raw.execute("insert into message (body) values (?)", (body,))
                floor = time.process_time() - began[0], time.perf_counter() - began[1]
                if number < 3:
                    continue  # caches, and the compilation of the rules
                for name, mine, least in zip(("cpu", "wall"), ours, floor, strict=True):
                    taken[name].append(mine / least)
                    taken[f"{name} ms"].append(mine * 1000)
                taken["kB"].append((wal.stat().st_size - wal_bytes) / 1000)
        taken["redaction ms"] = list(_redaction_ms(turns))
        person.hook.close()
    note = ", ".join(f"{name} {sorted(taken[name])[len(taken[name]) // 2]:.2f}" for name in taken if " " in name)
    yield Row(
        "notice to committed job, 10 kB turn: processor time", "raw sqlite3 insert", taken["cpu"], GOAL, note=note
    )
    yield Row("the same: wall time", "raw sqlite3 insert", taken["wall"], GOAL)
    grown = [kb for kb in taken["kB"] if kb > 0]
    if grown:
        yield Row("log written by a turn of 10 kB", "in kB", grown, None)


def _redaction_ms(turns: int) -> Iterator[float]:
    """Of the tool's output alone, which is searched for secrets once."""
    redaction, dice = Redaction.compile(()), random.Random(14)  # noqa: S311 - words, no secrets
    for number in range(turns + 3):
        text = " ".join(dice.choices(WORDS, k=TURN_BYTES // 6))
        began_s = time.process_time()
        redaction.text(text)
        if number >= 3:
            yield (time.process_time() - began_s) * 1000
