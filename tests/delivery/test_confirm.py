"""What becomes of a delivered job that is to be confirmed: every transition, and the pass that chooses between them."""

from __future__ import annotations

import sqlite3
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from app.database.connection import transaction
from app.database.open import open_ledger
from app.delivery import confirm
from app.delivery.confirm import Allowance, Unread
from app.exporters.helicone import traits
from app.exporters.helicone.traits import looks_ms
from app.exporters.kinds import traits_of
from app.ledger import claims, confirmations, counts, destinations, flow, pruning, readback, versions
from app.ledger.confirmations import AHEAD_MS_MAX, Unconfirmed
from app.ledger.decision import BACKFILL, IMPORT, Decision
from app.ledger.job import Body, IdentityFields, Version
from app.ledger.readback import Confirmations
from tests.support.ledger_bench import LedgerBench, accepted, bodies, version

T1, T2 = version("t1"), version("t2")
JAWN = "http://127.0.0.1:8585/v1/trace/custom/log"
WORKER = "http://127.0.0.1:8788/custom/v1/log"
LOOKS = looks_ms(JAWN, 0)


@dataclass(slots=True)
class Helicone:
    """The other side: what it stores, and what it was asked."""

    stored: dict[uuid.UUID, bool] = field(default_factory=dict)
    failure: str = ""
    asked: list[tuple[int, list[uuid.UUID]]] = field(default_factory=list)

    def read(self, start_ms: int, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, bool] | Unread:
        self.asked.append((start_ms, list(request_ids)))
        if self.failure:
            return Unread(self.failure)
        return {request_id: self.stored[request_id] for request_id in request_ids if request_id in self.stored}


def deliver(bench: LedgerBench, wanted: Version, *, confirm_ms: int | None = 1_000, records: int = 2) -> None:
    """Delivered at the bench's time, and by default to be read back at once."""
    assert bench.put(wanted, records) in {Decision.NEW, Decision.REOPENED}
    carry(bench, wanted, confirm_ms=confirm_ms)


def carry(bench: LedgerBench, wanted: Version, *, confirm_ms: int | None = 1_000) -> int:
    """Post what waits; the number of records posted."""
    destinations.remember_route(bench.db, bench.destination, JAWN)
    claimed = bench.claimed(wanted)
    left = bench.left(claimed)
    for body in left:
        assert bench.acknowledge(claimed, body)
    assert claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=confirm_ms)
    return len(left)


def due(bench: LedgerBench) -> list[Unconfirmed]:
    return confirmations.due_for_confirmation(bench.db, bench.destination, bench.now_ms, 100)


def look(bench: LedgerBench, helicone: Helicone, *, per_minute: int = 1_000) -> str | None:
    allowance = Allowance(per_minute, per_minute, bench.now_ms)
    return confirm.confirm(
        bench.db,
        bench.destination,
        helicone.read,
        bench.now_ms,
        traits=traits_of("helicone"),
        allowance=allowance,
        dice=lambda: 1.0,
    )


def last_id(wanted: Version, records: int = 2) -> uuid.UUID:
    return bodies(f"{wanted.session} {wanted.turn}", records)[-1].request_id


def health(bench: LedgerBench) -> str:
    return destinations.by_id(bench.db, bench.destination).health


def told(bench: LedgerBench) -> Confirmations:
    return readback.confirmations(bench.db, bench.destination)


def acknowledgements(bench: LedgerBench) -> int:
    return int(bench.db.execute("select count(*) from acknowledgement").fetchone()[0])


# --- found -----------------------------------------------------------------------------------------------------------


def test_bodies_stay_until_the_job_is_confirmed_and_then_go(bench: LedgerBench) -> None:
    deliver(bench, T1)
    assert (bench.state(T1), bench.records(T1), told(bench).waiting) == ("delivered", 2, 1)
    assert look(bench, Helicone({last_id(T1): True})) is None
    assert (bench.state(T1), bench.records(T1), bench.row(T1)["body_bytes"]) == ("delivered", 0, 0)
    assert (told(bench).waiting, told(bench).confirmed, bench.row(T1)["confirmed_ms"]) == (0, 1, bench.now_ms)
    # What was acknowledged stays so: a newer version sends only what is new.
    assert acknowledgements(bench) == 2


