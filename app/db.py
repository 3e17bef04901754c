"""SQLite files: where they may lie, how they are opened, how their schema comes to be."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

from app import crashpoint

BUSY_TIMEOUT_MS = 5_000
PRIVATE_DIRECTORY = 0o700
PRIVATE_FILE = 0o600


class SchemaError(RuntimeError):
    """The file's schema is newer than this program, or its migrations are broken."""


def private_directory(path: Path) -> Path:
    """Make `path` (and the parents that are missing) with mode 0700, tighten it when it is looser, and return it."""
    if not path.parent.exists():
        private_directory(path.parent)
    path.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
    mode = path.stat().st_mode
    if mode & stat.S_ISVTX:
        # Such as /tmp: to close it would lock everybody else out.
        raise PermissionError(f"{path} is shared by all users: name a folder of its own")
    if mode & 0o077:
        path.chmod(PRIVATE_DIRECTORY)
    return path


def private_file(path: Path) -> Path:
    """Make `path` with mode 0600 when it is not there, tighten it when it is looser, and return it.

    SQLite gives its WAL and shared-memory files the mode of the database, so this covers all three.
    A file that is there is never opened: closing any descriptor of it would drop the locks that SQLite holds on it
    for other connections of this process (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    if not path.exists():
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE))
        with suppress(FileExistsError):  # somebody else was faster
            os.link(draft, path)
        draft.unlink()
    if path.stat().st_mode & 0o077:
        path.chmod(PRIVATE_FILE)
    return path


def connect(path: Path) -> sqlite3.Connection:
    """A connection for one thread, in autocommit; `transaction` opens transactions explicitly."""
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.execute("pragma foreign_keys = on")
    # A commit must survive power loss: the hook says "stored" only once.
    db.execute("pragma synchronous = full")
    # macOS flushes the drive's cache only when told so; no effect elsewhere.
    db.execute("pragma fullfsync = on")
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
        if db.in_transaction:
            db.execute("rollback")
        raise


def migrations() -> list[tuple[int, str]]:
    """(version, SQL) of every migration that travels with the package, in order.

    Raises SchemaError when a number is missing or doubled.
    """
    folder = resources.files("app") / "migrations"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    found = [(int(name.split("_", 1)[0]), (folder / name).read_text("utf-8")) for name in names]
    if [version for version, _ in found] != list(range(1, len(found) + 1)):
        raise SchemaError(f"migrations are not numbered 1 to {len(found)}: {', '.join(names)}")
    return found


def statements(sql: str) -> Iterator[str]:
    """The single statements of a script. (`executescript` would commit behind our back.)"""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if any(line.strip() and not line.strip().startswith("--") for line in statement.splitlines()):
        raise SchemaError("a migration ends in the middle of a statement")


def migrate(db: sqlite3.Connection, scripts: list[tuple[int, str]]) -> int:
    """Bring the schema to the last of `scripts` and return its version; safe to run from many processes at once.

    Each script and the record of it (`pragma user_version`) are one transaction.
    Raises SchemaError for a schema from the future and leaves the file as it is.
    """
    for version, sql in scripts:
        if _version(db) >= version:
            continue
        with transaction(db):
            if _version(db) >= version:  # somebody else was faster
                continue
            for statement in statements(sql):
                db.execute(statement)
            db.execute(f"pragma user_version = {version}")
            crashpoint.reach("migrate.applying")
    newest = scripts[-1][0]
    if _version(db) > newest:
        raise SchemaError(
            f"the ledger has schema {_version(db)}, this program knows up to {newest}: install the newer version again"
        )
    return newest


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("pragma user_version").fetchone()[0])


def open_ledger(spool: Path) -> sqlite3.Connection:
    """Create what is missing (directory, file, schema) and open `ledger.db` in the spool directory.

    Raises OSError, sqlite3.OperationalError (locked, disk full, read-only) and SchemaError.
    """
    path = private_file(private_directory(spool) / "ledger.db")
    db = connect(path)
    try:
        if _version(db) == 0:
            _prepare(db)
        migrate(db, migrations())
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection) -> None:
    """Set what can only be set on an empty file, before the journal mode: auto_vacuum is ignored after it."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            db.execute("pragma auto_vacuum = incremental")
            db.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError:
            # Switching to WAL does not wait for the busy timeout when several processes switch at once.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
