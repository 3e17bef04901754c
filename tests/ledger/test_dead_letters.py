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
from tests.support.ledger_bench import WORKER, LedgerBench, version

DAY_MS = 24 * 3_600_000


def die(bench: LedgerBench, wanted: Version, error: str = "400: error a", records: int = 1) -> None:
    bench.put(wanted, records=records)
    claimed = bench.claimed(wanted)
    assert claims.dead_letter(bench.db, claimed, FailedAttempt(bench.now_ms, error, 400, "no room"))


def retry(bench: LedgerBench, choice: Choice | None = None) -> list[str]:
    return [key for _, key in dead_letters.retry_dead(bench.db, choice or Choice(), bench.now_ms)]


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


def test_a_letter_whose_workers_died_says_where_to_look(bench: LedgerBench) -> None:
    bench.put(version())
    for _ in range(ledger.maintenance.KILLS_MAX):
        bench.claimed()
        maintenance.recover(bench.db, bench.now_ms, [WORKER])
        bench.now_ms += 60_000
    (letter,) = dead_letters.dead_letters(bench.db)
    assert "logs/worker.log" in what_to_do(letter)


# --- readings


def test_dead_letters_are_grouped_by_the_fingerprint_of_their_error(bench: LedgerBench) -> None:
    for number, error in enumerate(["400: error row 1", "400: error row 2", "413: HTML"]):
        bench.now_ms += 1
        die(bench, version(f"t{number}"), error)
    groups = dead_letters.dead_groups(bench.db)
    assert [(one.reason, one.jobs, one.last_ms) for one in groups] == [
        ("400: error row #", 2, 1_002),
        ("413: HTML", 1, 1_003),
    ]
    chosen = Choice(fingerprint=groups[0].fingerprint)
    assert [one.turn for one in dead_letters.dead_letters(bench.db, chosen)] == ["t1", "t0"]


def test_letters_are_chosen_by_time_key_and_destination(bench: LedgerBench) -> None:
    for number in range(3):
        bench.now_ms += 10
        die(bench, version(f"t{number}"))

    def turns(choice: Choice) -> list[str]:
        return [one.turn for one in dead_letters.dead_letters(bench.db, choice)]

    assert turns(Choice(since_ms=1_020)) == ["t2", "t1"]
    assert turns(Choice(keys=(version("t0").key,))) == ["t0"]
    assert turns(Choice(keys=(version("t0").key,), since_ms=1_020)) == []
    assert turns(Choice(destination_id=bench.destination + 1)) == []
    assert turns(Choice(keys=())) == []


def test_a_letter_keeps_its_records_and_its_last_ten_attempts(bench: LedgerBench) -> None:
    bench.put(version(), records=2)
    for _ in range(12):
        claimed = bench.claimed()
        bench.retry_later(claimed, due_ms=bench.now_ms)
        bench.now_ms += 5
    assert claims.dead_letter(bench.db, bench.claimed(), FailedAttempt(bench.now_ms, "400: text", 400, "no room"))
    (letter,) = dead_letters.dead_letters(bench.db)
    assert (letter.attempts, letter.records, letter.reason) == (13, 2, "400: text")
    assert len(list(job.bodies(bench.db, letter.job_id, letter.key))) == 2
    tried = dead_letters.attempts(bench.db, letter.job_id)
    assert [one.number for one in tried] == list(range(4, 14))
    assert (tried[-1].status, tried[-1].error, tried[-1].answer) == (400, "400: text", "no room")
    assert tried[0].ended_ms is not None


def test_letters_are_found_by_the_beginning_of_their_key(bench: LedgerBench) -> None:
    for turn in ("t1", "t2"):
        die(bench, version(turn))
    bench.put(version("t3"))
    whole = version("t1").key
    assert [one.key for one in dead_letters.letters_of(bench.db, whole, "dead")] == [whole]
    assert len(dead_letters.letters_of(bench.db, whole[:12], "dead")) == 2
    assert dead_letters.letters_of(bench.db, version("t3").key, "dead") == []
    assert dead_letters.letters_of(bench.db, whole, "dropped") == []


def test_dropped_jobs_are_another_reading(bench: LedgerBench) -> None:
    die(bench, version("t1"))
    bench.put(version("t2"), off=True)
    assert [(one.reason, one.jobs) for one in dead_letters.dropped_groups(bench.db)] == [("off", 1)]
    assert [one.turn for one in dead_letters.dropped_letters(bench.db)] == ["t2"]
    assert [one.turn for one in dead_letters.dead_letters(bench.db)] == ["t1"]
    assert dead_letters.dropped_groups(bench.db, bench.now_ms + 1) == []
    assert dead_letters.dropped_letters(bench.db, bench.now_ms + 1) == []


# --- retry


def test_a_retried_letter_is_as_new_and_due_now(bench: LedgerBench) -> None:
    die(bench, version(), records=3)
    bench.db.execute("update job set kills = 4, setbacks = 9, failures = 5, passes_seen = 7, resends = 2")
    attempt = bench.row()["attempt"]
    bench.now_ms += DAY_MS
    assert retry(bench) == [version().key]
    row = bench.row()
    assert bench.state() == "pending"
    assert (row["due_ms"], row["enqueued_ms"], row["finished_ms"]) == (bench.now_ms, bench.now_ms, None)
    names = ("kills", "setbacks", "failures", "resends")
    assert [row[name] for name in names] == [0] * len(names)
    assert (row["passes_seen"], row["attempted_ms"], row["error"]) == (None, None, None)
    assert row["attempt"] == attempt + 1
    assert bench.wake() == [version().key]
    bench.deliver(version())
    assert bench.state() == "delivered"


