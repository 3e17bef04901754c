"""Eviction: decides which jobs give up their bodies, and which are dropped, when the spool exceeds maxSpoolSize.

more than maxSpoolSize ─▶ in the store? ─ yes ─▶ the job waits without its bodies; `recapture` makes them again
                                        └ no ──▶ dropped (size)

First each folder whose project sets a limit of its own is brought below it, and then the whole below the user's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.ledger import destinations, eviction, limits, pruning
from app.ledger.eviction import Candidate
from app.ledger.job import SESSION_RECORD
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store

ASKED_MAX = 2_000
"""Turns that one call asks the store about; the next one goes on, and until then there may be too much."""
PATIENCE_MS = 600_000
"""How long a store that is there cannot be read until it counts as holding nothing: OpenCode may be at it."""
AGAIN_MS = 30_000
"""A store that could not be read is not tried again before that: each try may wait for OpenCode."""
_WHOLE = "*"
"""Stands for all folders; none is called so."""


@dataclass(frozen=True, slots=True)
class Freed:
    """What it took, in numbers of jobs."""

    evicted: int
    dropped: int

    @property
    def told(self) -> str:
        return (
            f"no room (maxSpoolSize): {self.evicted} job(s) wait without their text, which OpenCode's store has;"
            f" {self.dropped} dropped"
        )


class Eviction:
    """Remembers which jobs the store has nothing of: they stay the oldest, and would be asked about each time."""

    def __init__(self, store: Path, room: int | None = None) -> None:
        """`room`: of which destinations; see `app.ledger.destinations.IN_ROOM`."""
        self._room = room
        self._store = Store(store)
        self._not_stored: set[int] = set()
        self._unread_since_ms: int | None = None
        self._again_ms = 0

    def make(
        self, db: sqlite3.Connection, now_ms: int, bytes_max: int, of_folders: limits.Limits = limits.NO_LIMITS
    ) -> Freed:
        """Raises sqlite3.Error when the ledger cannot be written."""
        if self._unread_since_ms is not None and self._unread_since_ms <= now_ms < self._again_ms:
            return Freed(0, 0)
        evicted, is_all = 0, True
        if excess := eviction.excess_of_folders(db, of_folders, self._room):
            evicted, is_all = self._empty(db, now_ms, excess)
        if (whole := eviction.held_bytes(db, self._room) - bytes_max) > 0:
            more, is_whole = self._empty(db, now_ms, {_WHOLE: whole})
            evicted, is_all = evicted + more, is_all and is_whole
        # What the store does not hold goes only when all that it holds has given its bodies up.
        dropped = pruning.drop_oversize(db, now_ms, bytes_max, of_folders, self._room) if is_all else 0
        return Freed(evicted, dropped)

    def _empty(self, db: sqlite3.Connection, now_ms: int, excess: dict[str, int]) -> tuple[int, bool]:
        """How many jobs gave up their bodies, and whether no other could."""
        with self._store.kept_open():
            chosen, are_all = self._choose(db, excess, now_ms)
        store = destinations.fingerprint(db, str(self._store.path))
        return eviction.give_up_bodies(db, chosen, store) if chosen else 0, are_all

    def _choose(self, db: sqlite3.Connection, excess: dict[str, int], now_ms: int) -> tuple[list[int], bool]:
        """The oldest jobs that can be made again, as far as there is need; whether these are all that there are.

        `excess` is in bytes, of the whole or by folder.
        """
        is_whole, left = _WHOLE in excess, dict(excess)
        chosen: list[int] = []
        asked = 0
        for one in self._candidates(db, None if is_whole else excess):
            if not left:
                break
            part = _WHOLE if is_whole else one.folder
            if part not in left:
                continue
            if asked == ASKED_MAX:
                return chosen, False
            asked += 1
            try:
                is_held = self._store.holds(one.session, None if one.turn == SESSION_RECORD else one.turn)
            except StoreError:
                return chosen, self._is_out_of_reach(now_ms)
            if is_held:
                chosen.append(one.job_id)
                left[part] -= one.body_bytes
                if left[part] <= 0:
                    del left[part]
            else:
                self._not_stored.add(one.job_id)
        self._unread_since_ms = None
        return chosen, True

    def _is_out_of_reach(self, now_ms: int) -> bool:
        """Whether a store that could not be read just now counts as holding nothing."""
        if not self._store.is_there():
            return True
        if self._unread_since_ms is None or now_ms < self._unread_since_ms:
            self._unread_since_ms = now_ms
        self._again_ms = now_ms + AGAIN_MS
        return now_ms - self._unread_since_ms >= PATIENCE_MS

    def _candidates(self, db: sqlite3.Connection, folders: Collection[str] | None) -> Iterator[Candidate]:
        last: Candidate | None = None
        while batch := eviction.candidates(db, last, folders, room=self._room):
            last = batch[-1]
            yield from (one for one in batch if one.job_id not in self._not_stored)
