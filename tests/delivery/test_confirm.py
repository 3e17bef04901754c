"""What becomes of a delivered job that is to be confirmed: every transition, and the pass that chooses between them."""

from __future__ import annotations

import sqlite3
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.database.connection import transaction
from app.database.open import open_ledger
from app.delivery import confirm
from app.delivery.confirm import Allowance, Unread
from app.exporters.helicone import traits
from app.exporters.helicone.traits import looks_ms
from app.ledger import claims, confirmations, counts, destinations, flow, pruning, readback, versions
from app.ledger.confirmations import AHEAD_MS_MAX, Unconfirmed
from app.ledger.decision import BACKFILL, IMPORT, Decision
from app.ledger.job import Body, Frozen, Version
from app.ledger.readback import Confirmations
from tests.support.ledger_bench import Desk, bodies, version

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


def deliver(desk: Desk, wanted: Version, *, confirm_ms: int | None = 1_000, records: int = 2) -> None:
    """Delivered at the desk's time, and by default to be read back at once."""
    assert desk.put(wanted, records) in {Decision.NEW, Decision.REOPENED}
    carry(desk, wanted, confirm_ms=confirm_ms)


def carry(desk: Desk, wanted: Version, *, confirm_ms: int | None = 1_000) -> int:
    """Post what waits; the number of records posted."""
    destinations.remember_route(desk.db, desk.destination, JAWN)
    held = desk.held(wanted)
    left = desk.left(held)
    for body in left:
        assert desk.acknowledge(held, body)
    assert claims.complete(desk.db, held, desk.now_ms, confirm_ms=confirm_ms)
    return len(left)


def due(desk: Desk) -> list[Unconfirmed]:
    return confirmations.due_for_confirmation(desk.db, desk.destination, desk.now_ms, 100)


def look(desk: Desk, helicone: Helicone, *, per_minute: int = 1_000) -> str | None:
    allowance = Allowance(per_minute, per_minute, desk.now_ms)
    return confirm.confirm(desk.db, desk.destination, helicone.read, desk.now_ms, allowance=allowance, dice=lambda: 1.0)


def last_id(wanted: Version, records: int = 2) -> uuid.UUID:
    return bodies(f"{wanted.session} {wanted.turn}", records)[-1].request_id


def health(desk: Desk) -> str:
    return destinations.by_id(desk.db, desk.destination).health


def told(desk: Desk) -> Confirmations:
    return readback.confirmations(desk.db, desk.destination)


def acknowledgements(desk: Desk) -> int:
    return int(desk.db.execute("select count(*) from acknowledgement").fetchone()[0])


# --- found -----------------------------------------------------------------------------------------------------------


def test_bodies_stay_until_the_job_is_confirmed_and_then_go(desk: Desk) -> None:
    deliver(desk, T1)
    assert (desk.state(T1), desk.records(T1), told(desk).waiting) == ("delivered", 2, 1)
    assert look(desk, Helicone({last_id(T1): True})) is None
    assert (desk.state(T1), desk.records(T1), desk.row(T1)["body_bytes"]) == ("delivered", 0, 0)
    assert (told(desk).waiting, told(desk).confirmed, desk.row(T1)["confirmed_ms"]) == (0, 1, desk.now_ms)
    # What was acknowledged stays so: a newer version sends only what is new.
    assert acknowledgements(desk) == 2


def test_a_job_is_not_looked_for_before_its_time(desk: Desk) -> None:
    deliver(desk, T1, confirm_ms=desk.now_ms + 1)
    helicone = Helicone()
    look(desk, helicone)
    assert helicone.asked == []
    desk.now_ms += 1
    look(desk, helicone)
    assert len(helicone.asked) == 1


def test_a_time_that_only_a_wrong_clock_can_have_set_has_come(desk: Desk) -> None:
    deliver(desk, T1, confirm_ms=desk.now_ms + 30 * 24 * 3_600_000)
    look(desk, Helicone({last_id(T1): True}))
    assert told(desk).confirmed == 1


def test_one_query_asks_for_the_last_records_of_many_turns_the_latest_first(desk: Desk) -> None:
    turns = [version("t", session=f"ses_{n}") for n in range(confirm.IDS_MAX + 1)]
    for turn in turns:
        deliver(desk, turn)
    helicone = Helicone()
    look(desk, helicone)
    assert [ids for _, ids in helicone.asked] == [
        [last_id(turn) for turn in (turns[-1], *turns[: confirm.IDS_MAX - 1])],
        [last_id(turns[-2])],
    ]


