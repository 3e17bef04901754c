"""What an answer means for a job, and how long to wait before the next attempt. Pure: clock and dice are arguments.

    accepted    the record is acknowledged
    retry       this job failed: charged one attempt, tried again after `delay_ms`
    wait        the other side could not be asked (connection, timeout, rate limit): nobody is charged
    refused     the destination is wrong, not the job (key, address, redirect, unexpected answer): it is paused
    permanent   this record can never succeed: dead letter at once

Only `retry` counts against the job. Deciding is `app.helicone`'s part, acting on it the ledger's.
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


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how far apart a job is tried."""

    max_retries: int
    """Charged attempts, without progress, after which the job is a dead letter."""
    base_ms: int
    """Upper bound of the first delay."""
    cap_ms: int
    """Upper bound of every delay."""


def delay_ms(failures: int, *, base_ms: int, cap_ms: int, dice: float) -> int:
    """Milliseconds before the next attempt: exponential with full jitter, so that jobs do not return in step.

    `failures` counts the failed attempts so far, from 1; `dice` is uniform in 0..1.

    >>> [delay_ms(n, base_ms=1_000, cap_ms=60_000, dice=1.0) for n in (1, 2, 3, 10)]
    [1000, 2000, 4000, 60000]
    >>> delay_ms(3, base_ms=1_000, cap_ms=60_000, dice=0.5)
    2000
    """
    doublings = min(max(failures, 1) - 1, _DOUBLINGS_MAX)
    return int(dice * min(cap_ms, base_ms << doublings))


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