def test_a_job_is_not_looked_for_before_its_time(bench: LedgerBench) -> None:
    deliver(bench, T1, confirm_ms=bench.now_ms + 1)
    helicone = Helicone()
    look(bench, helicone)
    assert helicone.asked == []
    bench.now_ms += 1
    look(bench, helicone)
    assert len(helicone.asked) == 1


def test_it_is_looked_for_by_the_record_that_was_accepted_last(bench: LedgerBench) -> None:
    # Several are under way at once, and which one comes last nobody knows before.
    assert bench.put(T1, 3) is Decision.NEW
    claimed = bench.claimed(T1)
    taken = [accepted(bench.db, claimed, body, bench.now_ms) for body in bench.left(claimed)]
    late = replace(taken[1], accepted_ms=bench.now_ms + 1)
    claims.complete(bench.db, claimed, bench.now_ms, accepted=[taken[0], late, taken[2]], confirm_ms=1_000)
    helicone = Helicone()
    look(bench, helicone)
    assert [request_ids for _, request_ids in helicone.asked] == [[late.request_id]]


def test_a_time_that_only_a_wrong_clock_can_have_set_has_come(bench: LedgerBench) -> None:
    deliver(bench, T1, confirm_ms=bench.now_ms + 30 * 24 * 3_600_000)
    look(bench, Helicone({last_id(T1): True}))
    assert told(bench).confirmed == 1


def test_one_query_asks_for_the_last_records_of_many_turns_the_latest_first(bench: LedgerBench) -> None:
    turns = [version("t", session=f"ses_{n}") for n in range(confirm.IDS_MAX + 1)]
    for turn in turns:
        deliver(bench, turn)
    helicone = Helicone()
    look(bench, helicone)
    assert [ids for _, ids in helicone.asked] == [
        [last_id(turn) for turn in (turns[-1], *turns[: confirm.IDS_MAX - 1])],
        [last_id(turns[-2])],
    ]


