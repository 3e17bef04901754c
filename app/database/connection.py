"""Connections to SQLite files; transactions and locks that work on SQLite and on PostgreSQL."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from weakref import WeakValueDictionary

if TYPE_CHECKING:  # it needs packages that the plain installation does not bring
    from app.database.postgres import PostgresLedger
    from app.database.postgres import Row as PostgresRow

BUSY_TIMEOUT_MS = 5_000
PATIENT_MS = 25_000
"""How long a worker waits for a lock: what Helicone has just accepted must not be forgotten because somebody writes.
The longest POST (30 s) and this stay within the lease (60 s)."""
THREAD_LOCK_S = 0.1
"""How long a thread waits for another one of its process before that counts as waiting for a lock."""
FULL = 2
"""As SQLite counts `synchronous`."""
PAGE_BYTES = 2048
"""Of a new ledger: SQLite logs whole pages, and of most only one row of an index has changed."""
WAL_BYTES = 4 * 1024 * 1024
"""A WAL longer than this is copied into the database by whoever commits next."""


T = TypeVar("T")
_File: TypeAlias = tuple[int, int]
Database: TypeAlias = "sqlite3.Connection | PostgresLedger"
"""What the ledger's functions take. Both raise the exceptions of `sqlite3`."""
Row: TypeAlias = "sqlite3.Row | PostgresRow"


class _WriteLocks:
    """One lock for each file that this process has open: its threads write one after another.

    A thread that SQLite keeps waiting for another one sleeps, for up to 100 ms at a time, and gains nothing: the lock
    is free again after one. Other processes are waited for as ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: MutableMapping[_File, threading.Lock] = WeakValueDictionary()

    def of(self, file: _File) -> threading.Lock:
        with self._lock:
            return self._of.setdefault(file, threading.Lock())


_write_locks = _WriteLocks()


class Replaced(sqlite3.DatabaseError):
    """The file of this connection has been set aside; what was just written to it may be lost. Open it again."""


class Ledger(sqlite3.Connection):
    """A connection that notices when another process has put a recovered file in the place of its own."""

    path: Path
    _name: str
    _file: _File
    _write_lock: threading.Lock

    def note_file(self, path: Path) -> None:
        """Remember which file was opened."""
        self.path = path
        self._name = str(path)
        self._file = _identity(self._name)
        self._write_lock = _write_locks.of(self._file)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Of the threads of this process only this one writes. Raises sqlite3.OperationalError after busy_timeout."""
        if self._write_lock.acquire(timeout=THREAD_LOCK_S):
            try:
                yield
            finally:
                self._write_lock.release()
        else:
            with self._late():
                yield

    @contextmanager
    def _late(self) -> Iterator[None]:
        """After a wait that counts: with the one for other processes it takes no longer than that one alone."""
        began_s = time.monotonic()
        patience_ms = int(self.execute("pragma busy_timeout").fetchone()[0])
        if not self._write_lock.acquire(timeout=patience_ms / 1000):
            raise sqlite3.OperationalError("database is locked by another thread")
        try:
            left_ms = patience_ms - int((time.monotonic() - began_s) * 1000)
            self.execute(f"pragma busy_timeout = {max(left_ms, 0)}")
            try:
                yield
            finally:
                self.execute(f"pragma busy_timeout = {patience_ms}")
        finally:
            self._write_lock.release()

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
            return _identity(self._name) == self._file
        except FileNotFoundError:
            return False


class Unmade(Ledger):
    """An empty ledger in memory, of a spool that has none; it counts as replaced as soon as somebody makes that."""

    def note_file(self, path: Path) -> None:
        self.path = path
        self._name = str(path)
        self._write_lock = threading.Lock()

    def is_current(self) -> bool:
        return not os.path.lexists(self._name)


def _identity(name: str) -> _File:
    found = os.stat(name)  # noqa: PTH116 - after each statement: a Path takes longer than the call
    return found.st_dev, found.st_ino


def connect(path: Path, kind: type[Ledger] = Ledger) -> Ledger:
    """A connection for one thread, in autocommit; `transaction` opens transactions explicitly."""
    file = ":memory:" if kind is Unmade else path
    db = sqlite3.connect(file, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, factory=kind)
    try:
        db.note_file(path)
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
def transaction(db: Database) -> Iterator[None]:
    """One write transaction. `immediate`, so that two writers queue up at the start and neither fails later."""
    if not isinstance(db, sqlite3.Connection):
        with db.transaction():
            yield
        return
    with db.writing() if isinstance(db, Ledger) else nullcontext():
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
def unflushed(db: Database) -> Iterator[None]:
    """The write transactions in here do not wait for the disk: the machine's death may undo them, and nothing less."""
    if not isinstance(db, sqlite3.Connection):
        with db.unflushed():
            yield
        return
    if db.execute("pragma synchronous").fetchone()[0] < FULL:
        yield
        return
    db.execute("pragma synchronous = normal")
    try:
        yield
    finally:
        db.execute("pragma synchronous = full")


@contextmanager
def flushed_together(db: Ledger) -> Iterator[None]:
    """All write transactions in here wait for the disk once, at the end; also where it ends with an error."""
    try:
        with unflushed(db):
            yield
    finally:
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


def lock(db: Database, name: str) -> None:
    """Take a named lock until the transaction ends; a second transaction that asks for it waits.

    SQLite needs none: it has one writer at a time.
    """
    if not isinstance(db, sqlite3.Connection):
        db.lock(name)


def surviving(db: Database, act: Callable[[], T]) -> T:
    """Run `act`. On PostgreSQL run it again while the server is away, for a while; on SQLite run it once."""
    return act() if isinstance(db, sqlite3.Connection) else db.surviving(act)


def lock_rows(db: Database, select: str, parameters: tuple[object, ...]) -> None:
    """Lock the rows that this select finds until the transaction ends: nobody changes them meanwhile."""
    if not isinstance(db, sqlite3.Connection):
        db.execute(f"{select} for update", parameters)


def bytes_on_this_disk(db: Database) -> int:
    """Of what the ledger holds, the room that deleted rows have left not counted; none of one on a server."""
    if not isinstance(db, sqlite3.Connection):
        return 0
    pages, free, page_bytes = (
        int(db.execute(f"pragma {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * page_bytes


def shrink(db: sqlite3.Connection) -> None:
    """Give pages of deleted rows back to the file system, a bounded number at a time."""
    # `execute` would step only once, and each step frees one page.
    db.executescript("pragma incremental_vacuum(2000)")


def wal_reset_bug(version: str) -> bool:
    """Whether this version of SQLite may damage a WAL database when two connections checkpoint and commit at once."""
    major, minor, patch = (int(part) for part in (*version.split("."), "0", "0")[:3])
    fixed = {44: 6, 50: 7, 51: 3}
    if (major, minor) >= (3, 52):
        return False
    return (major, minor) >= (3, 7) and (minor not in fixed or patch < fixed[minor])
