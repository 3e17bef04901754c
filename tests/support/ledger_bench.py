"""A ledger to play with: jobs of a few sessions, with the arguments filled in that a test does not care about."""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import replace
from typing import cast

from app.database.connection import Database
from app.ledger import claims, destinations, flow, maintenance, versions
from app.ledger.decision import LIVE, Decision, Reopen
from app.ledger.job import Accepted, Body, Claim, FailedAttempt, Version

LEASE_MS = 60_000
WORKER = "worker-a"


def without_waiting(db: Database) -> None:
    """Nobody cuts the power here, and what waits for the disk takes most of the time."""
    if isinstance(db, sqlite3.Connection):
        db.execute("pragma synchronous = off")


def key(name: str) -> str:
    return name.encode().hex().rjust(64, "0")


def version(turn: str = "t1", content: str = "a", last_event_ms: int = 100, session: str = "ses_1") -> Version:
    return Version(
        session=session,
        root=session,
        turn=turn,
        key=key(f"{session} {turn} {content}"),
        last_event_ms=last_event_ms,
        user_id="",
        folder="",
        known_marks="",
    )


def bodies(name: str, count: int = 1, text: str = "") -> list[Body]:
    """Records whose ids stay when their text changes, as at Helicone."""
    return [Body(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {n}"), f"{name} {n} {text}".encode()) for n in range(count)]


def accepted(db: Database, claimed: Claim, body: Body, now_ms: int) -> Accepted:
    """As of a POST that was answered at once."""
    before = claims.acknowledged(db, claimed).get(body.request_id)
    return Accepted(body.request_id, body.digest, now_ms, before)


class LedgerBench:
    """The ledger of one destination, at a time that stands still."""

    def __init__(self, db: Database) -> None:
        self.db = cast("sqlite3.Connection", db)  # or with `--postgres` what does the same
        self.destination = destinations.destination(db, "https://example.invalid", "fingerprint", 0).id
        self.now_ms = 1_000

    def put(
        self,
        wanted: Version,
        records: int = 1,
        *,
        text: str | None = None,
        reopen: Reopen = LIVE,
        off: bool = False,
    ) -> Decision:
        made = bodies(f"{wanted.session} {wanted.turn}", records, wanted.key if text is None else text)
        wanted = replace(wanted, is_off=off)
        return versions.insert(self.db, self.destination, wanted, made, now_ms=self.now_ms, reopen=reopen)

    def claim(self, wanted: Version | None = None, worker: str = WORKER) -> Claim | None:
        return claims.claim(
            self.db,
            self.destination,
            (wanted or version()).key,
            worker=worker,
            now_ms=self.now_ms,
            lease_ms=LEASE_MS,
        )

    def claimed(self, wanted: Version | None = None, worker: str = WORKER) -> Claim:
        claimed = self.claim(wanted, worker)
        assert claimed is not None
        return claimed

    def acknowledge(self, claimed: Claim, body: Body) -> bool:
        taken = accepted(self.db, claimed, body, self.now_ms)
        return claims.acknowledge(self.db, claimed, [taken], now_ms=self.now_ms, lease_ms=LEASE_MS)

    def left(self, claimed: Claim) -> list[Body]:
        return list(claims.unacknowledged(self.db, claimed))

    def complete(self, claimed: Claim) -> bool:
        return claims.complete(self.db, claimed, self.now_ms)

    def retry_later(self, claimed: Claim, *, due_ms: int, error: str = "500", is_charged: bool = True) -> bool:
        failed = FailedAttempt(self.now_ms, error, 500)
        return claims.retry_later(self.db, claimed, failed, delay_ms=due_ms - self.now_ms, is_charged=is_charged)

    def dead_letter(self, claimed: Claim, now_ms: int = 1_000, error: str = "400") -> bool:
        return claims.dead_letter(self.db, claimed, FailedAttempt(now_ms, error, 400))

    def deliver(self, wanted: Version) -> Claim:
        claimed = self.claimed(wanted)
        for body in self.left(claimed):
            assert self.acknowledge(claimed, body)
        assert self.complete(claimed)
        return claimed

    def wake(self, limit: int = 10, woken: tuple[str, ...] = ()) -> list[str]:
        return maintenance.to_wake(self.db, self.destination, self.now_ms, limit, woken)

    def pause(self, probe_ms: int) -> None:
        flow.pause(
            self.db, self.destination, health="down", reason="503", count=1, probe_ms=probe_ms, now_ms=self.now_ms
        )

    def row(self, wanted: Version | None = None) -> sqlite3.Row:
        """Of several destinations' that of this one, unless it has gone to another."""
        found: sqlite3.Row | None = self.db.execute(
            "select * from job where key = ? order by destination_id = ? desc",
            ((wanted or version()).key, self.destination),
        ).fetchone()
        assert found is not None
        return found

    def state(self, wanted: Version | None = None) -> str:
        row = self.row(wanted)
        return f"{row['state']} ({row['drop_reason']})" if row["drop_reason"] else str(row["state"])

    def records(self, wanted: Version | None = None) -> int:
        row = self.db.execute("select count(*) from record where job_id = ?", (self.row(wanted)["id"],)).fetchone()
        return int(row[0])
