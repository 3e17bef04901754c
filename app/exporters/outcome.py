"""Outcome: the five things that an attempt to post a record can come to, as values.

    accepted    the record is acknowledged
    retry       a 5xx: the job's fault or the destination's
    wait        the other side could not be asked (connection, timeout, rate limit): nobody is charged
    refused     the destination is wrong, not the job (key, address, redirect, unexpected answer): it is paused
    permanent   this record can never succeed: dead letter at once

Which of these an answer is, is the client's part; whose fault it is, `app.delivery.health`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["accepted", "retry", "wait", "refused", "permanent"]

REASON_CHARS_MAX = 200
RETRY_AFTER_MS_MAX = 3_600_000
"""A server may ask for days; by then somebody should have looked."""
_SECONDS = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one POST came to."""

    kind: Kind
    reason: str
    """One short line for people: no key, no header values, no transcript text."""
    status: int | None = None
    """Of the answer; None when none arrived."""
    retry_after_ms: int | None = None
    """What the server asked for, from now, already capped."""
    answer: str = ""
    """How the answer began, as far as it may be kept."""
    server_ms: int | None = None
    """What the server's clock said (`Date`); None where it did not say."""
    is_doubtful: bool = False
    """It may as well be the settings that are wrong: as long as the destination has accepted nothing, it is refused."""
    remark: str = ""
    """What an answer that accepted the record says besides, for people: a part of it that was not taken."""


def date_ms(header: str) -> int | None:
    """A `Date` header in milliseconds; None when it is none.

    >>> date_ms("Thu, 01 Jan 1970 00:00:10 GMT"), date_ms("soon")
    (10000, None)
    """
    try:
        moment = parsedate_to_datetime(header.strip())
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


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