def test_one_query_asks_for_no_more_bytes_than_an_answer_may_have(
    bench: LedgerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        deliver(bench, version(f"t{number}"), records=1)
    (size,) = {one.body_bytes for one in due(bench)}  # all are equally long
    assert size
    monkeypatch.setattr(confirm, "BYTES_MAX", 2 * size)
    helicone = Helicone()
    look(bench, helicone)
    assert [len(ids) for _, ids in helicone.asked] == [2, 2, 1]


def test_a_query_asks_since_the_earliest_of_its_records(bench: LedgerBench) -> None:
    for turn, start_s in (("t1", 5), ("t2", 2), ("t3", 7)):
        identity_fields = IdentityFields("CUSTOM", "acme/one", start_s * 1000, "opencode: x", "/opencode/ses_1/msg_1")
        body = Body(uuid.uuid5(uuid.NAMESPACE_OID, turn), turn.encode(), identity_fields)
        versions.insert(bench.db, bench.destination, version(turn), [body], now_ms=bench.now_ms)
        carry(bench, version(turn))
    helicone = Helicone()
    look(bench, helicone)
    assert [start_ms for start_ms, _ in helicone.asked] == [2_000]


# --- not found -------------------------------------------------------------------------------------------------------


def test_what_is_not_found_is_looked_for_again_with_growing_pauses_and_then_sent_again(bench: LedgerBench) -> None:
    deliver(bench, T1)
    delivered_ms = bench.now_ms
    for later in LOOKS:
        assert look(bench, Helicone()) is None
        assert (bench.state(T1), bench.row(T1)["confirm_ms"]) == ("delivered", delivered_ms + later)
        bench.now_ms = delivered_ms + later
    look(bench, Helicone())
    row = bench.row(T1)
    assert (row["state"], row["due_ms"], row["resends"], row["finished_ms"]) == ("pending", bench.now_ms, 1, None)
    assert acknowledgements(bench) == 0
    assert carry(bench, T1) == 2  # all of its records, not just the one that was looked for
    assert (bench.row(T1)["confirm_ms"], bench.records(T1)) == (1_000, 2)


def test_what_is_never_found_is_sent_again_so_often_and_is_then_dead_with_the_causes(bench: LedgerBench) -> None:
    deliver(bench, T1)
    for resends in range(confirm.RESENDS_MAX + 1):
        assert bench.row(T1)["resends"] == resends
        bench.now_ms += looks_ms(JAWN, resends)[-1]
        look(bench, Helicone())
        if resends < confirm.RESENDS_MAX:
            assert carry(bench, T1) == 2
    assert bench.state(T1) == "dead"
    assert bench.row(T1)["error"] == f"accepted but not stored: {'; '.join(traits.NOT_STORED_CAUSES)}"
    # To be sent again by whoever has mended the other side: the records, and nothing that says that they are there.
    assert (bench.records(T1), acknowledgements(bench), bench.row(T1)["confirm_ms"]) == (2, 0, None)


def test_where_the_server_queues_it_is_given_longer(bench: LedgerBench) -> None:
    deliver(bench, T1)
    destinations.remember_route(bench.db, bench.destination, WORKER)
    bench.now_ms += LOOKS[-1]
    look(bench, Helicone())
    assert bench.state(T1) == "delivered"
    longest_ms = looks_ms(WORKER, confirm.RESENDS_MAX)[-1]
    assert 4 * 24 * 3_600_000 <= longest_ms < AHEAD_MS_MAX


def test_a_record_of_another_turn_stays_acknowledged(bench: LedgerBench) -> None:
    deliver(bench, T1)
    deliver(bench, T2, confirm_ms=None)
    bench.now_ms += LOOKS[-1]
    look(bench, Helicone())
    assert (bench.state(T1), bench.state(T2), acknowledgements(bench)) == ("pending", "delivered", 2)


# --- quota -----------------------------------------------------------------------------------------------------------


def test_a_row_without_body_sets_the_quota_and_marks_the_turn_and_logs_go_on(bench: LedgerBench) -> None:
    deliver(bench, T1)
    look(bench, Helicone({last_id(T1): False}))
    assert health(bench) == "quota"
    assert (bench.state(T1), bench.row(T1)["body_not_stored"], bench.records(T1)) == ("delivered", 1, 0)
    assert (told(bench).body_not_stored, told(bench).confirmed) == (1, 0)
    deliver(bench, T2)
    look(bench, Helicone({last_id(T2): True}))
    assert health(bench) == "fine"
    assert (told(bench).body_not_stored, told(bench).confirmed) == (1, 1)


def test_a_turn_stored_without_body_is_sent_again_whole_when_somebody_asks_and_only_then(bench: LedgerBench) -> None:
    deliver(bench, T1)
    look(bench, Helicone({last_id(T1): False}))
    assert bench.put(T1, 2) is Decision.KNOWN
    assert bench.put(T1, 2, reopen=BACKFILL) is Decision.KNOWN
    assert bench.put(T1, 2, reopen=IMPORT) is Decision.REOPENED
    assert (bench.state(T1), bench.row(T1)["body_not_stored"]) == ("pending", 0)
    assert carry(bench, T1) == 2
    look(bench, Helicone({last_id(T1): True}))
    assert (told(bench).body_not_stored, told(bench).confirmed) == (0, 1)


def test_a_confirmed_turn_is_not_taken_back(bench: LedgerBench) -> None:
    deliver(bench, T1)
    look(bench, Helicone({last_id(T1): True}))
    assert bench.put(T1, 2, reopen=IMPORT) is Decision.KNOWN
    assert bench.state(T1) == "delivered"


def test_a_newer_version_of_a_turn_stored_without_body_sends_also_what_has_not_changed(bench: LedgerBench) -> None:
    assert bench.put(T1, 2, text="equal") is Decision.NEW
    carry(bench, T1)
    look(bench, Helicone({last_id(T1): False}))
    newer = version("t1", "b", last_event_ms=200)
    assert bench.put(newer, 2, text="equal") is Decision.NEW
    assert carry(bench, newer) == 2


def test_when_the_quota_is_found_exceeded_what_no_sample_was_taken_of_is_looked_for_by_its_acknowledgements(
    bench: LedgerBench,
) -> None:
    before, seen, between, sample = version("t0"), version("t1"), version("t2"), version("t3")
    deliver(bench, before, confirm_ms=None)
    bench.now_ms += 1
    deliver(bench, seen, confirm_ms=bench.now_ms)
    look(bench, Helicone({last_id(seen): True}))
    bench.now_ms += 1
    deliver(bench, between, confirm_ms=None, records=1)
    deliver(bench, sample, confirm_ms=bench.now_ms)
    helicone = Helicone({last_id(sample): False, last_id(between, 1): False})
    look(bench, helicone)
    assert (bench.row(before)["confirm_ms"], bench.row(between)["confirm_ms"]) == (None, bench.now_ms)
    look(bench, helicone)
    assert (bench.row(before)["body_not_stored"], bench.row(between)["body_not_stored"]) == (0, 1)


def test_what_is_not_held_and_not_found_is_given_up_and_not_dead(bench: LedgerBench) -> None:
    deliver(bench, T1, confirm_ms=None)
    assert confirmations.look_back(bench.db, bench.destination, bench.now_ms) == 1
    bench.now_ms += LOOKS[-1]
    look(bench, Helicone())
    assert (bench.state(T1), told(bench).waiting, told(bench).given_up) == ("delivered", 0, 1)


# --- reading back fails ----------------------------------------------------------------------------------------------


def test_of_more_than_one_pass_can_look_back_at_the_latest_are_looked_for(
    bench: LedgerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By its module: in `app.ledger` a function has its name.
    monkeypatch.setattr(sys.modules["app.ledger.confirmations"], "BATCH", 2)
    turns = [version(f"t{number}") for number in range(3)]
    for turn in turns:
        deliver(bench, turn, confirm_ms=None)
        bench.now_ms += 1
    assert confirmations.look_back(bench.db, bench.destination, bench.now_ms) == 2
    assert {one.key for one in due(bench)} == {turn.key for turn in turns[1:]}


def test_a_job_that_is_sent_again_is_judged_as_one_that_never_failed(bench: LedgerBench) -> None:
    deliver(bench, T1)
    (one,) = due(bench)
    before = flow.evidence(bench.db, bench.destination, one.job_id)
    assert before.peers == "none"  # since its own last record
    assert confirmations.send_again(bench.db, one, bench.now_ms)
    assert flow.evidence(bench.db, bench.destination, one.job_id).peers == "succeed"


def test_a_failed_reading_back_judges_no_job_and_pauses_only_itself_with_growing_pauses(bench: LedgerBench) -> None:
    deliver(bench, T1)
    bench.now_ms += LOOKS[-1]
    helicone = Helicone(failure="404: HTML")
    pauses = []
    for _ in range(12):
        assert look(bench, helicone) == "404: HTML"
        assert look(bench, helicone) is None  # it waits
        pauses.append((told(bench).retry_ms or 0) - bench.now_ms)
        bench.now_ms = told(bench).retry_ms or 0
    assert len(helicone.asked) == 12
    assert pauses[:3] == [10_000, 20_000, 40_000]
    assert pauses[-1] == 3_600_000
    assert (bench.state(T1), bench.row(T1)["resends"], health(bench)) == ("delivered", 0, "fine")
    assert told(bench).failure == "404: HTML"
    look(bench, Helicone({last_id(T1): True}))
    assert (told(bench).failure, told(bench).confirmed) == (None, 1)


def test_queries_stay_below_what_is_allowed(bench: LedgerBench) -> None:
    for n in range(4 * confirm.IDS_MAX):
        deliver(bench, version("t1", session=f"ses_{n}"))
    helicone = Helicone()
    look(bench, helicone, per_minute=3)
    assert len(helicone.asked) == 3


def test_an_allowance_is_earned_evenly_and_saved_up_for_a_minute() -> None:
    allowance = Allowance(30, 0, 0)
    assert [allowance.take(at_ms) for at_ms in (0, 1_999, 2_000, 2_001, 4_000)] == [False, False, True, False, True]
    taken = sum(allowance.take(3_600_000) for _ in range(100))
    assert taken == 30
    assert not allowance.take(0)  # the clock was set back
    assert sum(allowance.take(60_000) for _ in range(100)) == 30


# --- superseded, deleted, no room, sent again by somebody else --------------------------------------------------------


def test_a_newer_version_supersedes_a_job_that_waits_to_be_confirmed(bench: LedgerBench) -> None:
    deliver(bench, T1)
    (seen,) = due(bench)
    newer = version("t1", "b", last_event_ms=200)
    assert bench.put(newer, 2) is Decision.NEW
    assert (bench.state(T1), bench.records(T1), bench.row(T1)["confirm_ms"]) == ("superseded", 0, None)
    assert not confirmations.confirmed(bench.db, seen, 1, has_body=True)
    assert not confirmations.send_again(bench.db, seen, 1)
    assert bench.state(newer) == "pending"


def test_what_was_accepted_and_not_yet_seen_is_sent_again_with_the_next_version_of_its_turn(bench: LedgerBench) -> None:
    # Had the server stored nothing, the version that is confirmed would stand there without what has not changed.
    deliver(bench, T1, records=3)
    newer = version("t1", content="b", last_event_ms=200)
    bench.put(newer, 3, text=T1.key)
    assert carry(bench, newer) == 3


def test_what_was_seen_is_not_sent_again_with_the_next_version_of_its_turn(bench: LedgerBench) -> None:
    deliver(bench, T1, records=3)
    assert look(bench, Helicone({last_id(T1, 3): True})) is None
    newer = version("t1", content="b", last_event_ms=200)
    bench.put(newer, 3, text=T1.key)
    assert carry(bench, newer) == 0


def test_a_deleted_session_is_not_sent_again(bench: LedgerBench) -> None:
    deliver(bench, T1)
    pruning.drop_session(bench.db, bench.destination, "ses_1", bench.now_ms)
    assert (bench.state(T1), bench.records(T1), bench.row(T1)["body_bytes"], due(bench)) == ("delivered", 0, 0, [])


TRANSITIONS: dict[str, Callable[[sqlite3.Connection, Unconfirmed], int]] = {
    "confirmed": lambda db, job: confirmations.confirmed(db, job, 1, has_body=True),
    "confirmed without body": lambda db, job: confirmations.confirmed(db, job, 1, has_body=False),
    "not_found_yet": lambda db, job: confirmations.not_found_yet(db, job, 1),
    "send_again": lambda db, job: confirmations.send_again(db, job, 1),
    "dead_letter_unstored": lambda db, job: confirmations.dead_letter_unstored(db, job, 1, "why"),
    "give_up_confirmation": lambda db, job: confirmations.give_up_confirmation(db, 1, job),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_two_workers_that_look_at_one_job_settle_it_once(bench: LedgerBench, name: str) -> None:
    deliver(bench, T1)
    (seen,) = due(bench)
    assert confirmations.send_again(bench.db, seen, bench.now_ms)
    assert not TRANSITIONS[name](bench.db, seen)  # it is pending
    carry(bench, T1)
    before = dict(bench.row(T1))
    assert not TRANSITIONS[name](bench.db, seen)  # delivered once more: what was seen is out of date
    assert dict(bench.row(T1)) == before
    (now,) = due(bench)
    assert TRANSITIONS[name](bench.db, now)


def bound(bench: LedgerBench, *, bytes_max: int = 10**9, age_ms_max: int = 10**9) -> int:
    return confirmations.give_up_confirmations(bench.db, bench.now_ms, bytes_max=bytes_max, age_ms_max=age_ms_max)


def test_delivered_bodies_are_the_first_to_go_when_there_is_no_room_and_that_is_counted(bench: LedgerBench) -> None:
    waiting = version("t0")
    bench.put(waiting, 2)  # older than what was delivered
    for n in (1, 2):
        bench.now_ms += 1
        deliver(bench, version(f"d{n}", session=f"ses_{n}x"), confirm_ms=bench.now_ms + 10)
    sizes = [int(bench.row(one)["body_bytes"]) for one in (waiting, version("d2", session="ses_2x"))]
    assert bound(bench, bytes_max=sum(sizes)) == 1
    assert (bench.records(version("d1", session="ses_1x")), told(bench).given_up, told(bench).waiting) == (0, 1, 1)
    assert bound(bench, bytes_max=0) == 1
    assert pruning.drop_oversize(bench.db, bench.now_ms, sizes[0]) == 0
    assert (bench.state(waiting), counts.counts(bench.db).dropped, told(bench).given_up) == ("pending", 0, 2)


def test_size_drops_only_what_is_pending_or_dead(bench: LedgerBench) -> None:
    deliver(bench, T1)
    bench.put(T2)
    assert pruning.drop_oversize(bench.db, bench.now_ms, 0) == 1
    assert (bench.state(T1), bench.records(T1), bench.state(T2)) == ("delivered", 2, "dropped (size)")


def test_bodies_do_not_wait_for_a_confirmation_for_longer_than_the_spool_keeps_anything(bench: LedgerBench) -> None:
    deliver(bench, T1)
    bench.now_ms += 100
    assert bound(bench, age_ms_max=100) == 0
    assert bound(bench, age_ms_max=99) == 1
    assert (bench.state(T1), bench.records(T1), told(bench).given_up) == ("delivered", 0, 1)


def test_where_nobody_will_read_back_any_more_what_waits_for_it_is_given_up(bench: LedgerBench) -> None:
    deliver(bench, T1)
    deliver(bench, T2)
    assert confirmations.give_up_confirmation(bench.db, bench.destination) == 2
    assert (bench.records(T1), told(bench).given_up, due(bench)) == (0, 2, [])


def test_nothing_is_locked_while_nothing_is_to_be_given_up(bench: LedgerBench, spool: Path) -> None:
    with closing(open_ledger(spool)) as other, transaction(other):
        assert bound(bench) == 0


# --- which jobs ------------------------------------------------------------------------------------------------------

CLOUD = "https://api.worker.helicone.ai"


@pytest.mark.parametrize(
    ("setting", "endpoint", "chosen", "url", "is_sampled"),
    [
        ("auto", "http://127.0.0.1:8585", None, "http://127.0.0.1:8585/v1/request/query-clickhouse", False),
        ("auto", CLOUD, None, "https://api.helicone.ai/v1/request/query-clickhouse", True),
        ("on", CLOUD, None, "https://api.helicone.ai/v1/request/query-clickhouse", False),
        ("auto", WORKER, None, None, False),
        ("on", WORKER, None, None, False),
        ("auto", WORKER, "http://127.0.0.1:8585/", "http://127.0.0.1:8585/v1/request/query-clickhouse", False),
        ("auto", WORKER, "https://h/jawn", "https://h/jawn/v1/request/query-clickhouse", False),
        ("auto", WORKER, "https://h/v1/request/query-clickhouse", "https://h/v1/request/query-clickhouse", False),
        ("off", "http://127.0.0.1:8585", "http://127.0.0.1:8585", None, False),
    ],
)
def test_what_is_read_back_and_where(
    setting: str,
    endpoint: str,
    chosen: str | None,
    url: str | None,
    is_sampled: bool,  # noqa: FBT001 - one column of the table
) -> None:
    made = traits.read_back(setting, endpoint, "", chosen)  # type: ignore[arg-type]
    assert (made.url, made.is_sampled) == (url, is_sampled)
    assert bool(made.off_reason) is (url is None)


def test_on_the_cloud_one_job_an_hour_is_read_back_and_every_one_while_the_quota_is_exceeded(
    bench: LedgerBench,
) -> None:
    plan = traits.read_back("auto", CLOUD, "", None)
    destinations.remember_route(bench.db, bench.destination, f"{CLOUD}/custom/v1/log")
    first_ms = looks_ms(WORKER, 0)[0]

    def when(now_ms: int) -> int | None:
        return confirm.when(bench.db, bench.destination, plan, traits_of("helicone"), now_ms)

    hour_ms = 3_600_000
    assert when(5 * hour_ms) == 5 * hour_ms + first_ms
    assert [when(5 * hour_ms + later) for later in (0, 1, hour_ms - 1)] == [None, None, None]
    assert when(6 * hour_ms) == 6 * hour_ms + first_ms
    assert when(hour_ms) == hour_ms + first_ms  # the clock was set back
    flow.exceed_quota(bench.db, bench.destination)
    assert when(hour_ms + 1) == hour_ms + 1 + first_ms


def test_self_hosted_every_job_is_read_back(bench: LedgerBench) -> None:
    plan = traits.read_back("auto", "http://127.0.0.1:8585", "", None)
    destinations.remember_route(bench.db, bench.destination, JAWN)
    assert [confirm.when(bench.db, bench.destination, plan, traits_of("helicone"), now_ms) for now_ms in (1, 2)] == [
        1 + LOOKS[0],
        2 + LOOKS[0],
    ]
