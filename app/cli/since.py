"""Reads the time that a person types after `--since`."""

from __future__ import annotations

import re
from datetime import datetime

from app.runtime.figures import midnight_ms

_DAYS = ("today", "yesterday")
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}


def since_ms(text: str, now_ms: int) -> int:
    """`90s`, `12h`, `7d`, `2w` ago; `today`, `yesterday`, a date or a time in ISO form, local unless it names a zone.

    Raises ValueError, whose message says what was meant.

    >>> since_ms("2h", 10_000_000), since_ms("1970-01-01T01:00:00+01:00", 0)
    (2800000, 0)
    """
    if text in _DAYS:
        today_ms = midnight_ms(now_ms)
        return midnight_ms(today_ms - 1) if text == "yesterday" else today_ms
    ago = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if ago:
        return max(0, now_ms - int(ago[1]) * _UNITS_MS[ago[2]])
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except (ValueError, OverflowError):
        message = (
            f"{text!r} is neither a duration (12h, 7d, 2w) nor a day (today, yesterday, 2026-01-31) or a time"
            " (2026-01-31T18:30)"
        )
        raise ValueError(message) from None


def since_whole_day_ms(text: str, now_ms: int) -> int:
    """The same; of days and weeks ago the first counts whole, as it does where a date is typed."""
    found_ms = since_ms(text, now_ms)
    return midnight_ms(found_ms) if text.endswith(("d", "w")) else found_ms
