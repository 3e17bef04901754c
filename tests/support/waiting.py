"""Waiting for another process or thread: poll until a deadline, never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(predicate: Callable[[], object], timeout_s: float = 300.0, interval_s: float = 0.02) -> None:
    """Return as soon as `predicate()` is true; fail the test when `timeout_s` has passed without it.

    So long that no machine is too slow, whatever else runs on it: only a test that fails waits for it.
    """
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            message = f"still not true after {timeout_s} s: {predicate}"
            raise AssertionError(message)
        time.sleep(interval_s)
