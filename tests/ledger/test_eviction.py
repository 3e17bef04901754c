"""Each condition under which a job gives its bodies up, counts as one without them, or gets others in their place."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from app.ledger import claims, destinations, eviction, policy_enforcement, versions
from app.ledger.eviction import Candidate, Recaptured
from app.ledger.job import Body, Claim, FailedAttempt, IdentityFields, Version
from tests.support.ledger_bench import LedgerBench, bodies, version

T1, T2, T3, T4 = (version(f"t{n}") for n in range(1, 5))


def given_up(bench: LedgerBench, *versions: Version, store: str = "store") -> int:
    return eviction.give_up_bodies(bench.db, [bench.row(one)["id"] for one in versions], store)


def put(bench: LedgerBench, *versions: Version) -> None:
    for one in versions:
        bench.put(one)


def die(bench: LedgerBench, wanted: Version) -> None:
    bench.put(wanted)
    assert bench.dead_letter(bench.claimed(wanted))


def wait_for_confirmation(bench: LedgerBench, wanted: Version) -> None:
    """Delivered, with its bodies."""
    bench.put(wanted)
    claimed = bench.claimed(wanted)
    assert bench.acknowledge(claimed, bench.left(claimed)[0])
    assert claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=5_000)
    assert bench.row(wanted)["body_bytes"] > 0


def lose_bundle(bench: LedgerBench, wanted: Version) -> None:
    bench.put(wanted)
    bench.db.execute("delete from bundle where job_id = ?", (bench.row(wanted)["id"],))


def elsewhere(bench: LedgerBench) -> LedgerBench:
    """Another destination of the same ledger."""
    other = LedgerBench(bench.db)
    other.destination = destinations.destination(bench.db, "https://other.invalid", "fingerprint", 0).id
    return other


# --- what is held, and what of it can be given up


def test_what_is_held_are_the_bodies_of_what_waits_or_is_dead_but_of_no_recall(bench: LedgerBench) -> None:
    put(bench, T1)
    die(bench, T2)
    expected = bench.row(T1)["body_bytes"] + bench.row(T2)["body_bytes"]
    put(bench, replace(T3, is_recall=True))
    wait_for_confirmation(bench, version("t4", session="ses_2"))
    assert eviction.held_bytes(bench.db) == expected > 0
    assert eviction.excess_of_folders(bench.db, {"": 1}) == {"": expected - 1}
    given_up(bench, T1)
    assert eviction.held_bytes(bench.db) == bench.row(T2)["body_bytes"]


def turns(found: Sequence[Candidate]) -> list[str]:
    return [one.turn for one in found]


def test_what_can_be_given_up_is_not_in_flight_and_has_its_bodies(bench: LedgerBench) -> None:
    put(bench, T1)
    put(bench, replace(T2, is_recall=True))
    die(bench, version("dead", session="ses_2"))
    wait_for_confirmation(bench, version("delivered", session="ses_3"))
    lose_bundle(bench, version("damaged", session="ses_4"))
    put(bench, version("leased", session="ses_5"))
    bench.claimed(version("leased", session="ses_5"))
    put(bench, version("evicted", session="ses_6"))
    given_up(bench, version("evicted", session="ses_6"))
    assert turns(eviction.candidates(bench.db, None)) == ["t1", "dead"]


def test_the_oldest_come_first_in_pages_that_leave_out_none_and_repeat_none(bench: LedgerBench) -> None:
    for now_ms, one in ((2_000, T1), (0, T2), (1_000, T3), (1_000, T4)):
        bench.now_ms = now_ms
        put(bench, one)
    found: list[Candidate] = []
    for _ in range(5):
        found += eviction.candidates(bench.db, found[-1] if found else None, limit=1)
    assert turns(found) == ["t2", "t3", "t4", "t1"]
    assert turns(eviction.candidates(bench.db, None)) == turns(found)


def test_only_those_of_some_folders_are_listed_where_folders_are_named(bench: LedgerBench) -> None:
    put(bench, replace(T1, folder="a"), replace(version("t2", session="ses_2"), folder="b"))
    assert turns(eviction.candidates(bench.db, None, ["b"])) == ["t2"]
    assert turns(eviction.candidates(bench.db, None, [])) == []


def test_bodies_go_and_what_they_must_be_stays(bench: LedgerBench) -> None:
    put(bench, T1)
    die(bench, T2)
    assert given_up(bench, T1, T2) == 2
    for one in (T1, T2):
        assert (bench.row(one)["body_bytes"], bench.records(one)) == (0, 1)
    assert bench.db.execute("select count(*) from bundle").fetchone()[0] == 0
    assert given_up(bench, T1, T2) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda bench: bench.put(T1) and bench.claimed(T1),
        lambda bench: put(bench, replace(T1, is_recall=True)),
        lambda bench: wait_for_confirmation(bench, T1),
        lambda bench: lose_bundle(bench, T1),
    ],
    ids=["leased", "recall", "delivered", "damaged"],
)
def test_of_others_nothing_is_given_up(bench: LedgerBench, make: Callable[[LedgerBench], object]) -> None:
    make(bench)
    before = tuple(bench.row(T1)), bench.db.execute("select count(*) from bundle").fetchone()[0]
    assert given_up(bench, T1) == 0
    assert (tuple(bench.row(T1)), bench.db.execute("select count(*) from bundle").fetchone()[0]) == before


def test_a_job_that_counts_no_bytes_is_not_given_up_though_a_bundle_is_left(bench: LedgerBench) -> None:
    put(bench, T1)
    bench.db.execute("update job set body_bytes = 0")
    assert given_up(bench, T1) == 0


def test_one_store_is_relied_on_until_another_was(bench: LedgerBench) -> None:
    put(bench, T1, T2, T3)
    assert not eviction.relies_on(bench.db, "store")
    given_up(bench, T1)
    given_up(bench, T2)
    assert eviction.relies_on(bench.db, "store")
    assert not eviction.relies_on(bench.db, "another")
    given_up(bench, T3, store="another")
    assert [eviction.relies_on(bench.db, store) for store in ("store", "another")] == [False, False]
    given_up(bench, T3, store="another")
    assert not eviction.relies_on(bench.db, "another")


# --- what waits without


def test_those_without_bodies_wait_and_have_records(bench: LedgerBench) -> None:
    put(bench, T1, T2)
    die(bench, T3)
    versions.insert(bench.db, bench.destination, T4, [], now_ms=bench.now_ms)
    given_up(bench, T1, T3)
    assert eviction.without_bodies(bench.db, bench.destination) == 1
    assert eviction.without_bodies(bench.db, elsewhere(bench).destination) == 0


def evicted(bench: LedgerBench, wanted: Version = T1, records: int = 1, text: str | None = None) -> Claim:
    """A claimed job without bodies."""
    bench.put(wanted, records, text=text)
    assert given_up(bench, wanted) == 1
    return bench.claimed(wanted)


def test_a_job_is_evicted_while_a_record_of_it_must_be_posted(bench: LedgerBench) -> None:
    claimed = evicted(bench, records=2, text="text")
    first, second = bodies("ses_1 t1", 2, "text")
    assert eviction.is_evicted(bench.db, claimed)
    bench.acknowledge(claimed, first)
    assert eviction.is_evicted(bench.db, claimed)
    bench.acknowledge(claimed, Body(second.request_id, b"other bytes"))
    assert eviction.is_evicted(bench.db, claimed)
    bench.acknowledge(claimed, Body(uuid.uuid4(), second.body))
    assert eviction.is_evicted(bench.db, claimed)
    bench.acknowledge(claimed, second)
    assert not eviction.is_evicted(bench.db, claimed)


def test_what_another_turn_has_posted_is_not_posted_for_this_one(bench: LedgerBench) -> None:
    claimed = evicted(bench)
    [body] = bodies("ses_1 t1", 1, T1.key)
    bench.db.execute(
        "insert into turn (id, session_id, name) select 99, session_id, 'other' from turn where id = ?",
        (claimed.turn_id,),
    )
    bench.db.execute("insert into acknowledgement (turn_id, request_id, digest, acknowledged_ms) values (99, ?, ?, 1)",
                    (body.request_id.bytes, body.digest))  # fmt: skip
    assert eviction.is_evicted(bench.db, claimed)
    assert eviction.take_recaptured(bench.db, claimed, Recaptured(claimed.key, OTHER, ""))


def test_a_job_with_bodies_is_not_evicted(bench: LedgerBench) -> None:
    put(bench, T1)
    assert not eviction.is_evicted(bench.db, bench.claimed(T1))


# --- other bytes in their place

SAME = tuple(bodies("ses_1 t1", 1, T1.key))
OTHER = tuple(bodies("ses_1 t1", 2, "stricter"))
MARKED = replace(T1, known_marks="aa bb")


def kept(bench: LedgerBench) -> list[tuple[bytes, bytes]]:
    rows = bench.db.execute("select request_id, digest from record order by position").fetchall()
    return [(row["request_id"], row["digest"]) for row in rows]


def test_the_bodies_that_it_had_are_taken_from_anybody(bench: LedgerBench) -> None:
    claimed = evicted(bench, MARKED)
    bench.db.execute("update job set kills = 1")
    assert eviction.take_recaptured(bench.db, claimed, Recaptured("other", SAME, ""))
    assert bench.row(T1)["known_marks"] == "aa bb"


@pytest.mark.parametrize("marks", ["aa bb", "bb cc aa"])
def test_others_are_taken_from_who_knows_all_that_was_taken_out(bench: LedgerBench, marks: str) -> None:
    claimed = evicted(bench, MARKED)
    identity_fields = IdentityFields("p", "m", 1, "n", "/s")
    made = tuple(replace(body, identity_fields=identity_fields) for body in OTHER)
    assert eviction.take_recaptured(bench.db, claimed, Recaptured(claimed.key, made, marks))
    row = bench.row(T1)
    assert (row["record_count"], row["known_marks"]) == (2, marks)
    assert kept(bench) == [(body.request_id.bytes, body.digest) for body in OTHER]
    assert bench.db.execute("select count(*) from footprint").fetchone()[0] == 1


@pytest.mark.parametrize(
    ("made", "before"),
    [
        (Recaptured("c" * 64, OTHER, "aa bb"), ""),
        (Recaptured(T1.key, OTHER, "aa"), ""),
        (Recaptured(T1.key, OTHER, ""), ""),
        (Recaptured(T1.key, OTHER, "aa bb"), "update job set attempt = attempt + 1"),
        (Recaptured(T1.key, OTHER, "aa bb"), "update job set state = 'superseded', due_ms = null, finished_ms = 1"),
        (Recaptured(T1.key, OTHER, "aa bb"), "update job set body_bytes = 1"),
        (Recaptured(T1.key, OTHER, "aa bb"), "update job set known_marks = null"),
        (Recaptured(T1.key, OTHER, "aa bb"), "update job set kills = 1"),
        (Recaptured(T1.key, (SAME[0], *OTHER), "aa"), ""),
        (Recaptured(T1.key, (Body(uuid.uuid4(), SAME[0].body),), "aa"), ""),
        (Recaptured(T1.key, (Body(SAME[0].request_id, b"x"),), "aa"), ""),
    ],
    ids=[
        *(
            "another turn",
            "one mark less",
            "no mark",
            "another claim",
            "superseded",
            "not evicted",
            "marks not kept",
            "posted",
        ),
        *("more records", "another id", "other bytes"),
    ],
)
def test_others_are_not_taken(bench: LedgerBench, made: Recaptured, before: str) -> None:
    claimed = evicted(bench, MARKED)
    if before:
        bench.db.execute(before)
    row, records = tuple(bench.row(T1)), kept(bench)
    assert not eviction.take_recaptured(bench.db, claimed, made)
    assert (tuple(bench.row(T1)), kept(bench)) == (row, records)


def test_the_hook_of_its_project_may_fill_what_it_knows_as_well_as_it_was_known_then(bench: LedgerBench) -> None:
    def may(marks: str, made: tuple[Body, ...] = OTHER, at: int = bench.destination) -> bool:
        return eviction.may_refill(bench.db, at, Recaptured(T1.key, made, marks))

    assert may("")  # there is no such job
    put(bench, MARKED)
    assert not may("aa")
    assert may("aa bb")
    assert may("aa", SAME)
    assert may("", at=elsewhere(bench).destination)
    bench.db.execute("update job set known_marks = null")
    assert may("")
    bench.db.execute("update job set kills = 1")
    assert not may("")
    bench.db.execute("update job set known_marks = 'aa'")
    assert not may("aa")
    bench.db.execute("delete from record")
    assert may("")


def test_what_another_destination_has_says_nothing(bench: LedgerBench) -> None:
    other = elsewhere(bench)
    put(other, MARKED)
    assert eviction.may_refill(bench.db, bench.destination, Recaptured(T1.key, OTHER, ""))


UNREACHED = ("ConnectError: refused", "ConnectTimeout: no answer", "not tried: the worker was told to stop")


def ended(bench: LedgerBench, claimed: Claim, error: str, status: int | None = None) -> None:
    failed = FailedAttempt(1_000, error, status)
    assert claims.release(bench.db, claimed, due_ms=1_000, failed=failed)


def unreached(said: str, bench: LedgerBench) -> None:
    ended(bench, bench.claimed(T1), said)


def without_end(bench: LedgerBench) -> None:
    unreached(UNREACHED[0], bench)
    bench.db.execute("update attempt set ended_ms = null")


def acknowledged(bench: LedgerBench, body: Body) -> None:
    claimed = bench.claimed(T1)
    bench.acknowledge(claimed, body)
    ended(bench, claimed, UNREACHED[0])


ATTEMPTS: dict[str, tuple[Callable[[LedgerBench], object], bool]] = {
    "none": (lambda _: None, False),
    **{said.partition(":")[0]: (partial(unreached, said), False) for said in UNREACHED},
    "under way": (lambda bench: bench.claimed(T1), False),
    "an answer": (lambda bench: ended(bench, bench.claimed(T1), "500", 500), True),
    "an answer, though": (lambda bench: ended(bench, bench.claimed(T1), UNREACHED[0], 500), True),
    "no answer": (lambda bench: ended(bench, bench.claimed(T1), "ReadTimeout: no answer"), True),
    "without an end": (lambda bench: (bench.claimed(T1), claims.release_all(bench.db, "worker-a")), True),
    "without an end, before": (
        lambda bench: (bench.claimed(T1), claims.release_all(bench.db, "worker-a"), bench.claimed(T1)),
        True,
    ),
    "unreached without an end": (without_end, True),
    "killed its worker": (lambda bench: bench.db.execute("update job set kills = 1"), True),
    "acknowledged": (lambda bench: acknowledged(bench, SAME[0]), True),
    "other bytes acknowledged": (lambda bench: acknowledged(bench, Body(SAME[0].request_id, b"x")), False),
    "another id acknowledged": (lambda bench: acknowledged(bench, Body(uuid.uuid4(), SAME[0].body)), False),
}


@pytest.mark.parametrize(("happened", "was_posted"), ATTEMPTS.values(), ids=ATTEMPTS)
def test_what_may_have_reached_anybody_stays_as_it_was(
    bench: LedgerBench, happened: Callable[[LedgerBench], object], *, was_posted: bool
) -> None:
    put(bench, MARKED)
    happened(bench)
    assert eviction.may_refill(bench.db, bench.destination, Recaptured(T1.key, OTHER, "aa bb")) is not was_posted


# --- what is gone, and who is asked for what


def test_what_is_gone_is_dropped_by_the_claim_that_found_out(bench: LedgerBench) -> None:
    claimed = evicted(bench)
    assert not claims.drop(bench.db, replace(claimed, attempt=claimed.attempt + 1), "size", 2_000)
    assert claims.drop(bench.db, claimed, "size", 2_000)
    assert (bench.state(T1), bench.records(T1)) == ("dropped (size)", 0)
    assert not claims.drop(bench.db, claimed, "size", 2_000)


@pytest.mark.parametrize(
    "change",
    [
        "update job set lease_until_ms = null, worker = null",
        "update job set body_bytes = 1",
        "update job set state = 'superseded', due_ms = null, finished_ms = 1",
        "update job set state = 'dead', due_ms = null, finished_ms = 1",
    ],
    ids=["not leased", "with bodies", "superseded", "dead"],
)
def test_other_jobs_are_not_dropped_as_gone(bench: LedgerBench, change: str) -> None:
    claimed = evicted(bench)
    bench.db.execute(change)
    before = bench.state(T1)
    assert not claims.drop(bench.db, claimed, "size", 2_000)
    assert (bench.state(T1), bench.records(T1)) == (before, 1)


def on_hold(bench: LedgerBench, wanted: Version) -> None:
    policy_enforcement.hold(bench.db, evicted(bench, wanted), due_ms=9_000, reason="unlike")


def test_hooks_are_asked_for_what_is_held_without_bodies_of_their_folders(bench: LedgerBench) -> None:
    for one in (
        replace(version("b", session="ses_2"), folder="f", policy="p"),
        replace(version("a", session="ses_2"), folder="f", policy="p"),
        replace(version("c", session="ses_2"), folder="f", policy="q"),
        replace(version("d", session="ses_1"), folder="f"),
        replace(version("e", session="ses_3"), folder="g"),
    ):
        on_hold(bench, one)
    found = eviction.evicted(bench.db, bench.destination, ["f"])
    assert [(one.session, one.folder, one.policy, one.turns) for one in found] == [
        ("ses_2", "f", "p", ("a", "b")),
        ("ses_2", "f", "q", ("c",)),
        ("ses_1", "f", "", ("d",)),
    ]
    assert [one.session for one in eviction.evicted(bench.db, bench.destination, ["g", "f"])][-1] == "ses_3"
    assert eviction.evicted(bench.db, elsewhere(bench).destination, ["f"]) == []


@pytest.mark.parametrize(
    "change",
    [
        "update job set hold_reason = null",
        "update job set lease_until_ms = 1, worker = 'w'",
        "update job set body_bytes = 1",
        "update job set state = 'dead', due_ms = null, finished_ms = 1",
        "delete from record",
    ],
    ids=["not held", "leased", "with bodies", "dead", "without records"],
)
def test_and_for_nothing_else(bench: LedgerBench, change: str) -> None:
    on_hold(bench, replace(T1, folder="f"))
    assert len(eviction.evicted(bench.db, bench.destination, ["f"])) == 1
    bench.db.execute(change)
    assert eviction.evicted(bench.db, bench.destination, ["f"]) == []
