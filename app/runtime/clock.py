"""Clock: the one place that asks what time it is; everything that decides takes the answer as an argument."""

from __future__ import annotations

import time
from dataclasses import dataclass


def now_ms() -> int:
    """Milliseconds UTC since 1970, as every time in this program."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """What two clocks say at one moment, in milliseconds."""

    wall_ms: int
    """UTC since 1970: it can be set, and goes on while the machine sleeps."""
    steady_ms: int
    """Since some moment: it cannot be set, and stands still while the machine sleeps."""


def read() -> Reading:
    return Reading(now_ms(), time.monotonic_ns() // 1_000_000)


def jump_ms(before: Reading, after: Reading) -> int:
    """How much further the wall clock went than time did; less than 0 when it was set back.

    >>> jump_ms(Reading(1_000, 500), Reading(61_500, 1_000))
    60000
    """
    return (after.wall_ms - before.wall_ms) - (after.steady_ms - before.steady_ms)
