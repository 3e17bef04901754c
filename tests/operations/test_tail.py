"""Tail: one event for each thing that happens, told once."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.ledger import flow
from app.operations.tail import Event, Tail
from app.operations.titles import Titles
from app.sources.opencode.store import Store
from tests.support.ledger_bench import LedgerBench, version


@pytest.fixture
def tail(bench: LedgerBench, tmp_path: Path) -> Tail:
    bench.put(version("before"))
    tail = Tail(Titles(Store(tmp_path / "opencode.db")))
    assert whats(tail.begin(bench.db, bench.now_ms, 10)) == ["queued"]
    return tail


def whats(events: list[Event]) -> list[str]:
    return [event.what for event in events]


def test_each_thing_is_told_once(bench: LedgerBench, tail: Tail) -> None:
    def look() -> list[str]:
        return whats(tail.look(bench.db, bench.now_ms))

    assert look() == []
    bench.put(version("t1"))
    assert look() == ["queued"]
    claimed = bench.claimed(version("t1"))
    assert look() == []
    bench.retry_later(claimed, due_ms=bench.now_ms + 5_000, error="503: empty body")
    assert look() == ["failed"]
    assert look() == []
    bench.now_ms += 6_000
    for _ in range(2):
        bench.deliver(version("t1"))
    assert look() == ["delivered", "delivered"]
    bench.put(version("t1", content="b", last_event_ms=200))
    assert sorted(look()) == ["queued", "superseded"]


def test_what_comes_and_goes_between_two_looks_is_told_whole(bench: LedgerBench, tail: Tail) -> None:
    bench.put(version("t1", session="ses_2"))
    bench.deliver(version("t1", session="ses_2"))
    assert whats(tail.look(bench.db, bench.now_ms)) == ["queued", "delivered"]


def test_a_failure_says_when_the_next_try_is(bench: LedgerBench, tail: Tail) -> None:
    bench.retry_later(bench.claimed(version("before")), due_ms=bench.now_ms + 90_000, error="503: empty body")
    (event,) = tail.look(bench.db, bench.now_ms)
    assert (event.what, event.why) == ("failed", "next try in 1 min: 503: empty body")


def test_a_dead_job_and_a_destination_that_goes_and_comes_back(bench: LedgerBench, tail: Tail) -> None:
    bench.dead_letter(bench.claimed(version("before")), error="413: too large")
    bench.pause(bench.now_ms + 1_000)
    events = tail.look(bench.db, bench.now_ms)
    assert {(event.what, event.why) for event in events} == {("dead", "413: too large"), ("away", "503")}
    flow.resume(bench.db, bench.destination)
    assert whats(tail.look(bench.db, bench.now_ms)) == ["back"]
