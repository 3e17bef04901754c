"""Deliver: claims a job, posts its records, acknowledges them, and finishes the job.

claim ─▶ post ─▶ post … ─▶ complete          what was accepted is noted with the job's end, or before: after a second,
           │                                 after so many, and before anything else is said of the job
           └─ not accepted ─▶ health.decide ▶ dead_letter | retry_later | pause | release

Where the answers take long, several records of a job are under way at once. Before each post the settings in force are
asked: they may hold the job, or have it dropped and captured again. A job that gave up its bodies for want of room has
them made again first, and posts them only if they are the same, or are stricter and none of the job's was posted
before.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from app.database.connection import Database, surviving
from app.delivery.backoff import RetryPolicy
from app.delivery.health import DeadLetter, Pause, Release, RetryLater, Situation, decide
from app.exporters.outcome import Outcome
from app.ledger import claims, destinations, eviction, flow, maintenance, policy_enforcement
from app.ledger.eviction import Recaptured
from app.ledger.job import Accepted, Body, Claim, FailedAttempt, Kept, LedgerError, kept
from app.privacy.policy import Hold, Permit, Recapture
from app.runtime import failpoint

LEASE_MS = 60_000
"""Renewed by each acknowledgement; one POST takes 30 s at the most. A POST and one long wait for the ledger stay within
it; several waits may not, and then the record may be posted again under the same id."""
UNNOTED_MS_MAX = 1_000
"""So long after the lease was renewed last, what was accepted is noted before the next POST. With that POST, and the
wait for a locked ledger, it stays within the lease."""
UNNOTED_MAX = 16
"""Records that a worker's death may have posted once more, of one job."""
HOLD_MS = 3_600_000
"""A change of settings ends a hold; this does where the change was missed."""
UNFINISHED_MS = 10_000
"""After so long a job is tried again whose end the ledger could not be told: what it posted may be posted once more."""
OTHER_TEXT = Hold("its text has to be read again by the hook of its project, with the secrets that were redacted")
"""Who redacted it knew other secrets than this process, or it has changed since."""

Answered: TypeAlias = tuple[Outcome, int]
"""What became of a POST, and when."""


def _here(post: Callable[[], Answered]) -> Future[Answered]:
    answered: Future[Answered] = Future()
    answered.set_result(post())
    return answered


@dataclass(frozen=True, slots=True)
class DeliveryContext:
    """Who delivers, to where, and by which means."""

    destination_id: int
    worker: str
    policy: RetryPolicy
    permit: Callable[[Claim], Permit]
    """What the settings in force say to this job, now."""
    post: Callable[[Claim, Body], Outcome]
    clock: Callable[[], int]
    """Milliseconds UTC."""
    dice: Callable[[], float]
    """From 0 up to 1."""
    stopping: Callable[[], bool]
    """True when the worker was told to end: what is in flight is finished, nothing new is begun."""
    make_way: Callable[[Sequence[uuid.UUID]], Outcome] | None = None
    """Takes away what is there of another version of a turn, by request ids; None: what is posted replaces it."""
    post_changed: Callable[[Body], Outcome] | None = None
    """In place of `post`, where another version of the record was accepted; None: as any other."""
    when_to_confirm: Callable[[], int | None] = lambda: None
    """Asked as a job is delivered: when it is to be read back, None for never."""
    max_retries_of: Callable[[Claim], int | None] = lambda _: None
    """What the job's folder says in place of `policy.max_retries`; None: nothing."""
    rebuild: Callable[[Claim], Recaptured | Hold | None] = lambda _: OTHER_TEXT
    """All bodies of a job that gave its own up, made again; None: nobody has the turn any more."""
    at_once: Callable[[], int] = lambda: 1
    """How many records of one job may be under way; asked before each is posted."""
    beside: Callable[[Callable[[], Answered]], Future[Answered]] = _here
    """Posts in a thread of its own."""
    leave: Callable[[Claim], None] = lambda _: None
    """Told of a job that could not be finished because the ledger cannot be written: see `release_unfinished`."""


def deliver(db: Database, key: str, context: DeliveryContext) -> str | None:
    """Deliver the oldest due job of the session that `key` belongs to; the key to wake next, or None.

    A wake for something that is delivered, leased or not due does nothing.
    Raises sqlite3.Error. A job that was under way is told to `context.leave`, or its lease runs out.
    """
    if context.stopping():
        return None
    claim = claims.claim(
        db, context.destination_id, key, worker=context.worker, now_ms=context.clock(), lease_ms=LEASE_MS
    )
    if claim is None:
        return None
    failpoint.reach("claim.committed")
    try:
        was_asked = _carry(db, claim, context)
    except sqlite3.OperationalError:
        context.leave(claim)
        raise
    if not was_asked and claim.is_probe:
        # The probe found nothing to post: the next job may ask in its place.
        flow.probe_now(db, context.destination_id, context.clock())
    return maintenance.next_of_session(db, context.destination_id, claim.session, context.clock())


