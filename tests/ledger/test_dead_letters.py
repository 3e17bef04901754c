"""Dead letters in the ledger: grouped, found, tried again, given up; and dropped jobs beside them."""

from __future__ import annotations

import doctest

import pytest

from app import ledger
from app.ledger import claims, dead_letters, fingerprint, flow, job, maintenance, pruning
from app.ledger.dead_letters import Choice
from app.ledger.decision import IMPORT, Decision
from app.ledger.fingerprint import kind_of_error
from app.ledger.job import FailedAttempt, Version
from app.operations.dead_letters import what_to_do
from tests.support.ledger_bench import WORKER, Desk, version

DAY_MS = 24 * 3_600_000


def die(desk: Desk, wanted: Version, error: str = "400: error a", records: int = 1) -> None:
    desk.put(wanted, records=records)
    held = desk.held(wanted)
    assert claims.dead_letter(desk.db, held, FailedAttempt(desk.now_ms, error, 400, "no room"))


def retry(desk: Desk, choice: Choice | None = None) -> list[str]:
    return [key for _, key in dead_letters.retry_dead(desk.db, choice or Choice(), desk.now_ms)]


def of_error(error: str) -> str:
    return kind_of_error(error).fingerprint


# --- fingerprints


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("500: error row 17 is bad (after 5 retries)", "500: error row 4 is bad (after 0 retries)"),
        ("its worker was killed 5 times", "its worker was killed 6 times"),
        (
            "record 0d5c1de2-7bd5-5f5f-8a7e-8a1b2c3d4e5f of job 0123456789ab is damaged",
            "record ffffffff-7bd5-5f5f-8a7e-8a1b2c3d4e5f of job ba9876543210 is damaged",
        ),
        ("400: error field 'a' is wrong", "400: error field 'b c' is wrong"),
        ("400: error  Invalid\tid req_8dk3kd93", "400: error Invalid id req_9dk3kd9x1"),
    ],
    ids=["numbers", "counts", "ids", "quotations", "spaces"],
)
def test_errors_that_differ_in_numbers_ids_and_quotations_are_one(one: str, other: str) -> None:
    assert kind_of_error(one) == kind_of_error(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("500: empty body", "400: empty body"), ("400: HTML", "400: JSON"), ("", "400: text")],
    ids=["status", "words", "nothing"],
)
def test_errors_that_differ_in_status_or_words_are_two(one: str, other: str) -> None:
    assert of_error(one) != of_error(other)


def test_a_fingerprint_is_the_same_in_every_version() -> None:
    assert of_error("413: error request entity too large") == "5d09c886"


def test_the_examples_hold() -> None:
    assert doctest.testmod(fingerprint).failed == 0


def test_a_letter_whose_workers_died_says_where_to_look(desk: Desk) -> None:
    desk.put(version())
    for _ in range(ledger.maintenance.KILLS_MAX):
        desk.held()
        maintenance.recover(desk.db, desk.now_ms, [WORKER])
        desk.now_ms += 60_000
    (letter,) = dead_letters.dead_letters(desk.db)
    assert "logs/worker.log" in what_to_do(letter)


# --- readings


def test_dead_letters_are_grouped_by_the_fingerprint_of_their_error(desk: Desk) -> None:
    for number, error in enumerate(["400: error row 1", "400: error row 2", "413: HTML"]):
        desk.now_ms += 1
        die(desk, version(f"t{number}"), error)
    groups = dead_letters.dead_groups(desk.db)
    assert [(one.reason, one.jobs, one.last_ms) for one in groups] == [
        ("400: error row #", 2, 1_002),
        ("413: HTML", 1, 1_003),
    ]
    chosen = Choice(fingerprint=groups[0].fingerprint)
    assert [one.turn for one in dead_letters.dead_letters(desk.db, chosen)] == ["t1", "t0"]


