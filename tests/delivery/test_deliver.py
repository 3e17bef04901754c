from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Barrier
from typing import Literal

import pytest

from app.database.connection import PATIENT_MS, THREAD_LOCK_S
from app.delivery.backoff import RetryPolicy
from app.delivery.deliver import LEASE_MS, UNNOTED_MAX, UNNOTED_MS_MAX, Answered, DeliveryContext, deliver
from app.delivery.sender import POST_S_MAX
from app.exporters.outcome import Kind, Outcome
from app.ledger import claims, destinations, flow, maintenance, pruning
from app.ledger.destinations import Destination
from app.ledger.job import Body
from app.privacy.policy import Post
from tests.support.ledger_bench import LedgerBench, accepted, version

MAX_RETRIES = 3
BASE_MS = 1_000
CAP_MS = 60_000


def outcome(kind: Kind, retry_after_ms: int | None = None) -> Outcome:
    """Whatever `wait` stands for here, no answer came."""
    return Outcome(kind, f"it was {kind}", None if kind == "wait" else 500, retry_after_ms)


@dataclass
class FakeDestination:
    """A bench and a context whose answers are written down beforehand; unwritten ones are `accepted`."""

    bench: LedgerBench
    answers: list[Outcome] = field(default_factory=list)
    posted: list[Body] = field(default_factory=list)
    dice: float = 1.0
    stopping: Callable[[], bool] = lambda: False
    neighbours: int = 0
    before_answer: Callable[[], object] = lambda: None
    """Happens while a POST is under way."""
    refused: set[int] | None = None
    """Which records the answers are for; None: whichever is posted next."""
    at_once: int = 1
    beside: int = 0
    """Records that were posted in another thread."""

    def post(self, _: object, body: Body) -> Outcome:
        self.posted.append(body)
        is_next = self.refused is None or int(body.body.split()[2]) in self.refused
        answer = self.answers.pop(0) if self.answers and is_next else outcome("accepted")
        self.before_answer()
        return answer

    @property
    def context(self) -> DeliveryContext:
        return DeliveryContext(
            destination_id=self.bench.destination,
            worker="worker-a",
            policy=RetryPolicy(max_retries=MAX_RETRIES, base_ms=BASE_MS, cap_ms=CAP_MS),
            permit=lambda _: Post(),
            post=self.post,
            clock=lambda: self.bench.now_ms,
            dice=lambda: self.dice,
            stopping=self.stopping,
            at_once=lambda: self.at_once,
            beside=self.post_beside,
        )

    def post_beside(self, post: Callable[[], Answered]) -> Future[Answered]:
        """Of which nothing is known before all are under way."""
        self.beside += 1
        return ThreadPoolExecutor(1).submit(post)

    def deliver(self, *answers: Outcome, session: str = "ses_1") -> str | None:
        self.answers = list(answers)
        return deliver(self.bench.db, version(session=session).key, self.context)

    def neighbour_passes(self) -> None:
        """A job of another session is delivered: the destination is there."""
        self.neighbours += 1
        other = version(f"t{self.neighbours}", session="ses_neighbour")
        self.bench.put(other)
        assert deliver(self.bench.db, other.key, self.context) is None
        assert self.bench.state(other) == "delivered"

    def neighbour_waits(self) -> None:
        """A job of another session waits, and is not due."""
        other = version(session="ses_waiting")
        self.bench.put(other)
        self.bench.db.execute("update job set due_ms = 1 << 50 where key = ?", (other.key,))

    @property
    def destination(self) -> Destination:
        return destinations.by_id(self.bench.db, self.bench.destination)

    def numbers(self) -> list[int]:
        """Which records were posted, in order."""
        return [int(body.body.split()[2]) for body in self.posted]

    def facts(self) -> tuple[object, ...]:
        row = self.bench.row()
        return row["state"], row["failures"], row["lease_until_ms"]


@pytest.fixture
def fake(bench: LedgerBench) -> FakeDestination:
    return FakeDestination(bench)


Where = Literal["first", "middle", "last"]
AT: dict[Where, int] = {"first": 0, "middle": 1, "last": 2}


# --- each answer, at each record


def test_all_records_are_posted_in_order_and_the_job_is_delivered(fake: FakeDestination) -> None:
    fake.bench.put(version(), records=3)
    assert fake.deliver() is None
    assert fake.numbers() == [0, 1, 2]
    assert fake.facts() == ("delivered", 0, None)
    assert not fake.destination.pause_reason