def release_unfinished(db: Database, unfinished: list[Claim], now_ms: int) -> None:
    """Release jobs that `deliver` could not finish, and take them off the list; nobody is charged.

    Left to run out, a lease would count as the work of a thread that hangs, and five of these make a dead letter.
    Several threads may do this at once.
    """
    for claim in list(unfinished):
        failed = FailedAttempt(now_ms, "the ledger could not be written; the worker's log says why")
        claims.release(db, claim, due_ms=now_ms + UNFINISHED_MS, failed=failed)
        if claim.is_probe:
            flow.probe_now(db, claim.destination_id, now_ms)
        with suppress(ValueError):  # another thread was faster
            unfinished.remove(claim)


def _carry(db: Database, claim: Claim, context: DeliveryContext) -> bool:
    """Deliver the job, as far as that can be done; whether the destination was asked at all."""
    if not eviction.is_evicted(db, claim):
        return _send(db, claim, context, None)
    made = _made_again(db, claim, context)
    return made is not None and _send(db, claim, context, made)


def _send(db: Database, claim: Claim, context: DeliveryContext, made: Sequence[Body] | None) -> bool:
    """Post what is not acknowledged and finish the job; whether the destination was asked at all."""
    run = _Run(db, claim, context)
    why: _Why = None
    try:
        why = run.make_way() or run.post_all(made)
    except LedgerError as error:
        why = error
    finally:
        run.wait()
    why = run.join() or why
    surviving(db, partial(_end, db, run, why, context))
    return run.asked


def _end(db: Database, run: _Run, why: _Why, context: DeliveryContext) -> None:
    claim = run.claim
    if why is None:
        run.complete()
        return
    run.note()
    match why:
        case Outcome():
            _settle(db, claim, why, context)
        case Hold() | Recapture():
            _withhold(db, claim, why, context.clock())
        case LedgerError():
            claims.dead_letter(db, claim, FailedAttempt(context.clock(), str(why)))
        case "stopping":
            claims.release(db, claim, due_ms=context.clock())


_Why: TypeAlias = Outcome | Hold | Recapture | LedgerError | Literal["stopping"] | None
"""Why a claim ends before its job is delivered; None: it does not, or it no longer stands."""


class _Run:
    """One claim's posts: those that are under way, and what was accepted and is not in the ledger yet."""

    def __init__(self, db: Database, claim: Claim, context: DeliveryContext) -> None:
        self._db = db
        self._context = context
        self._under_way: list[tuple[Body, Future[Answered]]] = []
        self._accepted: list[Accepted] = []
        self._before = claims.acknowledged(db, claim)
        self._renewed_ms = context.clock()
        self.claim = claim
        self.asked = False

    def make_way(self) -> Outcome | None:
        """Take away what was sent of another version, where it would stay; what was not accepted, if anything."""
        if self._context.make_way is None or not claims.was_sent_otherwise(self._db, self.claim):
            return None
        self.asked = True
        outcome = self._context.make_way([one.request_id for one in self._records()])
        if outcome.kind != "accepted":
            return outcome
        claims.forget_acknowledged(self._db, self.claim)
        self._before = {}
        return None

    def _records(self) -> list[Kept]:
        return kept(self._db, self.claim.job_id)

    def post_all(self, made: Sequence[Body] | None) -> _Why:
        """Some may be under way still when it returns."""
        for body in claims.unacknowledged(self._db, self.claim, made):
            if self._context.stopping():
                return "stopping"
            if not surviving(self._db, partial(claims.is_current, self._db, self.claim)):
                return None
            permit = self._context.permit(self.claim)
            if isinstance(permit, Hold | Recapture):
                return permit
            is_changed = self._before.get(body.request_id, body.digest) != body.digest
            post = partial(_post, self._context, self.claim, body, is_changed=is_changed)
            if self._is_room():
                self._under_way.append((body, self._context.beside(post)))
                continue
            self._under_way.append((body, _here(post)))
            failed = self.join()
            if failed is not None:
                return failed
            is_renewed = 0 <= self._context.clock() - self._renewed_ms < UNNOTED_MS_MAX
            if not is_renewed or len(self._accepted) >= UNNOTED_MAX:
                surviving(self._db, self.note)
        return None

    def _is_room(self) -> bool:
        """Whether one may be under way beside another one that this thread posts. A probe asks alone."""
        return not self.claim.is_probe and len(self._under_way) + 1 < self._context.at_once()

    def wait(self) -> None:
        wait(answered for _, answered in self._under_way)

    def join(self) -> Outcome | None:
        """Hear what all posts under way have come to; the first that was not accepted."""
        failed: Outcome | None = None
        under_way, self._under_way = self._under_way, []
        for body, answered in under_way:
            outcome, at_ms = answered.result()
            self.asked = True
            if outcome.kind == "accepted":
                self._accept(Accepted(body.request_id, body.digest, at_ms, self._before.get(body.request_id)))
            else:
                failed = failed or outcome
        return failed

    def _accept(self, accepted: Accepted) -> None:
        if self.claim.is_probe:
            surviving(self._db, partial(flow.resume, self._db, self.claim.destination_id))
        # It got through: whatever fails from here on is a first failure, of the job and of the destination.
        self.claim = replace(self.claim, consecutive_failures=0, failures=0, is_probe=False, pause_count=0)
        self._accepted.append(accepted)

    def note(self) -> None:
        """Acknowledge what was accepted, if anything was."""
        if self._accepted:
            self._renewed_ms = self._context.clock()
            claims.acknowledge(self._db, self.claim, self._accepted, now_ms=self._renewed_ms, lease_ms=LEASE_MS)
            self._accepted = []

    def complete(self) -> None:
        now_ms, confirm_ms = self._context.clock(), self._context.when_to_confirm()
        if self._context.make_way is not None and not all(one.body_bytes for one in self._records()):
            confirm_ms = None  # what was deleted is not to be found
        if not claims.complete(self._db, self.claim, now_ms, accepted=self._accepted, confirm_ms=confirm_ms):
            # Where it is still ours, an older attempt's late answer took a record's place: it must be posted again.
            claims.release(self._db, self.claim, due_ms=self._context.clock())


