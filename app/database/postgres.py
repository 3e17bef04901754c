"""The ledger on a PostgreSQL server: takes the SQL that is written for SQLite, and answers as SQLite's module does.

    the ledger's SQL ─▶ translate ─▶ psycopg ─▶ rows that are read by name and by number
                                        └─ error ─▶ the exception of the same name in `sqlite3`

Both are databases of Python's PEP 249, whose exceptions have the same names; so whoever catches `sqlite3.Error` catches
the server's errors too. Needs the extra `fleet`.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import psycopg
from psycopg import ClientCursor
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ConnectionTimeout
from psycopg.pq import TransactionStatus
from psycopg.types.string import StrDumper

Parameters: TypeAlias = Sequence[object] | Mapping[str, object]

T = TypeVar("T")

CONNECT_S_MAX = 10
SURVIVES_S = 25.0
"""What a destination has just accepted must not be forgotten because the server starts anew. The longest POST (30 s)
and this stay within the lease (60 s)."""
AGAIN_S = 0.2
IDLE_S_MAX = 20
"""A process that is stopped within a transaction keeps its locks no longer: all that look after jobs would wait."""
KEEPALIVE: Mapping[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""Seconds, seconds, times, milliseconds: a connection to a machine that is gone fails after about 25 s, whether it is
idle (the first three) or waits for an answer (the last one, on Linux), and not after two hours."""


def application_name() -> str:
    """What the server's own lists say of a connection."""
    return f"opencode-helicone {os.getpid()}"


_UNFLUSHED = "set local synchronous_commit = off"
_FLUSHED = "select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off'"
"""A stricter default, which waits for a standby as well, stays."""


def connect(url: str, **more: Any) -> psycopg.Connection[Any]:
    """A connection as all of this program's are; `more` as psycopg takes it. Raises psycopg.Error."""
    return psycopg.connect(
        url,
        # Prepared statements are a session's, which a pooler shares with others.
        prepare_threshold=None,
        connect_timeout=CONNECT_S_MAX,
        application_name=application_name(),
        **KEEPALIVE,
        **more,
    )


class Cursor(Protocol):
    """What a statement has found or done, as `sqlite3.Cursor`."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Row(tuple[Any, ...]):
    """One row, as `sqlite3.Row`: its values by number and by name."""

    __slots__ = ()
    places: Mapping[str, int] = {}

    def __getitem__(self, which: Any) -> Any:
        return tuple.__getitem__(self, self.places[which] if isinstance(which, str) else which)

    def keys(self) -> list[str]:
        return list(self.places)


@cache
def _row_of(names: tuple[str, ...]) -> type[Row]:
    return type("Row", (Row,), {"__slots__": (), "places": {name: at for at, name in enumerate(names)}})


def _make_rows(cursor: psycopg.Cursor[Row]) -> Any:
    return _row_of(tuple(column.name for column in cursor.description or ()))


class _Text(StrDumper):
    """PostgreSQL's text holds no NUL and no half of a pair of surrogates, which answers and titles may have."""

    def dump(self, obj: str) -> Buffer | None:
        try:
            return super().dump(obj.replace("\0", ""))
        except UnicodeEncodeError:
            return self.dump(obj.encode("utf-8", "replace").decode())


class _Truth(Dumper):
    """SQLite keeps 0 and 1."""

    def dump(self, obj: bool) -> Buffer:  # noqa: FBT001 - psycopg calls it so
        return b"1" if obj else b"0"

    def quote(self, obj: bool) -> Buffer:  # noqa: FBT001 - psycopg calls it so
        return self.dump(obj)


class _IsTrue(Loader):
    def load(self, data: Buffer) -> int:
        return int(bytes(data) == b"t")


class _Number(Loader):
    """Of sums of whole numbers, which PostgreSQL gives back as decimal ones."""

    def load(self, data: Buffer) -> int | float:
        text = bytes(data).decode()
        return float(text) if "." in text else int(text)


