"""Owed sessions: notes in the ledger what the plugin told of and nobody has read yet, so that a kill loses nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping

from app.ledger import incidents, notices
from app.ledger.destinations import fingerprint

OWED_MS_MAX = 30 * 86_400_000
"""Of another store: a notice that nobody could read for so long is of one that is gone."""
GONE = "sessions gone before they were read"
"""As an incident: deleted, or with a data folder that is not there any more."""


class Owed:
    """What is owed of one store. A notice is known by its session, and by a mark that settles it and no later one.

    Methods raise sqlite3.Error.
    """

    def __init__(self, db: sqlite3.Connection, store: str) -> None:
        """`store` is its path as a fingerprint."""
        self._db = db
        self._store = store

    def note(self, session: str, directory: str, now_ms: int) -> int:
        """Something of the session is new; returns the mark."""
        return notices.note_notice(self._db, self._store, session, fingerprint(self._db, directory), now_ms)

    def all(self) -> dict[str, tuple[int, str]]:
        """All that is owed, by session: the mark, and the folder that it was said in."""
        return notices.open_notices(self._db, self._store)

    def settle(self, marks: Mapping[str, int]) -> None:
        """Note that what these notices named is in the ledger."""
        if marks:
            notices.settle_notices(self._db, self._store, marks)

    def give_up(self, marks: Mapping[str, int], now_ms: int) -> None:
        """The sessions of these notices are not there any more."""
        if marks and (gone := notices.settle_notices(self._db, self._store, marks)):
            incidents.note(self._db, GONE, now_ms, gone)

    def give_up_other_stores(self, now_ms: int) -> None:
        """Give up what another store has owed for too long: it may be gone, and nobody would know."""
        if old := notices.forget_notices(self._db, self._store, now_ms - OWED_MS_MAX):
            incidents.note(self._db, GONE, now_ms, old)

    def wait(self, sessions: Collection[str], reason: str) -> None:
        """Note that these cannot be read now."""
        notices.note_wait(self._db, self._store, sessions, reason)
