"""Room in the spool: first go bodies that OpenCode's store still holds, then whole jobs.

more than maxSpoolSize ─▶ in the store? ─ yes ─▶ the job waits without its bodies; `remake` makes them again
                                        └ no ──▶ dropped (size)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app import destination, ledger
from app.ledger import SESSION_RECORD, Bulk
from app.opencode import Store, StoreError

ASKED_MAX = 2_000
"""Turns that one call asks the store about; the next one goes on, and until then there may be too much."""
PATIENCE_MS = 600_000
"""How long a store that is there cannot be read until it counts as holding nothing: OpenCode may be at it."""
AGAIN_MS = 30_000
"""A store that could not be read is not tried again before that: each try may wait for OpenCode."""


@dataclass(frozen=True, slots=True)
class Made:
    """What it took, in numbers of jobs."""

    emptied: int
    dropped: int

    @property
    def told(self) -> str:
        return (
            f"no room (maxSpoolSize): {self.emptied} job(s) wait without their text, which OpenCode's store has;"
            f" {self.dropped} dropped"
        )


class Room:
    """Remembers which jobs the store has nothing of: they stay the oldest, and would be asked about each time."""

    def __init__(self, store: Path) -> None:
        self._store = Store(store)
        self._not_stored: set[int] = set()
        self._unread_since_ms: int | None = None
        self._again_ms = 0

    def make(self, db: sqlite3.Connection, now_ms: int, bytes_max: int) -> Made:
        """Raises sqlite3.Error when the ledger cannot be written."""
        excess = ledger.held_bytes(db) - bytes_max
        if excess <= 0:
            return Made(0, 0)
        if self._unread_since_ms is not None and self._unread_since_ms <= now_ms < self._again_ms:
            return Made(0, 0)
        with self._store.kept_open():
            chosen, are_all = self._choose(db, excess, now_ms)
        store = destination.fingerprint(db, str(self._store.path))
        emptied = ledger.give_up_bodies(db, chosen, store) if chosen else 0
        return Made(emptied, ledger.drop_oversize(db, now_ms, bytes_max) if are_all else 0)

    def _choose(self, db: sqlite3.Connection, excess: int, now_ms: int) -> tuple[list[int], bool]:
        """The oldest jobs that can be made again, as far as there is need; whether these are all that there are."""
        chosen: list[int] = []
        for asked, one in enumerate(self._candidates(db)):
            if excess <= 0:
                break
            if asked == ASKED_MAX:
                return chosen, False
            try:
                is_held = self._store.holds(one.session, None if one.turn == SESSION_RECORD else one.turn)
            except StoreError:
                return chosen, self._is_out_of_reach(now_ms)
            if is_held:
                chosen.append(one.job_id)
                excess -= one.body_bytes
            else:
                self._not_stored.add(one.job_id)
        self._unread_since_ms = None
        return chosen, True

    def _is_out_of_reach(self, now_ms: int) -> bool:
        """Whether a store that could not be read just now counts as holding nothing."""
        if not self._store.path.is_file():
            return True
        if self._unread_since_ms is None or now_ms < self._unread_since_ms:
            self._unread_since_ms = now_ms
        self._again_ms = now_ms + AGAIN_MS
        return now_ms - self._unread_since_ms >= PATIENCE_MS

    def _candidates(self, db: sqlite3.Connection) -> Iterator[Bulk]:
        last: Bulk | None = None
        while batch := ledger.bulk(db, last):
            last = batch[-1]
            yield from (one for one in batch if one.job_id not in self._not_stored)
