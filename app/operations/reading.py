"""Reads the ledger for who only looks: a command, which recovers it on the way, or a page, which leaves it as it is."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from app.database.connection import Ledger, Unmade
from app.database.open import open_if_made, read_ledger, recover_after
from app.database.schema import SchemaError
from app.errors import AppError

T = TypeVar("T")

LOOK_MS = 500
"""How long a page waits for a lock: who writes locks nobody out who reads, so it is an unusual one."""

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


class UnreadableLedgerError(AppError):
    """The ledger cannot be looked at as it is. Says why, and what to type."""


def look_at_ledger(spool: Path, question: Callable[[sqlite3.Connection], T]) -> T:
    """The answer, where nothing may be made, migrated or recovered for it. Raises UnreadableLedgerError."""
    try:
        with closing(read_ledger(spool, LOOK_MS)) as db:
            return question(db)
    except FileNotFoundError:
        told = f"there is no queue in {spool} yet: start OpenCode, or type opencode-helicone migrate"
        raise UnreadableLedgerError(told) from None
    except SchemaError as error:
        raise UnreadableLedgerError(str(error)) from None
    except OSError as error:
        raise UnreadableLedgerError(f"{spool}: {error.strerror}") from None
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.Error) and _is_busy(error):
            told = "the queue, ledger.db, is locked by another program; it can be read when that has ended"
            raise UnreadableLedgerError(told) from None
        told = str(error) if isinstance(error, sqlite3.Error) else "it holds what is no text"
        raise UnreadableLedgerError(
            f"the queue, ledger.db, cannot be read: {told}; opencode-helicone doctor recovers it"
        ) from None


def _is_busy(error: sqlite3.Error) -> bool:
    # Errors of the module itself have no code. The low byte: the kind without its shade.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
