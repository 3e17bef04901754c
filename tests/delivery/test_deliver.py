from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

from app.delivery.backoff import Policy
from app.delivery.deliver import LEASE_MS, Courier, deliver
from app.exporters.outcome import Kind, Outcome
from app.ledger import claims, destinations, flow, maintenance, pruning
from app.ledger.destinations import Destination
from app.ledger.job import Body
from app.privacy.policy import Post
from app.worker import POST_S_MAX
from tests.support.ledger_bench import Desk, version

MAX_RETRIES = 3
BASE_MS = 1_000
CAP_MS = 60_000


def outcome(kind: Kind, retry_after_ms: int | None = None) -> Outcome:
    """Whatever `wait` stands for here, no answer came."""
    return Outcome(kind, f"it was {kind}", None if kind == "wait" else 500, retry_after_ms)


@dataclass
class Shop:
    """A desk and a courier whose answers are written down beforehand; unwritten ones are `accepted`."""

    desk: Desk
    answers: list[Outcome] = field(default_factory=list)
    posted: list[Body] = field(default_factory=list)
    dice: float = 1.0
    stopping: Callable[[], bool] = lambda: False
    neighbours: int = 0
    before_answer: Callable[[], object] = lambda: None
    """Happens while a POST is under way."""

    def post(self, body: Body) -> Outcome:
        self.posted.append(body)
        answer = self.answers.pop(0) if self.answers else outcome("accepted")
        self.before_answer()
        return answer

    @property
    def courier(self) -> Courier:
        return Courier(
            destination_id=self.desk.destination,
            worker="worker-a",
            policy=Policy(max_retries=MAX_RETRIES, base_ms=BASE_MS, cap_ms=CAP_MS),
            permit=lambda _: Post(),
            post=self.post,
            clock=lambda: self.desk.now_ms,
            dice=lambda: self.dice,
            stopping=self.stopping,
        )

    def deliver(self, *answers: Outcome, session: str = "ses_1") -> str | None:
        self.answers = list(answers)
        return deliver(self.desk.db, version(session=session).key, self.courier)

    def neighbour_passes(self) -> None:
        """A job of another session is delivered: the destination is there."""
        self.neighbours += 1
        other = version(f"t{self.neighbours}", session="ses_neighbour")
        self.desk.put(other)
        assert deliver(self.desk.db, other.key, self.courier) is None
        assert self.desk.state(other) == "delivered"

    def neighbour_waits(self) -> None:
        """A job of another session waits, and is not due."""
        other = version(session="ses_waiting")
        self.desk.put(other)
        self.desk.db.execute("update job set due_ms = 1 << 50 where key = ?", (other.key,))

    @property
    def destination(self) -> Destination:
        return destinations.by_id(self.desk.db, self.desk.destination)

    def numbers(self) -> list[int]:
        """Which records were posted, in order."""
        return [int(body.body.split()[2]) for body in self.posted]

    def facts(self) -> tuple[object, ...]:
        row = self.desk.row()
        return row["state"], row["failures"], row["lease_until_ms"]


@pytest.fixture
def shop(desk: Desk) -> Shop:
    return Shop(desk)


Where = Literal["first", "middle", "last"]
AT: dict[Where, int] = {"first": 0, "middle": 1, "last": 2}


# --- each answer, at each record


def test_all_records_are_posted_in_order_and_the_job_is_delivered(shop: Shop) -> None:
    shop.desk.put(version(), records=3)
    assert shop.deliver() is None
    assert shop.numbers() == [0, 1, 2]
    assert shop.facts() == ("delivered", 0, None)
    assert not shop.destination.pause_reason


@pytest.mark.parametrize("where", AT)
def test_failed_job_waits_out_its_backoff_and_goes_on_where_it_was(shop: Shop, where: Where) -> None:
    shop.desk.put(version(), records=3)
    shop.deliver(*[outcome("accepted")] * AT[where], outcome("retry"))
    row = shop.desk.row()
    assert (row["state"], row["setbacks"], row["lease_until_ms"]) == ("pending", 1, None)
    assert (row["due_ms"], row["error"]) == (1_000 + BASE_MS, "it was retry")
    assert shop.destination.pause_reason is None
    shop.desk.now_ms += BASE_MS
    shop.posted.clear()
    shop.deliver()
    assert shop.numbers() == [0, 1, 2][AT[where] :]
    assert shop.desk.state() == "delivered"


