"""The one place that asks what time it is; everything that decides takes the answer as an argument."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Milliseconds UTC since 1970, as every time in this program."""
    return time.time_ns() // 1_000_000
