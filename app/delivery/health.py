"""Whose fault a failed attempt is: the job's, or the destination's. Pure.

    permanent                                    the record's own: dead
    refused, 429                                 the destination's: it is paused at once
    no answer (connection, timeout), or a 5xx
      on a probe                                 the destination's: the next probe, of another job, waits longer
      of one job, others passing                 the job's: it waits; a 5xx is charged, no answer never is
      of a second job, none passing              the destination's: it is paused, and the second job is charged nothing
      of the only job that waits                 nobody can tell: no answer pauses; a 5xx of the server itself is
                                                 charged once the backoff has come to its full length

So an outage charges nobody however long it is, and one record that breaks the server dies while its neighbours flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.delivery.backoff import Policy, delay_ms, is_full, pause_ms
from app.exporters.outcome import Outcome

GATEWAY = frozenset({502, 503, 504, *range(520, 531)})
"""What stands before a server answers with these while the server is away (520 to 530 are Cloudflare's)."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What was known when the attempt ended."""

    setbacks: int
    """Of the job: failures since a record of it was last acknowledged."""
    failures: int
    """Those that were charged."""
    is_probe: bool
    is_another: bool
    """A probe that was a second opinion."""
    pause_count: int
    """Probes failed in a row before this attempt."""
    is_paused: bool
    """By whoever, by now."""
    others_passed: bool
    """A record was accepted since this job's last setback."""
    other_is_suspect: bool
    """Another job has failed, and nothing has passed since."""
    is_alone: bool
    """No other job waits for this destination."""


@dataclass(frozen=True, slots=True)
class Bury:
    """The job is dead."""

    error: str


@dataclass(frozen=True, slots=True)
class SetBack:
    """The job waits; the destination goes on. It is the suspect, should the next one fail, too."""

    delay_ms: int
    charged: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """The destination waits, and with it the job."""

    health: Literal["down", "refused"]
    count: int
    delay_ms: int
    charged: bool
    """Also the job is charged: it is the only one, and has been asked about for long enough."""
    asks_another: bool = False
    """The next probe comes soon, and is a second opinion."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Somebody else has paused the destination: this attempt says nothing new."""


Verdict: TypeAlias = Bury | SetBack | Pause | GiveBack


def judge(outcome: Outcome, at: Situation, policy: Policy, dice: float) -> Verdict:
    """What becomes of a job and its destination after an attempt that was not accepted. `dice` is uniform in 0..1."""
    if outcome.kind == "permanent":
        return Bury(outcome.reason)
    own = outcome.kind == "retry" and _is_own(outcome, at, policy)
    if own and at.failures >= policy.max_retries:
        return Bury(f"{outcome.reason} (after {policy.max_retries} retries)")
    if _is_of_the_destination(outcome, at):
        return _pause(outcome, at, policy, dice, charged=own)
    if at.is_paused:
        return GiveBack()
    backoff_ms = delay_ms(at.setbacks + 1, base_ms=policy.base_ms, cap_ms=policy.cap_ms, dice=dice)
    return SetBack(max(backoff_ms, outcome.retry_after_ms or 0), charged=own)


def _is_of_the_destination(outcome: Outcome, at: Situation) -> bool:
    if outcome.kind == "refused" or at.is_probe:
        return True
    is_limit = outcome.kind == "wait" and outcome.status is not None
    is_all_there_is = outcome.kind == "wait" and at.is_alone
    return not at.is_paused and (is_limit or is_all_there_is or at.other_is_suspect)


def _is_own(outcome: Outcome, at: Situation, policy: Policy) -> bool:
    """Whether a 5xx is held against the job."""
    if at.others_passed and not (at.is_probe or at.is_paused or at.other_is_suspect):
        return True
    if not at.is_alone or outcome.status in GATEWAY:
        return False
    asked = at.pause_count if at.is_probe else at.setbacks
    return is_full(asked + 1, base_ms=policy.base_ms, cap_ms=policy.cap_ms)


def _pause(outcome: Outcome, at: Situation, policy: Policy, dice: float, *, charged: bool) -> Pause:
    # A second opinion is no probe more.
    count = at.pause_count + (0 if at.is_another else 1)
    health: Literal["down", "refused"] = "refused" if outcome.kind == "refused" else "down"
    # After the 2nd, 4th, 8th ... failed probe: often enough to find that one record is to blame, and so rarely that an
    # outage costs no more requests, and that no later turn of a session goes first when it ends.
    asks_another = health == "down" and not at.is_another and not at.is_alone and count > 1 and count & (count - 1) == 0
    waits = 1 if asks_another else count
    backoff_ms = pause_ms(waits, base_ms=policy.base_ms, cap_ms=policy.cap_ms, dice=dice)
    return Pause(health, count, max(backoff_ms, outcome.retry_after_ms or 0), charged, asks_another)