@pytest.mark.parametrize("kind", ["wait", "refused"])
@pytest.mark.parametrize("where", AT)
def test_wait_and_refused_pause_the_destination_and_charge_nobody(shop: Shop, where: Where, kind: Kind) -> None:
    shop.desk.put(version(), records=3)
    shop.deliver(*[outcome("accepted")] * AT[where], outcome(kind))
    assert shop.facts() == ("pending", 0, None)
    assert (shop.desk.row()["due_ms"], shop.desk.row()["error"]) == (1_000, f"it was {kind}")
    assert (shop.destination.pause_reason, shop.destination.pause_count) == (f"it was {kind}", 1)
    assert shop.destination.probe_ms == 1_000 + BASE_MS
    shop.posted.clear()
    assert shop.deliver() is None
    assert shop.posted == []
    shop.desk.now_ms += BASE_MS
    shop.deliver()
    assert shop.numbers() == [0, 1, 2][AT[where] :]
    assert (shop.desk.state(), shop.destination.pause_reason) == ("delivered", None)


@pytest.mark.parametrize("where", AT)
def test_permanent_is_dead_at_once(shop: Shop, where: Where) -> None:
    shop.desk.put(version(), records=3)
    shop.deliver(*[outcome("accepted")] * AT[where], outcome("permanent"))
    assert shop.desk.state() == "dead"
    assert shop.desk.row()["error"] == "it was permanent"
    assert len(shop.posted) == AT[where] + 1
    assert shop.destination.pause_reason is None


# --- retries


def test_job_that_fails_while_others_pass_is_dead_after_its_retries(shop: Shop) -> None:
    shop.desk.put(version())
    for tries in range(1, MAX_RETRIES + 2):
        assert shop.desk.state() == "pending"
        shop.neighbour_passes()
        shop.posted.clear()
        shop.deliver(outcome("retry"))
        assert len(shop.posted) == 1
        assert shop.destination.health == "fine"
        shop.desk.now_ms = shop.desk.row()["due_ms"] or 0
        assert shop.desk.row()["failures"] == min(tries, MAX_RETRIES)
    assert shop.desk.state() == "dead"
    assert shop.desk.row()["error"] == "it was retry (after 3 retries)"


def test_job_that_fails_while_nobody_passes_is_charged_nothing(shop: Shop) -> None:
    shop.neighbour_waits()
    shop.desk.put(version())
    for _ in range(10 * MAX_RETRIES):
        shop.deliver(outcome("retry"))
        shop.desk.now_ms = shop.desk.row()["due_ms"]
    assert shop.facts() == ("pending", 0, None)


def test_job_without_an_answer_is_charged_nothing_though_others_pass(shop: Shop) -> None:
    shop.desk.put(version())
    for _ in range(10 * MAX_RETRIES):
        shop.neighbour_passes()
        shop.deliver(outcome("wait"))
        shop.desk.now_ms = max(shop.desk.row()["due_ms"], shop.destination.probe_ms or 0)
    assert shop.facts() == ("pending", 0, None)


def test_job_that_never_gets_an_answer_does_not_pause_the_destination_for_its_neighbours(shop: Shop) -> None:
    shop.neighbour_waits()
    shop.desk.put(version())
    for _ in range(5):
        shop.neighbour_passes()
        shop.deliver(outcome("wait"))
        assert shop.destination.health == "fine"
        shop.desk.now_ms = shop.desk.row()["due_ms"]
    # Its own backoff grows meanwhile.
    assert shop.desk.row()["setbacks"] == 5


