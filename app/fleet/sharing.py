"""Sharing: how many of a process's threads may deliver to one destination, so that none of them holds all.

No destination has more threads than are free. So one that is slow has half of them, two have a third each, and the
others find the rest.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict


class SharedThreads:
    """Of one process. Destinations are known by their ids, what is to be delivered by the keys of jobs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._at_work: Counter[int] = Counter()
        """By destination."""
        self._passed_over: defaultdict[int, dict[str, None]] = defaultdict(dict)
        """By destination, the keys that found too many threads at work there, in order."""

    def join(self) -> None:
        """One more thread may deliver."""
        with self._lock:
            self._threads += 1

    def leave(self) -> int:
        """One of them ends; how many are left."""
        with self._lock:
            self._threads -= 1
            return self._threads

    def take(self, destination_id: int, key: str, *, is_only_one: bool) -> bool:
        """Whether one more thread may deliver there: else the key is kept for the next of its threads that is done.

        `is_only_one`: there is no other destination, so this one may have all.
        """
        with self._lock:
            if not is_only_one and self._is_crowded(destination_id):
                self._passed_over[destination_id][key] = None
                return False
            self._at_work[destination_id] += 1
            return True

    def give_back(self, destination_id: int) -> None:
        with self._lock:
            self._at_work[destination_id] -= 1

    def take_again(self, destination_id: int, *, is_only_one: bool) -> str | None:
        """A key that was passed over there, which the thread goes on with; None where it is done."""
        with self._lock:
            waiting = self._passed_over[destination_id]
            if not waiting or (not is_only_one and self._is_crowded(destination_id)):
                return None
            self._at_work[destination_id] += 1
            key = next(iter(waiting))
            del waiting[key]
            return key

    def is_waited_for(self, destination_id: int) -> bool:
        """Whether some were passed over there, which its threads go on with."""
        with self._lock:
            return self._at_work[destination_id] > 0 and bool(self._passed_over[destination_id])

    def _is_crowded(self, destination_id: int) -> bool:
        return self._at_work[destination_id] >= self._threads - self._at_work.total()
