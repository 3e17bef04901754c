"""Backoff: computes the delay before the next attempt, and the length of a pause. Pure: dice are an argument."""

from __future__ import annotations

from dataclasses import dataclass

CAP_MS_MAX = 300_000
_DOUBLINGS_MAX = 60


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how far apart a job is tried."""

    max_retries: int
    """Charged attempts, without progress, after which the job is a dead letter."""
    base_ms: int
    """Upper bound of the first delay."""
    cap_ms: int
    """Upper bound of every delay, of a job's as of a destination's."""

    @classmethod
    def of(cls, max_retries: int, base_ms: int) -> RetryPolicy:
        """Of settings: as far apart as five minutes, or 300 times the base where that is less."""
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
