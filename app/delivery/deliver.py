"""Out: a claimed job's records are posted, acknowledged one by one, and the job is finished.

claim ─▶ post ─▶ acknowledge ─▶ post … ─▶ complete
           │
           └─ not accepted ─▶ health.judge ─▶ bury | set_back | pause and give_back

Before each post the settings in force are asked: they may hold the job, or have it dropped and captured again. A job
that gave up its bodies for want of room has them made again first, and posts them only if they are the same, or are
stricter and none of the job's was posted before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from app.delivery.backoff import Policy
from app.delivery.health import Bury, GiveBack, Pause, SetBack, Situation, judge
from app.exporters.outcome import Outcome
from app.ledger import claims, eviction, flow, maintenance, policy_enforcement
from app.ledger.eviction import Remade
from app.ledger.job import Body, Claim, Failure, LedgerError
from app.privacy.policy import Hold, Permit, Remake
from app.runtime import failpoint

LEASE_MS = 60_000
"""Renewed by each acknowledgement; one POST takes 30 s at the most."""
HOLD_MS = 3_600_000
"""A change of settings ends a hold; this does where the change was missed."""
UNFINISHED_MS = 10_000
"""After so long a job is tried again whose end the ledger could not be told: what it posted may be posted once more."""
OTHER_TEXT = Hold("its text has to be read again by the hook of its project, with the secrets that were redacted")
"""Who redacted it knew other secrets than this process, or it has changed since."""


@dataclass(frozen=True, slots=True)
class Courier:
    """Who delivers, to where, and by which means."""

    destination_id: int
    worker: str
    policy: Policy
    permit: Callable[[Claim], Permit]
    """What the settings in force say to this job, now."""
    post: Callable[[Body], Outcome]
    clock: Callable[[], int]
    """Milliseconds UTC."""
    dice: Callable[[], float]
    """From 0 up to 1."""
    stopping: Callable[[], bool]
    """True when the worker was told to end: what is in flight is finished, nothing new is begun."""
    when_to_confirm: Callable[[], int | None] = lambda: None
    """Asked as a job is delivered: when it is to be read back, None for never."""
    max_retries_of: Callable[[Claim], int | None] = lambda _: None
    """What the job's folder says in place of `policy.max_retries`; None: nothing."""
    rebuild: Callable[[Claim], Remade | Hold | None] = lambda _: OTHER_TEXT
    """All bodies of a job that gave its own up, made again; None: nobody has the turn any more."""
    leave: Callable[[Claim], None] = lambda _: None
    """Told of a job that could not be finished because the ledger is locked, full or out of reach: see `let_go`."""


def deliver(db: sqlite3.Connection, key: str, courier: Courier) -> str | None:
    """Deliver the oldest due job of the session that `key` belongs to; the key to ring next, or None.

    A ring for something that is delivered, leased or not due does nothing.
    Raises sqlite3.Error. A job that was under way is told to `courier.leave`, or its lease runs out.
    """
    if courier.stopping():
        return None
    held = claims.claim(
        db, courier.destination_id, key, worker=courier.worker, now_ms=courier.clock(), lease_ms=LEASE_MS
    )
    if held is None:
        return None
    failpoint.reach("claim.committed")
    try:
        was_asked = _carry(db, held, courier)
    except sqlite3.OperationalError:
        courier.leave(held)
        raise
    if not was_asked and held.is_probe:
        # The probe found nothing to post: the next job may ask in its place.
        flow.probe_now(db, courier.destination_id, courier.clock())
    return maintenance.next_of_session(db, courier.destination_id, held.session, courier.clock())


def let_go(db: sqlite3.Connection, destination_id: int, held: Claim, now_ms: int) -> None:
    """Give a job back that `deliver` could not finish: that its lease still stands is nobody's fault.

    Left to run out, it would count as the work of a thread that hangs, and five of these make a dead letter.
    """
    failure = Failure("the ledger could not be written; see logs/worker.log")
    if not claims.give_back(db, held, due_ms=now_ms + UNFINISHED_MS, failure=failure):
        claims.abandon(db, held)
    if held.is_probe:
        flow.probe_now(db, destination_id, now_ms)


def _carry(db: sqlite3.Connection, held: Claim, courier: Courier) -> bool:
    """Deliver the job, as far as that can be done; whether the destination was asked at all."""
    if not eviction.is_emptied(db, held):
        return _send(db, held, courier, None)
    made = _made_again(db, held, courier)
    return made is not None and _send(db, held, courier, made)