def test_only_job_that_waits_is_charged_once_its_backoff_is_full(shop: Shop) -> None:
    shop.desk.put(version())
    waits = []
    while shop.desk.state() == "pending":
        shop.deliver(outcome("retry"))
        due_ms = shop.desk.row()["due_ms"]
        if due_ms is not None:
            waits.append(due_ms - shop.desk.now_ms)
            shop.desk.now_ms = due_ms
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, *[CAP_MS] * MAX_RETRIES]
    assert shop.desk.row()["error"] == "it was retry (after 3 retries)"


def test_only_job_that_waits_dies_also_as_a_probe(shop: Shop) -> None:
    shop.desk.put(version())
    shop.deliver(outcome("wait"))
    probes = 0
    while shop.desk.state() == "pending":
        assert shop.destination.health == "down"
        shop.desk.now_ms = shop.destination.probe_ms or 0
        shop.deliver(outcome("retry"))
        probes += 1
    assert probes == 6 + MAX_RETRIES


def test_attempt_that_got_a_record_through_starts_the_count_anew(shop: Shop) -> None:
    shop.desk.put(version(), records=2)
    for _ in range(MAX_RETRIES):
        shop.neighbour_passes()
        shop.deliver(outcome("retry"))
        shop.desk.now_ms = shop.desk.row()["due_ms"]
    shop.deliver(outcome("accepted"), outcome("retry"))
    row = shop.desk.row()
    assert (row["state"], row["setbacks"], row["failures"]) == ("pending", 1, 0)
    assert row["due_ms"] == shop.desk.now_ms + BASE_MS


# --- down: failures of different jobs


@pytest.mark.parametrize("kinds", [("retry", "retry"), ("wait", "wait"), ("retry", "wait"), ("wait", "retry")])
def test_two_jobs_that_fail_in_a_row_mean_that_the_destination_is_down(shop: Shop, kinds: tuple[Kind, Kind]) -> None:
    for session in ("ses_1", "ses_2", "ses_3"):
        shop.desk.put(version(session=session))
    shop.deliver(outcome(kinds[0]), session="ses_1")
    assert shop.destination.health == "fine"
    shop.deliver(outcome(kinds[1]), session="ses_2")
    assert (shop.destination.health, shop.destination.pause_reason) == ("down", f"it was {kinds[1]}")
    assert [shop.desk.row(version(session=f"ses_{n}"))["failures"] for n in (1, 2, 3)] == [0, 0, 0]


def test_a_pass_between_two_failures_clears_the_destination(shop: Shop) -> None:
    for session in ("ses_1", "ses_2"):
        shop.desk.put(version(session=session))
    shop.deliver(outcome("retry"), session="ses_1")
    shop.neighbour_passes()
    shop.deliver(outcome("retry"), session="ses_2")
    assert shop.destination.health == "fine"


def test_rate_limit_pauses_at_once(shop: Shop) -> None:
    shop.neighbour_waits()
    shop.desk.put(version())
    shop.deliver(Outcome("wait", "429: empty body", 429, 20_000))
    assert (shop.destination.health, shop.destination.probe_ms) == ("down", 21_000)
    assert shop.facts() == ("pending", 0, None)


def test_outage_with_answers_kills_nobody_however_long(shop: Shop) -> None:
    for n in range(5):
        shop.neighbour_passes()
        shop.desk.put(version(session=f"ses_{n}"))
    for _ in range(200):
        for n in range(5):
            shop.deliver(outcome("retry"), session=f"ses_{n}")
        shop.desk.now_ms = shop.destination.probe_ms or shop.desk.now_ms + BASE_MS
    states = {
        (row["state"], row["failures"])
        for row in shop.desk.db.execute("select state, failures from job where state <> 'delivered'")
    }
    assert {state for state, _ in states} == {"pending"}
    assert max(failures for _, failures in states) <= 1, "the first, of which nobody knew yet what it meant"


@pytest.mark.parametrize("kind", ["wait", "retry"])
def test_one_bad_record_at_the_head_of_the_only_session_does_not_stop_the_others(shop: Shop, kind: Kind) -> None:
    for turn in range(8):
        shop.desk.put(version(f"t{turn}"))
    shop.desk.pause(probe_ms=shop.desk.now_ms)  # it met an outage, too

    def post(body: Body) -> Outcome:
        return outcome(kind if b" t0 " in body.body else "accepted")

    courier = replace(shop.courier, post=post)
    for _ in range(60):
        following: str | None = version("t0").key
        while following is not None:
            following = deliver(shop.desk.db, following, courier)
        shop.desk.now_ms += BASE_MS
    assert {shop.desk.state(version(f"t{turn}")) for turn in range(1, 8)} == {"delivered"}


