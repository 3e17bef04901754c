"""Figures as people read them: times that are local and relative, sizes, large numbers, money."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from app.runtime.terminal import span

_RELATIVE_MAX_MS = 14 * 86_400_000
_SECOND_MS, _MINUTE_MS = 1_000, 60_000
_DIME = 0.1
"""Less is told to the hundredth of a cent."""


def ago(time_ms: int, now_ms: int) -> str:
    """How long ago that was; a local date where that says more."""
    if time_ms > now_ms + 60_000 or now_ms - time_ms > _RELATIVE_MAX_MS:
        return day(time_ms)
    return f"{span(now_ms - time_ms)} ago"


def local(time_ms: int, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A local time; "?" where no calendar has it."""
    try:
        return datetime.fromtimestamp(time_ms / 1000).astimezone().strftime(form)
    except (ValueError, OverflowError, OSError):
        return "?"


def day(time_ms: int) -> str:
    """A local date."""
    return local(time_ms, "%Y-%m-%d")


def midnight_ms(time_ms: int) -> int:
    """The beginning of that day here."""
    at = datetime.fromtimestamp(time_ms / 1000)  # noqa: DTZ006 - local, and so right where the clock was changed that day
    return int(at.replace(hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)


def ahead(time_ms: int, now_ms: int) -> str:
    """When that will be; rounded up, so that it is not over when it is said to be now."""
    return f"in {span(time_ms - now_ms + 999)} ({local(time_ms, '%H:%M:%S')})" if time_ms > now_ms else "now"


def size(number: int) -> str:
    """Of bytes.

    >>> size(999), size(6867), size(52_428_800)
    ('999 B', '6.9 kB', '52.4 MB')
    """
    return _scaled(number, (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))) or f"{number} B"


def short(number: int) -> str:
    """A number of which the size matters more than the last digit.

    >>> short(999), short(123_456), short(7_650_000)
    ('999', '123.5k', '7.7M')
    """
    return _scaled(number, (("G", 10**9), ("M", 10**6), ("k", 10**3))).replace(" ", "") or str(number)


def _scaled(number: int, units: Sequence[tuple[str, int]]) -> str:
    return next((f"{number / factor:.1f} {name}" for name, factor in units if number >= factor), "")


def usd(amount: float) -> str:
    """Money.

    >>> usd(0), usd(0.0123), usd(1234.5)
    ('$0.00', '$0.0123', '$1,234.50')
    """
    return f"${amount:,.2f}" if amount >= _DIME or not amount else f"${amount:.4f}"


def took(length_ms: int) -> str:
    """How long something took.

    >>> took(250), took(4_100), took(83_000)
    ('250 ms', '4.1 s', '1 min 23 s')
    """
    if length_ms < _SECOND_MS:
        return f"{length_ms} ms"
    if length_ms < _MINUTE_MS:
        return f"{length_ms / _SECOND_MS:.1f} s"
    return f"{length_ms // _MINUTE_MS} min {length_ms // _SECOND_MS % 60} s"
