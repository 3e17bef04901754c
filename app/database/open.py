"""Opens the ledger: creates, migrates or recovers its file, or refuses one of a newer version.

    open_ledger ─▶ whole and of our schema ───────────────▶ Ledger
                ├▶ of an older one: backup ─▶ migrate ────▶ Ledger
                ├▶ of a newer one: SchemaError, untouched
                └▶ damaged: salvage.recover ──────────────▶ Ledger, and a file set aside

What is only found to be damaged later, in the middle of a statement, is for `recover_after`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from app.database import derived, recover
from app.database.connection import BUSY_TIMEOUT_MS, PAGE_BYTES, Ledger, Replaced, Unmade, connect
from app.database.schema import (
    Damaged,
    SchemaError,
    found_objects,
    look_at_schema,
    migrate,
    migrations,
    objects_of,
    version_of,
)
from app.runtime.filesystem import private_file, private_spool, refuse_place


def open_ledger(spool: Path) -> Ledger:
    """Create what is missing (directory, file, schema) and open `ledger.db` in the spool directory.

    A ledger of an older schema is migrated, one that is damaged is set aside and what can be read of it recovered:
    `incidents.refusals` tells how much could not.
    Raises OSError, sqlite3.OperationalError (locked, disk full, read-only) and SchemaError.
    """
    path = private_spool(spool) / "ledger.db"
    with recover.shared(path):
        if not recover.is_unfinished(path):
            db = _open(path, alone=False)
            if db is not None:
                return db
    with recover.exclusive(path):
        # Somebody else may have been faster.
        db = None if recover.is_unfinished(path) else _open(path, alone=True)
        if db is None:
            recover.recover(path, _open_new, _now_ms())
            db = _open_new(path)
        return db


def open_if_made(spool: Path) -> Ledger:
    """Open as `open_ledger` where there is a ledger; elsewhere an empty one in memory, so that looking makes nothing.

    Raises what `open_ledger` raises.
    """
    path = spool / "ledger.db"
    if os.path.lexists(path) or recover.is_unfinished(path):
        return open_ledger(spool)
    refuse_place(spool)
    db = connect(path, Unmade)
    migrate(db, migrations())
    return db


def read_ledger(spool: Path, patience_ms: int = BUSY_TIMEOUT_MS) -> Ledger:
    """`ledger.db` as it is, for who only looks: nothing is made, migrated or recovered.

    Raises FileNotFoundError where there is none, sqlite3.Error for a damaged one, and SchemaError for one of another
    version than this program's.
    """
    path = spool / "ledger.db"
    path.stat()
    with ExitStack() as opened:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        db = opened.enter_context(
            closing(sqlite3.connect(uri, uri=True, timeout=patience_ms / 1000, isolation_level=None, factory=Ledger))
        )
        db.note_file(path)
        db.row_factory = sqlite3.Row
        # As `connect` has it: a damaged character must not stop whoever only looks.
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        version = look_at_schema(db)
        if version < migrations()[-1][0]:
            raise SchemaError(f"the ledger has schema {version}, which the next start of OpenCode brings up to date")
        opened.pop_all()  # the caller closes it
        return db


def open_whole(spool: Path, open_it: Callable[[Path], Ledger] = open_ledger) -> Ledger:
    """Open as `open_it`, and nothing in it is damaged. Takes 1 to 3 ms for each MB more; raises the same."""
    with ExitStack() as opened:
        db = opened.enter_context(closing(open_it(spool)))
        try:
            inspect(db)
        except sqlite3.Error as error:
            if not recover_after(db, error):
                raise
        else:
            opened.pop_all()  # the caller closes it
            return db
    return open_it(spool)


def recover_after(db: Ledger, error: Exception) -> bool:
    """Whether a statement failed because the ledger is damaged or was replaced. Then it is whole now: open it anew.

    Raises what `open_ledger` raises; the next call goes on with it.
    """
    if isinstance(error, Replaced):
        return True
    if not (_tells_damage(error) or _has_lost_its_schema(db, error) or _is_read_only_for_no_reason(db.path, error)):
        return False
    with recover.exclusive(db.path):
        if db.is_current():  # nobody was faster
            recover.recover(db.path, _open_new, _now_ms())
    return True


def inspect(db: Ledger) -> None:
    """Raises sqlite3.DatabaseError, for `recover_after`, where the file has damage that no statement has met yet.

    What is kept about the jobs is made anew where it is wrong. Takes 1 to 3 ms for each MB.
    """
    look_at_schema(db)
    (found,) = db.execute("pragma integrity_check(1)").fetchone()
    if found != "ok":
        raise Damaged("the ledger is damaged")
    for table in derived.mend(db):
        recover.note(db, f"{table} did not say what the jobs say, and is made anew", _now_ms())


def _has_lost_its_schema(db: Ledger, error: Exception) -> bool:
    """Whether "no such table" or "no such column" is true."""
    if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
        return False
    try:
        look_at_schema(db)
    except (sqlite3.Error, SchemaError) as deeper:
        return _tells_damage(deeper)
    return False


def _tells_damage(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return (
        # Python cannot even say what SQLite says: it quotes a table that has bytes in it which are no text.
        isinstance(error, Damaged | UnicodeDecodeError)
        or code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
        or code == sqlite3.SQLITE_IOERR_SHORT_READ  # the file ends before it should
    )


def _open(path: Path, *, alone: bool) -> Ledger | None:
    """None when it is damaged, or when it must be migrated and others might do that as well (not `alone`)."""
    db: Ledger | None = None
    try:
        recover.count_torn_transactions(path, _now_ms())
        db = connect(private_file(path))
        version = look_at_schema(db)
    except BaseException as error:
        if db is not None:
            db.close()
        is_unknown_format = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
        if _tells_damage(error) or is_unknown_format or _is_read_only_for_no_reason(path, error):
            return None
        raise
    try:
        if version < migrations()[-1][0] and not _update(db, version, alone=alone):
            db.close()
            return None
    except BaseException as error:
        db.close()
        if _tells_damage(error):
            return None
        raise
    return db


def _update(db: Ledger, version: int, *, alone: bool) -> bool:
    """Make or migrate the schema. False when that must be done alone, for the backup's sake."""
    if version == 0:
        _prepare(db)
    elif alone:
        _back_up(db, version)
    else:
        return False
    migrate(db, migrations())
    if version == 0:
        _order(db)
    recover.tidy(db.path)
    return True