def test_a_worker_that_still_posts_the_dead_one_cannot_finish_the_retried_one(bench: LedgerBench) -> None:
    bench.put(version())
    stale = bench.claimed()
    assert bench.dead_letter(stale)
    retry(bench)
    claimed = bench.claimed()
    assert not bench.complete(stale)
    assert not bench.dead_letter(stale)
    assert bench.acknowledge(claimed, bench.left(claimed)[0])
    assert bench.complete(claimed)


def test_what_helicone_has_of_a_letter_is_not_sent_again(bench: LedgerBench) -> None:
    bench.put(version(), records=3)
    claimed = bench.claimed()
    assert bench.acknowledge(claimed, bench.left(claimed)[0])
    bench.dead_letter(claimed)
    retry(bench)
    assert len(bench.left(bench.claimed())) == 2


def test_what_helicone_accepted_and_did_not_store_is_sent_again(bench: LedgerBench) -> None:
    bench.put(version(), records=3)
    claimed = bench.claimed()
    for body in bench.left(claimed):
        assert bench.acknowledge(claimed, body)
    bench.dead_letter(claimed)
    bench.db.execute("update job set resends = 3")
    retry(bench)
    assert len(bench.left(bench.claimed())) == 3


def test_the_age_of_a_retried_letter_counts_from_then_on(bench: LedgerBench) -> None:
    die(bench, version())
    bench.now_ms += 8 * DAY_MS
    flow.pause(
        bench.db, bench.destination, health="down", reason="x", count=1, probe_ms=bench.now_ms, now_ms=bench.now_ms
    )
    retry(bench)
    assert pruning.drop_aged(bench.db, bench.now_ms, 7 * DAY_MS) == 0


def all_but_dead(bench: LedgerBench) -> None:
    """A job in every other state, and one that is being posted."""
    bench.put(version("waits"))
    bench.put(version("done", session="ses_2"))
    bench.deliver(version("done", session="ses_2"))
    bench.put(version("off"), off=True)
    die(bench, version("old", session="ses_3"))
    bench.put(version("old", "b", last_event_ms=101, session="ses_3"))
    die(bench, version("purged", session="ses_4"))
    dead_letters.purge_dead(bench.db, Choice(keys=(version("purged", session="ses_4").key,)), bench.now_ms)
    bench.put(version("posted", session="ses_5"))
    bench.claimed(version("posted", session="ses_5"))


def all_rows(bench: LedgerBench) -> list[list[tuple[object, ...]]]:
    return [
        sorted((tuple(row) for row in bench.db.execute(f"select * from {table}")), key=repr)  # noqa: S608 - names from here
        for table in (
            "job",
            "record",
            "bundle",
            "attempt",
            "acknowledgement",
            "session",
            "turn",
            "destination",
            "counter",
        )
    ]


def test_only_dead_letters_are_retried_or_purged(bench: LedgerBench) -> None:
    all_but_dead(bench)
    before = all_rows(bench)
    for choice in (Choice(), Choice(keys=(version("off").key, version("old", session="ses_3").key))):
        assert retry(bench, choice) == []
        assert dead_letters.purge_dead(bench.db, choice, bench.now_ms) == 0
    assert all_rows(bench) == before


# --- purge


def test_a_purged_letter_is_dropped_with_its_bodies_and_its_key_stays_known(bench: LedgerBench) -> None:
    die(bench, version(), records=2)
    assert dead_letters.purge_dead(bench.db, Choice(), bench.now_ms) == 1
    assert (bench.state(), bench.records(), bench.row()["body_bytes"]) == ("dropped (purged)", 0, 0)
    assert bench.db.execute("select count(*) from attempt").fetchone()[0] == 0
    assert bench.put(version()) is Decision.KNOWN
    assert bench.put(version(last_event_ms=200)) is Decision.KNOWN
    assert dead_letters.purge_dead(bench.db, Choice(), bench.now_ms) == 0


def test_a_newer_version_of_a_purged_turn_is_taken(bench: LedgerBench) -> None:
    die(bench, version())
    dead_letters.purge_dead(bench.db, Choice(), bench.now_ms)
    assert bench.put(version(content="b", last_event_ms=200)) is Decision.NEW


def test_an_import_takes_a_purged_turn_back(bench: LedgerBench) -> None:
    die(bench, version())
    dead_letters.purge_dead(bench.db, Choice(), bench.now_ms)
    assert bench.put(version(), reopen=IMPORT) is Decision.REOPENED
    assert (bench.state(), bench.records()) == ("pending", 1)


def test_purge_takes_only_what_was_chosen_and_only_the_dead(bench: LedgerBench) -> None:
    die(bench, version("t1"), "400: HTML")
    die(bench, version("t2"), "413: HTML")
    bench.put(version("t3"))
    assert dead_letters.purge_dead(bench.db, Choice(fingerprint=of_error("413: HTML")), bench.now_ms) == 1
    assert [bench.state(version(turn)) for turn in ("t1", "t2", "t3")] == ["dead", "dropped (purged)", "pending"]
