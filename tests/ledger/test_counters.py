"""Counters: each is bumped in the transaction of what it counts, once, and outlives the job."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace

import pytest

from app.ledger import adoption, claims, confirmations, counters, dead_letters, destinations, flow, pruning
from app.ledger.dead_letters import Choice
from app.ledger.job import Claim, FailedAttempt
from tests.ledger.test_dead_letters import die
from tests.support.ledger_bench import LedgerBench, version

DAY_MS = 24 * 3_600_000


def counted(bench: LedgerBench, since_ms: int = 0) -> dict[str, int]:
    return {f"{one.kind} {one.name}".strip(): one.count for one in counters.counters(bench.db, since_ms)}


def fail(bench: LedgerBench, error: str, status: int | None) -> None:
    bench.put(version())
    failed = FailedAttempt(bench.now_ms, error, status)
    claims.retry_later(bench.db, bench.claimed(), failed, delay_ms=0, is_charged=True)


def break_off(bench: LedgerBench) -> None:
    bench.put(version())
    claims.release(bench.db, bench.claimed(), due_ms=0)


def pause(bench: LedgerBench) -> None:
    bench.put(version())
    failed = FailedAttempt(bench.now_ms, "ConnectError: Connection refused")
    claims.pause(bench.db, bench.claimed(), failed, health="down", count=1, delay_ms=5, is_charged=False)


def purge(bench: LedgerBench) -> None:
    die(bench, version())
    dead_letters.purge_dead(bench.db, Choice(), bench.now_ms)


def not_stored(bench: LedgerBench) -> None:
    bench.put(version())
    claimed = bench.claimed()
    bench.acknowledge(claimed, bench.left(claimed)[0])
    claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=bench.now_ms)
    (due,) = confirmations.due_for_confirmation(bench.db, bench.destination, bench.now_ms, 1)
    confirmations.dead_letter_unstored(bench.db, due, bench.now_ms, "accepted, not stored")


def drop(bench: LedgerBench, reason: str) -> None:
    bench.put(version())
    claims.drop(bench.db, bench.claimed(), "policy" if reason == "policy" else "size", bench.now_ms)


def delete(bench: LedgerBench) -> None:
    bench.put(version("t1"))
    bench.put(version("t2"))
    pruning.drop_session(bench.db, bench.destination, "ses_1", bench.now_ms)


def deliver(bench: LedgerBench) -> None:
    bench.put(version())
    bench.deliver(version())


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (deliver, {"delivered": 1}),
        (lambda bench: fail(bench, "503: empty body", 503), {"failed 503": 1}),
        (lambda bench: fail(bench, "ReadTimeout: after 30 s", None), {"failed ReadTimeout": 1}),
        (pause, {"failed ConnectError": 1}),
        (break_off, {}),
        (lambda bench: die(bench, version()), {"failed 400": 1}),
        (purge, {"failed 400": 1, "lost purged": 1}),
        (not_stored, {"delivered": 1, "failed not stored": 1}),
        (lambda bench: drop(bench, "policy"), {}),
        (delete, {"lost deleted": 2}),
    ],
    ids=[
        *("delivered", "refused", "no answer", "paused", "not tried", "dead", "purged", "not stored", "policy"),
        "deleted",
    ],
)
def test_each_end_is_counted_by_its_name(
    bench: LedgerBench, act: Callable[[LedgerBench], None], expected: dict[str, int]
) -> None:
    act(bench)
    assert counted(bench) == expected


def test_an_end_that_is_written_once_more_is_counted_once(bench: LedgerBench) -> None:
    """As where the server went away after the commit, and before it had said so."""
    failed = FailedAttempt(bench.now_ms, "503: empty body", 503)
    ends: list[Callable[[Claim], object]] = [
        lambda claim: claims.release(bench.db, claim, due_ms=0, failed=failed),
        lambda claim: claims.retry_later(bench.db, claim, failed, delay_ms=0, is_charged=True),
        lambda claim: claims.pause(bench.db, claim, failed, health="down", count=1, delay_ms=0, is_charged=False),
        lambda claim: claims.dead_letter(bench.db, claim, failed),
    ]
    bench.put(version())
    for end in ends:
        flow.probe_now(bench.db, bench.destination, bench.now_ms)
        claimed = bench.claimed()
        end(claimed)
        end(claimed)
    assert counted(bench) == {"failed 503": len(ends)}


def test_redactions_are_counted_as_a_version_becomes_a_job_and_kept_with_it(bench: LedgerBench) -> None:
    wanted = replace(version(), redactions=3, redacted={"assignment": 2, "known": 1})
    bench.put(wanted, records=2)
    bench.put(wanted, records=2)  # known by now
    assert counted(bench) == {"redacted assignment": 2, "redacted known": 1}
    row = bench.row()
    assert row["redactions"] == 3
    assert row["record_bytes"] == sum(body.body_bytes for body in bench.left(bench.claimed()))
    bench.put(version("t2"))
    assert bench.row(version("t2"))["redactions"] is None


def test_what_is_adopted_keeps_its_redactions_and_is_not_counted_again(bench: LedgerBench) -> None:
    bench.put(replace(version(), redactions=1, redacted={"known": 1}))
    other = destinations.destination(bench.db, "https://other.invalid", "fingerprint", 0)
    # The session is known there: its jobs move one by one.
    first, bench.destination = bench.destination, other.id
    bench.put(version("t9"))
    adoption.adopt(bench.db, first, other.id, now_ms=bench.now_ms)
    rows = bench.db.execute("select redactions, record_bytes > 0 from job where destination_id = ?", (other.id,))
    assert sorted(map(tuple, rows), key=str) == [(1, 1), (None, 1)]
    assert counted(bench) == {"redacted known": 1}


def test_a_count_that_is_rolled_back_was_never_made(bench: LedgerBench) -> None:
    bench.put(version())
    claimed = bench.claimed()
    bench.acknowledge(claimed, bench.left(claimed)[0])
    bench.db.execute("alter table counter rename to gone")
    with pytest.raises(sqlite3.Error):
        bench.complete(claimed)
    bench.db.execute("alter table gone rename to counter")
    assert bench.state() == "pending"


def test_counters_are_kept_by_the_day(bench: LedgerBench) -> None:
    bench.put(version("t1"))
    bench.deliver(version("t1"))
    bench.now_ms += 3 * DAY_MS
    bench.put(version("t2"))
    bench.deliver(version("t2"))
    assert counted(bench) == {"delivered": 2}
    assert counted(bench, bench.now_ms) == {"delivered": 1}
