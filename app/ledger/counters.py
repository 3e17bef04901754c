"""Counters: how much was delivered, failed, was lost or redacted on each day; bumped in others' transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.database.connection import Database
from app.ledger.fingerprint import kind_of_error
from app.ledger.job import FailedAttempt

Kind: TypeAlias = Literal["delivered", "failed", "lost", "redacted"]
NOT_STORED = "not stored"
"""What is counted as failed that was accepted, and then not found at Helicone."""


@dataclass(frozen=True, slots=True)
class Counter:
    kind: Kind
    name: str
    """failed: the status of Helicone's answer, or what came in its place; lost: why; redacted: the rule; else ''."""
    count: int


def bump(db: Database, kind: Kind, counts: Mapping[str, int], now_ms: int) -> None:
    """Count these, by their names, for the day that it is here."""
    insert = "insert into counter (day, kind, name, count) values (date(? / 1000, 'unixepoch', 'localtime'), ?, ?, ?)"
    if isinstance(db, sqlite3.Connection):
        insert += " on conflict (day, kind, name) do update set count = count + excluded.count"
    # On a server one row for all would have each delivery wait for the one before; `derived.sum_up` adds them up.
    db.executemany(insert, [(now_ms, kind, name, count) for name, count in counts.items() if count])


def failed(db: Database, attempt: FailedAttempt) -> None:
    """Count an attempt that did not end well: by its status, or by what came in place of an answer."""
    what = kind_of_error(attempt.error).text.partition(":")[0] if attempt.status is None else str(attempt.status)
    bump(db, "failed", {what: 1}, attempt.ended_ms)


def counters(db: Database, since_ms: int) -> list[Counter]:
    """What was counted since, that day included; the most frequent first."""
    rows = db.execute(
        "select kind, name, sum(count) as count from counter where day >= date(? / 1000, 'unixepoch', 'localtime')"
        " group by kind, name order by kind, 3 desc, name",
        (since_ms,),
    )
    return [Counter(row["kind"], row["name"], row["count"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Day:
    day: str
    """The local date, in ISO form."""
    delivered: int
    failed: int
    lost: int
    redacted: int


def days(db: Database, since_ms: int) -> list[Day]:
    """The days since, that one included, on which anything was counted; the earliest first."""
    rows = db.execute(
        "select day, coalesce(sum(count) filter (where kind = 'delivered'), 0) as delivered,"
        " coalesce(sum(count) filter (where kind = 'failed'), 0) as failed,"
        " coalesce(sum(count) filter (where kind = 'lost'), 0) as lost,"
        " coalesce(sum(count) filter (where kind = 'redacted'), 0) as redacted"
        " from counter where day >= date(? / 1000, 'unixepoch', 'localtime') group by day order by day",
        (since_ms,),
    )
    return [Day(**dict(row)) for row in rows]
