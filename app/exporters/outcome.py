"""What an answer means for a job, and how long to wait before the next attempt. Pure: clock and dice are arguments.

    accepted    the record is acknowledged
    retry       a 5xx: the job's fault or the destination's
    wait        the other side could not be asked (connection, timeout, rate limit): nobody is charged
    refused     the destination is wrong, not the job (key, address, redirect, unexpected answer): it is paused
    permanent   this record can never succeed: dead letter at once

Which of these an answer is, is `app.exporters.helicone.client`'s part; whose fault it is, `app.delivery.health`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["accepted", "retry", "wait", "refused", "permanent"]

RETRY_AFTER_MS_MAX = 3_600_000
"""A server may ask for days; by then somebody should have looked."""

CAP_MS_MAX = 300_000

_DOUBLINGS_MAX = 60
_SECONDS = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one POST came to."""

    kind: Kind
    reason: str
    """One short line for people: no key, no header values, no transcript text."""
    status: int | None = None
    """Of Helicone's answer; None when none arrived."""
    retry_after_ms: int | None = None
    """What the server asked for, from now, already capped."""
    answer: str = ""
    """How Helicone's answer began, as far as it may be kept."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how far apart a job is tried."""

    max_retries: int
    """Charged attempts, without progress, after which the job is a dead letter."""
    base_ms: int
    """Upper bound of the first delay."""
    cap_ms: int
    """Upper bound of every delay, of a job's as of a destination's."""

    @classmethod
    def of(cls, max_retries: int, base_ms: int) -> Policy:
        """As far apart as five minutes, or 300 times the base where that is less."""
        return cls(max_retries, base_ms, max(base_ms, min(300 * base_ms, CAP_MS_MAX)))


def delay_ms(failures: int, *, base_ms: int, cap_ms: int, dice: float) -> int:
    """Milliseconds before the next attempt: exponential with full jitter, so that jobs do not return in step.

    `failures` counts the failed attempts so far, from 1; `dice` is uniform in 0..1.

    >>> [delay_ms(n, base_ms=1_000, cap_ms=60_000, dice=1.0) for n in (1, 2, 3, 10)]
    [1000, 2000, 4000, 60000]
    >>> delay_ms(3, base_ms=1_000, cap_ms=60_000, dice=0.5)
    2000
    """
    return int(dice * _bound_ms(failures, base_ms, cap_ms))


def pause_ms(failures: int, *, base_ms: int, cap_ms: int, dice: float) -> int:
    """Milliseconds before the next probe: as `delay_ms`, but never less than three quarters of the bound.

    Probes come one at a time, so there is nothing to spread but those of different machines.

    >>> [pause_ms(n, base_ms=1_000, cap_ms=60_000, dice=0.0) for n in (1, 2, 10)]
    [750, 1500, 45000]
    """
    return int((0.75 + 0.25 * dice) * _bound_ms(failures, base_ms, cap_ms))


def is_full(failures: int, *, base_ms: int, cap_ms: int) -> bool:
    """Whether the delay after so many failures has come to its full length.

    >>> [is_full(n, base_ms=1_000, cap_ms=4_000) for n in (1, 2, 3, 100)]
    [False, False, True, True]
    """
    return _bound_ms(failures, base_ms, cap_ms) == cap_ms


def _bound_ms(failures: int, base_ms: int, cap_ms: int) -> int:
    return min(cap_ms, base_ms << min(max(failures, 1) - 1, _DOUBLINGS_MAX))


def retry_after_ms(header: str, now_ms: int) -> int | None:
    """A `Retry-After` header (RFC 9110, 10.2.3: seconds or an HTTP date) as milliseconds from `now_ms`.

    Between 0 and an hour; None when it is neither form.

    >>> retry_after_ms("120", 0), retry_after_ms("Thu, 01 Jan 1970 00:00:10 GMT", 4_000), retry_after_ms("soon", 0)
    (120000, 6000, None)
    """
    text = header.strip()
    if _SECONDS.fullmatch(text):
        # Python refuses to convert thousands of digits, and ten of them are beyond the cap already.
        asked_ms = int(text[:11]) * 1000
    else:
        try:
            moment = parsedate_to_datetime(text)
            # A date without a zone is GMT by the RFC; Python would take it as local time.
            asked_ms = int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000) - now_ms
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return min(max(asked_ms, 0), RETRY_AFTER_MS_MAX)
