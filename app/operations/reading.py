"""Reads the ledger for a command that only looks, also where it turns out to be damaged on the way."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from app.database.connection import Ledger, Unmade
from app.database.open import open_if_made, recover_after

T = TypeVar("T")


_log = logging.getLogger("opencode-helicone")


def opened(spool: Path) -> Ledger:
    """The ledger, or an empty one where there is none, which is told. Raises what `open_if_made` raises."""
    db = open_if_made(spool)
    if isinstance(db, Unmade):
        _log.warning(f"there is no queue in {spool} yet")
    return db


def ask_ledger(spool: Path, question: Callable[[sqlite3.Connection], T]) -> T:
    """The answer; of a ledger that is damaged after it was recovered. Raises what `open_if_made` raises."""
    with closing(opened(spool)) as db:
        try:
            return question(db)
        except sqlite3.Error as error:
            if not recover_after(db, error):
                raise
    with closing(opened(spool)) as db:
        return question(db)
