from __future__ import annotations

import sqlite3
import uuid
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from app.ledger import (
    adoption,
    claims,
    counts,
    dead_letters,
    destinations,
    flow,
    job,
    maintenance,
    policy_enforcement,
    pruning,
    versions,
)
from app.ledger import counts as ledger_counts
from app.ledger.claims import ISOLATED_KILLS
from app.ledger.decision import Decision, DropReason, Reopen
from app.ledger.job import BATCH, Body, Claim, LedgerError, Version
from app.ledger.maintenance import AHEAD_MS_MAX, KILLS_MAX, LEASE_AHEAD_MS_MAX
from app.ledger.pruning import ACKNOWLEDGEMENT_AGE_MS_MAX
from app.transcript.identity import Identity
from tests.support.ledger_bench import LEASE_MS, WORKER, LedgerBench, bodies, version
from tests.support.postgres import open_either

# --- insert


def test_new_version_becomes_a_pending_job_with_its_bodies(bench: LedgerBench) -> None:
    assert bench.put(version(), records=3) is Decision.NEW
    row = bench.row()
    stored = bench.db.execute("select length(bodies) from bundle where job_id = ?", (row["id"],)).fetchone()[0]
    assert (row["state"], row["due_ms"], row["enqueued_ms"], row["attempt"]) == ("pending", 1_000, 1_000, 0)
    assert (row["record_count"], row["body_bytes"], bench.records()) == (3, stored, 3)


def test_known_version_is_not_inserted_again(bench: LedgerBench) -> None:
    bench.put(version())
    assert bench.put(version()) is Decision.KNOWN
    bench.deliver(version())
    assert bench.put(version()) is Decision.KNOWN
    assert bench.state() == "delivered"
    assert bench.records() == 0


INSERTER = """
import sys, uuid
from pathlib import Path
from app.ledger import versions
from app.ledger.job import Body, Version
from tests.support.postgres import open_either
db = open_either(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(20):
    version = Version("ses_1", "ses_1", f"t{turn}", f"{turn:064x}", 100, "", "")
    body = Body(uuid.UUID(int=turn), b"body")
    versions.insert(db, 1, version, [body], now_ms=1_000)
db.close()
"""


@pytest.mark.slow
def test_eight_processes_inserting_the_same_versions_make_one_job_each(
    bench: LedgerBench, ledger_place: str, at_once: Callable[[str, int, list[str]], None]
) -> None:
    at_once(INSERTER, 8, [ledger_place])
    assert bench.db.execute("select count(*), count(distinct key), count(distinct turn_id) from job").fetchone()[:] == (
        20,
        20,
        20,
    )
    assert bench.db.execute("select count(*) from record").fetchone()[0] == 20
    assert counts.counts(bench.db).pending == 20


def test_newer_version_supersedes_and_takes_the_bodies_of_the_older_away(bench: LedgerBench) -> None:
    old, new = version(content="a"), version(content="b", last_event_ms=200)
    bench.put(old)
    assert bench.put(new) is Decision.NEW
    assert (bench.state(old), bench.records(old), bench.row(old)["body_bytes"]) == ("superseded", 0, 0)
    assert bench.state(new) == "pending"


def test_equal_facts_under_another_key_supersede(bench: LedgerBench) -> None:
    # The same turn under another policy.
    bench.put(version(content="a"))
    assert bench.put(version(content="b")) is Decision.NEW
    assert bench.state(version(content="a")) == "superseded"


def test_older_version_is_stored_as_superseded_and_changes_nothing_else(bench: LedgerBench) -> None:
    current, old = version(content="b", last_event_ms=200), version(content="a", last_event_ms=100)
    bench.put(current)
    assert bench.put(old) is Decision.SUPERSEDED
    assert (bench.state(current), bench.state(old), bench.records(old)) == ("pending", "superseded", 0)
    assert bench.put(old) is Decision.KNOWN
    assert bench.state(old) == "superseded"


def test_facts_seen_again_later_keep_an_older_version_older(bench: LedgerBench) -> None:
    # The session's own record: its facts stay while OpenCode's update time moves on.
    bench.put(version(content="b", last_event_ms=100))
    assert bench.put(version(content="b", last_event_ms=300)) is Decision.KNOWN
    assert bench.put(version(content="a", last_event_ms=200)) is Decision.SUPERSEDED
    assert bench.put(version(content="b", last_event_ms=50)) is Decision.KNOWN
    assert bench.row(version(content="b"))["facts_ms"] == 300


def test_version_that_comes_back_is_reopened(bench: LedgerBench) -> None:
    first, second = version(content="a"), version(content="b")
    bench.put(first)
    bench.put(second)
    assert bench.put(first, records=2) is Decision.REOPENED
    assert (bench.state(first), bench.records(first), bench.row(first)["record_count"]) == ("pending", 2, 2)
    assert (bench.state(second), bench.records(second)) == ("superseded", 0)


def test_worker_of_a_version_that_came_back_cannot_finish_it(bench: LedgerBench) -> None:
    first, second = version(content="a"), version(content="b")
    bench.put(first, records=2)
    stale = bench.claimed(first)
    posted = bench.left(stale)
    bench.put(second)
    bench.put(first, records=2)
    assert not claims.is_current(bench.db, stale)
    assert not bench.acknowledge(stale, posted[0])
    assert not bench.complete(stale)
    assert not bench.dead_letter(stale, 1_000, "late")
    assert not bench.retry_later(stale, due_ms=1_000, error="late")
    assert bench.state(first) == "pending"
    # What it posted was posted all the same: the next attempt sends only the rest.
    fresh = bench.claimed(first)
    assert fresh.attempt > stale.attempt
    assert bench.left(fresh) == posted[1:]


def test_reopened_version_starts_its_counts_anew(bench: LedgerBench) -> None:
    first = version(content="a")
    bench.put(first)
    bench.retry_later(bench.claimed(first), due_ms=1_000, error="500")
    bench.put(version(content="b"))
    bench.put(first)
    row = bench.row(first)
    assert (row["failures"], row["kills"], row["error"], row["attempted_ms"]) == (0, 0, None, None)


def test_equal_record_is_born_acknowledged(bench: LedgerBench) -> None:
    first, second = version(content="a"), version(content="b", last_event_ms=200)
    bench.put(first, records=3, text="same")
    bench.deliver(first)
    made = [*bodies("ses_1 t1", 2, "same"), *bodies("ses_1 t1", 3, "other")[2:]]
    versions.insert(bench.db, bench.destination, second, made, now_ms=1_000)
    assert bench.left(bench.claimed(second)) == made[2:]


def test_job_whose_records_are_all_known_completes_without_a_post(bench: LedgerBench) -> None:
    first, second = version(content="a"), version(content="b", last_event_ms=200)
    bench.put(first, text="same")
    bench.deliver(first)
    bench.put(second, text="same")
    claimed = bench.claimed(second)
    assert bench.left(claimed) == []
    assert bench.complete(claimed)
    assert bench.state(second) == "delivered"


