"""Store of the receiver, in SQLite: what would lie in Helicone's, and every POST that arrived.

    shelf       the salt of the key hashes
    log         one row per stored request; Helicone's replace-by-key rule is its primary key
    send        one row per POST, in order of arrival, with the bytes as they came

API keys are not stored: an organisation is a salted hash of its key.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from app.database.connection import transaction
from app.errors import AppError
from app.receiver.manual_log import Log
from app.runtime.filesystem import private_file

SENDS_MAX = 10_000
"""Older POSTs are forgotten; what they stored stays."""

_APPLICATION_ID = 0x48454C52
_FILTER_DEPTH_MAX = 20
_SCHEMA = """
create table shelf (salt blob not null) strict;
create table log (
    organisation text not null,
    provider text not null,
    model text not null,
    user_id text not null,
    created_ms integer not null,
    request_id text not null,
    ended_ms integer not null,
    ttft_ms integer,
    status integer not null,
    prompt_tokens integer not null,
    completion_tokens integer not null,
    cache_read_tokens integer not null,
    cache_write_tokens integer not null,
    cost_usd real not null,
    properties text not null check (json_valid(properties)),
    request_body text not null,
    response_body text not null,
    sends integer not null check (sends > 0),
    primary key (organisation, provider, model, user_id, created_ms, request_id)
) strict;
create table send (
    n integer primary key,
    at_ms integer not null,
    route text not null,
    organisation text,
    request_id text,
    sha256 text not null,
    body blob not null,
    status integer not null default 0
) strict;
"""
SESSIONS_MAX = 200
"""On the page."""
_SESSION_ID = "json_extract(properties, '$.\"Helicone-Session-Id\"')"
_COLUMNS = tuple(field.name for field in fields(Log))

Filter: TypeAlias = tuple[str, list[object]]
"""An SQL condition and its parameters."""


class ReceiverStoreError(AppError):
    """A file that is no receiver's store, or a query that it does not know."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One row of the store."""

    organisation: str
    log: Log
    sends: int
    """How often a POST with this row's key arrived: more than one means that it was sent again."""

    @property
    def path(self) -> str:
        """Where Helicone shows it in its session."""
        return "/" + self.log.properties.get("Helicone-Session-Path", "").strip("/")


@dataclass(frozen=True, slots=True)
class Session:
    """What the store holds of one session, summed up."""

    id: str
    name: str
    title: str
    """As its latest log says; '' where none does."""
    start_ms: int
    requests: int
    tokens: int
    cost_usd: float
    errors: int


@dataclass(frozen=True, slots=True)
class Send:
    """One POST to a log route."""

    n: int
    at_ms: int
    route: str
    organisation: str | None
    request_id: str | None
    """As it was sent; None when there was none."""
    sha256: str
    status: int
    """0: not answered, or not yet."""


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The store, made when it is missing: file 0600, in a folder of 0700. Raises ReceiverStoreError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        private_file(path)
    with ExitStack() as stack:
        try:
            db = stack.enter_context(closing(sqlite3.connect(path, timeout=5.0, isolation_level=None)))
            db.row_factory = sqlite3.Row
            _prepare(db, path)
        except sqlite3.DatabaseError as error:
            raise ReceiverStoreError(f"{path} is no receiver's store: {error}") from error
        yield db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    with transaction(db):
        empty = db.execute("select count(*) from sqlite_schema").fetchone()[0] == 0
        if empty:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute("insert into shelf values (?)", (os.urandom(16),))
            db.execute(f"pragma application_id = {_APPLICATION_ID}")
        elif db.execute("pragma application_id").fetchone()[0] != _APPLICATION_ID:
            raise ReceiverStoreError(f"{path} belongs to another program; name another file")
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")


def organisation(db: sqlite3.Connection, key: str | None) -> str | None:
    """Who a key belongs to: equal for equal keys in this store, worthless elsewhere."""
    if key is None:
        return None
    salt = db.execute("select salt from shelf").fetchone()[0]
    return hashlib.sha256(salt + key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def arrived(
    db: sqlite3.Connection, route: str, owner: str | None, request_id: str | None, body: bytes, now_ms: int
) -> int:
    """Note a POST, before it is answered. Returns its number."""
    row = (now_ms, route, owner, request_id, hashlib.sha256(body).hexdigest(), zlib.compress(body, 1))
    with transaction(db):
        n = db.execute(
            "insert into send (at_ms, route, organisation, request_id, sha256, body) values (?, ?, ?, ?, ?, ?)", row
        ).lastrowid
        db.execute("delete from send where n <= ?", ((n or 0) - SENDS_MAX,))
    return n or 0


def answered(db: sqlite3.Connection, n: int, status: int) -> None:
    db.execute("update send set status = ? where n = ?", (status, n))


def put(db: sqlite3.Connection, owner: str, log: Log) -> None:
    """Store a request. One with an equal key is replaced, the last one wins; any other is one more row."""
    values = {name: getattr(log, name) for name in _COLUMNS} | {"properties": json.dumps(dict(log.properties))}
    updates = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)
    db.execute(
        f"insert into log (organisation, sends, {', '.join(_COLUMNS)})"  # noqa: S608 - names of our own dataclass
        f" values (:organisation, 1, {', '.join(f':{name}' for name in _COLUMNS)})"
        f" on conflict do update set sends = sends + 1, {updates}",
        values | {"organisation": owner},
    )