@pytest.mark.parametrize("where", AT)
def test_failed_job_waits_out_its_backoff_and_goes_on_where_it_was(fake: FakeDestination, where: Where) -> None:
    fake.bench.put(version(), records=3)
    fake.deliver(*[outcome("accepted")] * AT[where], outcome("retry"))
    row = fake.bench.row()
    assert (row["state"], row["setbacks"], row["lease_until_ms"]) == ("pending", 1, None)
    assert (row["due_ms"], row["error"]) == (1_000 + BASE_MS, "it was retry")
    assert fake.destination.pause_reason is None
    fake.bench.now_ms += BASE_MS
    fake.posted.clear()
    fake.deliver()
    assert fake.numbers() == [0, 1, 2][AT[where] :]
    assert fake.bench.state() == "delivered"


@pytest.mark.parametrize("kind", ["wait", "refused"])
@pytest.mark.parametrize("where", AT)
def test_wait_and_refused_pause_the_destination_and_charge_nobody(
    fake: FakeDestination, where: Where, kind: Kind
) -> None:
    fake.bench.put(version(), records=3)
    fake.deliver(*[outcome("accepted")] * AT[where], outcome(kind))
    assert fake.facts() == ("pending", 0, None)
    assert (fake.bench.row()["due_ms"], fake.bench.row()["error"]) == (1_000, f"it was {kind}")
    assert (fake.destination.pause_reason, fake.destination.pause_count) == (f"it was {kind}", 1)
    assert fake.destination.probe_ms == 1_000 + BASE_MS
    fake.posted.clear()
    assert fake.deliver() is None
    assert fake.posted == []
    fake.bench.now_ms += BASE_MS
    fake.deliver()
    assert fake.numbers() == [0, 1, 2][AT[where] :]
    assert (fake.bench.state(), fake.destination.pause_reason) == ("delivered", None)


@pytest.mark.parametrize("where", AT)
def test_permanent_is_dead_at_once(fake: FakeDestination, where: Where) -> None:
    fake.bench.put(version(), records=3)
    fake.deliver(*[outcome("accepted")] * AT[where], outcome("permanent"))
    assert fake.bench.state() == "dead"
    assert fake.bench.row()["error"] == "it was permanent"
    assert len(fake.posted) == AT[where] + 1
    assert fake.destination.pause_reason is None


# --- retries


def test_job_that_fails_while_others_pass_is_dead_after_its_retries(fake: FakeDestination) -> None:
    fake.bench.put(version())
    for tries in range(1, MAX_RETRIES + 2):
        assert fake.bench.state() == "pending"
        fake.neighbour_passes()
        fake.posted.clear()
        fake.deliver(outcome("retry"))
        assert len(fake.posted) == 1
        assert fake.destination.health == "fine"
        fake.bench.now_ms = fake.bench.row()["due_ms"] or 0
        assert fake.bench.row()["failures"] == min(tries, MAX_RETRIES)
    assert fake.bench.state() == "dead"
    assert fake.bench.row()["error"] == "it was retry (after 3 retries)"


def test_job_that_fails_while_nobody_passes_is_charged_nothing(fake: FakeDestination) -> None:
    fake.neighbour_waits()
    fake.bench.put(version())
    for _ in range(10 * MAX_RETRIES):
        fake.deliver(outcome("retry"))
        fake.bench.now_ms = fake.bench.row()["due_ms"]
    assert fake.facts() == ("pending", 0, None)


def test_job_without_an_answer_is_charged_nothing_though_others_pass(fake: FakeDestination) -> None:
    fake.bench.put(version())
    for _ in range(10 * MAX_RETRIES):
        fake.neighbour_passes()
        fake.deliver(outcome("wait"))
        fake.bench.now_ms = max(fake.bench.row()["due_ms"], fake.destination.probe_ms or 0)
    assert fake.facts() == ("pending", 0, None)


def test_job_that_never_gets_an_answer_does_not_pause_the_destination_for_its_neighbours(fake: FakeDestination) -> None:
    fake.neighbour_waits()
    fake.bench.put(version())
    for _ in range(5):
        fake.neighbour_passes()
        fake.deliver(outcome("wait"))
        assert fake.destination.health == "fine"
        fake.bench.now_ms = fake.bench.row()["due_ms"]
    # Its own backoff grows meanwhile.
    assert fake.bench.row()["setbacks"] == 5


