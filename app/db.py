"""SQLite files: how they are opened, how their schema comes to be."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from app.place import private_file, private_spool

BUSY_TIMEOUT_MS = 5_000


class SchemaError(RuntimeError):
    """The file's schema is newer than this program, or its migrations are broken."""


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

    Each script and the record of it (`pragma user_version`) are one transaction. A script may make tables anew: foreign
    keys are not enforced while it runs, and all of them are checked before the commit.
    Raises SchemaError for a schema from the future, or when a script leaves a reference to nothing; the file stays as
    it is then.
    """
    newest = scripts[-1][0]
    if _version(db) < newest:
        # Has no effect inside a transaction, so it cannot be part of a script.
        db.execute("pragma foreign_keys = off")
        try:
            for version, sql in scripts:
                _apply(db, version, sql)
        finally:
            db.execute("pragma foreign_keys = on")
    if _version(db) > newest:
        raise SchemaError(
            f"the ledger has schema {_version(db)}, this program knows up to {newest}: install the newer version again"
        )
    return newest


def _apply(db: sqlite3.Connection, version: int, sql: str) -> None:
    if _version(db) >= version:
        return
    with transaction(db):
        if _version(db) >= version:  # somebody else was faster
            return
        for statement in statements(sql):
            db.execute(statement)
        broken = db.execute("pragma foreign_key_check").fetchall()
        if broken:
            raise SchemaError(f"migration {version} leaves {len(broken)} row(s) of {broken[0]['table']} without parent")
        db.execute(f"pragma user_version = {version}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("pragma user_version").fetchone()[0])


def open_ledger(spool: Path) -> sqlite3.Connection:
    """Create what is missing (directory, file, schema) and open `ledger.db` in the spool directory.

    Raises OSError, sqlite3.OperationalError (locked, disk full, read-only) and SchemaError.
    """
    path = private_file(private_spool(spool) / "ledger.db")
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
