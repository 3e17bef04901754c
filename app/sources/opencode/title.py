"""Title of one session, for who asks for nothing else: what reads messages takes longer to load than this takes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from app.sources.opencode.access import Access
from app.sources.opencode.folders import databases

_TABLES = ("session_v2", "session")
"""Of OpenCode 2, which has copied what is in the other."""


def title(store: Path, session: str) -> str | None:
    """None where no SQLite file of the store has it: one of OpenCode 1.0 and 1.1 lies in files. Raises StoreError."""
    for path in databases(store):
        found = Access(path).ask(lambda db: _title(db, session))
        if found is not None:
            return found
    return None


def _title(db: sqlite3.Connection, session: str) -> str | None:
    there = {row["name"] for row in db.execute("select name from sqlite_master where type = 'table'")}
    for table in _TABLES:
        if table in there:
            row = db.execute(f"select cast(title as text) as title from {table} where id = ?", (session,)).fetchone()  # noqa: S608 - named here
            if row is not None:
                return row["title"] or ""
    return None