def test_after_an_outage_no_turn_but_that_of_the_probe_goes_before_an_older_one(shop: Shop) -> None:
    for turn in range(5):
        shop.desk.put(version(f"t{turn}"))
    shop.desk.pause(probe_ms=shop.desk.now_ms)
    for _ in range(203):
        shop.desk.now_ms = shop.destination.probe_ms or 0
        shop.deliver(outcome("wait"))
    shop.desk.now_ms = shop.destination.probe_ms or 0
    shop.posted.clear()
    following: str | None = version("t0").key
    while following is not None:
        following = deliver(shop.desk.db, following, shop.courier)
    turns = [body.body.split()[1] for body in shop.posted]
    assert turns == [b"t3", b"t0", b"t1", b"t2", b"t4"]


def test_a_poison_beside_jobs_that_must_not_be_sent_is_alone(shop: Shop) -> None:
    shop.desk.put(version(session="ses_held"))
    shop.desk.db.execute("update job set due_ms = 1 << 50, hold_reason = 'off'")
    shop.desk.put(version())
    for _ in range(7 + MAX_RETRIES):
        shop.deliver(outcome("retry"))
        shop.desk.now_ms = shop.desk.row()["due_ms"] or 0
    assert shop.desk.state() == "dead"


@pytest.mark.slow
def test_poison_dies_while_its_neighbours_flow_also_after_an_outage(shop: Shop) -> None:
    poison = version(session="ses_poison")
    sessions = [f"ses_{n}" for n in range(30)]
    for session in ("ses_poison", *sessions):
        shop.desk.put(version(session=session))

    def post(body: Body) -> Outcome:
        return outcome("retry" if body.body.startswith(b"ses_poison") else "accepted")

    courier = replace(shop.courier, post=post)
    shop.desk.pause(probe_ms=shop.desk.now_ms)
    for _ in range(200):
        for session in ("ses_poison", *sessions):
            deliver(shop.desk.db, version(session=session).key, courier)
            if len(sessions) > 10 and shop.desk.state(version(session=sessions[-1])) == "delivered":
                sessions.append(f"ses_{len(sessions)}")
                shop.desk.put(version(session=sessions[-1]))
        shop.desk.now_ms += BASE_MS
    assert shop.desk.state(poison) == "dead"
    assert {shop.desk.state(version(session=session)) for session in sessions[:-1]} == {"delivered"}


def test_backoff_doubles_with_each_failure_and_is_diced(shop: Shop) -> None:
    shop.desk.put(version())
    shop.dice = 0.5
    waits = []
    for _ in range(MAX_RETRIES):
        shop.deliver(outcome("retry"))
        waits.append(shop.desk.row()["due_ms"] - shop.desk.now_ms)
        shop.desk.now_ms = shop.desk.row()["due_ms"]
    assert waits == [500, 1_000, 2_000]


@pytest.mark.parametrize(("asked_ms", "waited_ms"), [(20_000, 20_000), (10, BASE_MS)], ids=["longer", "shorter"])
def test_retry_after_is_honoured_when_it_is_longer_than_the_backoff(shop: Shop, asked_ms: int, waited_ms: int) -> None:
    shop.desk.put(version())
    shop.deliver(outcome("retry", asked_ms))
    assert shop.desk.row()["due_ms"] == 1_000 + waited_ms


def test_retry_after_of_the_destination_delays_its_probe(shop: Shop) -> None:
    shop.desk.put(version())
    shop.deliver(outcome("wait", 20_000))
    assert shop.destination.probe_ms == 21_000
    assert shop.desk.row()["due_ms"] == 1_000


# --- pause and probe