def sends(db: sqlite3.Connection) -> list[Send]:
    """Every POST that is remembered, in order of arrival."""
    names = ", ".join(field.name for field in fields(Send))
    return [Send(*row) for row in db.execute(f"select {names} from send order by n")]  # noqa: S608 - as above


def select(
    db: sqlite3.Connection, owner: str, wanted: Filter, *, newest_first: bool, limit: int, offset: int
) -> list[Stored]:
    """An organisation's rows that a filter lets through, by start time."""
    condition, parameters = wanted
    direction = "desc" if newest_first else "asc"
    rows = db.execute(
        f"select * from log where organisation = ? and ({condition})"  # noqa: S608 - built by `compiled` alone
        f" order by created_ms {direction}, rowid {direction} limit ? offset ?",
        (owner, *parameters, limit, offset),
    )
    return [_stored(row) for row in rows]


def sessions(db: sqlite3.Connection, limit: int = SESSIONS_MAX) -> list[Session]:
    """Those that began last, the latest first."""
    rows = db.execute(
        f"select {_SESSION_ID} as id, max(json_extract(properties, '$.\"Helicone-Session-Name\"')) as name,"  # noqa: S608 - our own literals
        " min(created_ms) as start_ms, count(*) as requests, sum(cost_usd) as cost_usd, sum(status >= 400) as errors,"
        " sum(prompt_tokens + cache_read_tokens + completion_tokens) as tokens"
        f" from log where {_SESSION_ID} is not null group by 1 order by start_ms desc limit ?",
        (limit,),
    ).fetchall()
    titled = db.execute(
        f"select {_SESSION_ID} as id, response_body from log where model = 'opencode/session'"  # noqa: S608 - the same
        " order by length(json_extract(properties, '$.\"Helicone-Session-Path\"')) desc, created_ms"
    )
    # A subagent's path is longer than that of the session which called it.
    titles = {row["id"]: _title(row["response_body"]) for row in titled}
    return [
        Session(
            id=row["id"],
            name=row["name"] or "",
            title=titles.get(row["id"], ""),
            start_ms=row["start_ms"],
            requests=row["requests"],
            tokens=row["tokens"],
            cost_usd=row["cost_usd"],
            errors=row["errors"],
        )
        for row in rows
    ]


def _title(response_body: str | None) -> str:
    try:
        title = json.loads(response_body or "null")["choices"][0]["message"]["content"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return ""
    return title if isinstance(title, str) else ""


def of_session(db: sqlite3.Connection, session: str) -> list[Stored]:
    """Its rows, by start time."""
    rows = db.execute(f"select * from log where {_SESSION_ID} = ? order by created_ms, rowid limit 10000", (session,))  # noqa: S608 - our own literal
    return [_stored(row) for row in rows]


def _stored(row: sqlite3.Row) -> Stored:
    values = {name: row[name] for name in _COLUMNS} | {"properties": json.loads(row["properties"])}
    return Stored(row["organisation"], Log(**values), row["sends"])


# --- Helicone's filters ----------------------------------------------------------------------------------------------

_OPERATORS = {"equals": "=", "not-equals": "<>", "like": "like", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_FILTERED = {
    "request_id": "request_id",
    "model": "model",
    "user_id": "user_id",
    "provider": "provider",
    "status": "status",
    "request_created_at": "created_ms",
}


def compiled(node: object, depth: int = 0, *, unit_ms: int = 1) -> Filter:
    """Helicone's filter tree as SQL: "all", a leaf of `request_response_rmt`, or two nodes joined by and/or.

    Start times are compared in whole units of `unit_ms`. Raises ReceiverStoreError.
    """
    if node == "all":
        return "true", []
    if depth > _FILTER_DEPTH_MAX or not isinstance(node, dict):
        raise ReceiverStoreError("the filter is no tree of request_response_rmt leaves, or too deep")
    if node.get("operator") in ("and", "or"):
        left, right = (compiled(node.get(side), depth + 1, unit_ms=unit_ms) for side in ("left", "right"))
        return f"({left[0]} {node['operator']} {right[0]})", left[1] + right[1]
    column, rest = _only(node.get("request_response_rmt"))
    if column == "properties":
        name, test = _only(rest)
        operator, value = _only(test)
        property_value = "(select value from json_each(properties) where key = ?)"
        return f"{property_value} {_sql(operator)} ?", [name, str(value)]
    operator, value = _only(rest)
    if column not in _FILTERED:
        raise ReceiverStoreError(f"the receiver cannot filter by {column[:40]}")
    if column == "request_created_at":
        return f"{_FILTERED[column]} / ? {_sql(operator)} ?", [unit_ms, _time_ms(value) // unit_ms]
    return f"{_FILTERED[column]} {_sql(operator)} ?", [value if isinstance(value, int | float) else str(value)]


def _only(node: object) -> tuple[str, Any]:
    if not isinstance(node, Mapping) or len(node) != 1:
        raise ReceiverStoreError("each leaf of the filter names one column and one operator")
    return next(iter(node.items()))


def _sql(operator: str) -> str:
    if operator not in _OPERATORS:
        raise ReceiverStoreError(f"the receiver cannot compare by {operator[:40]}")
    return _OPERATORS[operator]


def _time_ms(value: object) -> int:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ReceiverStoreError("a time in the filter is not ISO 8601") from None
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