def test_only_job_that_waits_is_charged_once_its_backoff_is_full(fake: FakeDestination) -> None:
    fake.bench.put(version())
    waits = []
    while fake.bench.state() == "pending":
        fake.deliver(outcome("retry"))
        due_ms = fake.bench.row()["due_ms"]
        if due_ms is not None:
            waits.append(due_ms - fake.bench.now_ms)
            fake.bench.now_ms = due_ms
    assert waits == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, *[CAP_MS] * MAX_RETRIES]
    assert fake.bench.row()["error"] == "it was retry (after 3 retries)"


def test_only_job_that_waits_dies_also_as_a_probe(fake: FakeDestination) -> None:
    fake.bench.put(version())
    fake.deliver(outcome("wait"))
    probes = 0
    while fake.bench.state() == "pending":
        assert fake.destination.health == "down"
        fake.bench.now_ms = fake.destination.probe_ms or 0
        fake.deliver(outcome("retry"))
        probes += 1
    assert probes == 6 + MAX_RETRIES


def test_attempt_that_got_a_record_through_starts_the_count_anew(fake: FakeDestination) -> None:
    fake.bench.put(version(), records=2)
    for _ in range(MAX_RETRIES):
        fake.neighbour_passes()
        fake.deliver(outcome("retry"))
        fake.bench.now_ms = fake.bench.row()["due_ms"]
    fake.deliver(outcome("accepted"), outcome("retry"))
    row = fake.bench.row()
    assert (row["state"], row["setbacks"], row["failures"]) == ("pending", 1, 0)
    assert row["due_ms"] == fake.bench.now_ms + BASE_MS


# --- down: failures of different jobs


@pytest.mark.parametrize("kinds", [("retry", "retry"), ("wait", "wait"), ("retry", "wait"), ("wait", "retry")])
def test_two_jobs_that_fail_in_a_row_mean_that_the_destination_is_down(
    fake: FakeDestination, kinds: tuple[Kind, Kind]
) -> None:
    for session in ("ses_1", "ses_2", "ses_3"):
        fake.bench.put(version(session=session))
    fake.deliver(outcome(kinds[0]), session="ses_1")
    assert fake.destination.health == "fine"
    fake.deliver(outcome(kinds[1]), session="ses_2")
    assert (fake.destination.health, fake.destination.pause_reason) == ("down", f"it was {kinds[1]}")
    assert [fake.bench.row(version(session=f"ses_{n}"))["failures"] for n in (1, 2, 3)] == [0, 0, 0]


def test_a_pass_between_two_failures_clears_the_destination(fake: FakeDestination) -> None:
    for session in ("ses_1", "ses_2"):
        fake.bench.put(version(session=session))
    fake.deliver(outcome("retry"), session="ses_1")
    fake.neighbour_passes()
    fake.deliver(outcome("retry"), session="ses_2")
    assert fake.destination.health == "fine"


def test_rate_limit_pauses_at_once(fake: FakeDestination) -> None:
    fake.neighbour_waits()
    fake.bench.put(version())
    fake.deliver(Outcome("wait", "429: empty body", 429, 20_000))
    assert (fake.destination.health, fake.destination.probe_ms) == ("down", 21_000)
    assert fake.facts() == ("pending", 0, None)


def test_outage_with_answers_kills_nobody_however_long(fake: FakeDestination) -> None:
    for n in range(5):
        fake.neighbour_passes()
        fake.bench.put(version(session=f"ses_{n}"))
    for _ in range(200):
        for n in range(5):
            fake.deliver(outcome("retry"), session=f"ses_{n}")
        fake.bench.now_ms = fake.destination.probe_ms or fake.bench.now_ms + BASE_MS
    states = {
        (row["state"], row["failures"])
        for row in fake.bench.db.execute("select state, failures from job where state <> 'delivered'")
    }
    assert {state for state, _ in states} == {"pending"}
    assert max(failures for _, failures in states) <= 1, "the first, of which nobody knew yet what it meant"


