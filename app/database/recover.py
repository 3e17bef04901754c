"""Recovers a damaged ledger: sets it aside, and copies every row that can be read into a new one.

    ledger.db ── rename ──▶ ledger.db.broken ── every row that can be read ──▶ ledger.db.new ── rename ──▶ ledger.db
                                 └── rename, last of all ──▶ ledger.db.damaged-20260131T120000Z

`ledger.db.broken` is there exactly while a recovery is not finished: whoever opens the ledger next goes on with it.
Everybody opens the ledger under the shared lock of `recover.lock`; who recovers has it exclusively.

It copies tables and columns, whatever they mean; it knows only what a job needs that has lost its parents. What is lost
is counted in the new ledger.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from app.database import derived
from app.database.connection import PAGE_BYTES
from app.runtime.filesystem import PRIVATE_FILE, private_file

OPEN_S_MAX = 60.0
"""How long somebody who wants to open the ledger waits for a recovery by another process."""
KEPT = 2
KEPT_BYTES_MAX = 8_000_000
"""Of files set aside and of backups, each: the newest stay as far as they fit."""
KEYS_MISSED_MAX = 5_000
"""In a row, in the gap between what can be read from the beginning and from the end of a table."""
VALUE_BYTES_MAX = 100_000_000
FILES = ("", "-wal", "-shm")
_COPIES = ("{}.damaged-*", "{}.before-*", "{}.new*", "{}.broken.copy*", ".{}.backup*")
WAL_HEADER = 32
FRAME_HEADER = 24
PAGES_BYTES = (PAGE_BYTES, 4096)
"""Of ledgers as they are made, and as they were made before."""
_BEGINNINGS = frozenset({b"\x02", b"\x05", b"\x0a", b"\x0d"})
"""The first byte of a page of an index or a table, in it or at its end."""
NOTE = "ledger"
"""How the incidents begin under which losses are counted."""

_UNREADABLE = (sqlite3.DatabaseError, MemoryError, UnicodeDecodeError)
"""A damaged length asks for too much memory; a damaged text is quoted in SQLite's message, and is no text."""