def test_delivered_version_that_comes_back_after_another_was_delivered_is_sent_again(bench: LedgerBench) -> None:
    first, second = version(content="a"), version(content="b")
    bench.put(first)
    bench.deliver(first)
    bench.put(second)
    bench.deliver(second)
    assert bench.put(first) is Decision.REOPENED
    assert len(bench.left(bench.claimed(first))) == 1


def test_failed_insert_leaves_nothing_behind(bench: LedgerBench) -> None:
    bench.put(version(content="a"))
    twice = bodies("same id", 1) * 2
    # The position differs, so doubled ids are stored; a body that is no bytes fails in the middle of the insert.
    broken = [*twice, replace(twice[0], request_id=None)]  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        versions.insert(bench.db, bench.destination, version(content="b", last_event_ms=200), broken, now_ms=1_000)
    assert bench.state(version(content="a")) == "pending"
    assert bench.records(version(content="a")) == 1
    assert bench.db.execute("select count(*) from job").fetchone()[0] == 1


@pytest.mark.parametrize("state", ["pending", "superseded"])
def test_key_of_another_turn_is_refused(bench: LedgerBench, state: str) -> None:
    bench.put(version("t1"))
    if state == "superseded":
        bench.put(version("t1", content="newer", last_event_ms=200))
    before = [tuple(row) for row in bench.db.execute("select * from job")]
    with pytest.raises(LedgerError, match="another turn"):
        bench.put(replace(version("t2"), key=version("t1").key))
    assert [tuple(row) for row in bench.db.execute("select * from job")] == before


# --- off and deleted


def test_off_is_a_dropped_job_without_bodies(bench: LedgerBench) -> None:
    assert bench.put(version(), off=True) is Decision.NEW
    assert (bench.state(), bench.records(), bench.row()["body_bytes"]) == ("dropped (off)", 0, 0)
    assert bench.claim() is None
    assert bench.put(version(), off=True) is Decision.KNOWN


def test_off_says_nothing_about_a_turn_that_the_ledger_has(bench: LedgerBench) -> None:
    shown, off = version(content="a"), version(content="off")
    bench.put(shown)
    bench.deliver(shown)
    assert bench.put(off, off=True) is Decision.KNOWN
    assert bench.state(shown) == "delivered"


def test_turn_captured_while_off_stays_shut_until_asked(bench: LedgerBench) -> None:
    bench.put(version(content="off"), off=True)
    assert bench.put(version(content="a", last_event_ms=500)) is Decision.REFUSED
    assert counts.counts(bench.db).pending == 0
    assert bench.put(version(content="a", last_event_ms=500), reopen=Reopen(frozenset({"off"}))) is Decision.NEW
    assert (bench.state(version(content="a")), bench.state(version(content="off"))) == ("pending", "superseded")


def test_deleted_turn_stays_shut_until_asked(bench: LedgerBench) -> None:
    bench.put(version())
    pruning.drop_session(bench.db, bench.destination, "ses_1", 1_000)
    assert bench.put(version(content="b", last_event_ms=500)) is Decision.REFUSED
    assert bench.put(version()) is Decision.KNOWN
    assert bench.state() == "dropped (deleted)"
    assert bench.put(version(), reopen=Reopen(frozenset({"deleted"}))) is Decision.REOPENED
    assert (bench.state(), bench.records()) == ("pending", 1)


@pytest.mark.parametrize("reason", ["age", "size"])
def test_turn_dropped_for_want_of_room_is_open_for_a_newer_version_only(bench: LedgerBench, reason: DropReason) -> None:
    bench.put(version())
    pruning.drop_oversize(bench.db, 1_000, 0)
    bench.db.execute("update job set drop_reason = ?", (reason,))
    assert bench.put(version()) is Decision.KNOWN
    assert bench.put(version(), reopen=Reopen(frozenset({reason}))) is Decision.REOPENED
    pruning.drop_oversize(bench.db, 1_000, 0)
    assert bench.put(version(content="b", last_event_ms=200)) is Decision.NEW


# --- subagents


def child_version(content: str = "c") -> Version:
    return version(session="ses_child", turn="t9", content=content)


def test_placing_under_a_parent_supersedes_what_the_child_exported_as_its_own_root(bench: LedgerBench) -> None:
    bench.put(child_version())
    bench.put(version(session="ses_child", turn=job.SESSION_RECORD))
    assert versions.place_under(bench.db, bench.destination, "ses_child", version(), 1_000) == 2
    assert (bench.state(child_version()), bench.records(child_version())) == ("superseded", 0)
    assert versions.session_identity(bench.db, bench.destination, "ses_child") == ("ses_1", Identity(""))
    assert versions.place_under(bench.db, bench.destination, "ses_child", version(), 1_000) == 0


def test_placing_keeps_the_childs_user_id(bench: LedgerBench) -> None:
    bench.put(replace(child_version(), user_id="frozen"))
    versions.place_under(bench.db, bench.destination, "ses_child", replace(version(), user_id="other"), 1_000)
    assert versions.session_identity(bench.db, bench.destination, "ses_child") == ("ses_1", Identity("frozen"))


def test_child_not_seen_before_is_known_under_its_parent_from_then_on(bench: LedgerBench) -> None:
    assert versions.place_under(bench.db, bench.destination, "ses_child", version(), 1_000) == 0
    assert versions.session_identity(bench.db, bench.destination, "ses_child") == ("ses_1", Identity(""))


def test_childs_job_in_flight_keeps_its_lease_until_its_worker_lets_go(bench: LedgerBench) -> None:
    bench.put(child_version())
    claimed = bench.claimed(child_version())
    versions.place_under(bench.db, bench.destination, "ses_child", version(), 1_000)
    assert not claims.is_current(bench.db, claimed)
    assert not bench.complete(claimed)
    assert bench.row(child_version())["lease_until_ms"] is None


# --- claim


def test_claim_takes_the_oldest_due_job_of_the_session(bench: LedgerBench) -> None:
    bench.put(version("t1"))
    bench.put(version("t2"))
    bench.put(version("t1", session="ses_2"))
    claimed = bench.claimed(version("t2"))
    assert (claimed.key, claimed.session, claimed.attempt, claimed.failures) == (version("t1").key, "ses_1", 1, 0)
    row = bench.row(version("t1"))
    assert (row["lease_until_ms"], row["worker"], row["attempted_ms"]) == (61_000, WORKER, 1_000)


def test_one_job_of_a_session_is_in_flight_at_a_time(bench: LedgerBench) -> None:
    bench.put(version("t1"))
    bench.put(version("t2"))
    bench.put(version("t1", session="ses_2"))
    claimed = bench.claimed(version("t1"))
    assert bench.claim(version("t2")) is None
    assert bench.claim(version("t1", session="ses_2")) is not None
    for body in bench.left(claimed):
        bench.acknowledge(claimed, body)
    bench.complete(claimed)
    assert bench.claimed(version("t2")).key == version("t2").key