def _post(context: DeliveryContext, claim: Claim, body: Body, *, is_changed: bool) -> Answered:
    failpoint.reach("post.sending", str(body.request_id))
    if is_changed and context.post_changed is not None:
        outcome = context.post_changed(body)
    else:
        outcome = context.post(claim, body)
    failpoint.reach("post.answered", str(body.request_id))
    return outcome, context.clock()


def _made_again(db: Database, claim: Claim, context: DeliveryContext) -> Sequence[Body] | None:
    """What the hook had made, or stricter; None when nobody here can make it, and the job is held or dropped."""
    permit = context.permit(claim)
    if isinstance(permit, Hold | Recapture):
        _withhold(db, claim, permit, context.clock())
        return None
    made = context.rebuild(claim)
    if made is None:
        claims.drop(db, claim, "size", context.clock())
        return None
    if isinstance(made, Hold) or not eviction.take_recaptured(db, claim, made):
        _withhold(db, claim, made if isinstance(made, Hold) else OTHER_TEXT, context.clock())
        return None
    return made.bodies


def _withhold(db: Database, claim: Claim, permit: Hold | Recapture, now_ms: int) -> None:
    match permit:
        case Hold(reason):
            policy_enforcement.hold(db, claim, due_ms=now_ms + HOLD_MS, reason=reason)
        case Recapture():
            claims.drop(db, claim, "policy", now_ms)


def _settle(db: Database, claim: Claim, outcome: Outcome, context: DeliveryContext) -> None:
    if outcome.is_doubtful and not destinations.by_id(db, claim.destination_id).has_accepted:
        outcome = replace(outcome, kind="refused")
    known = flow.evidence(db, claim.destination_id, claim.job_id)
    own_retries = context.max_retries_of(claim)
    policy = context.policy if own_retries is None else replace(context.policy, max_retries=own_retries)
    failed = FailedAttempt(context.clock(), outcome.reason, outcome.status, outcome.answer)
    at = Situation(
        consecutive_failures=claim.consecutive_failures,
        failures=claim.failures,
        is_probe=claim.is_probe,
        pause_count=claim.pause_count,
        is_paused=known.is_paused,
        peers=known.peers,
        is_alone=known.is_alone,
    )
    match decide(outcome, at, policy, context.dice()):
        case DeadLetter(error):
            claims.dead_letter(db, claim, replace(failed, error=error))
            if claim.is_probe and outcome.kind == "permanent":
                # It answered, about this job: the destination itself is there again.
                flow.resume(db, claim.destination_id)
        case RetryLater(delay_ms, is_charged):
            claims.retry_later(db, claim, failed, delay_ms=delay_ms, is_charged=is_charged)
        case Pause(health, count, delay_ms, is_charged):
            claims.pause(db, claim, failed, health=health, count=count, delay_ms=delay_ms, is_charged=is_charged)
        case Release():
            claims.release(db, claim, due_ms=failed.ended_ms, failed=failed)
