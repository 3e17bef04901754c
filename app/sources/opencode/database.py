"""Reads a store of OpenCode in one SQLite file, of whichever generation."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from app.sources.opencode import newer, tables
from app.sources.opencode.access import AbsentError, Access, StoreError
from app.sources.opencode.rows import Memory, Rows

_WAY_IN = "write its sessions to files with `opencode export ID > FILE`, and import these"
_KNOWN = "no store of OpenCode {} as far as that is known (it has no {}), and is not read"
T = TypeVar("T")


class Database:
    """`access` says how it is read: every question is one short read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._access = Access(path)
        self._memory = Memory()
        self._kind: tuple[sqlite3.Connection, int, bool, bool] | None = None

    def kept_open(self) -> AbstractContextManager[None]:
        """Keep the file open, as `Access` has it."""
        return self._access.kept_open()

    def ask(self, question: Callable[[Rows], T]) -> T:
        """Raises StoreError, and what the question raises."""
        return self._access.ask(lambda db: question(self._rows(db)))

    def _rows(self, db: sqlite3.Connection) -> Rows:
        (tables_are,) = db.execute("pragma schema_version").fetchone()
        if self._kind is None or self._kind[:2] != (db, tables_are):
            self._kind = (db, tables_are, *self._generation(db))
        _, _, is_newer, has_older = self._kind
        if not is_newer:
            return tables.TableRows(db, self._memory)
        return newer.NewerRows(db, self._memory, tables.TableRows(db, self._memory) if has_older else None)

    def _generation(self, db: sqlite3.Connection) -> tuple[bool, bool]:
        """Whether there are OpenCode 2's tables, and whether there are those of 1.x beside them. Raises StoreError."""
        there = {row["name"] for row in db.execute("select name from sqlite_master where type = 'table'")}
        if not there:
            raise AbsentError(f"OpenCode's store {self.path} holds nothing yet")
        if "session_v2" in there:
            self._require(db, newer.NEEDED, "2")
            return True, there.issuperset(tables.NEEDED)
        self._require(db, tables.NEEDED, "1.18")
        return False, True

    def _require(self, db: sqlite3.Connection, needed: Mapping[str, set[str]], version: str) -> None:
        """Raises StoreError for a file of a generation that this program does not know."""
        missing = sorted(
            f"{table}.{column}"
            for table, columns in needed.items()
            for column in columns - {row["name"] for row in db.execute(f"pragma table_info({table})")}
        )
        if missing:
            raise StoreError(f"{self.path} is {_KNOWN.format(version, ', '.join(missing[:3]))}: {_WAY_IN}")