def test_superseded_job_in_flight_keeps_its_session_to_itself_until_it_lets_go(bench: LedgerBench) -> None:
    old, new = version(content="a"), version(content="b", last_event_ms=200)
    bench.put(old)
    claimed = bench.claimed(old)
    bench.put(new)
    assert bench.claim(new) is None
    assert not claims.release(bench.db, claimed, due_ms=1_000)
    assert bench.claimed(new).key == new.key


def test_job_in_backoff_does_not_block_its_successors(bench: LedgerBench) -> None:
    bench.put(version("t1"))
    bench.put(version("t2"))
    bench.retry_later(bench.claimed(version("t1")), due_ms=5_000, error="500")
    assert bench.claimed(version("t1")).key == version("t2").key


def test_dead_job_does_not_block_its_successors(bench: LedgerBench) -> None:
    bench.put(version("t1"))
    bench.put(version("t2"))
    bench.dead_letter(bench.claimed(version("t1")), 1_000, "400")
    assert bench.claimed(version("t1")).key == version("t2").key


def test_nothing_is_claimed_before_it_is_due(bench: LedgerBench) -> None:
    bench.put(version())
    claims.release(bench.db, bench.claimed(), due_ms=1_001)
    assert bench.claim() is None
    bench.now_ms = 1_001
    assert bench.claim() is not None


def test_held_job_that_is_tried_after_all_is_no_longer_told_of_as_held(bench: LedgerBench) -> None:
    bench.put(version())
    policy_enforcement.hold(bench.db, bench.claimed(), due_ms=2_000, reason="export is off")
    assert not counts.sendable(bench.db, bench.destination, bench.now_ms)
    bench.now_ms = 2_000
    bench.dead_letter(bench.claimed(), error="400")
    dead_letters.retry_dead(bench.db, dead_letters.Choice(), bench.now_ms)
    assert policy_enforcement.held(bench.db, bench.destination) == []
    assert counts.sendable(bench.db, bench.destination, bench.now_ms)


def test_claim_of_another_destination_finds_nothing(bench: LedgerBench) -> None:
    bench.put(version())
    foreign = destinations.destination(bench.db, "https://other.invalid", "fingerprint", 0).id
    assert claims.claim(bench.db, foreign, version().key, worker="w", now_ms=1_000, lease_ms=1) is None


def test_claim_of_an_unknown_key_finds_nothing(bench: LedgerBench) -> None:
    assert bench.claim() is None


def test_second_connection_does_not_get_what_the_first_has_claimed(bench: LedgerBench, ledger_place: str) -> None:
    bench.put(version())
    assert bench.claim() is not None
    with closing(open_either(ledger_place)) as other:
        assert (
            claims.claim(other, bench.destination, version().key, worker="b", now_ms=1_000, lease_ms=LEASE_MS) is None
        )


CLAIMER = """
import sys
from pathlib import Path
from app.ledger import claims
from tests.support.postgres import open_either
db = open_either(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(20):
    claims.claim(db, 1, f"{turn:064x}", worker="w", now_ms=1_000, lease_ms=60_000)
db.close()
"""


@pytest.mark.slow
def test_eight_processes_that_claim_at_once_claim_each_job_once(
    bench: LedgerBench, ledger_place: str, at_once: Callable[[str, int, list[str]], None]
) -> None:
    for turn in range(20):
        session = f"ses_{turn}"
        wanted = Version(session, session, "t", f"{turn:064x}", 100, "", "")
        versions.insert(bench.db, bench.destination, wanted, bodies(session), now_ms=1_000)
    at_once(CLAIMER, 8, [ledger_place])
    assert bench.db.execute("select count(*), min(attempt), max(attempt) from job").fetchone()[:] == (20, 1, 1)


# --- acknowledge and finish


def test_acknowledge_renews_the_lease_and_starts_the_count_of_failures_anew(bench: LedgerBench) -> None:
    bench.put(version(), records=2)
    bench.retry_later(bench.claimed(), due_ms=1_000, error="500")
    claimed = bench.claimed()
    assert claimed.failures == 1
    bench.now_ms = 20_000
    assert bench.acknowledge(claimed, bench.left(claimed)[0])
    assert (bench.row()["lease_until_ms"], bench.row()["failures"]) == (80_000, 0)
    assert len(bench.left(claimed)) == 1


def test_records_come_in_order(bench: LedgerBench) -> None:
    bench.put(version(), records=5, text="x")
    assert bench.left(bench.claimed()) == bodies("ses_1 t1", 5, "x")


def test_complete_refuses_while_a_record_is_unacknowledged(bench: LedgerBench) -> None:
    bench.put(version(), records=2)
    claimed = bench.claimed()
    first, second = bench.left(claimed)
    bench.acknowledge(claimed, first)
    assert not bench.complete(claimed)
    assert (bench.state(), bench.records()) == ("pending", 2)
    bench.acknowledge(claimed, second)
    assert bench.complete(claimed)
    assert (bench.state(), bench.records(), bench.row()["body_bytes"]) == ("delivered", 0, 0)
    assert bench.row()["finished_ms"] == 1_000


def test_complete_refuses_a_record_acknowledged_with_another_body(bench: LedgerBench) -> None:
    bench.put(version())
    claimed = bench.claimed()
    [body] = bench.left(claimed)
    bench.acknowledge(claimed, replace(body, body=b"another"))
    assert not bench.complete(claimed)


def test_note_of_a_stale_attempt_counts_but_its_claim_does_not(bench: LedgerBench) -> None:
    bench.put(version())
    stale = bench.claimed()
    [body] = bench.left(stale)
    bench.now_ms += LEASE_MS
    maintenance.recover(bench.db, bench.now_ms)
    fresh = bench.claimed(worker="worker-b")
    assert not bench.acknowledge(stale, body)
    assert bench.row()["lease_until_ms"] == bench.now_ms + LEASE_MS
    assert bench.left(fresh) == []
    assert not bench.complete(stale)
    assert bench.complete(fresh)


@pytest.mark.parametrize("taken_over", [True, False], ids=["taken over", "only recovered"])
def test_stale_attempt_cannot_finish_in_any_way(bench: LedgerBench, *, taken_over: bool) -> None:
    bench.put(version())
    stale = bench.claimed()
    [body] = bench.left(stale)
    bench.now_ms += LEASE_MS
    maintenance.recover(bench.db, bench.now_ms)
    if taken_over:
        bench.claimed(worker="worker-b")
    before = tuple(bench.row())
    assert not claims.is_current(bench.db, stale)
    assert not bench.dead_letter(stale, bench.now_ms, "late")
    assert not bench.retry_later(stale, due_ms=9, error="late")
    assert not claims.release(bench.db, stale, due_ms=9)
    assert not bench.acknowledge(stale, body)
    assert not bench.complete(stale)
    assert tuple(bench.row()) == before


