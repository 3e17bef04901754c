"""Every function of the ledger that writes leaves alone what stands beside its job: other destinations and sessions."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TypeAlias

import pytest

from app.ledger import claims, destinations, versions
from app.ledger.job import Accepted, LedgerError
from app.transcript.identity import Identity
from tests.ledger.test_matrix import ARROWS, FINISHES, STATES, in_state
from tests.support.ledger_bench import LedgerBench, bodies, version, without_waiting

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
ONE_ROOM = {
    "give_up_confirmations for want of room",
    "drop_oversize",
    "drop_oversize of folders",
}
"""What of that does not hold for one of another kind: it has a room of its own."""
OF_ONE_JOB = (
    *FINISHES, "insert", "acknowledge", "claim", "confirmed", "not_found_yet", "send_again",
    "dead_letter_unstored", "give_up_bodies", "take_recaptured", "see_again",
)  # fmt: skip
"""What must leave the other sessions of its destination alone."""
ROWS = {
    "session": "select * from session where id = ?",
    "turn": "select * from turn where session_id = ?",
    "job": "select * from job where session_id = ?",
    **{
        name: f"select {name}.* from {name} join job on job.id = job_id where session_id = ?"  # noqa: S608
        for name in ("record", "bundle", "attempt")
    },
    "acknowledgement": "select a.* from acknowledgement a join turn on turn.id = turn_id where session_id = ?",
}


class Neighbour:
    """A job beside the one that is looked at: of another destination, or of another session."""

    def __init__(
        self, bench: LedgerBench, *, session: str, destination: str, state: str, kind: str = "helicone"
    ) -> None:
        self.db = bench.db
        beside = LedgerBench(bench.db)
        beside.destination = destinations.destination(bench.db, "https://example.invalid", destination, 0, kind).id
        wanted = version(session=session)
        beside.put(wanted)
        claimed = beside.claimed(wanted)
        STATES[state](beside, claimed)
        self.session = beside.row(wanted)["session_id"]

    def rows(self) -> dict[str, list[tuple[object, ...]]]:
        """All that the ledger has of it."""
        return {name: [tuple(row) for row in self.db.execute(sql, (self.session,))] for name, sql in ROWS.items()}


@pytest.mark.parametrize("kind", ["helicone", "otlp"])
@pytest.mark.parametrize("name", ARROWS)
def test_a_job_of_another_destination_stays_as_it_is(db: sqlite3.Connection, name: str, kind: str) -> None:
    without_waiting(db)
    changed = []
    for state in STATES:
        bench, claimed, due = in_state(db, state)
        beside = Neighbour(bench, session="ses_1", destination="beside", state=state, kind=kind)
        before = beside.rows()
        ARROWS[name][0](bench, claimed, due)
        if beside.rows() != before:
            changed.append(state)
    assert (changed != []) == (name in ACROSS and not (kind == "otlp" and name in ONE_ROOM)), changed


@pytest.mark.parametrize("beside", ["pending", "leased", "delivered", "dead"])
@pytest.mark.parametrize("name", [one for one in ARROWS if one.replace(",", " ").split()[0] in OF_ONE_JOB])
def test_a_job_of_another_session_stays_as_it_is(db: sqlite3.Connection, name: str, beside: str) -> None:
    without_waiting(db)
    for state in ARROWS[name][1]:
        bench, claimed, due = in_state(db, state)
        other = Neighbour(bench, session="ses_9", destination="fingerprint", state=beside)
        before = other.rows()
        ARROWS[name][0](bench, claimed, due)
        # A probe asks by whichever job has been due for the longest time.
        assert other.rows() == before or name == "claim as a probe", state


@pytest.fixture
def two(db: sqlite3.Connection) -> tuple[LedgerBench, LedgerBench]:
    """Two destinations that nothing is known of yet."""
    ours, theirs = LedgerBench(db), LedgerBench(db)
    theirs.destination = destinations.destination(db, "https://example.invalid", "beside", 0).id
    return ours, theirs


Two: TypeAlias = tuple[LedgerBench, LedgerBench]


def test_what_another_destination_has_acknowledged_is_still_to_be_sent(two: Two) -> None:
    """The records of a turn have the same request ids wherever they go."""
    ours, theirs = two
    for one in two:
        one.put(version(), records=3)
    theirs.deliver(version())
    claimed = ours.claimed()
    assert claims.acknowledged(ours.db, claimed) == {}
    assert len(ours.left(claimed)) == 3
    ours.acknowledge(claimed, ours.left(claimed)[1])
    assert len(ours.left(claimed)) == 2
    assert not ours.complete(claimed)


def test_a_key_means_the_job_of_its_own_destination(two: Two) -> None:
    ours, theirs = two
    theirs.put(version())
    assert ours.claim() is None
    ours.put(version())
    ours.claimed()
    assert (ours.row()["attempt"], theirs.row()["attempt"]) == (1, 0)


def test_what_must_be_alone_at_one_destination_keeps_nothing_back_at_another(two: Two) -> None:
    ours, theirs = two
    theirs.put(version())
    theirs.db.execute("update job set kills = ?", (claims.ISOLATED_KILLS,))
    ours.put(version("t2", session="ses_2"))
    assert ours.claim(version("t2", session="ses_2")) is not None
    assert not claims.is_isolated_due(ours.db, ours.destination, ours.now_ms)


def test_of_two_that_must_be_alone_the_one_is_claimed_that_is_asked_for(two: Two) -> None:
    ours, theirs = two
    for bench, session in ((theirs, "ses_2"), (ours, "ses_1"), (ours, "ses_2")):
        bench.put(version(session=session))
    ours.db.execute("update job set kills = ?", (claims.ISOLATED_KILLS,))
    assert ours.claimed(version(session="ses_2")).job_id == ours.row(version(session="ses_2"))["id"]


@pytest.mark.parametrize("was_tried", [False, True])
def test_a_probe_asks_by_a_job_of_its_own_destination(two: Two, *, was_tried: bool) -> None:
    """Also where another destination's jobs have been due for longer, or are newer."""
    ours, theirs = two
    theirs.put(version(session="ses_0"))
    ours.now_ms = 2_000
    ours.put(version())
    if was_tried:
        claims.release(ours.db, ours.claimed(), due_ms=ours.now_ms)
        ours.put(version("t2"))
    theirs.now_ms = 3_000
    theirs.put(version("t2", session="ses_9"))
    ours.now_ms = 4_000
    ours.pause(probe_ms=4_000)
    claimed = ours.claimed()
    assert (claimed.destination_id, claimed.is_probe) == (ours.destination, True)


