"""What became of logs, by request id and by machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.ledger import arrivals, claims, confirmations, dead_letters, destinations
from app.ledger.arrivals import Arrival, DeadArrival, OfMachine, Sums
from app.ledger.dead_letters import Choice
from app.ledger.job import Version
from tests.support.ledger_bench import LedgerBench, version


def of(machine: str, session: str, turn: str = "t1") -> Version:
    return replace(version(turn, session=session), folder=machine)


@pytest.fixture
def two_machines(bench: LedgerBench) -> LedgerBench:
    """Of `a` a log waits, one is dead and two are delivered; of `b` one waits and two are dead."""
    for sent in (of("a", "ses_1"), of("a", "ses_2"), of("b", "ses_6"), of("b", "ses_7")):
        bench.put(sent)
    for delivered in (of("a", "ses_3"), of("a", "ses_4", "t2")):
        bench.put(delivered)
        bench.deliver(delivered)
    for number, dead in enumerate((of("a", "ses_2"), of("b", "ses_6"), of("b", "ses_7"))):
        bench.dead_letter(bench.claimed(dead), now_ms=10 + number, error=f"413: {number}")
    bench.now_ms += 500
    bench.put(of("b", "ses_6", "t2"))
    return bench


def test_each_machine_has_its_own(two_machines: LedgerBench) -> None:
    db, here = two_machines.db, two_machines.destination
    assert arrivals.of_machine(db, here, "a", 5) == OfMachine(1, 1, (DeadArrival("ses_2", "t1", "413: 0", 10),))
    of_b = (DeadArrival("ses_7", "t1", "413: 2", 12), DeadArrival("ses_6", "t1", "413: 1", 11))
    assert arrivals.of_machine(db, here, "b", 5) == OfMachine(1, 2, of_b)
    assert arrivals.of_machine(db, here, "b", 1) == OfMachine(1, 2, of_b[:1])
    assert arrivals.of_machine(db, here, "c", 5) == OfMachine(0, 0, ())
    assert arrivals.of_machine(db, here + 1, "a", 5) == OfMachine(0, 0, ())


def test_the_sums_are_those_of_all_machines(two_machines: LedgerBench) -> None:
    here = two_machines.destination
    dead_letters.purge_dead(two_machines.db, Choice(since_ms=12), two_machines.now_ms)
    other = LedgerBench(two_machines.db)
    other.destination = destinations.destination(other.db, "https://elsewhere.invalid", "fingerprint", 0).id
    other.put(of("a", "ses_1"))
    assert arrivals.by_machine(two_machines.db) == [
        Sums(here, "a", waiting=1, dead=1, delivered=2, dropped=0, oldest_waiting_ms=1_000),
        Sums(here, "b", waiting=1, dead=1, delivered=0, dropped=1, oldest_waiting_ms=1_500),
        Sums(other.destination, "a", waiting=1, dead=0, delivered=0, dropped=0, oldest_waiting_ms=1_000),
    ]


def test_a_machine_keeps_the_sessions_that_it_has_sent_first(two_machines: LedgerBench) -> None:
    two_machines.put(of("b", "ses_1", "t2"))
    assert arrivals.of_machine(two_machines.db, two_machines.destination, "a", 1).waiting == 2


def test_what_became_of_one_is_told_for_its_destination_alone(two_machines: LedgerBench) -> None:
    db, here = two_machines.db, two_machines.destination
    assert arrivals.arrivals(db, here, ["t2", "t9"]) == {"t2": Arrival("pending", "")}
    assert arrivals.arrivals(db, here + 1, ["t2"]) == {}
    assert arrivals.arrivals(db, here, []) == {}


def test_why_it_waits_is_what_its_destination_says_before_what_it_was_answered_itself(bench: LedgerBench) -> None:
    bench.put(version())
    bench.retry_later(bench.claimed(), due_ms=9_000, error="500: its own")
    assert arrivals.arrivals(bench.db, bench.destination, ["t1"]) == {"t1": Arrival("pending", "500: its own")}
    bench.pause(probe_ms=9_000)
    assert arrivals.arrivals(bench.db, bench.destination, ["t1"]) == {"t1": Arrival("pending", "503")}


@pytest.mark.parametrize(("has_body", "state"), [(True, "confirmed"), (False, "delivered")])
def test_what_is_there_without_its_body_is_not_confirmed(
    bench: LedgerBench, *, has_body: bool, state: arrivals.State
) -> None:
    bench.put(version())
    claimed = bench.claimed()
    for body in bench.left(claimed):
        bench.acknowledge(claimed, body)
    claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=bench.now_ms)
    (due,) = confirmations.due_for_confirmation(bench.db, bench.destination, bench.now_ms, 1)
    assert arrivals.arrivals(bench.db, bench.destination, ["t1"]) == {"t1": Arrival("delivered", "")}
    confirmations.confirmed(bench.db, due, bench.now_ms, has_body=has_body)
    assert arrivals.arrivals(bench.db, bench.destination, ["t1"]) == {"t1": Arrival(state, "")}


def test_a_version_that_was_replaced_is_not_current(bench: LedgerBench) -> None:
    bench.put(version())
    assert arrivals.is_current(bench.db, bench.destination, version().key)
    bench.put(version(content="newer", last_event_ms=200))
    assert not arrivals.is_current(bench.db, bench.destination, version().key)
    assert not arrivals.is_current(bench.db, bench.destination, "unknown")
