"""What the ledger keeps of every record for good: by what Helicone knows it."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace

import pytest

from app.capture.enqueue import Place
from app.capture.export import split
from app.ledger import (
    adoption,
    destinations,
    eviction,
    folders,
    history,
    maintenance,
    pruning,
    record_identity,
    versions,
)
from app.ledger import job as ledger_job
from app.ledger.decision import LIVE, REFILL, Decision, Reopen
from app.ledger.job import IdentityFields
from app.transcript.identity import Identity
from app.transcript.parse import parse
from tests.capture.test_enqueue import EmbeddedApi, capture
from tests.support import recorded
from tests.support.ledger_bench import LedgerBench, version

FROZEN = IdentityFields("CUSTOM", "data:opencode.user", 1, "opencode: project", "/opencode/ses_1/msg-0")


@pytest.fixture
def embedded(db: sqlite3.Connection) -> EmbeddedApi:
    target = destinations.destination(db, "https://example.invalid", "fingerprint", 0)
    return EmbeddedApi(db, Place(target.id, "folder"))


@pytest.mark.parametrize("name", recorded.exported())
def test_a_footprint_tells_what_the_body_tells(embedded: EmbeddedApi, name: str) -> None:
    told = recorded.export(name)
    embedded.put(told, abandoned=True)
    made = {
        record.request_id: record
        for export in split(parse(told), capture(), Identity(""), abandoned=True)[0]
        for record in export.encode()
    }
    kept = [
        one
        for job in history.exported(embedded.db, embedded.place.destination_id, told["root"])
        for one in job.identities
    ]
    assert {str(one.request_id) for one in kept} == set(made)
    for one in kept:
        body = json.loads(made[str(one.request_id)].body)
        meta = body["providerRequest"]["meta"]
        start = body["timing"]["startTime"]
        assert one.identity_fields.model == made[str(one.request_id)].model
        assert one.identity_fields.provider == body["provider"]
        assert one.identity_fields.start_ms == start["seconds"] * 1000 + start["milliseconds"]
        assert (one.identity_fields.session_name, one.identity_fields.path) == (
            meta["Helicone-Session-Name"],
            meta["Helicone-Session-Path"],
        )


def test_a_footprint_outlives_the_bodies_of_its_job(embedded: EmbeddedApi) -> None:
    told = recorded.export("a_simple")
    embedded.put(told)
    before = history.exported(embedded.db, embedded.place.destination_id, told["root"])
    assert all(job.identities for job in before)
    assert pruning.drop_session(embedded.db, embedded.place.destination_id, told["root"], 1) == len(before)
    after = history.exported(embedded.db, embedded.place.destination_id, told["root"])
    assert [job.identities for job in after] == [job.identities for job in before]


def test_a_sealed_turn_takes_no_other_version_until_asked(db: sqlite3.Connection) -> None:
    bench = LedgerBench(db)
    sealed = version(content="sealed")
    versions.insert(db, bench.destination, replace(sealed, is_sealed=True), [], now_ms=1)
    newer = version(content="newer", last_event_ms=900)
    assert bench.put(newer) is Decision.REFUSED
    assert bench.put(sealed) is Decision.KNOWN
    assert bench.put(newer, reopen=Reopen(sealed=True)) is Decision.NEW


def test_a_folder_keeps_when_its_capture_began(db: sqlite3.Connection) -> None:
    bench = LedgerBench(db)
    assert folders.captured_since_ms(db, "folder") is None
    for now_ms, options in ((500_000, {}), (900_000, {"exportMode": "off"})):
        folders.remember_folder(db, "folder", bench.destination, options, now_ms)
    # Its first hook was starting while the first turn began.
    assert folders.captured_since_ms(db, "folder") == 500_000 - destinations.STARTING_MS


@pytest.mark.sqlite  # pages: on a server nobody's disk is spared
def test_the_oldest_footprints_are_forgotten_where_there_is_no_room(embedded: EmbeddedApi) -> None:
    for name in ("a_simple", "b_tools"):
        embedded.put(recorded.export(name))
    used = embedded.db.execute("pragma page_count").fetchone()[0] * 4096
    assert record_identity.forget_record_identities(embedded.db, used) == 0
    jobs = embedded.db.execute("select count(*) from job").fetchone()[0]
    assert record_identity.forget_record_identities(embedded.db, 0) == jobs
    assert not any(
        job.identities
        for session in history.exported_sessions(embedded.db, embedded.place.destination_id)
        for job in history.exported(embedded.db, embedded.place.destination_id, session)
    )


def test_what_moves_to_another_destination_stays_what_it_is(embedded: EmbeddedApi) -> None:
    told = recorded.export("a_simple")
    embedded.put(told)
    before = history.exported(embedded.db, embedded.place.destination_id, told["root"])
    embedded.db.execute("update job set is_history = 1, is_recall = 1, is_sealed = 1")
    another = destinations.destination(embedded.db, "https://example.invalid", "another", 0).id
    # It knows the session, so what waits moves job by job.
    versions.insert(
        embedded.db, another, replace(version(), session=told["root"], root=told["root"], last_event_ms=1), [], now_ms=1
    )
    assert adoption.adopt(embedded.db, embedded.place.destination_id, another, now_ms=2) == len(before)
    moved = [one for one in history.exported(embedded.db, another, told["root"]) if one.turn != "t1"]
    assert [(one.key, one.identities, one.is_sealed) for one in moved] == [
        (one.key, one.identities, True) for one in before
    ]
    flags = embedded.db.execute(
        "select is_history, is_recall from job where destination_id = ? and is_sealed = 1", (another,)
    )
    assert [tuple(row) for row in flags] == [(1, 1)] * len(before)


def test_elsewhere_counts_what_is_there_or_waits_for_it(embedded: EmbeddedApi) -> None:
    told = recorded.export("a_simple")
    embedded.put(told)
    another = destinations.destination(embedded.db, "https://example.invalid", "another", 0).id
    found = history.exported_elsewhere(embedded.db, another, told["root"])
    assert set(found) == {
        job.turn for job in history.exported(embedded.db, embedded.place.destination_id, told["root"])
    }
    assert history.exported_elsewhere(embedded.db, embedded.place.destination_id, told["root"]) == {}
    pruning.drop_oversize(embedded.db, 2, 0)
    assert history.exported_elsewhere(embedded.db, another, told["root"]) == {}


@pytest.mark.sqlite  # query plans
def test_versions_of_a_turn_are_found_by_an_index(db: sqlite3.Connection) -> None:
    LedgerBench(db)
    plans: list[str] = []
    db.set_trace_callback(plans.append)
    history.exported(db, 1, "ses_1")
    history.exported_elsewhere(db, 1, "ses_1")
    db.set_trace_callback(None)
    for statement in plans:
        steps = [row["detail"] for row in db.execute(f"explain query plan {statement}")]
        of_jobs = [step for step in steps if "j" in step.split()]
        assert all("job_turn" in step for step in of_jobs), steps  # neither a scan nor all jobs of a state


def test_a_session_is_whole_up_to_what_was_compared_last(db: sqlite3.Connection) -> None:
    bench = LedgerBench(db)
    bench.put(version())

    def is_whole(changed_ms: int, reopen: Reopen = LIVE, now_ms: int = 500) -> bool:
        facts = {"changed_ms": changed_ms, "now_ms": now_ms}
        return history.is_whole(db, bench.destination, "ses_1", **facts, policy=lambda _: "", reopen=reopen)

    assert not is_whole(0)
    assert history.note_reconciled(db, bench.destination, "ses_1", 500)
    assert (is_whole(500), is_whole(499), is_whole(501)) == (True, False, False)
    assert not is_whole(500, now_ms=499)  # noted by a clock that was ahead
    assert history.note_reconciled(db, bench.destination, "ses_1", 500, in_part=True)
    assert (is_whole(500), history.reconciled_ms(db, bench.destination, "ses_1")) == (False, 500)
    assert history.note_reconciled(db, bench.destination, "ses_1", 500)
    assert not is_whole(500, REFILL)
    db.execute(
        "update job set state = 'dropped', drop_reason = 'policy', due_ms = null, finished_ms = 1, body_bytes = 0"
    )
    assert not is_whole(500)
    db.execute("update job set drop_reason = 'deleted'")
    assert is_whole(500)
    db.execute("update session set root_name = 'ses_0'")
    assert not is_whole(500)


def test_bodies_given_up_for_two_stores_rely_on_neither_and_wait_for_no_hook(db: sqlite3.Connection) -> None:
    bench = LedgerBench(db)
    bench.put(version())
    bench.put(version("t2"))
    (first, second) = (row["id"] for row in db.execute("select id from job order by id"))
    assert eviction.give_up_bodies(db, [first], "one") == 1
    assert eviction.relies_on(db, "one")
    assert eviction.give_up_bodies(db, [second], "another") == 1
    assert not eviction.relies_on(db, "one")
    assert not eviction.relies_on(db, "another")
    assert eviction.evicted(db, bench.destination, [""]) == []  # a worker may make them again
    db.execute("update job set hold_reason = 'text'")
    assert [one.turns for one in eviction.evicted(db, bench.destination, [""])] == [("t1", "t2")]


def test_what_was_acknowledged_with_other_bytes_must_be_posted_and_made_again(db: sqlite3.Connection) -> None:
    bench = LedgerBench(db)
    bench.put(version())
    bench.deliver(version())
    newer = version(content="b", last_event_ms=900)
    bench.put(newer)
    (row,) = db.execute("select id from job where state = 'pending'").fetchall()
    assert eviction.give_up_bodies(db, [row["id"]], "one") == 1
    assert eviction.is_evicted(db, bench.claimed(newer))


@pytest.mark.sqlite  # pages: on a server nobody's disk is spared
def test_the_footprints_that_go_first_are_those_of_the_oldest_jobs(
    embedded: EmbeddedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.ledger.record_identity.BATCH", 1)
    embedded.put(recorded.export("a_simple"))
    assert record_identity.forget_record_identities(embedded.db, 0) == 1
    (gone,) = embedded.db.execute("select id from job where id not in (select job_id from footprint)").fetchall()
    assert gone["id"] == embedded.db.execute("select min(id) from job").fetchone()[0]


def test_a_log_that_is_no_more_of_its_job_keeps_its_footprint(embedded: EmbeddedApi) -> None:
    embedded.put(recorded.export("b_tools"))
    row = embedded.db.execute("select job_id, length(ids) as size from footprint order by size desc").fetchone()
    job = embedded.db.execute("select id, key from job where id = ?", (row["job_id"],)).fetchone()
    bodies = [replace(body, identity_fields=FROZEN) for body in ledger_job.bodies(embedded.db, job["id"], job["key"])]
    record_identity.write(embedded.db, row["job_id"], bodies[:1])
    assert len(record_identity.read(embedded.db, [row["job_id"]])[row["job_id"]]) == len(bodies) > 1


def test_a_capture_that_a_wrong_clock_began_in_the_future_begins_now(db: sqlite3.Connection) -> None:
    bench = LedgerBench(db)
    for name, since_ms in (("ahead", 10**14), ("off", folders.NEVER_MS), ("past", 5)):
        folders.remember_folder(db, name, bench.destination, {}, 1)
        db.execute("update folder set since_ms = ? where hash = ?", (since_ms, name))
    maintenance.reset_future_times(db, 1_000)
    since = {name: folders.captured_since_ms(db, name) for name in ("ahead", "off", "past")}
    assert since == {"ahead": 1_000, "off": folders.NEVER_MS, "past": 5}