def test_pause_grows_with_each_failed_probe_up_to_its_bound(shop: Shop) -> None:
    shop.desk.put(version())
    pauses = []
    for _ in range(12):
        shop.deliver(outcome("wait"))
        assert shop.destination.probe_ms is not None
        pauses.append(shop.destination.probe_ms - shop.desk.now_ms)
        shop.desk.now_ms = shop.destination.probe_ms
    assert pauses[:4] == [1_000, 2_000, 4_000, 8_000]
    assert pauses[-1] == CAP_MS
    assert shop.facts() == ("pending", 0, None)


def test_jobs_that_fail_together_are_one_failure_of_the_destination(shop: Shop) -> None:
    # A dozen POSTs are in flight when the other side goes away: the first probe comes soon all the same.
    sessions = [f"ses_{n}" for n in range(12)]
    for session in sessions:
        shop.desk.put(version(session=session))
    first = sessions.pop()

    def others_fail_too() -> None:
        if sessions:
            shop.deliver(outcome("wait"), session=sessions.pop())

    shop.before_answer = others_fail_too
    shop.deliver(outcome("wait"), session=first)
    assert (len(shop.posted), shop.destination.pause_count) == (12, 1)
    shop.before_answer = lambda: None
    assert shop.destination.probe_ms is not None
    shop.desk.now_ms = shop.destination.probe_ms
    shop.deliver(outcome("wait"))
    assert (shop.destination.pause_count, shop.destination.probe_ms) == (2, shop.desk.now_ms + 2 * BASE_MS)


def test_one_probe_at_a_time(shop: Shop) -> None:
    for session in ("ses_1", "ses_2"):
        shop.desk.put(version(session=session))
    shop.desk.pause(probe_ms=1_000)

    def others_try() -> None:
        shop.before_answer = lambda: None
        deliver(shop.desk.db, version(session="ses_2").key, shop.courier)

    shop.before_answer = others_try
    shop.deliver(outcome("wait"))
    assert len(shop.posted) == 1


def test_probe_that_is_refused_for_good_ends_the_pause(shop: Shop) -> None:
    shop.desk.put(version())
    shop.deliver(outcome("wait"))
    shop.desk.now_ms = 5_000
    shop.deliver(outcome("permanent"))
    assert (shop.destination.health, shop.destination.pause_reason, shop.destination.pause_count) == ("fine", None, 0)


def test_probe_answered_with_a_5xx_leaves_it_to_another_job_to_show_that_all_is_well(shop: Shop) -> None:
    for session in ("ses_1", "ses_2"):
        shop.desk.put(version(session=session))
    shop.desk.pause(probe_ms=1_000)
    shop.deliver(outcome("retry"))
    assert (shop.destination.health, shop.destination.pause_count) == ("down", 2)
    shop.desk.now_ms = shop.destination.probe_ms or 0
    shop.deliver(session="ses_1")
    assert shop.desk.state(version(session="ses_2")) == "delivered", "whichever key rang, it was its turn"
    assert shop.destination.health == "fine"


def test_probe_that_got_a_record_through_and_then_failed_is_a_first_failure(shop: Shop) -> None:
    shop.desk.put(version(), records=2)
    for _ in range(5):
        shop.deliver(outcome("wait"))
        assert shop.destination.probe_ms is not None
        shop.desk.now_ms = shop.destination.probe_ms
    shop.deliver(outcome("accepted"), outcome("wait"))
    assert shop.destination.pause_count == 1
    assert shop.destination.probe_ms == shop.desk.now_ms + BASE_MS


def test_probe_now_lets_the_next_one_through_at_once(shop: Shop) -> None:
    shop.desk.put(version())
    shop.deliver(outcome("refused"))
    assert flow.probe_now(shop.desk.db, shop.desk.destination, 1_000)
    shop.deliver()
    assert shop.desk.state() == "delivered"


# --- what happens meanwhile