Make = Callable[[Path, sqlite3.Connection | None], sqlite3.Connection]
"""Makes a new ledger at a path, of the version that the given damaged one seems to be."""


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Held while the ledger is opened. Raises sqlite3.OperationalError when a recovery takes too long."""
    with _locked(path, fcntl.LOCK_SH):
        yield


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Held while it is recovered or migrated with a backup."""
    with _locked(path, fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(path.with_name("recover.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        end_s = time.monotonic() + OPEN_S_MAX
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end_s:
                    raise sqlite3.OperationalError("the ledger is being recovered by another process") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def note(db: sqlite3.Connection, what: str, now_ms: int, count: int = 1) -> None:
    """Among the incidents, which `status` shows; in a ledger from before there were any, among the refusals."""
    known = db.execute("select 1 from sqlite_master where name = 'incident'").fetchone()
    table, column = ("incident", "what") if known else ("refusal", "reason")
    db.execute(
        f"insert into {table} ({column}, count, last_ms) values (?, ?, ?)"
        f" on conflict ({column}) do update set count = count + excluded.count, last_ms = excluded.last_ms",
        (f"{NOTE}: {what}", count, now_ms),
    )


def is_unfinished(path: Path) -> bool:
    """Whether a recovery was begun and did not end."""
    return _broken(path).exists()


def _broken(path: Path) -> Path:
    return path.with_name(f"{path.name}.broken")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# --- recovery --------------------------------------------------------------------------------------------------------


def recover(path: Path, make: Make, now_ms: int) -> None:
    """Replace the damaged ledger by a whole one, or finish what somebody began; under the exclusive lock.

    Raises OSError and sqlite3.OperationalError (disk full): then it is still unfinished, and nothing is lost.
    """
    broken = _broken(path)
    if not (broken.exists() and path.exists()):
        for suffix in FILES:
            if _beside(path, suffix).exists():
                _beside(path, suffix).rename(_beside(broken, suffix))
        draft = _beside(path, ".new")
        _remove(draft)
        try:
            _rebuild(broken, draft, make, now_ms)
            _flush(draft)
            draft.replace(path)
        finally:
            _remove(draft)
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    kept = _beside(path, f".damaged-{stamp}")
    for suffix in reversed(FILES):
        if _beside(broken, suffix).exists():
            _beside(broken, suffix).replace(_beside(kept, suffix))
    _flush(path.parent)
    tidy(path)


def _rebuild(broken: Path, draft: Path, make: Make, now_ms: int) -> None:
    with _readable(broken, draft, make) as source, closing(make(draft, source)) as db:
        db.execute("pragma synchronous = off")  # a draft: it is flushed when it is whole
        db.execute("begin immediate")
        note(db, "damaged, set aside and recovered", now_ms)
        for table, count in _copy(source, db).items():
            if count:
                note(db, f"rows of {table} that could not be read", now_ms, count)
        db.execute("commit")


@contextmanager
def _readable(broken: Path, draft: Path, make: Make) -> Iterator[sqlite3.Connection | None]:
    """A copy of the damaged ledger; where its first page cannot be read, with that of a new one, or None.

    A copy, because those who still have it open hold locks on it, and an index of a WAL that may be another by now.
    """
    copy = _beside(broken, ".copy")
    try:
        for suffix in ("-wal", ""):
            if _beside(broken, suffix).exists():
                shutil.copyfile(_beside(broken, suffix), private_file(_beside(copy, suffix)))
        with closing(_connect(copy)) as source:
            if _has_tables(source, draft, make):
                yield source
                return
        _graft(copy, draft, make)
        with closing(_connect(copy)) as source:
            yield source if _has_tables(source, draft, make) else None
    finally:
        _remove(copy)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=5.0, isolation_level=None)
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)
    with suppress(sqlite3.Error):
        db.execute("pragma wal_autocheckpoint = 0")
    return db


def _has_tables(source: sqlite3.Connection, draft: Path, make: Make) -> bool:
    """Whether the damaged ledger still knows every table and column that a ledger of its version has."""
    with suppress(*_UNREADABLE):
        source.execute("select type, name, sql from sqlite_master").fetchall()
        wanted = _columns(draft, make, source)
        return all(
            {row[1] for row in source.execute(f"pragma table_info({table})")} >= columns
            for table, columns in wanted.items()
        )
    return False


def _columns(draft: Path, make: Make, source: sqlite3.Connection) -> dict[str, set[str]]:
    try:
        with closing(make(draft, source)) as db:
            return {table: {row[1] for row in db.execute(f"pragma table_info({table})")} for table in _tables(db)}
    finally:
        _remove(draft)


def _graft(copy: Path, draft: Path, make: Make) -> None:
    """Write a new ledger's table of tables over the damaged one: a new ledger's tables begin at the same pages.

    What is lost says how long its pages were, too: as long as those that begin where tables and indexes do.
    """
    made = [_new(draft, make, page_bytes) for page_bytes in PAGES_BYTES]
    with copy.open("rb") as file:
        page_bytes, fresh, roots = max(
            made, key=lambda new: sum(_begins_at(file, (root - 1) * new[0]) for root in new[2])
        )
        size = file.seek(0, os.SEEK_END)
    # The second page says where others belong. Whatever else is no beginning is of the table of tables: all others are
    # empty, or nearly so.
    pages = {*range(1, len(fresh) // page_bytes + 1)} - {2, *roots}
    with copy.open("r+b") as file:
        for page in sorted(pages):
            file.seek((page - 1) * page_bytes)
            file.write(fresh[(page - 1) * page_bytes : page * page_bytes])
        file.seek(28)  # the number of pages, and no free ones
        file.write((size // page_bytes).to_bytes(4, "big") + bytes(8))


def _begins_at(file: BinaryIO, offset: int) -> bool:
    """Whether a table or an index may begin there."""
    file.seek(offset)
    return file.read(1) in _BEGINNINGS


def _new(draft: Path, make: Make, page_bytes: int) -> tuple[int, bytes, list[int]]:
    """(length of a page, all of it, where its tables and indexes begin) of a new ledger with pages of this length."""
    make(draft, None).close()
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as db:
            for pragma in ("journal_mode = delete", f"page_size = {page_bytes}"):
                db.execute(f"pragma {pragma}")
            db.execute("vacuum")
            db.execute("pragma journal_mode = wal")
            roots = [row[0] for row in db.execute("select rootpage from sqlite_master where rootpage > 0")]
        return page_bytes, draft.read_bytes(), roots
    finally:
        _remove(draft)


# --- rows ------------------------------------------------------------------------------------------------------------


def _tables(db: sqlite3.Connection) -> list[str]:
    """Every table, those that others refer to first."""
    names = [row[0] for row in db.execute("select name from sqlite_master where type = 'table' order by name")]
    ordered: list[str] = []
    left = [name for name in names if not name.startswith("sqlite_")]
    while left:
        free = [
            name
            for name in left
            if all(row[2] in {*ordered, name} for row in db.execute(f"pragma foreign_key_list({name})"))
        ]
        ordered += free or left
        left = [name for name in left if name not in ordered]
    return ordered


def _copy(source: sqlite3.Connection | None, db: sqlite3.Connection) -> dict[str, int]:
    """Every row that can be read and that keeps to the rules, into the new ledger; how many did not, by table."""
    lost = {}
    for table in _tables(db):
        if table in derived.TABLES:
            continue  # it comes with the jobs
        own = db.execute(f"select * from {table}").fetchall()  # what the migrations put there
        db.execute(f"delete from {table}")
        lost[table] = 1 if source is None else _copy_table(source, db, table)
        for row in own:
            marks = ", ".join("?" * len(row))
            db.execute(f"insert or ignore into {table} values ({marks})", tuple(row))
    if any(column[1] == "policy_id" for column in db.execute("pragma table_info(turn)")):
        # Another policy may get the number of one that is lost.
        db.execute("update turn set policy_id = null where policy_id not in (select id from policy)")
    return lost


def _copy_table(source: sqlite3.Connection, db: sqlite3.Connection, table: str) -> int:
    info = db.execute(f"pragma table_info({table})").fetchall()
    columns = [row[1] for row in info]
    keys = [row[1] for row in sorted(info, key=lambda row: row[5]) if row[5]]
    (is_without_rowid,) = db.execute("select wr from pragma_table_list where name = ?", (table,)).fetchone()
    key = keys[0] if is_without_rowid else "rowid"
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    count, indexed = (0, {}) if is_without_rowid else _indexed(source, db, table)
    kept = refused = 0
    breaks: list[str] = []
    for row in _rows(source, table, key, names, breaks):
        try:
            try:
                db.execute(f"insert into {table} ({names}) values ({marks})", row[1:])
            except sqlite3.IntegrityError as error:
                if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY or table != "job":
                    raise
                stood_in = _with_parents(db, dict(zip(columns, row[1:], strict=True)))
                db.execute(f"insert into {table} ({names}) values ({marks})", tuple(stood_in[name] for name in columns))
            kept += 1
        except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
            is_twice = getattr(error, "sqlite_errorcode", 0) in {
                sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
                sqlite3.SQLITE_CONSTRAINT_ROWID,
            }
            refused += not is_twice
        else:
            for of, values in indexed.items():
                values.discard(tuple(row[1 + columns.index(column)] for column in of))
    unmatched = max((len(values) for values in indexed.values()), default=0)
    return max(count - kept, unmatched, refused, 1 if breaks else 0)


def _with_parents(db: sqlite3.Connection, job: dict[str, object]) -> dict[str, object]:
    """A job whose parents are lost, with others in their place: its bodies are whole, and names are only names.

    Without its policy it counts as made under the loosest. A lost destination is nobody's: its jobs wait and are named,
    because nothing tells any more whose Helicone they were meant for.
    """
    lost = f"lost {job['id']}"
    db.execute(
        "insert or ignore into destination (id, endpoint, key_fingerprint, created_ms) values (?, '', ?, 0)",
        (job["destination_id"], lost),
    )
    db.execute(
        "insert or ignore into session (id, destination_id, name, root_name, user_id, folder)"
        " values (?, ?, ?, ?, '', '')",
        (job["session_id"], job["destination_id"], lost, lost),
    )
    db.execute(
        "insert or ignore into turn (id, session_id, name) values (?, ?, ?)", (job["turn_id"], job["session_id"], lost)
    )
    known = db.execute("select 1 from policy where id = ?", (job.get("policy_id"),)).fetchone()
    return {**job, "policy_id": job.get("policy_id") if known else None} if "policy_id" in job else job


def _indexed(
    source: sqlite3.Connection, db: sqlite3.Connection, table: str
) -> tuple[int, dict[tuple[str, ...], set[tuple[object, ...]]]]:
    """How many rows there should be, and the values of unique columns: an index lies on other pages than its table."""
    counts = [0]
    values = {}
    for row in db.execute(f"pragma index_list({table})").fetchall():
        name, is_unique, is_partial = row[1], row[2], row[4]
        if is_partial:
            continue
        of = tuple(column[2] for column in db.execute(f"pragma index_info({name})"))
        with suppress(*_UNREADABLE):
            found = source.execute(f"select {', '.join(of)} from {table} indexed by {name}").fetchall()
            counts.append(len(found))
            if is_unique:
                values[of] = set(found)
    return max(counts), values


def _rows(
    source: sqlite3.Connection, table: str, key: str, names: str, breaks: list[str]
) -> Iterator[tuple[object, ...]]:
    """(key, columns ...) from the beginning, and from the end and one key at a time where that breaks off."""
    read = f"select {key}, {names} from {table} not indexed"
    ends: list[object] = []
    for order in ("asc", "desc"):
        last: object = None
        try:
            for row in source.execute(f"{read} order by {key} {order}"):
                last = row[0]
                yield row
        except _UNREADABLE:
            breaks.append(order)
            ends.append(last)
        else:
            return
    low, high = ends
    if isinstance(low, int) and isinstance(high, int | None):
        yield from _rows_between(source, f"{read} where {key} = ?", low, high)


def _rows_between(source: sqlite3.Connection, read: str, low: int, high: int | None) -> Iterator[tuple[object, ...]]:
    """One key at a time, until the gap ends or nothing has been found for long."""
    found = low
    for value in itertools.count(low):
        if value - found > KEYS_MISSED_MAX or (high is not None and value > high):
            return
        with suppress(*_UNREADABLE):
            for row in source.execute(read, (value,)):
                found = value
                yield row


# --- the WAL ---------------------------------------------------------------------------------------------------------


def count_torn_transactions(path: Path, now_ms: int) -> None:
    """Count what a damaged WAL held; to be called before the ledger is opened.

    SQLite takes the first frame that is damaged for the end and says nothing about what was committed after it. Who
    opens the file when all others have gone, and they did not close it, looks into it first. Raises
    sqlite3.DatabaseError when the rest does not fit together.
    """
    wal = _beside(path, "-wal")
    if not (wal.exists() and path.exists()) or wal.stat().st_size <= WAL_HEADER:
        return
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
        db.execute("pragma wal_autocheckpoint = 0")
        db.execute("pragma locking_mode = exclusive")
        try:
            db.execute("begin immediate")
        except sqlite3.OperationalError:
            return  # somebody is alive: it is his WAL, and in use
        db.execute("rollback")
        data = wal.read_bytes()
        frames = max(0, db.execute("pragma wal_checkpoint(passive)").fetchone()[1])
        torn = _commits_after(data, frames)
        if not torn:
            return
        damaged = _beside(path, f".damaged-wal-{now_ms}")
        with os.fdopen(os.open(damaged, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, PRIVATE_FILE), "wb") as file:
            file.write(data)
        note(db, "transactions lost from a damaged WAL", now_ms, torn)
        # Pages that were in the file already may be newer than what is left of the WAL.
        if db.execute("pragma integrity_check(1)").fetchone()[0] != "ok":
            error = sqlite3.DatabaseError("the WAL is damaged")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
    tidy(path)


def _commits_after(wal: bytes, frames: int) -> int:
    """Frames behind the first `frames` that end a transaction of the same generation: it was committed once."""
    page_bytes = int.from_bytes(wal[8:12], "big")
    start = WAL_HEADER + frames * (FRAME_HEADER + page_bytes) if frames else WAL_HEADER
    # Of the header; or, should the header itself be damaged, of the first frame.
    salts = {wal[16:24]} if frames else {wal[16:24], wal[WAL_HEADER + 8 : WAL_HEADER + 16]}
    torn = 0
    for salt in salts:
        found = wal.find(salt, start)
        while found >= 0:
            torn += any(wal[found - 4 : found])
            found = wal.find(salt, found + len(salt))
    return torn


# --- files -----------------------------------------------------------------------------------------------------------


def backups(path: Path) -> list[Path]:
    """Copies that were made before a migration."""
    return sorted(path.parent.glob(f"{path.name}.before-*"))


def forget_copies(path: Path) -> dict[str, str]:
    """Delete all that was set aside, and drafts that a kill left: they hold what is to be held nowhere any more.

    By name those that cannot be deleted, with a line about each for a person. Raises sqlite3.OperationalError when a
    recovery takes too long.
    """
    left: dict[str, str] = {}
    with exclusive(path):
        for pattern in _COPIES:
            for file in path.parent.glob(pattern.format(path.name)):
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    why = error.strerror or "no reason given"
                    left[file.name] = f"{file.name} in the spool cannot be deleted ({why}): delete it"
    return left


def tidy(path: Path, older_than_s: float = 0.0) -> None:
    """Delete the older ones of the files that were set aside, and a backup that is too large to be kept.

    And what was set aside before `older_than_s`, a time by the file system's clock.
    """
    for pattern in (f"{path.name}.damaged-*", f"{path.name}.before-*"):
        for file in path.parent.glob(pattern):
            if file.stat().st_mtime < older_than_s:
                file.unlink(missing_ok=True)
    for pattern, kept in ((f"{path.name}.damaged-*", KEPT), (f"{path.name}.before-*", 1)):
        files = [file for file in path.parent.glob(pattern) if not file.name.endswith(FILES[1:])]
        left_bytes = KEPT_BYTES_MAX
        for number, file in enumerate(sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)):
            left_bytes -= sum(
                _beside(file, suffix).stat().st_size for suffix in FILES if _beside(file, suffix).exists()
            )
            if number >= kept or left_bytes < 0:
                _remove(file)


def _remove(path: Path) -> None:
    for suffix in FILES:
        _beside(path, suffix).unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
