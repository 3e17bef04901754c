"""Connections to SQLite files: sets them up, and has transactions and checkpoints done safely."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

BUSY_TIMEOUT_MS = 5_000
PATIENT_MS = 25_000
"""How long a worker waits for a lock: what Helicone has just accepted must not be forgotten because somebody writes.
The longest POST (30 s) and this stay within the lease (60 s)."""
WAL_BYTES = 4 * 1024 * 1024
"""A WAL longer than this is copied into the database by whoever commits next."""


class Replaced(sqlite3.DatabaseError):
    """The file of this connection has been set aside; what was just written to it may be lost. Open it again."""


class Ledger(sqlite3.Connection):
    """A connection that notices when another process has put a recovered file in the place of its own."""

    path: Path
    _file: tuple[int, int]

    def hold(self, path: Path) -> None:
        """Note which file it is that was opened."""
        self.path = path
        self._file = _identity(path)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute as ever; raises Replaced when the statement went to a file that is set aside.

        Looking *after* the statement leaves no gap: whoever recovers a ledger renames it first and reads it then, so
        he has seen whatever was committed before the rename.
        """
        cursor = super().execute(*arguments)
        if not self.is_current():
            raise Replaced("the ledger was replaced by another process")
        return cursor

    def is_current(self) -> bool:
        try:
            return _identity(self.path) == self._file
        except FileNotFoundError:
            return False


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def connect(path: Path) -> Ledger:
    """A connection for one thread, in autocommit; `transaction` opens transactions explicitly."""
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, factory=Ledger)
    try:
        db.hold(path)
        db.row_factory = sqlite3.Row
        # A damaged character must not stop whoever only looks.
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        db.execute("pragma foreign_keys = on")
        # A commit must survive power loss: the hook says "stored" only once.
        db.execute("pragma synchronous = full")
        # macOS flushes the drive's cache only when told so; no effect elsewhere.
        db.execute("pragma fullfsync = on")
        # `checkpoint` does it, because SQLite's own way is not safe before 3.51.3.
        db.execute("pragma wal_autocheckpoint = 0")
        # What is beyond goes when the WAL begins anew; what is below is kept, because to write over is cheaper.
        db.execute(f"pragma journal_size_limit = {WAL_BYTES}")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """One write transaction. `immediate`, so that two writers queue up at the start and neither fails later."""
    db.execute("begin immediate")
    try:
        yield
        db.execute("commit")
    except BaseException:
        # Also KeyboardInterrupt, and a commit that fails: an open transaction would lock every other process out.
        db.rollback()
        raise
    if isinstance(db, Ledger):
        checkpoint(db)


@contextmanager
def unflushed(db: sqlite3.Connection) -> Iterator[None]:
    """The write transactions in here do not wait for the disk: the machine's death may undo them, and nothing less."""
    db.execute("pragma synchronous = normal")
    try:
        yield
    finally:
        db.execute("pragma synchronous = full")


@contextmanager
def flushed_together(db: Ledger) -> Iterator[None]:
    """All write transactions in here wait for the disk once, at the end."""
    with unflushed(db):
        yield
    with suppress(FileNotFoundError):  # then all of it is in the database
        descriptor = os.open(db.path.with_name(f"{db.path.name}-wal"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            flush = getattr(fcntl, "F_FULLFSYNC", None)  # macOS flushes the drive's cache only when told so
            os.fsync(descriptor) if flush is None else fcntl.fcntl(descriptor, flush)
        finally:
            os.close(descriptor)


def checkpoint(db: Ledger, bytes_max: int = WAL_BYTES) -> None:
    """Copy the WAL into the database when it is longer than `bytes_max`; costs one `stat` when it is not.

    Nobody can commit meanwhile: this connection holds the write lock while another one copies. The WAL-reset bug
    (https://sqlite.org/wal.html#walresetbug) needs a commit that begins the WAL anew during a checkpoint. The other
    checkpoint that SQLite makes, when the last connection closes, has the file for itself.
    """
    try:
        if db.path.with_name(f"{db.path.name}-wal").stat().st_size <= bytes_max:
            return
    except FileNotFoundError:
        return
    # The commit before is done, whatever becomes of this: the next one tries again.
    with suppress(sqlite3.Error), closing(connect(db.path)) as copying:
        db.execute("begin immediate")
        try:
            copying.execute("pragma wal_checkpoint(passive)").fetchall()
        finally:
            db.rollback()


def shrink(db: sqlite3.Connection) -> None:
    """Give pages of deleted rows back to the file system, a bounded number at a time."""
    # `execute` would step only once, and each step frees one page.
    db.executescript("pragma incremental_vacuum(1000)")


def wal_reset_bug(version: str) -> bool:
    """Whether this version of SQLite may damage a WAL database when two connections checkpoint and commit at once."""
    major, minor, patch = (int(part) for part in (*version.split("."), "0", "0")[:3])
    fixed = {44: 6, 50: 7, 51: 3}
    if (major, minor) >= (3, 52):
        return False
    return (major, minor) >= (3, 7) and (minor not in fixed or patch < fixed[minor])