def test_a_claim_is_current_for_its_own_job_alone(two: Two) -> None:
    ours, theirs = two
    for one in two:
        one.put(version())
    claimed = ours.claimed()
    theirs.claimed()
    claims.release(ours.db, claimed, due_ms=ours.now_ms)
    assert not claims.is_current(ours.db, claimed)


def test_records_of_another_job_stand_in_for_none_that_is_missing(two: Two) -> None:
    ours, _ = two
    for one in two:
        one.put(version(), records=2)
    claimed = ours.claimed()
    ours.db.execute("delete from record where job_id = ? and position = 1", (claimed.job_id,))
    with pytest.raises(LedgerError, match="1 record"):
        ours.left(claimed)


def test_of_two_answers_to_one_record_no_other_acknowledgement_is_taken_back(two: Two) -> None:
    """Two attempts have sent it, and nobody knows whose bytes arrived last."""
    claimed = []
    for one in two:
        one.put(version(), records=2)
        claimed.append(one.claimed())
        for body in one.left(claimed[-1]):
            one.acknowledge(claimed[-1], body)
    first, second = bodies("ses_1 t1", 2, "sent by another attempt")
    late = Accepted(first.request_id, first.digest, 1, before=None)
    claims.acknowledge(two[0].db, claimed[0], [late], now_ms=1, lease_ms=1)
    assert [set(claims.acknowledged(two[0].db, one)) for one in claimed] == [
        {second.request_id},
        {first.request_id, second.request_id},
    ]


def test_how_often_others_got_through_is_counted_at_the_jobs_own_destination(two: Two) -> None:
    theirs, ours = two
    for one in two:
        one.put(version())
    theirs.db.execute("update destination set passes = 10 * id")
    ours.retry_later(ours.claimed(), due_ms=9_000)
    assert ours.row()["passes_seen"] == 10 * ours.destination


def test_the_identity_of_a_session_is_kept_by_destination(two: Two) -> None:
    ours, theirs = two
    theirs.put(replace(version(), user_id="theirs", session_name="theirs", encoding=2))
    assert versions.session_identity(ours.db, ours.destination, "ses_1") is None
    ours.put(replace(version(), user_id="ours", session_name="ours", encoding=2))
    ours.put(replace(version(session="ses_2"), user_id="other", session_name="other", encoding=1))
    assert versions.session_identity(ours.db, ours.destination, "ses_1") == ("ses_1", Identity("ours", 2, "ours"))
    assert versions.session_identity(ours.db, ours.destination, "ses_2") == ("ses_2", Identity("other", 1, None))
    assert versions.encoding_elsewhere(ours.db, "ses_1") == 2
    assert versions.encoding_elsewhere(ours.db, "ses_3") is None


@pytest.mark.parametrize("end", ["complete", "dead_letter"])
def test_the_end_of_an_attempt_leaves_those_before_it_as_they_were(db: sqlite3.Connection, end: str) -> None:
    bench = LedgerBench(db)
    bench.put(version(), records=0)
    bench.retry_later(bench.claimed(), due_ms=bench.now_ms, error="first")
    if end == "complete":
        claims.complete(db, bench.claimed(), bench.now_ms, confirm_ms=9_000)
    else:
        bench.dead_letter(bench.claimed())
    told = db.execute("select number, error from attempt order by number").fetchall()
    assert [tuple(row) for row in told] == [(1, "first"), (2, "accepted" if end == "complete" else "400")]


def test_a_probe_asks_by_the_newest_job_that_waits_where_one_that_came_later_is_delivered(two: Two) -> None:
    ours, _ = two
    ours.put(version())
    ours.retry_later(ours.claimed(), due_ms=ours.now_ms)
    for session in ("ses_2", "ses_3"):
        ours.now_ms += 1_000
        ours.put(version(session=session))
    ours.deliver(version(session="ses_3"))
    ours.pause(probe_ms=ours.now_ms)
    assert ours.claimed().session == "ses_2"