def test_letters_are_chosen_by_time_key_and_destination(desk: Desk) -> None:
    for number in range(3):
        desk.now_ms += 10
        die(desk, version(f"t{number}"))

    def turns(choice: Choice) -> list[str]:
        return [one.turn for one in dead_letters.dead_letters(desk.db, choice)]

    assert turns(Choice(since_ms=1_020)) == ["t2", "t1"]
    assert turns(Choice(keys=(version("t0").key,))) == ["t0"]
    assert turns(Choice(keys=(version("t0").key,), since_ms=1_020)) == []
    assert turns(Choice(destination_id=desk.destination + 1)) == []
    assert turns(Choice(keys=())) == []


def test_a_letter_keeps_its_records_and_its_last_ten_attempts(desk: Desk) -> None:
    desk.put(version(), records=2)
    for _ in range(12):
        held = desk.held()
        desk.retry_later(held, due_ms=desk.now_ms)
        desk.now_ms += 5
    assert claims.dead_letter(desk.db, desk.held(), FailedAttempt(desk.now_ms, "400: text", 400, "no room"))
    (letter,) = dead_letters.dead_letters(desk.db)
    assert (letter.attempts, letter.records, letter.reason) == (13, 2, "400: text")
    assert len(list(job.bodies(desk.db, letter.job_id, letter.key))) == 2
    tried = dead_letters.attempts(desk.db, letter.job_id)
    assert [one.number for one in tried] == list(range(4, 14))
    assert (tried[-1].status, tried[-1].error, tried[-1].answer) == (400, "400: text", "no room")
    assert tried[0].ended_ms is not None


def test_letters_are_found_by_the_beginning_of_their_key(desk: Desk) -> None:
    for turn in ("t1", "t2"):
        die(desk, version(turn))
    desk.put(version("t3"))
    whole = version("t1").key
    assert [one.key for one in dead_letters.letters_of(desk.db, whole, "dead")] == [whole]
    assert len(dead_letters.letters_of(desk.db, whole[:12], "dead")) == 2
    assert dead_letters.letters_of(desk.db, version("t3").key, "dead") == []
    assert dead_letters.letters_of(desk.db, whole, "dropped") == []


def test_dropped_jobs_are_another_reading(desk: Desk) -> None:
    die(desk, version("t1"))
    desk.put(version("t2"), off=True)
    assert [(one.reason, one.jobs) for one in dead_letters.dropped_groups(desk.db)] == [("off", 1)]
    assert [one.turn for one in dead_letters.dropped_letters(desk.db)] == ["t2"]
    assert [one.turn for one in dead_letters.dead_letters(desk.db)] == ["t1"]
    assert dead_letters.dropped_groups(desk.db, desk.now_ms + 1) == []
    assert dead_letters.dropped_letters(desk.db, desk.now_ms + 1) == []


# --- retry


def test_a_retried_letter_is_as_new_and_due_now(desk: Desk) -> None:
    die(desk, version(), records=3)
    desk.db.execute("update job set kills = 4, setbacks = 9, failures = 5, passes_seen = 7, resends = 2")
    attempt = desk.row()["attempt"]
    desk.now_ms += DAY_MS
    assert retry(desk) == [version().key]
    row = desk.row()
    assert desk.state() == "pending"
    assert (row["due_ms"], row["enqueued_ms"], row["finished_ms"]) == (desk.now_ms, desk.now_ms, None)
    names = ("kills", "setbacks", "failures", "resends")
    assert [row[name] for name in names] == [0] * len(names)
    assert (row["passes_seen"], row["attempted_ms"], row["error"]) == (None, None, None)
    assert row["attempt"] == attempt + 1
    assert desk.wake() == [version().key]
    desk.deliver(version())
    assert desk.state() == "delivered"


def test_a_worker_that_still_posts_the_dead_one_cannot_finish_the_retried_one(desk: Desk) -> None:
    desk.put(version())
    stale = desk.held()
    assert desk.dead_letter(stale)
    retry(desk)
    held = desk.held()
    assert not desk.complete(stale)
    assert not desk.dead_letter(stale)
    assert desk.acknowledge(held, desk.left(held)[0])
    assert desk.complete(held)