def _is_read_only_for_no_reason(path: Path, error: BaseException) -> bool:
    """Whether a damaged header has SQLite take the file for one that a future SQLite has written."""
    is_writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY and is_writable


def _open_new(path: Path, damaged: sqlite3.Connection | None = None) -> Ledger:
    """A new ledger; of the version that a damaged one seems to be, whatever number it bears."""
    versions = [number for number, _ in migrations()]
    if damaged is not None:
        found = found_objects(damaged)
        versions = [number for number in versions if objects_of(number) <= found] or versions
    db = connect(private_file(path))
    try:
        is_new = version_of(db) == 0
        if is_new:
            _prepare(db)
        migrate(db, [(number, sql) for number, sql in migrations() if number <= versions[-1]])
        if is_new:
            _order(db)
    except BaseException:
        db.close()
        raise
    return db


def _back_up(db: Ledger, version: int) -> None:
    """Copy the ledger before it is migrated. Raises sqlite3.OperationalError when there is no room for it."""
    # One name, because nobody else is here: a draft that a kill left behind is written over.
    draft = db.path.with_name(f".{db.path.name}.backup")
    draft.unlink(missing_ok=True)
    private_file(draft)
    try:
        with closing(sqlite3.connect(draft)) as copy:
            db.backup(copy)
        for older in recover.backups(db.path):
            older.unlink()
        draft.rename(db.path.with_name(f"{db.path.name}.before-{version}"))
    except sqlite3.Error as error:
        raise sqlite3.OperationalError(
            f"no backup could be made before the migration, nothing changed: {error}"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _order(db: sqlite3.Connection) -> None:
    """Have the tables of a new ledger begin where those of one that `app.ledger.erasure` has rewritten do.

    So either can be read with the first page of a new one, should its own be lost (`recover`).
    """
    with suppress(sqlite3.OperationalError):  # somebody else made it at the same time, and writes already
        db.execute("vacuum")


def _prepare(db: sqlite3.Connection) -> None:
    """Set what can only be set on an empty file, before the journal mode: these two are ignored after it."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            db.execute(f"pragma page_size = {PAGE_BYTES}")
            db.execute("pragma auto_vacuum = incremental")
            db.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError:
            # Switching to WAL does not wait for the busy timeout when several processes switch at once.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