@pytest.mark.parametrize("kind", ["wait", "retry"])
def test_one_bad_record_at_the_head_of_the_only_session_does_not_stop_the_others(
    fake: FakeDestination, kind: Kind
) -> None:
    for turn in range(8):
        fake.bench.put(version(f"t{turn}"))
    fake.bench.pause(probe_ms=fake.bench.now_ms)  # it met an outage, too

    def post(_: object, body: Body) -> Outcome:
        return outcome(kind if b" t0 " in body.body else "accepted")

    context = replace(fake.context, post=post)
    for _ in range(60):
        following: str | None = version("t0").key
        while following is not None:
            following = deliver(fake.bench.db, following, context)
        fake.bench.now_ms += BASE_MS
    assert {fake.bench.state(version(f"t{turn}")) for turn in range(1, 8)} == {"delivered"}


def test_after_an_outage_no_turn_but_that_of_the_probe_goes_before_an_older_one(fake: FakeDestination) -> None:
    for turn in range(5):
        fake.bench.put(version(f"t{turn}"))
    fake.bench.pause(probe_ms=fake.bench.now_ms)
    for _ in range(203):
        fake.bench.now_ms = fake.destination.probe_ms or 0
        fake.deliver(outcome("wait"))
    fake.bench.now_ms = fake.destination.probe_ms or 0
    fake.posted.clear()
    following: str | None = version("t0").key
    while following is not None:
        following = deliver(fake.bench.db, following, fake.context)
    turns = [body.body.split()[1] for body in fake.posted]
    # Of those that were asked about in vain it is the next one's turn.
    assert turns == [b"t1", b"t0", b"t2", b"t3", b"t4"]


def test_a_poison_beside_jobs_that_must_not_be_sent_is_alone(fake: FakeDestination) -> None:
    fake.bench.put(version(session="ses_held"))
    fake.bench.db.execute("update job set due_ms = 1 << 50, hold_reason = 'off'")
    fake.bench.put(version())
    for _ in range(7 + MAX_RETRIES):
        fake.deliver(outcome("retry"))
        fake.bench.now_ms = fake.bench.row()["due_ms"] or 0
    assert fake.bench.state() == "dead"


@pytest.mark.slow
def test_poison_dies_while_its_neighbours_flow_also_after_an_outage(fake: FakeDestination) -> None:
    poison = version(session="ses_poison")
    sessions = [f"ses_{n}" for n in range(30)]
    for session in ("ses_poison", *sessions):
        fake.bench.put(version(session=session))

    def post(_: object, body: Body) -> Outcome:
        return outcome("retry" if body.body.startswith(b"ses_poison") else "accepted")

    context = replace(fake.context, post=post)
    fake.bench.pause(probe_ms=fake.bench.now_ms)
    for _ in range(200):
        for session in ("ses_poison", *sessions):
            deliver(fake.bench.db, version(session=session).key, context)
            if len(sessions) > 10 and fake.bench.state(version(session=sessions[-1])) == "delivered":
                sessions.append(f"ses_{len(sessions)}")
                fake.bench.put(version(session=sessions[-1]))
        fake.bench.now_ms += BASE_MS
    assert fake.bench.state(poison) == "dead"
    assert {fake.bench.state(version(session=session)) for session in sessions[:-1]} == {"delivered"}


def test_backoff_doubles_with_each_failure_and_is_diced(fake: FakeDestination) -> None:
    fake.bench.put(version())
    fake.dice = 0.5
    waits = []
    for _ in range(MAX_RETRIES):
        fake.deliver(outcome("retry"))
        waits.append(fake.bench.row()["due_ms"] - fake.bench.now_ms)
        fake.bench.now_ms = fake.bench.row()["due_ms"]
    assert waits == [500, 1_000, 2_000]


@pytest.mark.parametrize(("asked_ms", "waited_ms"), [(20_000, 20_000), (10, BASE_MS)], ids=["longer", "shorter"])
def test_retry_after_is_honoured_when_it_is_longer_than_the_backoff(
    fake: FakeDestination, asked_ms: int, waited_ms: int
) -> None:
    fake.bench.put(version())
    fake.deliver(outcome("retry", asked_ms))
    assert fake.bench.row()["due_ms"] == 1_000 + waited_ms


def test_retry_after_of_the_destination_delays_its_probe(fake: FakeDestination) -> None:
    fake.bench.put(version())
    fake.deliver(outcome("wait", 20_000))
    assert fake.destination.probe_ms == 21_000
    assert fake.bench.row()["due_ms"] == 1_000


# --- pause and probe


