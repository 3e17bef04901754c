"""Reads the ledger for a command that only looks, also where it turns out to be damaged on the way."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from app.database.open import open_ledger, recover_after

T = TypeVar("T")


def ask_ledger(spool: Path, question: Callable[[sqlite3.Connection], T]) -> T:
    """The answer; of a ledger that is damaged after it was recovered. Raises what `open_ledger` raises."""
    with closing(open_ledger(spool)) as db:
        try:
            return question(db)
        except sqlite3.Error as error:
            if not recover_after(db, error):
                raise
    with closing(open_ledger(spool)) as db:
        return question(db)
