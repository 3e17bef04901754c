"""Long use: a queue and a store of OpenCode as months or years of work leave them. Made by SQL, and made up.

One session a day, of much the same number of turns, whatever there are in all: so a page that shows a week shows as
much.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.capture.targets import target
from app.database.connection import transaction
from app.database.open import open_ledger
from app.exporters.helicone.records import REQUEST_IDS
from app.settings.lookup import Sources
from tests.support.stores import TABLES

ENDPOINT = "https://helicone.example.invalid"
DAY_MS, TURN_MS = 24 * 3_600_000, 9 * 60_000
PENDING, RETRYING = 12, 4
"""Of the latest turns."""
LATELY = 1_000
"""Of these latest turns all that failed is still there; of what failed before, somebody has cleared most."""
ONE_DEAD_IN, ONE_DROPPED_IN, ONE_LEFT_IN = 40, 41, 10
ERRORS = ("400: Payload too large", "after 8 retries: 500", "not stored", "worker died")
TITLES = (
    "Rounding of invoice totals",
    "Flaky test of the importer",
    "Rename the settings module",
    "Why is the cache cold after a deploy?",
    "Dark mode for the report",
    "Upgrade to the new client",
    "Search that ignores accents",
    "Race between two uploads",
)
PROJECTS = ("shop", "importer", "reports", "search")
MODELS = (("anthropic", "claude-sonnet-4-5"), ("openai", "gpt-5"), ("anthropic", "claude-haiku-4-5"))


@dataclass(frozen=True, slots=True)
class LongUse:
    home: Path
    now_ms: int
    sessions: int = 30
    turns: int = 33
    """Of the longest sessions; there are some of half as many."""

    @property
    def environ(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "HELICONE_API_KEY": "key",
            "HELICONE_ENDPOINT": ENDPOINT,
            "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(self.spool),
            "OPENCODE_DB": str(self.store),
        }

    @property
    def spool(self) -> Path:
        return self.home / "spool"

    @property
    def store(self) -> Path:
        return self.home / "opencode.db"

    @property
    def sources(self) -> Sources:
        return Sources(self.environ, self.home, self.home / "own", system=self.home / "no system file")

    @property
    def latest(self) -> str:
        """The session that was worked at last."""
        return _session(self.sessions - 1)

    def turns_of(self, at: int) -> int:
        """Of one session."""
        return self.turns - at * 7 % 11 * self.turns // 20

    def began_ms(self, at: int) -> int:
        return self.now_ms - (self.sessions - 1 - at) * DAY_MS - self.turns_of(at) * TURN_MS

    def make(self) -> LongUse:
        self._make_store()
        with closing(open_ledger(self.spool)) as db:
            db.execute("pragma synchronous = off")
            destination = target(db, self.sources.load(), self.began_ms(0)).id
            with transaction(db):
                self._make_jobs(db, destination)
        return self

    # --- OpenCode's

    def _make_store(self) -> None:
        with closing(sqlite3.connect(self.store)) as db, db:
            db.executescript(TABLES)
            db.execute(
                "insert into project (id, worktree, time_created, time_updated, sandboxes)"
                " values ('project', '/', 0, 0, '')"
            )
            db.executemany(
                "insert into session (id, project_id, slug, directory, title, version, time_created, time_updated)"
                " values (?, 'project', '', ?, ?, '1.18.33', ?, ?)",
                [
                    (
                        _session(at),
                        f"/home/dev/{PROJECTS[at % len(PROJECTS)]}",
                        TITLES[at % len(TITLES)],
                        self.began_ms(at),
                        self.began_ms(at) + self.turns_of(at) * TURN_MS,
                    )
                    for at in range(self.sessions)
                ],
            )
            db.executemany("insert into message values (?, ?, ?, ?, ?)", self._messages())
            db.executemany("insert into part values (?, ?, ?, ?, ?, ?)", self._parts())

    def _turns(self) -> Iterator[tuple[int, int, int]]:
        """(number, session, begin) of each."""
        for at in range(self.sessions):
            for turn in range(self.turns_of(at)):
                yield at * self.turns + turn, at, self.began_ms(at) + turn * TURN_MS

    def _messages(self) -> Iterator[tuple[object, ...]]:
        for number, at, ms in self._turns():
            provider, model = MODELS[number % 7 % len(MODELS)]
            told: dict[str, Any] = {"role": "user", "agent": "build", "time": {"created": ms}}
            yield f"msg_{number:07}a", _session(at), ms, ms, json.dumps(told)
            for letter, begin_ms, end_ms in (
                ("b", ms + 400, ms + 14_000),
                ("c", ms + 14_100, ms + 21_000 + number % 9_000),
            ):
                told = {
                    "role": "assistant", "parentID": f"msg_{number:07}a", "agent": "build", "mode": "build",
                    "providerID": provider, "modelID": model,
                    "cost": (0.004 + number % 11 / 1000) * (1 + at * 5 % 7 / 4),
                    "tokens": {"input": 900 + number % 700 + at * 5 % 7 * 300, "output": 180 + number % 90,
                               "reasoning": 0, "cache": {"read": 11_000, "write": 300}},
                    "finish": "stop" if letter == "c" else "tool-calls",
                    "time": {"created": begin_ms, "completed": end_ms},
                }  # fmt: skip
                yield f"msg_{number:07}{letter}", _session(at), begin_ms, end_ms, json.dumps(told)

    def _parts(self) -> Iterator[tuple[object, ...]]:
        for number, at, ms in self._turns():
            for part, message, told in _parts_of(number, ms):
                yield part, message, _session(at), ms, ms, json.dumps(told)

    # --- ours

    def _make_jobs(self, db: sqlite3.Connection, destination: int) -> None:
        count = (self.sessions - 1) * self.turns + self.turns_of(self.sessions - 1)
        db.execute("insert into policy (id, facts) values (1, '')")
        db.executemany(
            "insert into session (id, destination_id, name, root_name, user_id, folder, encoding)"
            " values (?, ?, ?, ?, '', '', 2)",
            ((at + 1, destination, _session(at), _session(at)) for at in range(self.sessions)),
        )
        db.executemany(
            "insert into turn (id, session_id, name) values (?, ?, ?)",
            ((number + 1, at + 1, f"msg_{number:07}a") for number, at, _ in self._turns()),
        )
        db.executemany(
            "insert into job (id, destination_id, session_id, turn_id, policy_id, key, state, drop_reason, facts_ms,"
            " enqueued_ms, due_ms, finished_ms, attempt, setbacks, failures, attempted_ms, error, confirmed_ms,"
            " known_marks, record_count, body_bytes, record_bytes, redactions)"
            " values (?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '', 5, ?, 21000, ?)",
            (self._job(number, at, ms, count, destination) for number, at, ms in self._turns()),
        )
        waiting = db.execute("select id, session_id, state from job where state in ('pending', 'dead')").fetchall()
        db.executemany(
            "insert into record (job_id, position, request_id, digest, body_bytes)"
            " values (?, ?, ?, zeroblob(16), 4200)",
            (
                (row["id"], position, request_id)
                for row in waiting
                for position, request_id in enumerate(_request_ids(row["id"] - 1, row["session_id"] - 1))
            ),
        )
        db.execute(
            "insert into bundle (job_id, bodies) select id, zeroblob(600) from job where state in ('pending', 'dead')"
        )
        db.execute(
            "insert into attempt (job_id, number, started_ms, ended_ms, status, error)"
            " select id, n, attempted_ms - (attempt - n) * 40000, attempted_ms - (attempt - n) * 40000 + 800 + n, 500,"
            " error from job, (select 1 as n union select 2 union select 3) where error is not null and n <= attempt"
        )
        db.execute(
            "insert into acknowledgement (turn_id, request_id, digest, acknowledged_ms) select turn_id, randomblob(16),"
            " randomblob(16), finished_ms from job, (select 1 union select 2) where state = 'delivered'"
        )
        for kind, name, number in (("delivered", "", "count(*)"), ("redacted", "assignment", "sum(redactions)")):
            db.execute(
                "insert into counter (day, kind, name, count)"  # noqa: S608 - from above
                f" select date(finished_ms / 1000, 'unixepoch', 'localtime'), ?, ?, {number} from job"
                " where state = 'delivered' group by 1",
                (kind, name),
            )
        db.execute(
            "insert into counter (day, kind, name, count) select date(finished_ms / 1000, 'unixepoch', 'localtime'),"
            " 'failed', '500', 3 * count(*) from job where state = 'dead' group by 1"
        )
        db.execute("update destination set passes = ?, route = endpoint where id = ?", (count, destination))

    def _job(self, number: int, at: int, ms: int, count: int, destination: int) -> tuple[object, ...]:
        queued_ms, left = ms + 30_000, count - number
        state, reason, error = "delivered", None, None
        if left <= PENDING:
            state, error = "pending", "503: no healthy upstream" if left <= RETRYING else None
        elif left > LATELY and number // ONE_DEAD_IN % ONE_LEFT_IN:
            pass
        elif number % ONE_DEAD_IN in (0, 7):
            state, error = "dead", ERRORS[number // ONE_DEAD_IN % len(ERRORS)]
        elif number % ONE_DROPPED_IN == 9:
            state, reason = "dropped", "age"
        is_tried = error is not None
        return (
            number + 1, destination, at + 1, number + 1, f"{uuid.uuid5(uuid.NAMESPACE_OID, str(number)).hex:0<64}",
            state, reason, ms, queued_ms,
            (self.now_ms + 60_000 * left if error else queued_ms) if state == "pending" else None,
            None if state == "pending" else queued_ms + 2_000, 3 if is_tried else int(state == "delivered"),
            3 * is_tried, 3 * is_tried, queued_ms + 1_500 if state != "pending" or error else None, error,
            queued_ms + 60_000 if state == "delivered" else None,
            600 if state in ("pending", "dead") else 0, number % 13 // 10,
        )  # fmt: skip


def _session(at: int) -> str:
    return f"ses_{at:06}"


def _parts_of(number: int, ms: int) -> list[tuple[str, str, dict[str, Any]]]:
    """(part, message, what it says)."""

    def tool(name: str, begin_ms: int, end_ms: int, status: str) -> dict[str, Any]:
        state = {"status": status, "input": {}, "time": {"start": begin_ms, "end": end_ms}}
        told = {"error": "exit 1"} if status == "error" else {"output": "done", "title": name, "metadata": {}}
        return {"type": "tool", "callID": f"call_{number}{name}", "tool": name, "state": {**state, **told}}

    status = "error" if number % 17 == 3 else "completed"
    return [
        (f"prt_{number:07}a", f"msg_{number:07}a", {"type": "text", "text": "Mend it, please."}),
        (f"prt_{number:07}b", f"msg_{number:07}b", tool("read", ms + 3_000, ms + 3_400, "completed")),
        (f"prt_{number:07}c", f"msg_{number:07}b", tool("bash", ms + 4_000, ms + 11_000 + number % 3_000, status)),
        (f"prt_{number:07}d", f"msg_{number:07}c", {"type": "text", "text": "It is done."}),
    ]


def _request_ids(number: int, at: int) -> Iterator[bytes]:
    """Of a turn's records, as they are exported."""
    session = _session(at)
    for message, leaf in (("a", "user"), ("b", "assistant"), ("b", "b"), ("b", "c"), ("c", "assistant")):
        name = leaf if len(leaf) > 1 else f"prt_{number:07}{leaf}"
        yield uuid.uuid5(REQUEST_IDS, f"{session}/msg_{number:07}{message}/{name}").bytes