def test_dead_letter_keeps_the_records_and_says_why(bench: LedgerBench) -> None:
    bench.put(version(), records=2)
    assert bench.dead_letter(bench.claimed(), 1_500, "400 bad request")
    row = bench.row()
    assert (row["state"], row["error"], row["finished_ms"]) == ("dead", "400 bad request", 1_500)
    assert (bench.records(), row["lease_until_ms"]) == (2, None)
    assert row["body_bytes"] > 0


def test_retry_is_charged_and_due_later(bench: LedgerBench) -> None:
    bench.put(version())
    assert bench.retry_later(bench.claimed(), due_ms=7_000, error="500")
    row = bench.row()
    assert (row["state"], row["failures"], row["due_ms"], row["error"]) == ("pending", 1, 7_000, "500")
    assert row["lease_until_ms"] is None


def test_release_is_not_charged_and_keeps_the_last_error(bench: LedgerBench) -> None:
    bench.put(version())
    bench.retry_later(bench.claimed(), due_ms=1_000, error="500")
    assert claims.release(bench.db, bench.claimed(), due_ms=1_000)
    row = bench.row()
    assert (row["failures"], row["due_ms"], row["error"], row["lease_until_ms"]) == (1, 1_000, "500", None)


def test_release_all_lets_go_of_everything_that_the_worker_holds_and_of_nothing_else(bench: LedgerBench) -> None:
    for n in range(3):
        bench.put(version(session=f"ses_{n}"))
    bench.claimed(version(session="ses_0"))
    bench.claimed(version(session="ses_1"))
    bench.claimed(version(session="ses_2"), worker="worker-b")
    bench.put(version(session="ses_1", content="newer", last_event_ms=200))
    assert len(claims.release_all(bench.db, WORKER)) == 2
    leased = bench.db.execute("select worker from job where lease_until_ms is not null").fetchall()
    assert [row["worker"] for row in leased] == ["worker-b"]
    assert bench.db.execute("select sum(failures) + sum(kills) from job").fetchone()[0] == 0


@pytest.mark.parametrize(
    "spoil",
    [
        ("update bundle set bodies = ?", b"\0"),
        ("update record set digest = ?", bytes(16)),
        ("update bundle set bodies = ?", b""),
        ("update bundle set bodies = substr(bodies, 1, length(bodies) / 2)",),
        ("update record set body_bytes = body_bytes + 1",),
        ("delete from bundle",),
    ],
    ids=["no stream", "another digest", "empty", "cut", "too short", "lost"],
)
@pytest.mark.parametrize("length", [1, 1_000], ids=["small", "large"])
def test_damaged_body_is_a_ledger_error_without_any_text(
    bench: LedgerBench, spoil: tuple[str, *tuple[bytes, ...]], length: int
) -> None:
    bench.put(version(), text="transcript text" * length)
    sql, *bytes_ = spoil
    bench.db.execute(sql, bytes_)
    with pytest.raises(LedgerError, match=r"^record [0-9a-f-]{36} of job \w{12} ") as caught:
        bench.left(bench.claimed())
    assert "transcript" not in str(caught.value)


def test_bodies_from_before_there_were_bundles_are_read_as_they_are(bench: LedgerBench) -> None:
    bench.put(version(), records=3)
    made = bench.left(bench.claimed())
    for body in made:
        bench.db.execute(
            "update record set body = ?, body_bytes = null where request_id = ?",
            (zlib.compress(body.body), body.request_id.bytes),
        )
    bench.db.execute("delete from bundle")
    row = bench.row()
    assert list(job.bodies(bench.db, row["id"], row["key"])) == made


# --- recover


def test_expired_lease_is_taken_back_and_counted_apart(bench: LedgerBench) -> None:
    bench.put(version())
    bench.claimed()
    assert maintenance.recover(bench.db, 60_999) == 0
    assert maintenance.recover(bench.db, 61_000) == 1
    row = bench.row()
    assert (row["lease_until_ms"], row["due_ms"], row["kills"], row["failures"]) == (None, 61_000, 1, 0)


def test_lease_of_a_dead_worker_is_taken_back_at_once(bench: LedgerBench) -> None:
    bench.put(version(session="ses_1"))
    bench.put(version(session="ses_2"))
    bench.claimed(version(session="ses_1"), worker="dead")
    bench.claimed(version(session="ses_2"), worker="alive")
    assert sorted(maintenance.leasing_workers(bench.db)) == ["alive", "dead"]
    assert maintenance.recover(bench.db, 1_000, ["dead"]) == 1
    assert maintenance.leasing_workers(bench.db) == ["alive"]


def test_job_that_kills_its_worker_each_time_is_dead_after_a_few(bench: LedgerBench) -> None:
    bench.put(version())
    for kill in range(1, KILLS_MAX + 1):
        bench.now_ms = bench.row()["due_ms"]
        bench.claimed()
        assert maintenance.recover(bench.db, bench.now_ms, [WORKER]) == 1
        assert bench.row()["kills"] == kill
    assert (bench.state(), bench.records()) == ("dead", 1)
    assert bench.row()["error"] == f"its worker died or hung {KILLS_MAX} times"
    assert bench.row()["attempt"] == KILLS_MAX


def killed(bench: LedgerBench, wanted: Version, kills: int) -> None:
    bench.db.execute("update job set kills = ? where key = ?", (kills, wanted.key))


def test_job_that_killed_two_workers_waits_longer_each_time_and_the_first_time_not_at_all(bench: LedgerBench) -> None:
    bench.put(version())
    waits = []
    for _ in range(KILLS_MAX - 1):
        bench.now_ms = bench.row()["due_ms"]
        bench.claimed()
        maintenance.recover(bench.db, bench.now_ms, [WORKER])
        waits.append(bench.row()["due_ms"] - bench.now_ms)
    assert waits == [0, 1_000, 2_000, 4_000]


def test_suspected_killer_is_claimed_only_alone_and_nobody_beside_it(bench: LedgerBench) -> None:
    for session in ("ses_1", "ses_2", "ses_3"):
        bench.put(version(session=session))
    beside = bench.claimed(version(session="ses_1"))
    killed(bench, version(session="ses_2"), ISOLATED_KILLS)
    assert bench.claim(version(session="ses_2")) is None, "another one is in flight"
    assert bench.claim(version(session="ses_3")) is None, "it is the suspect's turn"
    assert bench.wake() == [version(session="ses_2").key]
    claims.release(bench.db, beside, due_ms=1_000)
    bench.claimed(version(session="ses_2"))
    assert bench.claim(version(session="ses_3")) is None, "the suspect is in flight"


def test_suspected_killer_is_alone_at_its_own_destination_only(bench: LedgerBench) -> None:
    other = LedgerBench(bench.db)
    other.destination = destinations.destination(bench.db, "https://elsewhere.invalid", "another", 0).id
    for one in (bench, other):
        one.put(version(session="ses_1"))
        one.put(version(session="ses_2"))
    bench.db.execute("update job set kills = ? where destination_id = ?", (ISOLATED_KILLS, bench.destination))
    bench.claimed(version(session="ses_1"))
    assert other.claim(version(session="ses_1")) is not None
    assert bench.claim(version(session="ses_2")) is None