def test_what_helicone_has_of_a_letter_is_not_sent_again(desk: Desk) -> None:
    desk.put(version(), records=3)
    held = desk.held()
    assert desk.acknowledge(held, desk.left(held)[0])
    desk.dead_letter(held)
    retry(desk)
    assert len(desk.left(desk.held())) == 2


def test_what_helicone_accepted_and_did_not_store_is_sent_again(desk: Desk) -> None:
    desk.put(version(), records=3)
    held = desk.held()
    for body in desk.left(held):
        assert desk.acknowledge(held, body)
    desk.dead_letter(held)
    desk.db.execute("update job set resends = 3")
    retry(desk)
    assert len(desk.left(desk.held())) == 3


def test_the_age_of_a_retried_letter_counts_from_then_on(desk: Desk) -> None:
    die(desk, version())
    desk.now_ms += 8 * DAY_MS
    flow.pause(desk.db, desk.destination, health="down", reason="x", count=1, probe_ms=desk.now_ms, now_ms=desk.now_ms)
    retry(desk)
    assert pruning.drop_aged(desk.db, desk.now_ms, 7 * DAY_MS) == 0


def all_but_dead(desk: Desk) -> None:
    """A job in every other state, and one that is being posted."""
    desk.put(version("waits"))
    desk.put(version("done", session="ses_2"))
    desk.deliver(version("done", session="ses_2"))
    desk.put(version("off"), off=True)
    die(desk, version("old", session="ses_3"))
    desk.put(version("old", "b", facts_ms=101, session="ses_3"))
    die(desk, version("purged", session="ses_4"))
    dead_letters.purge_dead(desk.db, Choice(keys=(version("purged", session="ses_4").key,)), desk.now_ms)
    desk.put(version("posted", session="ses_5"))
    desk.held(version("posted", session="ses_5"))


def test_only_dead_letters_are_retried_or_purged(desk: Desk) -> None:
    all_but_dead(desk)
    before = "\n".join(desk.db.iterdump())
    for choice in (Choice(), Choice(keys=(version("off").key, version("old", session="ses_3").key))):
        assert retry(desk, choice) == []
        assert dead_letters.purge_dead(desk.db, choice, desk.now_ms) == 0
    assert "\n".join(desk.db.iterdump()) == before


# --- purge


def test_a_purged_letter_is_dropped_with_its_bodies_and_its_key_stays_known(desk: Desk) -> None:
    die(desk, version(), records=2)
    assert dead_letters.purge_dead(desk.db, Choice(), desk.now_ms) == 1
    assert (desk.state(), desk.records(), desk.row()["body_bytes"]) == ("dropped (purged)", 0, 0)
    assert desk.db.execute("select count(*) from attempt").fetchone()[0] == 0
    assert desk.put(version()) is Decision.KNOWN
    assert desk.put(version(facts_ms=200)) is Decision.KNOWN
    assert dead_letters.purge_dead(desk.db, Choice(), desk.now_ms) == 0


def test_a_newer_version_of_a_purged_turn_is_taken(desk: Desk) -> None:
    die(desk, version())
    dead_letters.purge_dead(desk.db, Choice(), desk.now_ms)
    assert desk.put(version(content="b", facts_ms=200)) is Decision.NEW


def test_an_import_takes_a_purged_turn_back(desk: Desk) -> None:
    die(desk, version())
    dead_letters.purge_dead(desk.db, Choice(), desk.now_ms)
    assert desk.put(version(), reopen=IMPORT) is Decision.REOPENED
    assert (desk.state(), desk.records()) == ("pending", 1)


def test_purge_takes_only_what_was_chosen_and_only_the_dead(desk: Desk) -> None:
    die(desk, version("t1"), "400: HTML")
    die(desk, version("t2"), "413: HTML")
    desk.put(version("t3"))
    assert dead_letters.purge_dead(desk.db, Choice(fingerprint=of_error("413: HTML")), desk.now_ms) == 1
    assert [desk.state(version(turn)) for turn in ("t1", "t2", "t3")] == ["dead", "dropped (purged)", "pending"]