class PostgresLedger:
    """A connection for one thread, in autocommit; `transaction` opens transactions explicitly.

    Raises the exceptions of `sqlite3`: OperationalError where the server is away, IntegrityError for a row that a
    constraint refuses.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_unflushed = False
        self._db = self._connect()

    def _connect(self) -> psycopg.Connection[Row]:
        try:
            db = connect(self._url, autocommit=True, row_factory=_make_rows, cursor_factory=ClientCursor)
        except psycopg.Error as error:
            raise _as_sqlite(error, _unconnected(error, self._url)) from None
        db.adapters.register_dumper(str, _Text)
        db.adapters.register_dumper(bool, _Truth)
        db.adapters.register_loader("bool", _IsTrue)
        db.adapters.register_loader("numeric", _Number)
        return db

    @property
    def place(self) -> str:
        """Its name and its server, for a person."""
        return f"{self._db.info.dbname} at {self._db.info.host or 'this machine'}"

    def surviving(self, act: Callable[[], T]) -> T:
        """Act, and where the server goes away meanwhile act again; also where two transactions waited for each other.

        What is done twice must come to the same: whether a commit arrived that was not answered nobody knows.
        Raises sqlite3.OperationalError after SURVIVES_S.
        """
        ends_s = time.monotonic() + SURVIVES_S
        while True:
            try:
                if self._db.closed:
                    self._db = self._connect()
                return act()
            except sqlite3.OperationalError:
                if time.monotonic() > ends_s:
                    raise
                time.sleep(AGAIN_S)

    def execute(self, sql: str, parameters: Parameters = ()) -> Cursor:
        with _errors():
            return cast("Cursor", self._db.execute(translate(sql).encode(), parameters))

    def executemany(self, sql: str, parameters: Iterable[Parameters]) -> None:
        for one in parameters:
            self.execute(sql, one)

    def listen(self, channel: str) -> None:
        """From now on `notification` tells what is sent to this channel."""
        self.run(f'listen "{channel}"')

    def notification(self, wait_s: float) -> str | None:
        """The next thing that was sent to a channel; None where nothing is within this time."""
        with _errors():
            return next((one.payload for one in self._db.notifies(timeout=wait_s, stop_after=1)), None)

    def cursor(self) -> PostgresLedger:
        return self

    def rollback(self) -> None:
        with _errors():
            self._db.execute("rollback")

    def close(self) -> None:
        self._db.close()

    def is_current(self) -> bool:
        """False when the server has ended the connection: open another one."""
        return not self._db.closed

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction, READ COMMITTED: each statement sees what others have committed before it."""
        if self._db.info.transaction_status is not TransactionStatus.IDLE:  # where the server would only warn
            raise sqlite3.OperationalError("cannot start a transaction within a transaction")
        # Not what the server or the role has for a default: races are decided by the level, and what is answered with
        # 200 is on the disk. In one go, and so through a pooler as well.
        flushed = _UNFLUSHED if self._is_unflushed else _FLUSHED
        self.run(
            "begin isolation level read committed;"
            f" set local idle_in_transaction_session_timeout = '{IDLE_S_MAX}s'; {flushed}"
        )
        try:
            yield
            self.execute("commit")
        except BaseException:
            with suppress(sqlite3.Error):  # the server is away, and has undone it by itself
                self.rollback()
            raise

    @contextmanager
    def unflushed(self) -> Iterator[None]:
        """The transactions in here do not wait for the server's disk."""
        before, self._is_unflushed = self._is_unflushed, True
        try:
            yield
        finally:
            self._is_unflushed = before

    def version(self) -> int:
        """Of the schema; 0 for an empty database."""
        # Asked of the table, because `to_regclass` remembers within a transaction what was not there as it began.
        if (
            self.execute("select 1 from pg_class where relname = 'meta' and pg_table_is_visible(oid)").fetchone()
            is None
        ):
            return 0
        return int(self.execute("select value from meta where name = 'schema'").fetchone()[0])

    def run(self, script: str) -> None:
        """Several statements, in PostgreSQL's own words."""
        with _errors():
            self._db.execute(script.encode())

    def lock(self, name: str) -> None:
        """Whoever else asks for the same name waits until this transaction has ended."""
        self.execute("select pg_advisory_xact_lock(hashtextextended(?, 0))", (name,))


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise _as_sqlite(error) from None  # what the server adds quotes rows