def test_pause_grows_with_each_failed_probe_up_to_its_bound(fake: FakeDestination) -> None:
    fake.bench.put(version())
    pauses = []
    for _ in range(12):
        fake.deliver(outcome("wait"))
        assert fake.destination.probe_ms is not None
        pauses.append(fake.destination.probe_ms - fake.bench.now_ms)
        fake.bench.now_ms = fake.destination.probe_ms
    assert pauses[:4] == [1_000, 2_000, 4_000, 8_000]
    assert pauses[-1] == CAP_MS
    assert fake.facts() == ("pending", 0, None)


def test_jobs_that_fail_together_are_one_failure_of_the_destination(fake: FakeDestination) -> None:
    # A dozen POSTs are in flight when the other side goes away: the first probe comes soon all the same.
    sessions = [f"ses_{n}" for n in range(12)]
    for session in sessions:
        fake.bench.put(version(session=session))
    first = sessions.pop()

    def others_fail_too() -> None:
        if sessions:
            fake.deliver(outcome("wait"), session=sessions.pop())

    fake.before_answer = others_fail_too
    fake.deliver(outcome("wait"), session=first)
    assert (len(fake.posted), fake.destination.pause_count) == (12, 1)
    fake.before_answer = lambda: None
    assert fake.destination.probe_ms is not None
    fake.bench.now_ms = fake.destination.probe_ms
    fake.deliver(outcome("wait"))
    assert (fake.destination.pause_count, fake.destination.probe_ms) == (2, fake.bench.now_ms + 2 * BASE_MS)


def test_one_probe_at_a_time(fake: FakeDestination) -> None:
    for session in ("ses_1", "ses_2"):
        fake.bench.put(version(session=session))
    fake.bench.pause(probe_ms=1_000)

    def others_try() -> None:
        fake.before_answer = lambda: None
        deliver(fake.bench.db, version(session="ses_2").key, fake.context)

    fake.before_answer = others_try
    fake.deliver(outcome("wait"))
    assert len(fake.posted) == 1


def test_probe_that_is_refused_for_good_ends_the_pause(fake: FakeDestination) -> None:
    fake.bench.put(version())
    fake.deliver(outcome("wait"))
    fake.bench.now_ms = 5_000
    fake.deliver(outcome("permanent"))
    assert (fake.destination.health, fake.destination.pause_reason, fake.destination.pause_count) == ("fine", None, 0)


def test_probe_answered_with_a_5xx_leaves_it_to_another_job_to_show_that_all_is_well(fake: FakeDestination) -> None:
    for session in ("ses_1", "ses_2"):
        fake.bench.put(version(session=session))
    fake.bench.pause(probe_ms=1_000)
    fake.bench.now_ms = 1_001
    fake.deliver(outcome("retry"))
    assert (fake.destination.health, fake.destination.pause_count) == ("down", 2)
    fake.bench.now_ms = fake.destination.probe_ms or 0
    fake.deliver(session="ses_1")
    assert fake.bench.state(version(session="ses_2")) == "delivered", "whichever key was woken, it was its turn"
    assert fake.destination.health == "fine"


def test_probe_that_got_a_record_through_and_then_failed_is_a_first_failure(fake: FakeDestination) -> None:
    fake.bench.put(version(), records=2)
    for _ in range(5):
        fake.deliver(outcome("wait"))
        assert fake.destination.probe_ms is not None
        fake.bench.now_ms = fake.destination.probe_ms
    fake.deliver(outcome("accepted"), outcome("wait"))
    assert fake.destination.pause_count == 1
    assert fake.destination.probe_ms == fake.bench.now_ms + BASE_MS


def test_probe_now_lets_the_next_one_through_at_once(fake: FakeDestination) -> None:
    fake.bench.put(version())
    fake.deliver(outcome("refused"))
    assert flow.probe_now(fake.bench.db, fake.bench.destination, 1_000)
    fake.deliver()
    assert fake.bench.state() == "delivered"


# --- what happens meanwhile


def test_job_superseded_between_records_stops_and_the_newer_one_follows(fake: FakeDestination) -> None:
    old, new = version(content="a"), version(content="b", last_event_ms=200)
    fake.bench.put(old, records=3)

    def supersede() -> None:
        fake.before_answer = lambda: None
        fake.bench.put(new, records=3)

    fake.before_answer = supersede
    assert fake.deliver() == new.key
    assert len(fake.posted) == 1
    assert (fake.bench.state(old), fake.bench.row(old)["lease_until_ms"]) == ("superseded", None)
    assert deliver(fake.bench.db, new.key, fake.context) is None
    assert fake.bench.state(new) == "delivered"