def test_suspected_killer_that_waits_does_not_keep_its_neighbours(bench: LedgerBench) -> None:
    for session in ("ses_1", "ses_2"):
        bench.put(version(session=session))
    killed(bench, version(session="ses_1"), ISOLATED_KILLS - 1)
    bench.claimed(version(session="ses_1"))
    maintenance.recover(bench.db, 1_000, [WORKER])
    assert bench.claim(version(session="ses_2")) is not None


# --- concurrency after a pause


def in_flight(bench: LedgerBench, sessions: int) -> int:
    """How many of so many sessions can be claimed at once."""
    return sum(bench.claim(version(session=f"ses_{n}")) is not None for n in range(sessions))


def test_after_a_pause_one_job_is_in_flight_and_twice_as_many_after_each_success(bench: LedgerBench) -> None:
    for n in range(20):
        bench.put(version(session=f"ses_{n}"))
    bench.pause(probe_ms=1_000)
    flow.resume(bench.db, bench.destination)
    seen = []
    for _ in range(5):
        seen.append(in_flight(bench, 20))
        flow.passed(bench.db, bench.destination)
        claims.release_all(bench.db, WORKER)
    assert seen == [1, 2, 4, 8, 20]


def test_rings_are_no_more_than_the_destination_takes(bench: LedgerBench) -> None:
    for n in range(20):
        bench.put(version(session=f"ses_{n}"))
    bench.pause(probe_ms=1_000)
    flow.resume(bench.db, bench.destination)
    flow.passed(bench.db, bench.destination)
    bench.claimed(version(session="ses_0"))
    assert len(bench.wake()) == 1
    assert len(bench.wake(limit=50)) == 1, "of two that it takes one is in flight"


# --- probes


def test_probes_take_turns_over_the_jobs(bench: LedgerBench) -> None:
    for session in ("ses_1", "ses_2", "ses_3"):
        for turn in ("t1", "t2"):
            bench.put(version(turn, session=session))
    asked = []
    for _ in range(6):
        bench.now_ms += 1_000
        bench.pause(probe_ms=bench.now_ms)
        # Whichever key was woken.
        claimed = bench.claimed(version(session="ses_3"))
        asked.append((claimed.session, claimed.turn))
        assert claimed.is_probe
        claims.release(bench.db, claimed, due_ms=bench.now_ms)
    assert asked == [(f"ses_{n}", turn) for n in (1, 2, 3) for turn in ("t1", "t2")]


# --- clocks


def test_a_time_is_wrong_from_beyond_two_hours_ahead(bench: LedgerBench) -> None:
    bench.put(version())
    latest_ms = bench.now_ms + AHEAD_MS_MAX
    bench.db.execute("update job set due_ms = ?", (latest_ms,))
    bench.pause(probe_ms=latest_ms)
    assert maintenance.reset_future_times(bench.db, bench.now_ms) == 0
    assert maintenance.reset_future_times(bench.db, bench.now_ms - 1) == 2


def test_times_that_only_a_wrong_clock_can_have_set_are_mended(bench: LedgerBench) -> None:
    day_ms = 24 * 3_600_000
    bench.now_ms = 30 * day_ms
    for session in ("ses_1", "ses_2", "ses_3"):
        bench.put(version(session=session))
    bench.retry_later(bench.claimed(version(session="ses_1")), due_ms=bench.now_ms + 3_600_000)
    bench.claimed(version(session="ses_2"))
    bench.now_ms += 1
    assert maintenance.reset_future_times(bench.db, bench.now_ms) == 0, "an hour ahead is what a server may ask for"
    bench.now_ms -= day_ms
    bench.db.execute(
        "update destination set health = 'down', pause_reason = 'x', probe_ms = ?", (bench.now_ms + day_ms,)
    )
    assert maintenance.reset_future_times(bench.db, bench.now_ms) == 5
    assert bench.row(version(session="ses_1"))["due_ms"] == bench.now_ms
    # Its worker may be in the middle of a POST.
    assert bench.row(version(session="ses_2"))["lease_until_ms"] == bench.now_ms + LEASE_AHEAD_MS_MAX
    assert maintenance.reset_future_times(bench.db, bench.now_ms + 500) == 0
    assert bench.row(version(session="ses_3"))["due_ms"] == bench.now_ms
    assert flow.terms(bench.db, bench.destination, bench.now_ms) is not None


# --- acknowledgements do not grow for ever


def test_acknowledgements_are_forgotten_when_their_turn_is_old_and_done(bench: LedgerBench) -> None:
    for turn in ("t1", "t2"):
        bench.put(version(turn))
        bench.deliver(version(turn))
    bench.put(version("t2", content="b", last_event_ms=200))
    old_ms = bench.now_ms + 91 * 24 * 3_600_000
    assert pruning.forget_acknowledgements(bench.db, old_ms - 2 * 24 * 3_600_000) == 0
    (of_delivered_ms,) = bench.db.execute("select min(acknowledged_ms) from acknowledgement").fetchone()
    assert pruning.forget_acknowledgements(bench.db, of_delivered_ms + ACKNOWLEDGEMENT_AGE_MS_MAX) == 0
    assert pruning.forget_acknowledgements(bench.db, old_ms) == 1
    (left,) = bench.db.execute("select t.name from acknowledgement a join turn t on t.id = a.turn_id").fetchone()
    assert left == "t2", "its newer version waits and need not send all of it"


def test_superseded_job_of_a_dead_worker_is_let_go_without_a_charge(bench: LedgerBench) -> None:
    bench.put(version(content="a"))
    bench.claimed(version(content="a"))
    bench.put(version(content="b", last_event_ms=200))
    assert maintenance.recover(bench.db, 1_000, [WORKER]) == 1
    row = bench.row(version(content="a"))
    assert (row["state"], row["kills"], row["due_ms"], row["lease_until_ms"]) == ("superseded", 0, None, None)
    assert bench.claim(version(content="b")) is not None


# --- wake


def test_each_session_with_something_due_is_rung_once(bench: LedgerBench) -> None:
    bench.put(version("t1", session="ses_1"))
    bench.put(version("t2", session="ses_1"))
    bench.put(version("t1", session="ses_2"))
    assert bench.wake() == [version("t1", session="ses_1").key, version("t1", session="ses_2").key]
    assert bench.wake(woken=(version("t1", session="ses_1").key,)) == [version("t1", session="ses_2").key]


def test_rings_are_bounded(bench: LedgerBench) -> None:
    for n in range(8):
        bench.put(version(session=f"ses_{n}"))
    first = bench.wake(3)
    second = bench.wake(3, tuple(first))
    third = bench.wake(3, (*first, *second))
    assert ([len(first), len(second), len(third)], len({*first, *second, *third})) == ([3, 3, 2], 8)
    assert bench.wake(3, (*first, *second, *third)) == []


