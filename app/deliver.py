"""Out: a claimed job's records are posted, acknowledged one by one, and the job is finished.

claim ─▶ post ─▶ acknowledge ─▶ post … ─▶ complete
           │
           ├─ retry      ─▶ due later, charged; dead when its retries are used up
           ├─ wait       ─▶ due at once, uncharged; the destination pauses
           ├─ refused    ─▶ the same: it is the destination's fault, not the job's
           └─ permanent  ─▶ dead
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace

from app import crashpoint, destination, ledger
from app.ledger import Body, Claim, LedgerError
from app.retry import Outcome, Policy, delay_ms

LEASE_MS = 60_000
"""Renewed by each acknowledgement; one POST takes 30 s at the most."""
PAUSE_MS_MAX = 5 * 60_000


@dataclass(frozen=True, slots=True)
class Courier:
    """Who delivers, to where, and by which means."""

    destination_id: int
    worker: str
    policy: Policy
    post: Callable[[Body], Outcome]
    clock: Callable[[], int]
    """Milliseconds UTC."""
    dice: Callable[[], float]
    """From 0 up to 1."""
    stopping: Callable[[], bool]
    """True when the worker was told to end: what is in flight is finished, nothing new is begun."""


def deliver(db: sqlite3.Connection, key: str, courier: Courier) -> str | None:
    """Deliver the oldest due job of the session that `key` belongs to; the key to ring next, or None.

    A ring for something that is delivered, leased or not due does nothing.
    Raises sqlite3.Error; the lease then runs out and the job is found again.
    """
    if courier.stopping():
        return None
    held = ledger.claim(
        db, courier.destination_id, key, worker=courier.worker, now_ms=courier.clock(), lease_ms=LEASE_MS
    )
    if held is None:
        return None
    crashpoint.reach("claim.committed")
    if not _carry(db, held, courier) and held.paused:
        # The probe found nothing to post: the next job may ask in its place.
        destination.probe_now(db, courier.destination_id, courier.clock())
    return ledger.next_of_session(db, courier.destination_id, held.session, courier.clock())


def _carry(db: sqlite3.Connection, held: Claim, courier: Courier) -> bool:
    """Post what is not acknowledged and finish the job; whether the destination was asked at all."""
    asked = False
    try:
        for body in ledger.unacknowledged(db, held):
            if courier.stopping():
                ledger.give_back(db, held, due_ms=courier.clock())
                return asked
            if not ledger.is_current(db, held):
                break
            crashpoint.reach("post.sending", str(body.request_id))
            outcome = courier.post(body)
            crashpoint.reach("post.answered", str(body.request_id))
            asked = True
            if outcome.kind != "accepted":
                _settle(db, held, outcome, courier)
                return asked
            if held.paused:
                _resume(db, courier)
            # It got through: whatever fails from here on is a first failure, of the job and of the destination.
            held = replace(held, failures=0, paused=False, pause_count=0)
            if not ledger.acknowledge(db, held, body, now_ms=courier.clock(), lease_ms=LEASE_MS):
                break
    except LedgerError as error:
        ledger.bury(db, held, courier.clock(), str(error))
        return asked
    if not ledger.complete(db, held, courier.clock()) and not ledger.abandon(db, held):
        # Still ours, but an older attempt's late answer took a record's place: that one must be posted again.
        ledger.give_back(db, held, due_ms=courier.clock())
    return asked


def _resume(db: sqlite3.Connection, courier: Courier) -> None:
    """paused -> fine. Rings that were answered during the pause brought no claim: the watch shall ring anew."""
    if destination.resume(db, courier.destination_id):
        ledger.forget_rings(db, courier.destination_id)


def _settle(db: sqlite3.Connection, held: Claim, outcome: Outcome, courier: Courier) -> None:
    now_ms = courier.clock()
    policy = courier.policy
    match outcome.kind:
        case "permanent":
            settled = ledger.bury(db, held, now_ms, outcome.reason)
        case "retry" if held.failures >= policy.max_retries:
            settled = ledger.bury(db, held, now_ms, f"{outcome.reason} (after {policy.max_retries} retries)")
        case "retry":
            backoff_ms = delay_ms(held.failures + 1, base_ms=policy.base_ms, cap_ms=policy.cap_ms, dice=courier.dice())
            due_ms = now_ms + max(backoff_ms, outcome.retry_after_ms or 0)
            settled = ledger.retry(db, held, due_ms=due_ms, error=outcome.reason)
        case _:
            count = held.pause_count + 1
            backoff_ms = delay_ms(count, base_ms=policy.base_ms, cap_ms=PAUSE_MS_MAX, dice=courier.dice())
            destination.pause(
                db,
                courier.destination_id,
                reason=outcome.reason,
                count=count,
                probe_ms=now_ms + max(backoff_ms, outcome.retry_after_ms or 0),
                now_ms=now_ms,
            )
            settled = ledger.give_back(db, held, due_ms=now_ms, error=outcome.reason)
    if outcome.kind in {"retry", "permanent"} and held.paused:
        # It answered, about this job: the destination itself is there again.
        _resume(db, courier)
    if not settled:
        ledger.abandon(db, held)
