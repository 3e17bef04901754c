"""Every function of the ledger that writes leaves alone what stands beside its job: other destinations and sessions."""

from __future__ import annotations

import sqlite3

import pytest

from app.ledger import destinations
from app.ledger.job import Claim
from tests.ledger.test_matrix import ARROWS, FINISHES, STATES, in_state
from tests.support.ledger_bench import LedgerBench, version

ACROSS = {
    "release_all": "a worker's, which serves one destination",
    "give_up_confirmations for want of room": "there is one room",
    "give_up_confirmations of what is old": "there is one age",
    "retry_dead": "chosen by a person, here all",
    "purge_dead": "the same",
    "recover": "of workers that are gone, whatever they served",
    "reset_future_times": "the clock is one",
    "drop_aged": "there is one age",
    "drop_oversize": "there is one room",
    "drop_oversize of folders": "the same",
    "forget_acknowledgements": "there is one age",
}
"""What may change jobs of another destination, and why."""
OF_ONE_JOB = (
    *FINISHES, "insert", "acknowledge", "claim", "confirmed", "not_found_yet", "send_again",
    "dead_letter_unstored", "give_up_bodies", "take_recaptured", "see_again",
)  # fmt: skip
"""What must leave the other sessions of its destination alone."""
ROWS = {
    "session": "select * from session where id = ?1",
    "turn": "select * from turn where session_id = ?1",
    "job": "select * from job where session_id = ?1",
    **{
        name: f"select {name}.* from {name} join job on job.id = job_id where session_id = ?1"  # noqa: S608
        for name in ("record", "bundle", "attempt")
    },
    "acknowledgement": "select a.* from acknowledgement a join turn on turn.id = turn_id where session_id = ?1",
}


class Neighbour:
    """A job beside the one that is looked at: of another destination, or of another session."""

    def __init__(self, bench: LedgerBench, *, session: str, destination: str, state: str) -> None:
        self.db = bench.db
        beside = LedgerBench(bench.db)
        beside.destination = destinations.destination(bench.db, "https://example.invalid", destination, 0).id
        wanted = version(session=session)
        beside.put(wanted)
        claimed = beside.claimed(wanted)
        STATES[state](beside, claimed)
        self.session = beside.row(wanted)["session_id"]

    def rows(self) -> dict[str, list[tuple[object, ...]]]:
        """All that the ledger has of it."""
        return {name: [tuple(row) for row in self.db.execute(sql, (self.session,))] for name, sql in ROWS.items()}


@pytest.mark.parametrize("name", ARROWS)
def test_a_job_of_another_destination_stays_as_it_is(db: sqlite3.Connection, name: str) -> None:
    db.execute("pragma synchronous = off")
    changed = []
    for state in STATES:
        bench, claimed, due = in_state(db, state)
        beside = Neighbour(bench, session="ses_1", destination="beside", state=state)
        before = beside.rows()
        ARROWS[name][0](bench, claimed, due)
        if beside.rows() != before:
            changed.append(state)
    assert (changed != []) == (name in ACROSS), changed


@pytest.mark.parametrize("beside", ["pending", "leased", "delivered", "dead"])
@pytest.mark.parametrize("name", [one for one in ARROWS if one.replace(",", " ").split()[0] in OF_ONE_JOB])
def test_a_job_of_another_session_stays_as_it_is(db: sqlite3.Connection, name: str, beside: str) -> None:
    db.execute("pragma synchronous = off")
    for state in ARROWS[name][1]:
        bench, claimed, due = in_state(db, state)
        other = Neighbour(bench, session="ses_9", destination="fingerprint", state=beside)
        before = other.rows()
        ARROWS[name][0](bench, claimed, due)
        # A probe asks by whichever job has been due for the longest time.
        assert other.rows() == before or name == "claim as a probe", state


def test_what_another_destination_has_acknowledged_is_still_to_be_sent(db: sqlite3.Connection) -> None:
    """The records of a turn have the same request ids wherever they go."""
    bench = LedgerBench(db)
    other = LedgerBench(db)
    other.destination = destinations.destination(db, "https://example.invalid", "beside", 0).id
    for one in (bench, other):
        one.put(version(), records=3)
    bench.deliver(version())
    claimed: Claim = other.claimed()
    assert len(other.left(claimed)) == 3
    other.acknowledge(claimed, other.left(claimed)[1])
    assert len(other.left(claimed)) == 2
    assert not other.complete(claimed)