def test_job_superseded_between_records_stops_and_the_newer_one_follows(shop: Shop) -> None:
    old, new = version(content="a"), version(content="b", facts_ms=200)
    shop.desk.put(old, records=3)

    def supersede() -> None:
        shop.before_answer = lambda: None
        shop.desk.put(new, records=3)

    shop.before_answer = supersede
    assert shop.deliver() == new.key
    assert len(shop.posted) == 1
    assert (shop.desk.state(old), shop.desk.row(old)["lease_until_ms"]) == ("superseded", None)
    assert deliver(shop.desk.db, new.key, shop.courier) is None
    assert shop.desk.state(new) == "delivered"


def test_job_superseded_before_its_first_post_is_not_posted(shop: Shop) -> None:
    old, new = version(content="a"), version(content="b", facts_ms=200)
    shop.desk.put(old)

    def claimed_and_superseded() -> bool:
        if shop.desk.row(old)["attempt"]:
            shop.desk.put(new)
        return False

    shop.stopping = claimed_and_superseded
    assert shop.deliver() == new.key
    assert shop.posted == []
    assert (shop.desk.state(old), shop.desk.row(old)["lease_until_ms"]) == ("superseded", None)


@pytest.mark.parametrize("kind", ["retry", "wait", "refused", "permanent"])
def test_job_superseded_while_its_post_fails_lets_go_of_its_lease(shop: Shop, kind: Kind) -> None:
    old, new = version(content="a"), version(content="b", facts_ms=200)
    shop.desk.put(old)
    shop.before_answer = lambda: shop.desk.put(new)
    shop.deliver(outcome(kind))
    assert (shop.desk.state(old), shop.desk.row(old)["lease_until_ms"]) == ("superseded", None)
    assert shop.desk.state(new) == "pending"


def test_session_deleted_meanwhile_stops_its_job(shop: Shop) -> None:
    shop.desk.put(version(), records=3)
    shop.before_answer = lambda: pruning.drop_session(shop.desk.db, shop.desk.destination, "ses_1", 1_000)
    assert shop.deliver() is None
    assert len(shop.posted) == 1
    assert (shop.desk.state(), shop.desk.row()["lease_until_ms"]) == ("dropped (deleted)", None)


def test_version_that_came_back_meanwhile_is_finished_by_the_next_attempt(shop: Shop) -> None:
    first, second = version(content="a"), version(content="b")
    shop.desk.put(first, records=2)

    def there_and_back() -> None:
        shop.before_answer = lambda: None
        shop.desk.put(second, records=2)
        shop.desk.put(first, records=2)

    shop.before_answer = there_and_back
    assert shop.deliver() == first.key
    assert (shop.desk.state(first), shop.desk.row(first)["lease_until_ms"]) == ("pending", None)
    shop.deliver()
    assert shop.desk.state(first) == "delivered"
    assert shop.numbers() == [0, 1]


def test_job_taken_over_after_its_lease_ran_out_is_left_to_the_other(shop: Shop) -> None:
    shop.desk.put(version(), records=2)

    def overslept() -> None:
        shop.before_answer = lambda: None
        shop.desk.now_ms += LEASE_MS
        maintenance.recover(shop.desk.db, shop.desk.now_ms)
        shop.desk.held(worker="worker-b")

    shop.before_answer = overslept
    shop.deliver()
    assert shop.numbers() == [0]
    row = shop.desk.row()
    assert (row["state"], row["worker"], row["attempt"]) == ("pending", "worker-b", 2)


def test_record_that_an_older_attempt_overwrote_is_posted_again(shop: Shop) -> None:
    # The older attempt's POST arrived after ours: Helicone holds its bytes now.
    shop.desk.put(version(), records=2)
    stale = shop.desk.held()
    first = shop.desk.left(stale)[0]
    claims.release(shop.desk.db, stale, due_ms=1_000)

    def late_note() -> None:
        if len(shop.posted) == 2:
            assert not shop.desk.acknowledge(stale, replace(first, body=b"older bytes"))

    shop.before_answer = late_note
    assert shop.deliver() == version().key
    assert shop.facts() == ("pending", 0, None)
    assert shop.desk.row()["kills"] == 0
    shop.before_answer = lambda: None
    shop.deliver()
    assert shop.desk.state() == "delivered"
    assert shop.numbers() == [0, 1, 0]


