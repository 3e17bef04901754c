"""Three years of one person's use, in minutes: how large the spool is at their end.

    python -m tests.stress.years [TURNS]

60,000 turns of 20 records each are captured, claimed, acknowledged and delivered by the real functions of the ledger,
55 a day, with the pruning of a worker once a day; every hundredth turn is dead and stays, every tenth changes once.
"""

from __future__ import annotations

import hashlib
import random
import sqlite3
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from app.database.connection import shrink
from app.database.open import open_ledger
from app.ledger import claims, counts, destinations, pruning, record_identity, versions
from app.ledger.job import Body, FailedAttempt, IdentityFields, Version
from app.settings.model import Settings
from tests.support.ledger_bench import accepted

TURNS = 60_000
RECORDS = 20
TURNS_A_DAY = 55
TOOLS = ("bash", "read", "edit", "grep", "glob", "task")
DAY_MS = 86_400_000
ROOM_BYTES = 64_000_000
"""What may lie in the spool beside `maxSpoolSize`."""


def main(turns: int = TURNS) -> int:
    print(f"SQLite {sqlite3.sqlite_version}")
    with tempfile.TemporaryDirectory() as folder:
        spool = Path(folder)
        with closing(open_ledger(spool)) as db:
            db.execute("pragma synchronous = off")  # nobody cuts the power here
            live(db, turns, lambda turn: print(f"{turn} turns: {size(spool)}", flush=True))
            pages = db.execute("select count(*) from acknowledgement").fetchone()[0]
            identities = db.execute("select total(length(ids)) / 20 from footprint").fetchone()[0]
            print(f"logs that can be overwritten by what the ledger alone knows: {identities:.0f}")
            print(f"acknowledgements kept: {pages}; jobs: {counts.counts(db)}")
        total = sum(path.stat().st_size for path in spool.rglob("*"))
    allowed = Settings().max_spool_bytes + ROOM_BYTES
    print(f"{turns} turns, {turns * RECORDS} records: {total / 1e6:.1f} MB of {allowed / 1e6:.1f} MB allowed")
    return int(total > allowed)


def live(db: sqlite3.Connection, turns: int, tell: Callable[[int], None]) -> None:
    dice = random.Random(1)  # noqa: S311 - the scenario
    settings = Settings()
    ours = destinations.destination(db, "https://example.invalid", "key", 0).id
    for turn in range(turns):
        now_ms = turn * DAY_MS // TURNS_A_DAY
        bodies = [record(dice, turn, n, now_ms) for n in range(RECORDS)]
        deliver(db, ours, version(turn, "a", now_ms), bodies, now_ms, dead=turn % 100 == 0)
        if turn % 10 == 5:
            changed = [*bodies[:-1], record(dice, turn, RECORDS - 1, now_ms)]
            deliver(db, ours, version(turn, "b", now_ms + 1), changed, now_ms + 1, dead=False)
        if turn % TURNS_A_DAY == 0:
            pruning.drop_aged(db, now_ms, settings.max_spool_age_ms)
            pruning.drop_oversize(db, now_ms, settings.max_spool_bytes)
            pruning.forget_acknowledgements(db, now_ms)
            record_identity.forget_record_identities(db)
            shrink(db)
        if turn % (turns // 6) == 0:
            tell(turn)


def record(dice: random.Random, turn: int, number: int, now_ms: int) -> Body:
    """An LLM call or, every other one, a tool call of it."""
    tool = dice.choice(TOOLS) if number % 2 else None
    model = f"tool:{tool}" if tool else "anthropic/claude-sonnet-4-5"
    path = f"/opencode/ses_{turn // 12:028}/msg-{turn % 12 * RECORDS + number}" + (f"/tool-{tool}" if tool else "")
    # Each has a time of its own; it is the same when the turn comes again.
    start_ms = now_ms // 1_000 * 1_000 + number * 7_919 % 60_000
    return Body(
        uuid.uuid5(uuid.NAMESPACE_OID, f"{turn} {number}"),
        dice.randbytes(1_000),
        IdentityFields("CUSTOM", model, start_ms, f"opencode: project-{turn % 7}", path),
    )


def version(turn: int, content: str, last_event_ms: int) -> Version:
    session = f"ses_{turn // 12}"
    key = hashlib.sha256(f"{turn} {content}".encode()).hexdigest()
    return Version(session, session, f"msg_{turn}", key, last_event_ms, "", f"folder {turn % 7}")


def deliver(db: sqlite3.Connection, ours: int, wanted: Version, bodies: list[Body], now_ms: int, *, dead: bool) -> None:
    versions.insert(db, ours, wanted, bodies, now_ms=now_ms)
    claimed = claims.claim(db, ours, wanted.key, worker="worker", now_ms=now_ms, lease_ms=60_000)
    assert claimed is not None
    if dead:
        claims.dead_letter(db, claimed, FailedAttempt(now_ms, "400: error", 400))
        return
    for body in list(claims.unacknowledged(db, claimed)):
        claims.acknowledge(db, claimed, [accepted(db, claimed, body, now_ms)], now_ms=now_ms, lease_ms=60_000)
    claims.complete(db, claimed, now_ms)


def size(spool: Path) -> str:
    return ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(spool.rglob("*.db*")))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