_AWAY = {"25006", "25P03"}
"""A standby that takes nothing, in place of the server; a transaction that was ended for its silence."""


_DATA = "22"
"""What is said of a value that is no number, no JSON, too long, quotes it."""


_UNCONNECTED = re.compile(r"connection to server (?:at|on) [^\n]+ failed: [^\n]+")
"""What may be repeated of it: of a URL that cannot be read the library quotes any part, the password among them."""
_UNRESOLVED = "the server's name in it cannot be resolved (within a password @ : / are written %40 %3A %2F)"
"""Not the name: with such a password it is a part of that."""
_UNREADABLE = "it is not of the form postgresql://USER:PASSWORD@SERVER/DATABASE"


def _unconnected(error: psycopg.Error, url: str) -> str | None:
    """Which server could not be reached, and why; None where it is something else."""
    if isinstance(error, ConnectionTimeout):
        asked = conninfo_to_dict(url)
        return f"no answer from {asked.get('host')}, port {asked.get('port', 5432)} within {CONNECT_S_MAX} s"
    if "failed to resolve host" in str(error):
        return _UNRESOLVED
    if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
        return _UNREADABLE
    found = _UNCONNECTED.search(str(error))
    return found and found.group()


def _as_sqlite(error: psycopg.Error, told: str | None = None) -> sqlite3.Error:
    """`told`: what is said of it in place of its own words."""
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ in {"psycopg", "psycopg.errors"})
    found = next((getattr(sqlite3, kind.__name__) for kind in kinds if hasattr(sqlite3, kind.__name__)), sqlite3.Error)
    code, said = error.sqlstate, told or error.diag.message_primary
    if code in _AWAY:
        found = sqlite3.OperationalError
    if said is None or (code or "").startswith(_DATA):
        said = type(error).__name__
    made: sqlite3.Error = found(f"PostgreSQL: {said} ({code})" if code else f"PostgreSQL: {said}")
    made.sqlite_errorname = error.diag.constraint_name or ""
    return made


_LITERAL = re.compile(r"('(?:[^']|'')*')")
_NUMBERED = re.compile(r"\?\d")
_TRANSLATED = (
    (re.compile(r"%"), "%%"),
    (re.compile(r"\?"), "%s"),
    (re.compile(r"(?<![:\w]):([a-z_]+)"), r"%(\1)s"),
    # Hints for SQLite's planner.
    (re.compile(r"(?<=[\s(])\+(?=[a-z])"), ""),
    (re.compile(r"\bcross join\b"), "join"),
    (re.compile(r"\bindexed by \w+"), ""),
    # SQLite's other word for the same, which it has had since 3.39 alone.
    (re.compile(r"\bis not (?=%)"), "is distinct from "),
)


@cache
def translate(sql: str) -> str:
    """A statement of the ledger in PostgreSQL's words.

    What neither these nor its functions in `migrations/postgres` cover is written so that both take it.
    """
    pieces = _LITERAL.split(sql)
    return "".join(piece.replace("%", "%%") if at % 2 else _translate(piece) for at, piece in enumerate(pieces))


def _translate(code: str) -> str:
    if _NUMBERED.search(code):
        raise ValueError("a statement numbers its parameters, which only SQLite knows: name them")
    for pattern, words in _TRANSLATED:
        code = pattern.sub(words, code)
    return code