def test_one_query_asks_for_no_more_bytes_than_an_answer_may_have(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        deliver(desk, version(f"t{number}"), records=1)
    (size,) = {one.body_bytes for one in due(desk)}  # all are equally long
    assert size
    monkeypatch.setattr(confirm, "BYTES_MAX", 2 * size)
    helicone = Helicone()
    look(desk, helicone)
    assert [len(ids) for _, ids in helicone.asked] == [2, 2, 1]


def test_a_query_asks_since_the_earliest_of_its_records(desk: Desk) -> None:
    for turn, start_s in (("t1", 5), ("t2", 2), ("t3", 7)):
        frozen = Frozen("CUSTOM", "acme/one", start_s * 1000, "opencode: x", "/opencode/ses_1/msg_1")
        body = Body(uuid.uuid5(uuid.NAMESPACE_OID, turn), turn.encode(), frozen)
        versions.insert(desk.db, desk.destination, version(turn), [body], now_ms=desk.now_ms)
        carry(desk, version(turn))
    helicone = Helicone()
    look(desk, helicone)
    assert [start_ms for start_ms, _ in helicone.asked] == [2_000]


# --- not found -------------------------------------------------------------------------------------------------------


def test_what_is_not_found_is_looked_for_again_with_growing_pauses_and_then_sent_again(desk: Desk) -> None:
    deliver(desk, T1)
    delivered_ms = desk.now_ms
    for later in LOOKS:
        assert look(desk, Helicone()) is None
        assert (desk.state(T1), desk.row(T1)["confirm_ms"]) == ("delivered", delivered_ms + later)
        desk.now_ms = delivered_ms + later
    look(desk, Helicone())
    row = desk.row(T1)
    assert (row["state"], row["due_ms"], row["resends"], row["finished_ms"]) == ("pending", desk.now_ms, 1, None)
    assert acknowledgements(desk) == 0
    assert carry(desk, T1) == 2  # all of its records, not just the one that was looked for
    assert (desk.row(T1)["confirm_ms"], desk.records(T1)) == (1_000, 2)


def test_what_is_never_found_is_sent_again_so_often_and_is_then_dead_with_the_causes(desk: Desk) -> None:
    deliver(desk, T1)
    for resends in range(confirm.RESENDS_MAX + 1):
        assert desk.row(T1)["resends"] == resends
        desk.now_ms += looks_ms(JAWN, resends)[-1]
        look(desk, Helicone())
        if resends < confirm.RESENDS_MAX:
            assert carry(desk, T1) == 2
    assert desk.state(T1) == "dead"
    assert desk.row(T1)["error"] == f"accepted but not stored: {'; '.join(traits.NOT_STORED_CAUSES)}"
    # To be sent again by whoever has mended the other side: the records, and nothing that says that they are there.
    assert (desk.records(T1), acknowledgements(desk), desk.row(T1)["confirm_ms"]) == (2, 0, None)


def test_where_the_server_queues_it_is_given_longer(desk: Desk) -> None:
    deliver(desk, T1)
    destinations.remember_route(desk.db, desk.destination, WORKER)
    desk.now_ms += LOOKS[-1]
    look(desk, Helicone())
    assert desk.state(T1) == "delivered"
    longest_ms = looks_ms(WORKER, confirm.RESENDS_MAX)[-1]
    assert 4 * 24 * 3_600_000 <= longest_ms < AHEAD_MS_MAX


def test_a_record_of_another_turn_stays_acknowledged(desk: Desk) -> None:
    deliver(desk, T1)
    deliver(desk, T2, confirm_ms=None)
    desk.now_ms += LOOKS[-1]
    look(desk, Helicone())
    assert (desk.state(T1), desk.state(T2), acknowledgements(desk)) == ("pending", "delivered", 2)


# --- quota -----------------------------------------------------------------------------------------------------------


def test_a_row_without_body_sets_the_quota_and_marks_the_turn_and_logs_go_on(desk: Desk) -> None:
    deliver(desk, T1)
    look(desk, Helicone({last_id(T1): False}))
    assert health(desk) == "quota"
    assert (desk.state(T1), desk.row(T1)["body_not_stored"], desk.records(T1)) == ("delivered", 1, 0)
    assert (told(desk).body_not_stored, told(desk).confirmed) == (1, 0)
    deliver(desk, T2)
    look(desk, Helicone({last_id(T2): True}))
    assert health(desk) == "fine"
    assert (told(desk).body_not_stored, told(desk).confirmed) == (1, 1)


def test_a_turn_stored_without_body_is_sent_again_whole_when_somebody_asks_and_only_then(desk: Desk) -> None:
    deliver(desk, T1)
    look(desk, Helicone({last_id(T1): False}))
    assert desk.put(T1, 2) is Decision.KNOWN
    assert desk.put(T1, 2, reopen=BACKFILL) is Decision.KNOWN
    assert desk.put(T1, 2, reopen=IMPORT) is Decision.REOPENED
    assert (desk.state(T1), desk.row(T1)["body_not_stored"]) == ("pending", 0)
    assert carry(desk, T1) == 2
    look(desk, Helicone({last_id(T1): True}))
    assert (told(desk).body_not_stored, told(desk).confirmed) == (0, 1)


def test_a_confirmed_turn_is_not_taken_back(desk: Desk) -> None:
    deliver(desk, T1)
    look(desk, Helicone({last_id(T1): True}))
    assert desk.put(T1, 2, reopen=IMPORT) is Decision.KNOWN
    assert desk.state(T1) == "delivered"


def test_a_newer_version_of_a_turn_stored_without_body_sends_also_what_has_not_changed(desk: Desk) -> None:
    assert desk.put(T1, 2, text="equal") is Decision.NEW
    carry(desk, T1)
    look(desk, Helicone({last_id(T1): False}))
    newer = version("t1", "b", facts_ms=200)
    assert desk.put(newer, 2, text="equal") is Decision.NEW
    assert carry(desk, newer) == 2


def test_when_the_quota_is_found_exceeded_what_no_sample_was_taken_of_is_looked_for_by_its_acknowledgements(
    desk: Desk,
) -> None:
    before, seen, between, sample = version("t0"), version("t1"), version("t2"), version("t3")
    deliver(desk, before, confirm_ms=None)
    desk.now_ms += 1
    deliver(desk, seen, confirm_ms=desk.now_ms)
    look(desk, Helicone({last_id(seen): True}))
    desk.now_ms += 1
    deliver(desk, between, confirm_ms=None, records=1)
    deliver(desk, sample, confirm_ms=desk.now_ms)
    helicone = Helicone({last_id(sample): False, last_id(between, 1): False})
    look(desk, helicone)
    assert (desk.row(before)["confirm_ms"], desk.row(between)["confirm_ms"]) == (None, desk.now_ms)
    look(desk, helicone)
    assert (desk.row(before)["body_not_stored"], desk.row(between)["body_not_stored"]) == (0, 1)


def test_what_is_not_held_and_not_found_is_given_up_and_not_dead(desk: Desk) -> None:
    deliver(desk, T1, confirm_ms=None)
    assert confirmations.look_back(desk.db, desk.destination, desk.now_ms) == 1
    desk.now_ms += LOOKS[-1]
    look(desk, Helicone())
    assert (desk.state(T1), told(desk).waiting, told(desk).given_up) == ("delivered", 0, 1)


# --- reading back fails ----------------------------------------------------------------------------------------------


def test_of_more_than_one_pass_can_look_back_at_the_latest_are_looked_for(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By its module: in `app.ledger` a function has its name.
    monkeypatch.setattr(sys.modules["app.ledger.confirmations"], "BATCH", 2)
    turns = [version(f"t{number}") for number in range(3)]
    for turn in turns:
        deliver(desk, turn, confirm_ms=None)
        desk.now_ms += 1
    assert confirmations.look_back(desk.db, desk.destination, desk.now_ms) == 2
    assert {one.key for one in due(desk)} == {turn.key for turn in turns[1:]}


def test_a_job_that_is_sent_again_is_judged_as_one_that_never_failed(desk: Desk) -> None:
    deliver(desk, T1)
    (one,) = due(desk)
    before = flow.evidence(desk.db, desk.destination, one.job_id)
    assert before.peers == "none"  # since its own last record
    assert confirmations.send_again(desk.db, one, desk.now_ms)
    assert flow.evidence(desk.db, desk.destination, one.job_id).peers == "succeed"


def test_a_failed_reading_back_judges_no_job_and_pauses_only_itself_with_growing_pauses(desk: Desk) -> None:
    deliver(desk, T1)
    desk.now_ms += LOOKS[-1]
    helicone = Helicone(failure="404: HTML")
    pauses = []
    for _ in range(12):
        assert look(desk, helicone) == "404: HTML"
        assert look(desk, helicone) is None  # it waits
        pauses.append((told(desk).retry_ms or 0) - desk.now_ms)
        desk.now_ms = told(desk).retry_ms or 0
    assert len(helicone.asked) == 12
    assert pauses[:3] == [10_000, 20_000, 40_000]
    assert pauses[-1] == 3_600_000
    assert (desk.state(T1), desk.row(T1)["resends"], health(desk)) == ("delivered", 0, "fine")
    assert told(desk).failure == "404: HTML"
    look(desk, Helicone({last_id(T1): True}))
    assert (told(desk).failure, told(desk).confirmed) == (None, 1)


def test_queries_stay_below_what_is_allowed(desk: Desk) -> None:
    for n in range(4 * confirm.IDS_MAX):
        deliver(desk, version("t1", session=f"ses_{n}"))
    helicone = Helicone()
    look(desk, helicone, per_minute=3)
    assert len(helicone.asked) == 3


def test_an_allowance_is_earned_evenly_and_saved_up_for_a_minute() -> None:
    allowance = Allowance(30, 0, 0)
    assert [allowance.take(at_ms) for at_ms in (0, 1_999, 2_000, 2_001, 4_000)] == [False, False, True, False, True]
    taken = sum(allowance.take(3_600_000) for _ in range(100))
    assert taken == 30
    assert not allowance.take(0)  # the clock was set back
    assert sum(allowance.take(60_000) for _ in range(100)) == 30


# --- superseded, deleted, no room, sent again by somebody else --------------------------------------------------------


def test_a_newer_version_supersedes_a_job_that_waits_to_be_confirmed(desk: Desk) -> None:
    deliver(desk, T1)
    (seen,) = due(desk)
    newer = version("t1", "b", facts_ms=200)
    assert desk.put(newer, 2) is Decision.NEW
    assert (desk.state(T1), desk.records(T1), desk.row(T1)["confirm_ms"]) == ("superseded", 0, None)
    assert not confirmations.confirmed(desk.db, seen, 1, has_body=True)
    assert not confirmations.send_again(desk.db, seen, 1)
    assert desk.state(newer) == "pending"


def test_what_was_accepted_and_not_yet_seen_is_sent_again_with_the_next_version_of_its_turn(desk: Desk) -> None:
    # Had the server stored nothing, the version that is confirmed would stand there without what has not changed.
    deliver(desk, T1, records=3)
    newer = version("t1", content="b", facts_ms=200)
    desk.put(newer, 3, text=T1.key)
    assert carry(desk, newer) == 3


def test_what_was_seen_is_not_sent_again_with_the_next_version_of_its_turn(desk: Desk) -> None:
    deliver(desk, T1, records=3)
    assert look(desk, Helicone({last_id(T1, 3): True})) is None
    newer = version("t1", content="b", facts_ms=200)
    desk.put(newer, 3, text=T1.key)
    assert carry(desk, newer) == 0


def test_a_deleted_session_is_not_sent_again(desk: Desk) -> None:
    deliver(desk, T1)
    pruning.drop_session(desk.db, desk.destination, "ses_1", desk.now_ms)
    assert (desk.state(T1), desk.records(T1), desk.row(T1)["body_bytes"], due(desk)) == ("delivered", 0, 0, [])


TRANSITIONS: dict[str, Callable[[sqlite3.Connection, Unconfirmed], int]] = {
    "confirmed": lambda db, job: confirmations.confirmed(db, job, 1, has_body=True),
    "confirmed without body": lambda db, job: confirmations.confirmed(db, job, 1, has_body=False),
    "not_found_yet": lambda db, job: confirmations.not_found_yet(db, job, 1),
    "send_again": lambda db, job: confirmations.send_again(db, job, 1),
    "bury_unstored": lambda db, job: confirmations.bury_unstored(db, job, 1, "why"),
    "give_up_confirmation": lambda db, job: confirmations.give_up_confirmation(db, 1, job),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_two_workers_that_look_at_one_job_settle_it_once(desk: Desk, name: str) -> None:
    deliver(desk, T1)
    (seen,) = due(desk)
    assert confirmations.send_again(desk.db, seen, desk.now_ms)
    assert not TRANSITIONS[name](desk.db, seen)  # it is pending
    carry(desk, T1)
    before = dict(desk.row(T1))
    assert not TRANSITIONS[name](desk.db, seen)  # delivered once more: what was seen is out of date
    assert dict(desk.row(T1)) == before
    (now,) = due(desk)
    assert TRANSITIONS[name](desk.db, now)


def bound(desk: Desk, *, bytes_max: int = 10**9, age_ms_max: int = 10**9) -> int:
    return confirmations.give_up_confirmations(desk.db, desk.now_ms, bytes_max=bytes_max, age_ms_max=age_ms_max)


def test_delivered_bodies_are_the_first_to_go_when_there_is_no_room_and_that_is_counted(desk: Desk) -> None:
    waiting = version("t0")
    desk.put(waiting, 2)  # older than what was delivered
    for n in (1, 2):
        desk.now_ms += 1
        deliver(desk, version(f"d{n}", session=f"ses_{n}x"), confirm_ms=desk.now_ms + 10)
    sizes = [int(desk.row(one)["body_bytes"]) for one in (waiting, version("d2", session="ses_2x"))]
    assert bound(desk, bytes_max=sum(sizes)) == 1
    assert (desk.records(version("d1", session="ses_1x")), told(desk).given_up, told(desk).waiting) == (0, 1, 1)
    assert bound(desk, bytes_max=0) == 1
    assert pruning.drop_oversize(desk.db, desk.now_ms, sizes[0]) == 0
    assert (desk.state(waiting), counts.counts(desk.db).dropped, told(desk).given_up) == ("pending", 0, 2)


def test_size_drops_only_what_is_pending_or_dead(desk: Desk) -> None:
    deliver(desk, T1)
    desk.put(T2)
    assert pruning.drop_oversize(desk.db, desk.now_ms, 0) == 1
    assert (desk.state(T1), desk.records(T1), desk.state(T2)) == ("delivered", 2, "dropped (size)")


def test_bodies_do_not_wait_for_a_confirmation_for_longer_than_the_spool_keeps_anything(desk: Desk) -> None:
    deliver(desk, T1)
    desk.now_ms += 100
    assert bound(desk, age_ms_max=100) == 0
    assert bound(desk, age_ms_max=99) == 1
    assert (desk.state(T1), desk.records(T1), told(desk).given_up) == ("delivered", 0, 1)


def test_where_nobody_will_read_back_any_more_what_waits_for_it_is_given_up(desk: Desk) -> None:
    deliver(desk, T1)
    deliver(desk, T2)
    assert confirmations.give_up_confirmation(desk.db, desk.destination) == 2
    assert (desk.records(T1), told(desk).given_up, due(desk)) == (0, 2, [])


def test_nothing_is_locked_while_nothing_is_to_be_given_up(desk: Desk, spool: Path) -> None:
    with closing(open_ledger(spool)) as other, transaction(other):
        assert bound(desk) == 0


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


def test_on_the_cloud_one_job_an_hour_is_read_back_and_every_one_while_the_quota_is_exceeded(desk: Desk) -> None:
    plan = traits.read_back("auto", CLOUD, "", None)
    destinations.remember_route(desk.db, desk.destination, f"{CLOUD}/custom/v1/log")
    first_ms = looks_ms(WORKER, 0)[0]

    def when(now_ms: int) -> int | None:
        return confirm.when(desk.db, desk.destination, plan, now_ms)

    hour_ms = 3_600_000
    assert when(5 * hour_ms) == 5 * hour_ms + first_ms
    assert [when(5 * hour_ms + later) for later in (0, 1, hour_ms - 1)] == [None, None, None]
    assert when(6 * hour_ms) == 6 * hour_ms + first_ms
    assert when(hour_ms) == hour_ms + first_ms  # the clock was set back
    flow.exceed_quota(desk.db, desk.destination)
    assert when(hour_ms + 1) == hour_ms + 1 + first_ms


def test_self_hosted_every_job_is_read_back(desk: Desk) -> None:
    plan = traits.read_back("auto", "http://127.0.0.1:8585", "", None)
    destinations.remember_route(desk.db, desk.destination, JAWN)
    assert [confirm.when(desk.db, desk.destination, plan, now_ms) for now_ms in (1, 2)] == [
        1 + LOOKS[0],
        2 + LOOKS[0],
    ]