def test_job_superseded_before_its_first_post_is_not_posted(fake: FakeDestination) -> None:
    old, new = version(content="a"), version(content="b", last_event_ms=200)
    fake.bench.put(old)

    def claimed_and_superseded() -> bool:
        if fake.bench.row(old)["attempt"]:
            fake.bench.put(new)
        return False

    fake.stopping = claimed_and_superseded
    assert fake.deliver() == new.key
    assert fake.posted == []
    assert (fake.bench.state(old), fake.bench.row(old)["lease_until_ms"]) == ("superseded", None)


@pytest.mark.parametrize("kind", ["retry", "wait", "refused", "permanent"])
def test_job_superseded_while_its_post_fails_lets_go_of_its_lease(fake: FakeDestination, kind: Kind) -> None:
    old, new = version(content="a"), version(content="b", last_event_ms=200)
    fake.bench.put(old)
    fake.before_answer = lambda: fake.bench.put(new)
    fake.deliver(outcome(kind))
    assert (fake.bench.state(old), fake.bench.row(old)["lease_until_ms"]) == ("superseded", None)
    assert fake.bench.state(new) == "pending"


def test_session_deleted_meanwhile_stops_its_job(fake: FakeDestination) -> None:
    fake.bench.put(version(), records=3)
    fake.before_answer = lambda: pruning.drop_session(fake.bench.db, fake.bench.destination, "ses_1", 1_000)
    assert fake.deliver() is None
    assert len(fake.posted) == 1
    assert (fake.bench.state(), fake.bench.row()["lease_until_ms"]) == ("dropped (deleted)", None)


def test_version_that_came_back_meanwhile_is_finished_by_the_next_attempt(fake: FakeDestination) -> None:
    first, second = version(content="a"), version(content="b")
    fake.bench.put(first, records=2)

    def there_and_back() -> None:
        fake.before_answer = lambda: None
        fake.bench.put(second, records=2)
        fake.bench.put(first, records=2)

    fake.before_answer = there_and_back
    assert fake.deliver() == first.key
    assert (fake.bench.state(first), fake.bench.row(first)["lease_until_ms"]) == ("pending", None)
    fake.deliver()
    assert fake.bench.state(first) == "delivered"
    assert fake.numbers() == [0, 1]


def test_job_taken_over_after_its_lease_ran_out_is_left_to_the_other(fake: FakeDestination) -> None:
    fake.bench.put(version(), records=2)

    def overslept() -> None:
        fake.before_answer = lambda: None
        fake.bench.now_ms += LEASE_MS
        maintenance.recover(fake.bench.db, fake.bench.now_ms)
        fake.bench.claimed(worker="worker-b")

    fake.before_answer = overslept
    fake.deliver()
    assert fake.numbers() == [0]
    row = fake.bench.row()
    assert (row["state"], row["worker"], row["attempt"]) == ("pending", "worker-b", 2)


def test_record_that_an_older_attempt_overwrote_is_posted_again(fake: FakeDestination) -> None:
    # The older attempt's POST arrived after ours: Helicone holds its bytes now.
    fake.bench.put(version(), records=2)
    stale = fake.bench.claimed()
    first = fake.bench.left(stale)[0]
    claims.release(fake.bench.db, stale, due_ms=1_000)

    def late_note() -> None:
        if len(fake.posted) == 2:
            assert not fake.bench.acknowledge(stale, replace(first, body=b"older bytes"))

    fake.before_answer = late_note
    assert fake.deliver() == version().key
    assert fake.facts() == ("pending", 0, None)
    assert fake.bench.row()["kills"] == 0
    fake.before_answer = lambda: None
    fake.deliver()
    assert fake.bench.state() == "delivered"
    assert fake.numbers() == [0, 1, 0]


def acknowledged(fake: FakeDestination) -> int:
    return int(fake.bench.db.execute("select count(*) from acknowledgement").fetchone()[0])