def test_worker_told_to_stop_begins_nothing(shop: Shop) -> None:
    shop.desk.put(version())
    shop.stopping = lambda: True
    assert shop.deliver() is None
    assert (shop.posted, shop.desk.row()["attempt"]) == ([], 0)


def test_worker_told_to_stop_finishes_its_post_and_gives_the_rest_back(shop: Shop) -> None:
    shop.desk.put(version(), records=3)
    shop.stopping = lambda: bool(shop.posted)
    shop.deliver()
    assert shop.numbers() == [0]
    assert shop.facts() == ("pending", 0, None)
    assert shop.desk.row()["kills"] == 0
    shop.stopping = lambda: False
    shop.deliver()
    assert shop.numbers() == [0, 1, 2]
    assert shop.desk.state() == "delivered"


def test_damaged_record_buries_the_job_and_its_session_goes_on(shop: Shop) -> None:
    shop.desk.put(version("t1"), records=2)
    shop.desk.put(version("t2"))
    shop.desk.db.execute("update record set digest = zeroblob(16) where position = 1")
    assert shop.deliver() == version("t2").key
    assert shop.numbers() == [0]
    assert shop.desk.state(version("t1")) == "dead"
    assert "does not match its checksum" in shop.desk.row(version("t1"))["error"]


def test_ledger_that_cannot_be_written_leaves_the_job_to_its_lease(shop: Shop) -> None:
    shop.desk.put(version())
    shop.before_answer = lambda: shop.desk.db.execute("pragma query_only = on")
    with pytest.raises(sqlite3.OperationalError):
        shop.deliver()
    shop.desk.db.execute("pragma query_only = off")
    assert shop.desk.state() == "pending"
    assert maintenance.recover(shop.desk.db, 1_000 + LEASE_MS) == 1


# --- what is rung next


def test_next_of_the_session_follows(shop: Shop) -> None:
    shop.desk.put(version("t1"))
    shop.desk.put(version("t2"))
    shop.desk.put(version("t1", session="ses_2"))
    assert shop.deliver() == version("t2").key
    assert deliver(shop.desk.db, version("t2").key, shop.courier) is None


def test_ring_for_what_is_done_does_nothing(shop: Shop) -> None:
    shop.desk.put(version())
    shop.deliver()
    shop.posted.clear()
    assert shop.deliver() is None
    assert deliver(shop.desk.db, "0" * 64, shop.courier) is None
    assert shop.posted == []


def test_job_in_backoff_lets_its_successor_pass(shop: Shop) -> None:
    shop.desk.put(version("t1"))
    shop.desk.put(version("t2"))
    assert shop.deliver(outcome("retry")) == version("t2").key
    deliver(shop.desk.db, version("t2").key, shop.courier)
    assert (shop.desk.state(version("t1")), shop.desk.state(version("t2"))) == ("pending", "delivered")


def test_every_kind_of_outcome_is_settled(shop: Shop) -> None:
    # Whatever is added to the kinds later must be settled too.
    kinds: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]  # a Literal's
    for n, kind in enumerate(kinds):
        shop.desk.put(version(session=f"ses_{n}"))
        flow.resume(shop.desk.db, shop.desk.destination)
        shop.deliver(outcome(kind), session=f"ses_{n}")
        assert shop.desk.row(version(session=f"ses_{n}"))["lease_until_ms"] is None, kind


def test_lease_outlasts_the_longest_post() -> None:
    assert 2 * POST_S_MAX * 1000 <= LEASE_MS


def test_a_probe_that_found_nothing_to_post_leaves_the_probe_to_the_next(shop: Shop) -> None:
    shop.desk.put(version())
    shop.deliver(outcome("accepted"))
    # The same records again, as another version: all of them are acknowledged already.
    shop.desk.put(version(content="b", facts_ms=200), text=version().key)
    shop.desk.put(version("t2"))
    shop.desk.pause(probe_ms=shop.desk.now_ms)
    posted = len(shop.posted)
    shop.deliver()
    assert len(shop.posted) == posted
    shop.deliver()
    assert len(shop.posted) == posted + 1
