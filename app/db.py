"""SQLite files: how they are opened, how their schema comes to be.

    open_ledger ─▶ whole and of our schema ───────────────▶ Ledger
                ├▶ of an older one: backup ─▶ migrate ────▶ Ledger
                ├▶ of a newer one: SchemaError, untouched
                └▶ damaged: salvage.recover ──────────────▶ Ledger, and a file set aside

What is only found to be damaged later, in the middle of a statement, is for `heal`.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from app import crashpoint, salvage
from app.place import private_file, private_spool

BUSY_TIMEOUT_MS = 5_000
VERSIONS_MAX = 1_000
"""A version above this, with tables that we know, is no version but damage."""
WAL_BYTES = 4 * 1024 * 1024
"""A WAL longer than this is copied into the database by whoever commits next."""


class SchemaError(RuntimeError):
    """The file's schema is newer than this program, or its migrations are broken."""


class Replaced(sqlite3.DatabaseError):
    """The file of this connection has been set aside; what was just written to it may be lost. Open it again."""


class Damaged(sqlite3.DatabaseError):
    """SQLite can open the file, but it is not what it says it is."""


class Ledger(sqlite3.Connection):
    """A connection that notices when another process has put a recovered file in the place of its own."""

    path: Path
    _file: tuple[int, int]

    def hold(self, path: Path) -> None:
        """Note which file it is that was opened."""
        self.path = path
        self._file = _identity(path)

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """As ever; raises Replaced when the statement went to a file that is set aside.

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


def wal_reset_bug(version: str) -> bool:
    """Whether this version of SQLite may damage a WAL database when two connections checkpoint and commit at once."""
    major, minor, patch = (int(part) for part in (*version.split("."), "0", "0")[:3])
    fixed = {44: 6, 50: 7, 51: 3}
    if (major, minor) >= (3, 52):
        return False
    return (major, minor) >= (3, 7) and (minor not in fixed or patch < fixed[minor])


@cache
def migrations() -> list[tuple[int, str]]:
    """(version, SQL) of every migration that travels with the package, in order.

    Read once: what a newer version installs later is no part of this program.
    Raises SchemaError when a number is missing or doubled, or a file is still being installed.
    """
    folder = resources.files("app") / "migrations"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    found = [(int(name.split("_", 1)[0]), (folder / name).read_text("utf-8")) for name in names]
    if [version for version, _ in found] != list(range(1, len(found) + 1)):
        raise SchemaError(f"migrations are not numbered 1 to {len(found)}: {', '.join(names)}")
    if empty := [name for name, (_, sql) in zip(names, found, strict=True) if not sql.strip()]:
        raise SchemaError(f"{', '.join(empty)} is empty: still being installed")
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
        crashpoint.reach("migrate.applying")


def is_newer(db: sqlite3.Connection) -> bool:
    """Whether another program has brought an open ledger to a schema that this one does not know. Cheap."""
    return _version(db) > migrations()[-1][0]


def require_known(db: sqlite3.Connection) -> None:
    """Raises SchemaError when `is_newer`."""
    if is_newer(db):
        raise SchemaError(f"the ledger has schema {_version(db)}, this program knows up to {migrations()[-1][0]}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("pragma user_version").fetchone()[0])


@cache
def _objects(version: int) -> frozenset[tuple[str, str, str]]:
    """(type, name, SQL) of what a ledger of this version consists of."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.row_factory = sqlite3.Row
        scripts = [(number, sql) for number, sql in migrations() if number <= version]
        if scripts:
            migrate(db, scripts)
        return _found_objects(db)


