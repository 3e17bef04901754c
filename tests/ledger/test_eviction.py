"""Each condition under which a job gives its bodies up, counts as one without them, or gets others in their place."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from app.ledger import claims, destinations, eviction, policy_enforcement, versions
from app.ledger.eviction import Bulk, Remade
from app.ledger.job import Body, Claim, FailedAttempt, Frozen, Version
from tests.support.ledger_bench import Desk, bodies, version

T1, T2, T3, T4 = (version(f"t{n}") for n in range(1, 5))


def given_up(desk: Desk, *versions: Version, store: str = "store") -> int:
    return eviction.give_up_bodies(desk.db, [desk.row(one)["id"] for one in versions], store)


def put(desk: Desk, *versions: Version) -> None:
    for one in versions:
        desk.put(one)


def die(desk: Desk, wanted: Version) -> None:
    desk.put(wanted)
    assert desk.dead_letter(desk.held(wanted))


def wait_for_confirmation(desk: Desk, wanted: Version) -> None:
    """Delivered, with its bodies."""
    desk.put(wanted)
    held = desk.held(wanted)
    assert desk.acknowledge(held, desk.left(held)[0])
    assert claims.complete(desk.db, held, desk.now_ms, confirm_ms=5_000)
    assert desk.row(wanted)["body_bytes"] > 0


def lose_bundle(desk: Desk, wanted: Version) -> None:
    desk.put(wanted)
    desk.db.execute("delete from bundle where job_id = ?", (desk.row(wanted)["id"],))


def elsewhere(desk: Desk) -> Desk:
    """Another destination of the same ledger."""
    other = Desk(desk.db)
    other.destination = destinations.destination(desk.db, "https://other.invalid", "fingerprint", 0).id
    return other


# --- what is held, and what of it can be given up


def test_what_is_held_are_the_bodies_of_what_waits_or_is_dead_but_of_no_recall(desk: Desk) -> None:
    put(desk, T1)
    die(desk, T2)
    expected = desk.row(T1)["body_bytes"] + desk.row(T2)["body_bytes"]
    put(desk, replace(T3, is_recall=True))
    wait_for_confirmation(desk, version("t4", session="ses_2"))
    assert eviction.held_bytes(desk.db) == expected > 0
    assert eviction.excess_of_folders(desk.db, {"": 1}) == {"": expected - 1}
    given_up(desk, T1)
    assert eviction.held_bytes(desk.db) == desk.row(T2)["body_bytes"]


def turns(found: Sequence[Bulk]) -> list[str]:
    return [one.turn for one in found]


def test_what_can_be_given_up_is_not_in_flight_and_has_its_bodies(desk: Desk) -> None:
    put(desk, T1)
    put(desk, replace(T2, is_recall=True))
    die(desk, version("dead", session="ses_2"))
    wait_for_confirmation(desk, version("delivered", session="ses_3"))
    lose_bundle(desk, version("damaged", session="ses_4"))
    put(desk, version("leased", session="ses_5"))
    desk.held(version("leased", session="ses_5"))
    put(desk, version("emptied", session="ses_6"))
    given_up(desk, version("emptied", session="ses_6"))
    assert turns(eviction.bulk(desk.db, None)) == ["t1", "dead"]


def test_the_oldest_come_first_in_pages_that_leave_out_none_and_repeat_none(desk: Desk) -> None:
    for now_ms, one in ((2_000, T1), (0, T2), (1_000, T3), (1_000, T4)):
        desk.now_ms = now_ms
        put(desk, one)
    found: list[Bulk] = []
    for _ in range(5):
        found += eviction.bulk(desk.db, found[-1] if found else None, limit=1)
    assert turns(found) == ["t2", "t3", "t4", "t1"]
    assert turns(eviction.bulk(desk.db, None)) == turns(found)


def test_only_those_of_some_folders_are_listed_where_folders_are_named(desk: Desk) -> None:
    put(desk, replace(T1, folder="a"), replace(version("t2", session="ses_2"), folder="b"))
    assert turns(eviction.bulk(desk.db, None, ["b"])) == ["t2"]
    assert turns(eviction.bulk(desk.db, None, [])) == []


def test_bodies_go_and_what_they_must_be_stays(desk: Desk) -> None:
    put(desk, T1)
    die(desk, T2)
    assert given_up(desk, T1, T2) == 2
    for one in (T1, T2):
        assert (desk.row(one)["body_bytes"], desk.records(one)) == (0, 1)
    assert desk.db.execute("select count(*) from bundle").fetchone()[0] == 0
    assert given_up(desk, T1, T2) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda desk: desk.put(T1) and desk.held(T1),
        lambda desk: put(desk, replace(T1, is_recall=True)),
        lambda desk: wait_for_confirmation(desk, T1),
        lambda desk: lose_bundle(desk, T1),
    ],
    ids=["leased", "recall", "delivered", "damaged"],
)
def test_of_others_nothing_is_given_up(desk: Desk, make: Callable[[Desk], object]) -> None:
    make(desk)
    before = tuple(desk.row(T1)), desk.db.execute("select count(*) from bundle").fetchone()[0]
    assert given_up(desk, T1) == 0
    assert (tuple(desk.row(T1)), desk.db.execute("select count(*) from bundle").fetchone()[0]) == before


def test_a_job_that_counts_no_bytes_is_not_given_up_though_a_bundle_is_left(desk: Desk) -> None:
    put(desk, T1)
    desk.db.execute("update job set body_bytes = 0")
    assert given_up(desk, T1) == 0


def test_one_store_is_relied_on_until_another_was(desk: Desk) -> None:
    put(desk, T1, T2, T3)
    assert not eviction.relies_on(desk.db, "store")
    given_up(desk, T1)
    given_up(desk, T2)
    assert eviction.relies_on(desk.db, "store")
    assert not eviction.relies_on(desk.db, "another")
    given_up(desk, T3, store="another")
    assert [eviction.relies_on(desk.db, store) for store in ("store", "another")] == [False, False]
    given_up(desk, T3, store="another")
    assert not eviction.relies_on(desk.db, "another")


# --- what waits without


def test_those_without_bodies_wait_and_have_records(desk: Desk) -> None:
    put(desk, T1, T2)
    die(desk, T3)
    versions.insert(desk.db, desk.destination, T4, [], now_ms=desk.now_ms)
    given_up(desk, T1, T3)
    assert eviction.without_bodies(desk.db, desk.destination) == 1
    assert eviction.without_bodies(desk.db, elsewhere(desk).destination) == 0


def emptied(desk: Desk, wanted: Version = T1, records: int = 1, text: str | None = None) -> Claim:
    """A claimed job without bodies."""
    desk.put(wanted, records, text=text)
    assert given_up(desk, wanted) == 1
    return desk.held(wanted)


def test_a_job_is_emptied_while_a_record_of_it_must_be_posted(desk: Desk) -> None:
    held = emptied(desk, records=2, text="text")
    first, second = bodies("ses_1 t1", 2, "text")
    assert eviction.is_emptied(desk.db, held)
    desk.acknowledge(held, first)
    assert eviction.is_emptied(desk.db, held)
    desk.acknowledge(held, Body(second.request_id, b"other bytes"))
    assert eviction.is_emptied(desk.db, held)
    desk.acknowledge(held, Body(uuid.uuid4(), second.body))
    assert eviction.is_emptied(desk.db, held)
    desk.acknowledge(held, second)
    assert not eviction.is_emptied(desk.db, held)


def test_what_another_turn_has_posted_is_not_posted_for_this_one(desk: Desk) -> None:
    held = emptied(desk)
    [body] = bodies("ses_1 t1", 1, T1.key)
    desk.db.execute(
        "insert into turn (id, session_id, name) select 99, session_id, 'other' from turn where id = ?", (held.turn_id,)
    )
    desk.db.execute("insert into acknowledgement (turn_id, request_id, digest, acknowledged_ms) values (99, ?, ?, 1)",
                    (body.request_id.bytes, body.digest))  # fmt: skip
    assert eviction.is_emptied(desk.db, held)
    assert eviction.take_remade(desk.db, held, Remade(held.key, OTHER, ""))


def test_a_job_with_bodies_is_not_emptied(desk: Desk) -> None:
    put(desk, T1)
    assert not eviction.is_emptied(desk.db, desk.held(T1))


# --- other bytes in their place

SAME = tuple(bodies("ses_1 t1", 1, T1.key))
OTHER = tuple(bodies("ses_1 t1", 2, "stricter"))
MARKED = replace(T1, known_marks="aa bb")


def kept(desk: Desk) -> list[tuple[bytes, bytes]]:
    rows = desk.db.execute("select request_id, digest from record order by position").fetchall()
    return [(row["request_id"], row["digest"]) for row in rows]


def test_the_bodies_that_it_had_are_taken_from_anybody(desk: Desk) -> None:
    held = emptied(desk, MARKED)
    desk.db.execute("update job set kills = 1")
    assert eviction.take_remade(desk.db, held, Remade("other", SAME, ""))
    assert desk.row(T1)["known_marks"] == "aa bb"


@pytest.mark.parametrize("marks", ["aa bb", "bb cc aa"])
def test_others_are_taken_from_who_knows_all_that_was_taken_out(desk: Desk, marks: str) -> None:
    held = emptied(desk, MARKED)
    frozen = Frozen("p", "m", 1, "n", "/s")
    made = tuple(replace(body, frozen=frozen) for body in OTHER)
    assert eviction.take_remade(desk.db, held, Remade(held.key, made, marks))
    row = desk.row(T1)
    assert (row["record_count"], row["known_marks"]) == (2, marks)
    assert kept(desk) == [(body.request_id.bytes, body.digest) for body in OTHER]
    assert desk.db.execute("select count(*) from footprint").fetchone()[0] == 1


@pytest.mark.parametrize(
    ("made", "before"),
    [
        (Remade("c" * 64, OTHER, "aa bb"), ""),
        (Remade(T1.key, OTHER, "aa"), ""),
        (Remade(T1.key, OTHER, ""), ""),
        (Remade(T1.key, OTHER, "aa bb"), "update job set attempt = attempt + 1"),
        (Remade(T1.key, OTHER, "aa bb"), "update job set state = 'superseded', due_ms = null, finished_ms = 1"),
        (Remade(T1.key, OTHER, "aa bb"), "update job set body_bytes = 1"),
        (Remade(T1.key, OTHER, "aa bb"), "update job set known_marks = null"),
        (Remade(T1.key, OTHER, "aa bb"), "update job set kills = 1"),
        (Remade(T1.key, (SAME[0], *OTHER), "aa"), ""),
        (Remade(T1.key, (Body(uuid.uuid4(), SAME[0].body),), "aa"), ""),
        (Remade(T1.key, (Body(SAME[0].request_id, b"x"),), "aa"), ""),
    ],
    ids=[
        *(
            "another turn",
            "one mark less",
            "no mark",
            "another claim",
            "superseded",
            "not emptied",
            "marks not kept",
            "posted",
        ),
        *("more records", "another id", "other bytes"),
    ],
)
def test_others_are_not_taken(desk: Desk, made: Remade, before: str) -> None:
    held = emptied(desk, MARKED)
    if before:
        desk.db.execute(before)
    row, records = tuple(desk.row(T1)), kept(desk)
    assert not eviction.take_remade(desk.db, held, made)
    assert (tuple(desk.row(T1)), kept(desk)) == (row, records)


def test_the_hook_of_its_project_may_fill_what_it_knows_as_well_as_it_was_known_then(desk: Desk) -> None:
    def may(marks: str, made: tuple[Body, ...] = OTHER, at: int = desk.destination) -> bool:
        return eviction.may_refill(desk.db, at, Remade(T1.key, made, marks))

    assert may("")  # there is no such job
    put(desk, MARKED)
    assert not may("aa")
    assert may("aa bb")
    assert may("aa", SAME)
    assert may("", at=elsewhere(desk).destination)
    desk.db.execute("update job set known_marks = null")
    assert may("")
    desk.db.execute("update job set kills = 1")
    assert not may("")
    desk.db.execute("update job set known_marks = 'aa'")
    assert not may("aa")
    desk.db.execute("delete from record")
    assert may("")


def test_what_another_destination_has_says_nothing(desk: Desk) -> None:
    other = elsewhere(desk)
    put(other, MARKED)
    assert eviction.may_refill(desk.db, desk.destination, Remade(T1.key, OTHER, ""))


UNREACHED = ("ConnectError: refused", "ConnectTimeout: no answer", "not tried: the worker was told to stop")


def ended(desk: Desk, held: Claim, error: str, status: int | None = None) -> None:
    failed = FailedAttempt(1_000, error, status)
    assert claims.release(desk.db, held, due_ms=1_000, failed=failed)


def unreached(said: str, desk: Desk) -> None:
    ended(desk, desk.held(T1), said)


def without_end(desk: Desk) -> None:
    unreached(UNREACHED[0], desk)
    desk.db.execute("update attempt set ended_ms = null")


def acknowledged(desk: Desk, body: Body) -> None:
    held = desk.held(T1)
    desk.acknowledge(held, body)
    ended(desk, held, UNREACHED[0])


ATTEMPTS: dict[str, tuple[Callable[[Desk], object], bool]] = {
    "none": (lambda _: None, False),
    **{said.partition(":")[0]: (partial(unreached, said), False) for said in UNREACHED},
    "under way": (lambda desk: desk.held(T1), False),
    "an answer": (lambda desk: ended(desk, desk.held(T1), "500", 500), True),
    "an answer, though": (lambda desk: ended(desk, desk.held(T1), UNREACHED[0], 500), True),
    "no answer": (lambda desk: ended(desk, desk.held(T1), "ReadTimeout: no answer"), True),
    "without an end": (lambda desk: (desk.held(T1), claims.release_all(desk.db, "worker-a")), True),
    "without an end, before": (
        lambda desk: (desk.held(T1), claims.release_all(desk.db, "worker-a"), desk.held(T1)),
        True,
    ),
    "unreached without an end": (without_end, True),
    "killed its worker": (lambda desk: desk.db.execute("update job set kills = 1"), True),
    "acknowledged": (lambda desk: acknowledged(desk, SAME[0]), True),
    "other bytes acknowledged": (lambda desk: acknowledged(desk, Body(SAME[0].request_id, b"x")), False),
    "another id acknowledged": (lambda desk: acknowledged(desk, Body(uuid.uuid4(), SAME[0].body)), False),
}


@pytest.mark.parametrize(("happened", "was_posted"), ATTEMPTS.values(), ids=ATTEMPTS)
def test_what_may_have_reached_anybody_stays_as_it_was(
    desk: Desk, happened: Callable[[Desk], object], *, was_posted: bool
) -> None:
    put(desk, MARKED)
    happened(desk)
    assert eviction.may_refill(desk.db, desk.destination, Remade(T1.key, OTHER, "aa bb")) is not was_posted


# --- what is gone, and who is asked for what


def test_what_is_gone_is_dropped_by_the_claim_that_found_out(desk: Desk) -> None:
    held = emptied(desk)
    assert not claims.drop(desk.db, replace(held, attempt=held.attempt + 1), "size", 2_000)
    assert claims.drop(desk.db, held, "size", 2_000)
    assert (desk.state(T1), desk.records(T1)) == ("dropped (size)", 0)
    assert not claims.drop(desk.db, held, "size", 2_000)


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
def test_other_jobs_are_not_dropped_as_gone(desk: Desk, change: str) -> None:
    held = emptied(desk)
    desk.db.execute(change)
    before = desk.state(T1)
    assert not claims.drop(desk.db, held, "size", 2_000)
    assert (desk.state(T1), desk.records(T1)) == (before, 1)


def on_hold(desk: Desk, wanted: Version) -> None:
    policy_enforcement.hold(desk.db, emptied(desk, wanted), due_ms=9_000, reason="unlike")


def test_hooks_are_asked_for_what_is_held_without_bodies_of_their_folders(desk: Desk) -> None:
    for one in (
        replace(version("b", session="ses_2"), folder="f", policy="p"),
        replace(version("a", session="ses_2"), folder="f", policy="p"),
        replace(version("c", session="ses_2"), folder="f", policy="q"),
        replace(version("d", session="ses_1"), folder="f"),
        replace(version("e", session="ses_3"), folder="g"),
    ):
        on_hold(desk, one)
    found = eviction.emptied(desk.db, desk.destination, ["f"])
    assert [(one.session, one.folder, one.policy, one.turns) for one in found] == [
        ("ses_2", "f", "p", ("a", "b")),
        ("ses_2", "f", "q", ("c",)),
        ("ses_1", "f", "", ("d",)),
    ]
    assert [one.session for one in eviction.emptied(desk.db, desk.destination, ["g", "f"])][-1] == "ses_3"
    assert eviction.emptied(desk.db, elsewhere(desk).destination, ["f"]) == []


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
def test_and_for_nothing_else(desk: Desk, change: str) -> None:
    on_hold(desk, replace(T1, folder="f"))
    assert len(eviction.emptied(desk.db, desk.destination, ["f"])) == 1
    desk.db.execute(change)
    assert eviction.emptied(desk.db, desk.destination, ["f"]) == []