def test_session_in_flight_is_not_rung(bench: LedgerBench) -> None:
    bench.put(version("t1"))
    bench.put(version("t2"))
    bench.claimed()
    assert bench.wake() == []


def back_for_later(bench: LedgerBench, claimed: Claim) -> bool:
    return bench.retry_later(claimed, due_ms=1_500, error="500")


def back_untried(bench: LedgerBench, claimed: Claim) -> bool:
    return claims.release(bench.db, claimed, due_ms=1_500)


@pytest.mark.parametrize("back", [back_for_later, back_untried])
def test_job_given_back_or_retried_is_rung_again_when_due(
    bench: LedgerBench, back: Callable[[LedgerBench, Claim], bool]
) -> None:
    bench.put(version())
    assert back(bench, bench.claimed())
    assert bench.wake() == []
    bench.now_ms = 1_500
    assert bench.wake() == [version().key]


def test_what_a_worker_lets_go_of_is_rung_at_once(bench: LedgerBench) -> None:
    bench.put(version())
    bench.claimed()
    assert len(claims.release_all(bench.db, WORKER)) == 1
    assert bench.wake() == [version().key]


def test_recovered_job_is_rung_at_once(bench: LedgerBench) -> None:
    bench.put(version())
    bench.claimed()
    maintenance.recover(bench.db, 1_000, [WORKER])
    assert bench.wake() == [version().key]


def test_jobs_of_another_destination_are_not_rung(bench: LedgerBench) -> None:
    bench.put(version())
    foreign = destinations.destination(bench.db, "https://other.invalid", "fingerprint", 0).id
    assert maintenance.to_wake(bench.db, foreign, 1_000, 10) == []


def test_paused_destination_is_rung_once_when_its_probe_is_due(bench: LedgerBench) -> None:
    for n in range(3):
        bench.put(version(session=f"ses_{n}"))
    bench.pause(probe_ms=5_000)
    assert bench.wake() == []
    bench.now_ms = 5_000
    assert len(bench.wake()) == 1


def test_next_due_is_the_earliest_job_in_backoff(bench: LedgerBench) -> None:
    for n, due_ms in enumerate((9_000, 7_000)):
        bench.put(version(session=f"ses_{n}"))
        bench.retry_later(bench.claimed(version(session=f"ses_{n}")), due_ms=due_ms, error="500")
    bench.put(version(session="ses_due"))
    assert maintenance.next_due_ms(bench.db, bench.destination, 1_000) == 7_000
    assert maintenance.next_due_ms(bench.db, bench.destination, 9_000) is None


def test_next_of_session_is_what_has_been_due_for_the_longest_time(bench: LedgerBench) -> None:
    bench.put(version("t1"))
    bench.put(version("t0", session="ses_2"))
    bench.retry_later(bench.claimed(), due_ms=9_000, error="500")
    assert maintenance.next_of_session(bench.db, bench.destination, "ses_1", 1_000) is None
    assert maintenance.next_of_session(bench.db, bench.destination, "ses_1", 9_000) == version("t1").key
    bench.put(version("t2"))
    assert maintenance.next_of_session(bench.db, bench.destination, "ses_1", 1_000) == version("t2").key
    assert maintenance.next_of_session(bench.db, bench.destination, "ses_1", 9_000) == version("t2").key
    assert maintenance.next_of_session(bench.db, bench.destination, "ses_9", 9_000) is None


def test_the_oldest_that_is_due_again_is_claimed_before_what_was_due_all_the_time(bench: LedgerBench) -> None:
    for turn in ("t1", "t2", "t3"):
        bench.put(version(turn))
    bench.retry_later(bench.claimed(), due_ms=9_000, error="500")
    bench.retry_later(bench.claimed(), due_ms=8_000, error="500")
    bench.now_ms = 9_000
    assert [bench.deliver(version("t3")).key for _ in range(3)] == [version(turn).key for turn in ("t1", "t2", "t3")]


def test_while_the_oldest_is_in_backoff_what_was_due_first_is_claimed(bench: LedgerBench) -> None:
    for turn in ("t1", "t2", "t3"):
        bench.put(version(turn))
    bench.retry_later(bench.claimed(), due_ms=9_000, error="500")
    bench.retry_later(bench.claimed(), due_ms=3_000, error="500")
    bench.now_ms = 4_000
    assert [bench.deliver(version("t3")).key for _ in range(2)] == [version(turn).key for turn in ("t3", "t2")]


# --- pause


def test_paused_destination_lets_one_probe_through_when_it_is_due(bench: LedgerBench) -> None:
    bench.put(version(session="ses_1"))
    bench.put(version(session="ses_2"))
    bench.pause(probe_ms=5_000)
    assert bench.claim(version(session="ses_1")) is None
    bench.now_ms = 5_000
    claimed = bench.claimed(version(session="ses_1"))
    assert (claimed.is_probe, claimed.pause_count) == (True, 1)
    assert bench.claim(version(session="ses_2")) is None
    # The probe was lost with its worker: the next may try when that one's lease has run out.
    bench.now_ms += LEASE_MS
    assert bench.claim(version(session="ses_2")) is not None


def test_destination_that_is_fine_is_claimed_from_without_a_probe(bench: LedgerBench) -> None:
    bench.put(version())
    assert (bench.claimed().is_probe, bench.row()["error"]) == (False, None)


def test_nothing_is_sendable_while_paused_until_the_probe(bench: LedgerBench) -> None:
    assert not counts.sendable(bench.db, bench.destination, 1_000)
    bench.put(version())
    assert counts.sendable(bench.db, bench.destination, 1_000)
    bench.pause(probe_ms=5_000)
    assert not counts.sendable(bench.db, bench.destination, 4_999)
    assert counts.sendable(bench.db, bench.destination, 5_000)


# --- prune

AGE_MS = 10_000


def test_aged_job_is_dropped_only_after_an_attempt_since_it_came_of_age(bench: LedgerBench) -> None:
    bench.put(version())
    # A laptop that slept for a month must try once before it gives up.
    assert pruning.drop_aged(bench.db, 999_000, AGE_MS) == 0
    bench.now_ms = 1_000 + AGE_MS - 1
    claims.release(bench.db, bench.claimed(), due_ms=1_000)
    assert pruning.drop_aged(bench.db, 999_000, AGE_MS) == 0
    bench.now_ms = 1_000 + AGE_MS
    claims.release(bench.db, bench.claimed(), due_ms=1_000)
    assert pruning.drop_aged(bench.db, 999_000, AGE_MS) == 1
    assert (bench.state(), bench.records(), bench.row()["body_bytes"]) == ("dropped (age)", 0, 0)


def test_probe_of_another_job_counts_as_an_attempt_for_age(bench: LedgerBench) -> None:
    bench.put(version())
    bench.now_ms = 1_000 + AGE_MS
    bench.pause(probe_ms=99_000)
    assert pruning.drop_aged(bench.db, 999_000, AGE_MS) == 1