def _send(db: sqlite3.Connection, held: Claim, courier: Courier, made: Sequence[Body] | None) -> bool:
    """Post what is not acknowledged and finish the job; whether the destination was asked at all."""
    asked = False
    try:
        for body in claims.unacknowledged(db, held, made):
            if courier.stopping():
                claims.give_back(db, held, due_ms=courier.clock())
                return asked
            if not claims.is_current(db, held):
                break
            permit = courier.permit(held)
            if isinstance(permit, Hold | Remake):
                _withhold(db, held, permit, courier.clock())
                return asked
            failpoint.reach("post.sending", str(body.request_id))
            outcome = courier.post(body)
            failpoint.reach("post.answered", str(body.request_id))
            asked = True
            if outcome.kind != "accepted":
                _settle(db, held, outcome, courier)
                return asked
            if held.is_probe:
                _resume(db, courier)
            # It got through: whatever fails from here on is a first failure, of the job and of the destination.
            held = replace(held, setbacks=0, failures=0, is_probe=False, is_another=False, pause_count=0)
            if not claims.acknowledge(
                db, courier.destination_id, held, body, now_ms=courier.clock(), lease_ms=LEASE_MS
            ):
                break
    except LedgerError as error:
        claims.bury(db, held, courier.clock(), Failure(str(error)))
        return asked
    done = claims.complete(db, held, courier.clock(), confirm_ms=courier.when_to_confirm())
    if not done and not claims.abandon(db, held):
        # Still ours, but an older attempt's late answer took a record's place: that one must be posted again.
        claims.give_back(db, held, due_ms=courier.clock())
    return asked


def _made_again(db: sqlite3.Connection, held: Claim, courier: Courier) -> Sequence[Body] | None:
    """What the hook had made, or stricter; None when nobody here can make it, and the job is held or dropped."""
    permit = courier.permit(held)
    if isinstance(permit, Hold | Remake):
        _withhold(db, held, permit, courier.clock())
        return None
    made = courier.rebuild(held)
    if made is None:
        if not eviction.drop_gone(db, held, courier.clock()):
            claims.abandon(db, held)
        return None
    if isinstance(made, Hold) or not eviction.take_remade(db, held, made):
        _withhold(db, held, made if isinstance(made, Hold) else OTHER_TEXT, courier.clock())
        return None
    return made.bodies


def _withhold(db: sqlite3.Connection, held: Claim, permit: Hold | Remake, now_ms: int) -> None:
    match permit:
        case Hold(reason):
            withheld = policy_enforcement.hold(db, held, due_ms=now_ms + HOLD_MS, reason=reason)
        case Remake():
            withheld = policy_enforcement.drop_for_policy(db, held, now_ms)
    if not withheld:
        claims.abandon(db, held)


def _resume(db: sqlite3.Connection, courier: Courier) -> None:
    """paused -> fine. Rings that were answered during the pause brought no claim: the watch shall ring anew."""
    if flow.resume(db, courier.destination_id):
        maintenance.forget_rings(db, courier.destination_id)


def _settle(db: sqlite3.Connection, held: Claim, outcome: Outcome, courier: Courier) -> None:
    now_ms = courier.clock()
    known = flow.evidence(db, courier.destination_id, held.job_id)
    at = Situation(
        setbacks=held.setbacks,
        failures=held.failures,
        is_probe=held.is_probe,
        is_another=held.is_another,
        pause_count=held.pause_count,
        is_paused=known.is_paused,
        others_passed=known.others_passed,
        other_is_suspect=known.other_is_suspect,
        is_alone=claims.is_alone(db, courier.destination_id, held),
    )
    failure = Failure(outcome.reason, outcome.status, outcome.answer)
    own_retries = courier.max_retries_of(held)
    policy = courier.policy if own_retries is None else replace(courier.policy, max_retries=own_retries)
    match judge(outcome, at, policy, courier.dice()):
        case Bury(error):
            settled = claims.bury(db, held, now_ms, replace(failure, error=error))
            if held.is_probe and outcome.kind == "permanent":
                # It answered, about this job: the destination itself is there again.
                _resume(db, courier)
        case SetBack(delay_ms, charged):
            flow.suspect(db, courier.destination_id, held.job_id)
            settled = claims.set_back(
                db,
                held,
                now_ms=now_ms,
                due_ms=now_ms + delay_ms,
                failure=failure,
                passes=known.passes,
                charged=charged,
            )
        case Pause(health, count, delay_ms, charged, asks_another):
            flow.pause(
                db,
                courier.destination_id,
                health=health,
                reason=outcome.reason,
                count=count,
                probe_ms=now_ms + delay_ms,
                now_ms=now_ms,
                asks_another=asks_another,
            )
            settled = (
                claims.set_back(
                    db, held, now_ms=now_ms, due_ms=now_ms, failure=failure, passes=known.passes, charged=True
                )
                if charged
                else claims.give_back(db, held, due_ms=now_ms, failure=failure)
            )
        case GiveBack():
            settled = claims.give_back(db, held, due_ms=now_ms, failure=failure)
    if not settled:
        claims.abandon(db, held)
