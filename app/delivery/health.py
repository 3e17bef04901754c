"""Health: decides whose fault a failed attempt is, the job's or the destination's, and what becomes of both. Pure.

    permanent                                    the record's own: dead
    refused, or an answer that says wait         the destination's: it is paused at once
      (408, 425, 429, a 503 that says for how long, its database is away)
    no answer (connection, timeout), or a 5xx
      on a probe                                 the destination's: the next probe, of another job, waits longer
      while other jobs succeed                   the job's: it waits; a 5xx is charged, no answer never is
      while other jobs fail                      the destination's: it is paused, and this job is charged nothing
      of the only job that waits                 nobody can tell: no answer pauses; a 5xx of the server itself is
                                                 charged once the backoff has come to its full length

So an outage charges nobody however long it is, and one record that breaks the server dies while its neighbours flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.delivery.backoff import RetryPolicy, delay_ms, is_full, pause_ms
from app.exporters.outcome import Outcome

GATEWAY = frozenset({502, 503, 504, *range(520, 531)})
"""What stands before a server answers with these while the server is away (520 to 530 are Cloudflare's)."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What was known when the attempt ended."""

    consecutive_failures: int
    """Of the job, since a record of it was last acknowledged."""
    failures: int
    """Those that were charged."""
    is_probe: bool
    pause_count: int
    """Probes failed in a row before this attempt."""
    is_paused: bool
    """By whoever, by now."""
    peers: Literal["succeed", "fail", "none"]
    """What other jobs say of the destination; none: nothing, since this job last failed."""
    is_alone: bool
    """No other job waits for this destination."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The job is dead."""

    error: str


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The job waits; the destination goes on."""

    delay_ms: int
    is_charged: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """The destination waits, and with it the job."""

    health: Literal["down", "refused"]
    count: int
    """Probes failed in a row."""
    delay_ms: int
    is_charged: bool
    """The job is charged as well: it is the only one, and was asked about for long enough."""


@dataclass(frozen=True, slots=True)
class Release:
    """Somebody else has paused the destination: this attempt says nothing new."""


Action: TypeAlias = DeadLetter | RetryLater | Pause | Release


def decide(outcome: Outcome, at: Situation, policy: RetryPolicy, dice: float) -> Action:
    """What becomes of a job and its destination after an attempt that was not accepted. `dice` is uniform in 0..1."""
    if outcome.kind == "permanent":
        return DeadLetter(outcome.reason)
    is_charged = outcome.kind == "retry" and _is_charged(outcome, at, policy)
    if is_charged and at.failures >= policy.max_retries:
        return DeadLetter(f"{outcome.reason} (after {policy.max_retries} retries)")
    if _is_of_the_destination(outcome, at):
        count = at.pause_count + 1
        backoff_ms = pause_ms(count, base_ms=policy.base_ms, cap_ms=policy.cap_ms, dice=dice)
        health: Literal["down", "refused"] = "refused" if outcome.kind == "refused" else "down"
        return Pause(health, count, max(backoff_ms, outcome.retry_after_ms or 0), is_charged)
    if at.is_paused:
        return Release()
    failures = at.consecutive_failures + 1
    backoff_ms = delay_ms(failures, base_ms=policy.base_ms, cap_ms=policy.cap_ms, dice=dice)
    return RetryLater(max(backoff_ms, outcome.retry_after_ms or 0), is_charged)


def _is_of_the_destination(outcome: Outcome, at: Situation) -> bool:
    if outcome.kind == "refused" or at.is_probe:
        return True
    if at.is_paused:
        return False
    says_wait = outcome.kind == "wait" and outcome.status is not None
    return says_wait or at.peers == "fail" or (outcome.kind == "wait" and at.is_alone)


def _is_charged(outcome: Outcome, at: Situation, policy: RetryPolicy) -> bool:
    """Whether a 5xx is held against the job."""
    if at.peers == "succeed" and not (at.is_probe or at.is_paused):
        return True
    if not at.is_alone or outcome.status in GATEWAY:
        return False
    asked = at.pause_count if at.is_probe else at.consecutive_failures
    return is_full(asked + 1, base_ms=policy.base_ms, cap_ms=policy.cap_ms)
