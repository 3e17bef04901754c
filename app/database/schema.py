"""Schema of the ledger: applies migrations, and checks whether a file has the tables of its version."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from importlib import resources

from app.database.connection import Database, transaction
from app.errors import AppError
from app.runtime import failpoint

NEWEST = "30323064ff38e1eeb03882eb1de6b31c9a055f7233bd6830f35734e87ca06cb6"
"""The digest of what a ledger of the newest version consists of. To make that anew from the migrations takes a process
15 ms, and is done for whatever has another one."""
VERSIONS_MAX = 1_000
"""A version above this, with tables that we know, is no version but damage."""


class SchemaError(AppError):
    """The file's schema is newer than this program, or its migrations are broken."""


class Damaged(sqlite3.DatabaseError):
    """SQLite can open the file, but it is not what it says it is."""


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


@cache
def postgres_migrations() -> list[tuple[int, str]]:
    """As `migrations`, for PostgreSQL: the first one makes all that SQLite's have made until then."""
    folder = resources.files("app") / "migrations" / "postgres"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    return [(int(name.split("_", 1)[0]), (folder / name).read_text("utf-8")) for name in names]


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
    if version_of(db) < newest:
        # Has no effect inside a transaction, so it cannot be part of a script.
        db.execute("pragma foreign_keys = off")
        try:
            for version, sql in scripts:
                _apply(db, version, sql)
        finally:
            db.execute("pragma foreign_keys = on")
    if version_of(db) > newest:
        raise SchemaError(
            f"the ledger has schema {version_of(db)}, this program knows up to {newest}:"
            " install the newer version again"
        )
    return newest


def _apply(db: sqlite3.Connection, version: int, sql: str) -> None:
    if version_of(db) >= version:
        return
    with transaction(db):
        if version_of(db) >= version:  # somebody else was faster
            return
        for statement in statements(sql):
            db.execute(statement)
        broken = db.execute("pragma foreign_key_check").fetchall()
        if broken:
            raise SchemaError(f"migration {version} leaves {len(broken)} row(s) of {broken[0]['table']} without parent")
        db.execute(f"pragma user_version = {version}")
        failpoint.reach("migrate.applying")


def is_newer(db: Database) -> bool:
    """Whether another program has brought an open ledger to a schema that this one does not know. Cheap."""
    return version_of(db) > migrations()[-1][0]


def require_known(db: Database) -> None:
    """Raises SchemaError when `is_newer`."""
    found, newest = version_of(db), migrations()[-1][0]
    if found > newest:
        raise SchemaError(f"the ledger has schema {found}, this program knows up to {newest}")


def version_of(db: Database) -> int:
    if not isinstance(db, sqlite3.Connection):
        return db.version()
    return int(db.execute("pragma user_version").fetchone()[0])


@cache
def objects_of(version: int) -> frozenset[tuple[str, str, str]]:
    """(type, name, SQL) of what a ledger of this version consists of."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        scripts = (sql for number, sql in migrations() if number <= version)
        db.executescript("\n".join(["begin;", *scripts, "commit;"]))
        return found_objects(db)


def digest_of(objects: frozenset[tuple[str, str, str]]) -> str:
    return hashlib.sha256(repr(sorted(objects)).encode("utf-8", "replace")).hexdigest()


def found_objects(db: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    # Comments aside, and quotes and case: versions of SQLite do not agree on these when a table was renamed.
    rows = db.execute("select type, name, coalesce(sql, '') from sqlite_master").fetchall()
    return frozenset((row[0], row[1], "".join(_bare(row[2]).split())) for row in rows)


def _bare(sql: str) -> str:
    return re.sub(r"--[^\n]*", "", sql).lower().replace('"', "")


def look_at_schema(db: sqlite3.Connection) -> int:
    """The version, 0 for a new file. Raises SchemaError for a newer one, Damaged for one that its tables belie."""
    newest = migrations()[-1][0]
    db.execute("begin")  # both as of one moment: somebody may be migrating it
    try:
        version, found = version_of(db), found_objects(db)
    finally:
        db.rollback()
    if version == newest and digest_of(found) == NEWEST:
        return version
    if newest < version <= VERSIONS_MAX or (version > newest and found != objects_of(newest)):
        raise SchemaError(
            f"the ledger has schema {version}, this program knows up to {newest}: install the newer version again"
        )
    if not 0 <= version <= newest or not objects_of(version) <= found or (version == 0 and found):
        raise Damaged(f"the ledger says it has schema {version}, and its tables say otherwise")
    return version