def test_young_leased_delivered_and_dead_jobs_are_not_dropped_by_age(bench: LedgerBench) -> None:
    for session in ("leased", "delivered", "dead"):
        bench.put(version(session=session))
    bench.now_ms = 50_000
    bench.put(version(session="young"))
    bench.claimed(version(session="leased"))
    bench.deliver(version(session="delivered"))
    bench.dead_letter(bench.claimed(version(session="dead")), 50_000, "400")
    claims.release(bench.db, bench.claimed(version(session="young")), due_ms=50_000)
    assert pruning.drop_aged(bench.db, 55_000, AGE_MS) == 0


def put_sized(bench: LedgerBench, session: str) -> int:
    """A job whose stored bodies have the same size whatever its name's length; that size."""
    wanted = version(session=session)
    versions.insert(bench.db, bench.destination, wanted, [Body(uuid.uuid4(), b"x" * 100)], now_ms=bench.now_ms)
    bench.now_ms += 1
    return int(bench.row(wanted)["body_bytes"])


def test_oversize_drops_the_oldest_until_the_rest_fits(bench: LedgerBench) -> None:
    names = ["ses_0", "ses_1", "ses_2", "ses_3"]
    size = max([put_sized(bench, name) for name in names])
    bench.dead_letter(bench.claimed(version(session="ses_0")), bench.now_ms, "400")
    assert pruning.drop_oversize(bench.db, 5_000, 4 * size) == 0
    assert pruning.drop_oversize(bench.db, 5_000, 3 * size - 1) == 2
    assert [bench.state(version(session=name)) for name in names] == ["dropped (size)"] * 2 + ["pending"] * 2
    assert counts.counts(bench.db).body_bytes == 2 * size


def test_oversize_never_drops_what_is_in_flight_and_drops_others_for_it(bench: LedgerBench) -> None:
    names = ["ses_0", "ses_1", "ses_2"]
    size = max([put_sized(bench, name) for name in names])
    bench.claimed(version(session="ses_0"))
    assert pruning.drop_oversize(bench.db, 5_000, 2 * size) == 1
    assert [bench.state(version(session=name)) for name in names] == ["pending", "dropped (size)", "pending"]
    assert pruning.drop_oversize(bench.db, 5_000, 0) == 1
    assert counts.counts(bench.db).pending == 1


def test_prune_goes_in_batches(bench: LedgerBench) -> None:
    for n in range(BATCH + 1):
        put_sized(bench, f"ses_{n}")
    assert pruning.drop_oversize(bench.db, 5_000, 0) == BATCH
    assert pruning.drop_oversize(bench.db, 5_000, 0) == 1
    assert pruning.drop_oversize(bench.db, 5_000, 0) == 0


def test_deleted_session_loses_what_is_undelivered_however_much_it_is(bench: LedgerBench) -> None:
    bench.put(version("delivered"))
    bench.deliver(version("delivered"))
    for n in range(BATCH + 1):
        bench.put(version(f"t{n}"))
    bench.put(version(session="ses_2"))
    assert pruning.drop_session(bench.db, bench.destination, "ses_1", 5_000) == BATCH + 1
    counts = ledger_counts.counts(bench.db)
    assert (counts.delivered, counts.pending, counts.dropped_by_reason) == (1, 1, {"deleted": BATCH + 1})


def test_session_deleted_while_in_flight_is_noticed_by_its_worker(bench: LedgerBench) -> None:
    bench.put(version(), records=2)
    claimed = bench.claimed()
    first = bench.left(claimed)[0]
    pruning.drop_session(bench.db, bench.destination, "ses_1", 1_000)
    assert not bench.acknowledge(claimed, first)
    assert not bench.complete(claimed)
    assert bench.state() == "dropped (deleted)"


# --- adopt: what was captured before a key was known


@pytest.fixture
def keyless(bench: LedgerBench) -> LedgerBench:
    """The same ledger, as the destination without a key."""
    other = LedgerBench(bench.db)
    other.destination = destinations.destination(bench.db, "", "", 0).id
    return other


def adopt(bench: LedgerBench, keyless: LedgerBench, session: str | None = None) -> int:
    return adoption.adopt(bench.db, keyless.destination, bench.destination, now_ms=bench.now_ms, session=session)


def test_session_unknown_to_the_destination_moves_whole(bench: LedgerBench, keyless: LedgerBench) -> None:
    keyless.put(version("t1", "a"), records=2)
    keyless.put(version("t1", "b", last_event_ms=200), records=2)
    assert adopt(bench, keyless) == 2
    assert counts.counts(bench.db, keyless.destination).pending == 0
    claimed = bench.claimed(version("t1", "b"))
    assert len(bench.left(claimed)) == 2
    assert bench.put(version("t1", "a", last_event_ms=100)) is Decision.KNOWN
    assert adopt(bench, keyless) == 0


def test_waiting_jobs_of_a_known_session_move_as_versions(bench: LedgerBench, keyless: LedgerBench) -> None:
    bench.put(version("t1", "delivered"))
    bench.deliver(version("t1", "delivered"))
    keyless.put(version("t1", "older", last_event_ms=50))
    keyless.put(version("t2", "new"), records=2)
    assert adopt(bench, keyless) == 2
    ours = counts.counts(bench.db, bench.destination)
    assert (ours.pending, ours.delivered, ours.superseded) == (1, 1, 1)
    assert counts.counts(bench.db, keyless.destination).pending == 0
    claimed = bench.claimed(version("t2", "new"))
    assert bench.left(claimed) == bodies("ses_1 t2", 2, version("t2", "new").key)


def test_newer_waiting_version_supersedes_what_the_destination_has(bench: LedgerBench, keyless: LedgerBench) -> None:
    bench.put(version("t1", "a"))
    keyless.put(version("t1", "b", last_event_ms=200))
    adopt(bench, keyless)
    rows = bench.db.execute(
        "select key, state from job where destination_id = ? order by state", (bench.destination,)
    ).fetchall()
    assert [tuple(row) for row in rows] == [
        (version("t1", "b").key, "pending"),
        (version("t1", "a").key, "superseded"),
    ]


def test_one_session_alone_can_be_adopted(bench: LedgerBench, keyless: LedgerBench) -> None:
    bench.put(version("t1", session="ses_1"))
    for session in ("ses_1", "ses_2", "ses_3"):
        keyless.put(version("t2", session=session))
    assert adopt(bench, keyless, "ses_1") == 1
    assert adopt(bench, keyless, "ses_2") == 1
    assert counts.counts(bench.db, keyless.destination).pending == 1


def test_a_session_that_was_sealed_keeps_its_seal_when_it_turns_out_to_be_a_subagents(bench: LedgerBench) -> None:
    sealed = replace(version(session="ses_child"), is_sealed=True)
    versions.insert(bench.db, bench.destination, sealed, [], now_ms=1_000)
    assert versions.place_under(bench.db, bench.destination, "ses_child", version(), 1_000) == 0
    assert versions.any_sealed(bench.db, bench.destination, ["ses_child"])
    assert (
        versions.place_under(bench.db, bench.destination, "ses_child", version(), 1_000, reopen=Reopen(sealed=True))
        == 1
    )