def test_what_was_accepted_is_noted_after_so_many_and_with_the_end(fake: FakeDestination) -> None:
    fake.bench.put(version(), records=UNNOTED_MAX + 3)
    noted = []
    fake.before_answer = lambda: noted.append(acknowledged(fake))
    fake.deliver()
    assert noted == [0] * UNNOTED_MAX + [UNNOTED_MAX] * 3
    assert (fake.bench.state(), acknowledged(fake)) == ("delivered", UNNOTED_MAX + 3)


@pytest.mark.parametrize("took_ms", [1, UNNOTED_MS_MAX // 2, UNNOTED_MS_MAX, int(POST_S_MAX * 1000)])
def test_the_lease_outlasts_each_post_and_the_wait_for_a_locked_ledger_after_it(
    fake: FakeDestination, took_ms: int
) -> None:
    fake.bench.put(version(), records=6)
    left_ms = []

    def passes() -> None:
        left_ms.append(fake.bench.row()["lease_until_ms"] - fake.bench.now_ms)
        fake.bench.now_ms += took_ms

    fake.before_answer = passes
    fake.deliver()
    assert fake.bench.state() == "delivered"
    assert min(left_ms) > POST_S_MAX * 1000 + THREAD_LOCK_S * 1000 + PATIENT_MS


def test_what_was_accepted_is_noted_when_the_next_is_not(fake: FakeDestination) -> None:
    fake.bench.put(version(), records=3)
    fake.deliver(outcome("accepted"), outcome("accepted"), outcome("retry"))
    assert acknowledged(fake) == 2
    assert (fake.bench.row()["setbacks"], fake.bench.row()["failures"]) == (1, 0)


def test_late_note_of_a_worker_that_hung_does_not_stand_against_what_was_posted_since(fake: FakeDestination) -> None:
    # It posted the older bytes, hung before it noted that, and wakes when the newer ones are delivered.
    fake.bench.put(version(content="old"), text="old")
    stale = fake.bench.claimed(version(content="old"))
    [body] = fake.bench.left(stale)
    taken = accepted(fake.bench.db, stale, body, fake.bench.now_ms)
    fake.bench.put(version(content="new", last_event_ms=200), text="new")
    fake.bench.db.execute("update job set lease_until_ms = null, worker = null")
    fake.deliver(session="ses_1")
    new = version(content="new", last_event_ms=200)
    deliver(fake.bench.db, new.key, fake.context)
    assert fake.bench.state(new) == "delivered"
    assert not claims.acknowledge(fake.bench.db, stale, [taken], now_ms=fake.bench.now_ms, lease_ms=LEASE_MS)
    # Which of the two Helicone holds nobody knows: whatever comes next is posted.
    assert acknowledged(fake) == 0


# --- several at once


def test_records_of_a_job_are_under_way_at_once_as_far_as_is_said(fake: FakeDestination) -> None:
    fake.at_once = 4
    fake.bench.put(version(), records=6)
    together = Barrier(4)
    fake.before_answer = lambda: len(fake.posted) <= 4 and together.wait(60)
    fake.deliver()
    assert fake.bench.state() == "delivered"
    assert sorted(fake.numbers()) == list(range(6))
    assert fake.beside == 5


@pytest.mark.parametrize("kind", ["retry", "wait", "permanent"])
def test_of_those_under_way_what_was_accepted_counts_and_one_failure_does(fake: FakeDestination, kind: Kind) -> None:
    fake.at_once = 4
    fake.bench.put(version(), records=4)
    fake.neighbour_waits()
    fake.refused = {1, 2}
    fake.deliver(*[outcome(kind)] * 2)
    assert sorted(fake.numbers()) == [0, 1, 2, 3]
    assert acknowledged(fake) == 2
    assert fake.bench.row()["attempt"] == 1
    if kind == "retry":
        assert (fake.bench.row()["setbacks"], fake.bench.row()["failures"]) == (1, 0)


def test_a_probe_asks_with_one_record_alone(fake: FakeDestination) -> None:
    fake.at_once = 4
    fake.bench.put(version(), records=4)
    fake.bench.pause(probe_ms=fake.bench.now_ms)
    fake.deliver(outcome("wait"))
    assert (fake.numbers(), fake.beside) == ([0], 0)


def test_what_is_under_way_is_heard_when_the_job_is_superseded_or_the_worker_stops(fake: FakeDestination) -> None:
    fake.at_once = 4
    fake.bench.put(version(), records=3)
    stops = iter([False, False, False, True])
    fake.stopping = lambda: next(stops)
    fake.deliver()
    assert sorted(fake.numbers()) == [0, 1]
    assert acknowledged(fake) == 2
    assert fake.facts() == ("pending", 0, None)


def test_worker_told_to_stop_begins_nothing(fake: FakeDestination) -> None:
    fake.bench.put(version())
    fake.stopping = lambda: True
    assert fake.deliver() is None
    assert (fake.posted, fake.bench.row()["attempt"]) == ([], 0)


def test_worker_told_to_stop_finishes_its_post_and_gives_the_rest_back(fake: FakeDestination) -> None:
    fake.bench.put(version(), records=3)
    fake.stopping = lambda: bool(fake.posted)
    fake.deliver()
    assert fake.numbers() == [0]
    assert fake.facts() == ("pending", 0, None)
    assert fake.bench.row()["kills"] == 0
    fake.stopping = lambda: False
    fake.deliver()
    assert fake.numbers() == [0, 1, 2]
    assert fake.bench.state() == "delivered"


def test_damaged_record_buries_the_job_and_its_session_goes_on(fake: FakeDestination) -> None:
    fake.bench.put(version("t1"), records=2)
    fake.bench.put(version("t2"))
    fake.bench.db.execute("update record set digest = ? where position = 1", (bytes(16),))
    assert fake.deliver() == version("t2").key
    assert fake.numbers() == [0]
    assert fake.bench.state(version("t1")) == "dead"
    assert "does not match its checksum" in fake.bench.row(version("t1"))["error"]


@pytest.mark.sqlite  # by its pragma
def test_ledger_that_cannot_be_written_leaves_the_job_to_its_lease(fake: FakeDestination) -> None:
    fake.bench.put(version())
    fake.before_answer = lambda: fake.bench.db.execute("pragma query_only = on")
    with pytest.raises(sqlite3.OperationalError):
        fake.deliver()
    fake.bench.db.execute("pragma query_only = off")
    assert fake.bench.state() == "pending"
    assert maintenance.recover(fake.bench.db, 1_000 + LEASE_MS) == 1


# --- what is woken next


def test_next_of_the_session_follows(fake: FakeDestination) -> None:
    fake.bench.put(version("t1"))
    fake.bench.put(version("t2"))
    fake.bench.put(version("t1", session="ses_2"))
    assert fake.deliver() == version("t2").key
    assert deliver(fake.bench.db, version("t2").key, fake.context) is None


def test_ring_for_what_is_done_does_nothing(fake: FakeDestination) -> None:
    fake.bench.put(version())
    fake.deliver()
    fake.posted.clear()
    assert fake.deliver() is None
    assert deliver(fake.bench.db, "0" * 64, fake.context) is None
    assert fake.posted == []


def test_job_in_backoff_lets_its_successor_pass(fake: FakeDestination) -> None:
    fake.bench.put(version("t1"))
    fake.bench.put(version("t2"))
    assert fake.deliver(outcome("retry")) == version("t2").key
    deliver(fake.bench.db, version("t2").key, fake.context)
    assert (fake.bench.state(version("t1")), fake.bench.state(version("t2"))) == ("pending", "delivered")


def test_every_kind_of_outcome_is_settled(fake: FakeDestination) -> None:
    # Whatever is added to the kinds later must be settled too.
    kinds: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]  # a Literal's
    for n, kind in enumerate(kinds):
        fake.bench.put(version(session=f"ses_{n}"))
        flow.resume(fake.bench.db, fake.bench.destination)
        fake.deliver(outcome(kind), session=f"ses_{n}")
        assert fake.bench.row(version(session=f"ses_{n}"))["lease_until_ms"] is None, kind


def test_lease_outlasts_the_longest_post() -> None:
    assert 2 * POST_S_MAX * 1000 <= LEASE_MS


def test_a_probe_that_found_nothing_to_post_leaves_the_probe_to_the_next(fake: FakeDestination) -> None:
    fake.bench.put(version())
    fake.deliver(outcome("accepted"))
    # The same records again, as another version: all of them are acknowledged already.
    fake.bench.put(version(content="b", last_event_ms=200), text=version().key)
    fake.bench.put(version("t2"))
    fake.bench.pause(probe_ms=fake.bench.now_ms)
    posted = len(fake.posted)
    fake.deliver()
    assert len(fake.posted) == posted
    fake.deliver()
    assert len(fake.posted) == posted + 1