def _found_objects(db: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    # Quotes and case aside: versions of SQLite do not agree on them when a table was renamed.
    rows = db.execute("select type, name, coalesce(sql, '') from sqlite_master").fetchall()
    return frozenset((row[0], row[1], "".join(row[2].lower().replace('"', "").split())) for row in rows)


def _look_at_schema(db: sqlite3.Connection) -> int:
    """The version, 0 for a new file. Raises SchemaError for a newer one, Damaged for one that its tables belie."""
    newest = migrations()[-1][0]
    db.execute("begin")  # both as of one moment: somebody may be migrating it
    try:
        version, found = _version(db), _found_objects(db)
    finally:
        db.rollback()
    if newest < version <= VERSIONS_MAX or (version > newest and found != _objects(newest)):
        raise SchemaError(
            f"the ledger has schema {version}, this program knows up to {newest}: install the newer version again"
        )
    if not 0 <= version <= newest or not _objects(version) <= found or (version == 0 and found):
        raise Damaged(f"the ledger says it has schema {version}, and its tables say otherwise")
    return version


def open_ledger(spool: Path) -> Ledger:
    """Create what is missing (directory, file, schema) and open `ledger.db` in the spool directory.

    A ledger of an older schema is migrated, one that is damaged is set aside and what can be read of it recovered:
    `destination.refusals` tells how much could not.
    Raises OSError, sqlite3.OperationalError (locked, disk full, read-only) and SchemaError.
    """
    path = private_spool(spool) / "ledger.db"
    with salvage.shared(path):
        if not salvage.is_unfinished(path):
            db = _open(path, alone=False)
            if db is not None:
                return db
    with salvage.exclusive(path):
        # Somebody else may have been faster.
        db = None if salvage.is_unfinished(path) else _open(path, alone=True)
        if db is None:
            salvage.recover(path, _open_new, _now_ms())
            db = _open_new(path)
        return db


def open_whole(spool: Path) -> Ledger:
    """As `open_ledger`, and nothing in the ledger is damaged. Takes 1 to 3 ms for each MB more; raises the same."""
    db = open_ledger(spool)
    try:
        inspect(db)
    except sqlite3.Error as error:
        try:
            if not heal(db, error):
                raise
        finally:
            db.close()
        return open_ledger(spool)
    return db


def heal(db: Ledger, error: Exception) -> bool:
    """Whether a statement failed because the ledger is damaged or was replaced. Then it is whole now: open it anew.

    Raises what `open_ledger` raises; the next call goes on with it.
    """
    if isinstance(error, Replaced):
        return True
    if not (_tells_damage(error) or _has_lost_its_schema(db, error) or _is_read_only_for_no_reason(db.path, error)):
        return False
    with salvage.exclusive(db.path):
        if db.is_current():  # nobody was faster
            salvage.recover(db.path, _open_new, _now_ms())
    return True


def inspect(db: Ledger) -> None:
    """Raises sqlite3.DatabaseError, for `heal`, when the file is damaged where no statement has noticed it yet.

    Takes 1 to 3 ms for each MB.
    """
    _look_at_schema(db)
    (found,) = db.execute("pragma integrity_check(1)").fetchone()
    if found != "ok":
        raise Damaged("the ledger is damaged")


def _has_lost_its_schema(db: Ledger, error: Exception) -> bool:
    """Whether "no such table" or "no such column" is true."""
    if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
        return False
    try:
        _look_at_schema(db)
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
        salvage.count_torn_transactions(path, _now_ms())
        db = connect(private_file(path))
        version = _look_at_schema(db)
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
    salvage.tidy(db.path)
    return True


def _is_read_only_for_no_reason(path: Path, error: BaseException) -> bool:
    """Whether a damaged header has SQLite take the file for one that a future SQLite has written."""
    is_writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY and is_writable


def _open_new(path: Path, damaged: sqlite3.Connection | None = None) -> Ledger:
    """A new ledger; of the version that a damaged one seems to be, whatever number it bears."""
    versions = [number for number, _ in migrations()]
    if damaged is not None:
        found = _found_objects(damaged)
        versions = [number for number in versions if _objects(number) <= found] or versions
    db = connect(private_file(path))
    try:
        if _version(db) == 0:
            _prepare(db)
        migrate(db, [(number, sql) for number, sql in migrations() if number <= versions[-1]])
    except BaseException:
        db.close()
        raise
    return db


def _back_up(db: Ledger, version: int) -> None:
    """Copy the ledger before it is migrated. Raises sqlite3.OperationalError when there is no room for it."""
    draft = private_file(db.path.with_name(f".{db.path.name}.{uuid.uuid4().hex}"))
    try:
        with closing(sqlite3.connect(draft)) as copy:
            db.backup(copy)
        for older in salvage.backups(db.path):
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