@pytest.mark.parametrize("endpoint", ["same", "another"])
def test_adopting_sends_no_turn_again_that_was_sealed_at_its_endpoint(
    bench: LedgerBench, keyless: LedgerBench, endpoint: str
) -> None:
    there = destinations.by_id(bench.db, bench.destination).endpoint if endpoint == "same" else "http://another"
    other = destinations.destination(bench.db, there, "another key", 0).id
    keyless.put(version("t1", "text"))
    keyless.put(version("t2"))
    sealed = replace(version("t1", "blank"), is_sealed=True)
    versions.insert(bench.db, other, sealed, bodies("blank"), now_ms=bench.now_ms)
    assert adopt(bench, keyless) == 2
    assert counts.counts(bench.db, keyless.destination).pending == 0
    assert counts.counts(bench.db, bench.destination).pending == (1 if endpoint == "same" else 2)


@pytest.mark.slow
def test_adopting_takes_more_than_a_batch(bench: LedgerBench, keyless: LedgerBench) -> None:
    bench.put(version("t"))
    for n in range(BATCH + 1):
        keyless.put(version(f"t{n}"))
    assert adopt(bench, keyless) == BATCH + 1
    assert counts.counts(bench.db, bench.destination).pending == BATCH + 2


def test_damaged_waiting_job_does_not_keep_the_others_from_moving(bench: LedgerBench, keyless: LedgerBench) -> None:
    bench.put(version("t0"))
    keyless.put(version("t1"))
    bench.db.execute("update bundle set bodies = ? where job_id = (select max(id) from job)", (b"\0",))
    keyless.put(version("t2"))
    assert adopt(bench, keyless) == 2
    assert (bench.state(version("t1")), bench.row(version("t1"))["error"] is not None) == ("dead", True)
    assert counts.counts(bench.db, bench.destination).pending == 2
    assert adopt(bench, keyless) == 0


# --- reading


def test_counts_tell_states_reasons_and_readings_apart(bench: LedgerBench) -> None:
    for n in range(6):
        bench.put(version(session=f"ses_{n}"))
    bench.deliver(version(session="ses_0"))
    bench.dead_letter(bench.claimed(version(session="ses_1")), 1_000, "400")
    bench.retry_later(bench.claimed(version(session="ses_2")), due_ms=9_000, error="500")
    bench.claimed(version(session="ses_3"))
    pruning.drop_session(bench.db, bench.destination, "ses_4", 1_000)
    bench.put(version(session="ses_5", content="newer", last_event_ms=200))
    bench.put(version(session="ses_6"), off=True)
    counts = ledger_counts.counts(bench.db, bench.destination)
    assert (counts.pending, counts.delivered, counts.dead, counts.superseded, counts.dropped) == (3, 1, 1, 1, 2)
    assert counts.dropped_by_reason == {"deleted": 1, "off": 1}
    assert (counts.in_flight, counts.retrying, counts.oldest_pending_ms) == (1, 1, 1_000)
    stored = bench.db.execute("select sum(length(bodies)) from bundle").fetchone()[0]
    assert counts.body_bytes == stored
    assert ledger_counts.counts(bench.db) == counts


def test_counts_of_an_empty_ledger_are_zero(bench: LedgerBench) -> None:
    counts = ledger_counts.counts(bench.db)
    assert (counts.pending, counts.delivered, counts.in_flight, counts.body_bytes) == (0, 0, 0, 0)
    assert counts.oldest_pending_ms is None


def test_errors_are_grouped_most_frequent_first(bench: LedgerBench) -> None:
    for n, error in enumerate(("500", "400", "500")):
        bench.put(version(session=f"ses_{n}"))
        bench.retry_later(bench.claimed(version(session=f"ses_{n}")), due_ms=9_000, error=error)
    bench.put(version(session="ses_9"))
    bench.dead_letter(bench.claimed(version(session="ses_9")), 1_000, "413")
    assert counts.errors(bench.db, bench.destination) == [
        ("pending", "500", 2),
        ("pending", "400", 1),
        ("dead", "413", 1),
    ]
    assert counts.errors(bench.db, bench.destination, limit=1) == [("pending", "500", 2)]


# --- the schema refuses nonsense


@pytest.mark.parametrize(
    "nonsense",
    [
        "update job set state = 'lost'",
        "update job set state = 'dropped'",
        "update job set drop_reason = 'age'",
        "update job set due_ms = null",
        "update job set finished_ms = 1",
        "update job set lease_until_ms = 1",
        "update job set worker = 'w'",
        "update job set key = 'short'",
        "update job set state = 'delivered', due_ms = null, finished_ms = 1",
        "update record set request_id = substr(request_id, 1, 1)",
        "update destination set pause_reason = 'why'",
        (
            "insert into job (destination_id, session_id, turn_id, key, state, facts_ms, enqueued_ms, due_ms,"
            " record_count, body_bytes) select destination_id, session_id, turn_id, replace(key, '0', '1'), 'pending',"
            " 1, 1, 1, 0, 0 from job"
        ),
    ],
)
def test_schema_refuses(bench: LedgerBench, nonsense: str) -> None:
    bench.put(version())
    with pytest.raises(sqlite3.IntegrityError):
        bench.db.execute(nonsense)


# --- history, and what is live


def history(turn: str, session: str = "ses_1") -> Version:
    return replace(version(turn, session=session), is_history=True)


def test_of_a_session_what_is_live_is_claimed_before_older_history(bench: LedgerBench) -> None:
    bench.put(history("old-1"))
    bench.put(history("old-2"))
    bench.put(version("live"))
    claimed = [bench.deliver(history("old-1")).key for _ in range(3)]
    assert claimed == [version("live").key, history("old-1").key, history("old-2").key]


def test_live_that_is_not_due_keeps_no_history_waiting(bench: LedgerBench) -> None:
    bench.put(history("old"))
    bench.put(version("live"))
    bench.retry_later(bench.claimed(version("live")), due_ms=2_000)
    assert bench.claimed(version("live")).key == history("old").key


def test_sessions_with_something_live_are_rung_before_history(bench: LedgerBench) -> None:
    for number in range(3):
        bench.put(history("old", session=f"ses_old{number}"))
    bench.put(history("old", session="ses_both"))
    bench.put(version("live", session="ses_both"))
    bench.put(version("live", session="ses_live"))
    live = {version("live", session="ses_both").key, version("live", session="ses_live").key}
    assert set(bench.wake(limit=2)) == live
    old = [history("old", session=f"ses_old{number}").key for number in range(3)]
    assert bench.wake(limit=10, woken=tuple(live)) == old
    assert bench.wake(woken=(*live, *old)) == []
