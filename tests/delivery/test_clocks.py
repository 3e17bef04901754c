"""Clocks that are set, machines that sleep, leases that run out: on the clock of `outage`, and one real worker."""

from __future__ import annotations

import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import NAMESPACE_OID, UUID, uuid5

import pytest

from app.delivery import confirm
from app.delivery.confirm import Allowance
from app.delivery.deliver import LEASE_MS, DeliveryContext
from app.exporters.kinds import traits_of
from app.exporters.outcome import Outcome
from app.ledger import claims, confirmations, flow, job, maintenance, policy_enforcement, readback
from app.ledger.incidents import SLEEP_MS
from app.ledger.job import Body, Claim, FailedAttempt
from app.ledger.maintenance import KILLS_MAX, UNSEEN_MS
from app.operations.doctor import examine
from app.operations.status import Status, read_status
from app.runtime import clock
from app.runtime.clock import Reading, jump_ms
from app.settings.lookup import Sources
from app.worker import Worker
from tests.stress.outage import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    POST_MS,
    SECOND_MS,
    Coming,
    Machine,
    Receiver,
    World,
    accepted,
    live,
    unreached,
)
from tests.support.ledger_bench import LedgerBench, version

AHEAD = "the clock jumped ahead, or the machine slept"
BACK = "the clock was set back"
LOOKS_MAX = 2_000
"""In one test; so many would be a busy loop."""


class ConfirmingMachine(Machine):
    """A machine that confirms what it delivers, and notes in which order it arrived."""

    def __init__(self, spool: Path, world: World) -> None:
        self.arrived: dict[str, list[str]] = defaultdict(list)
        self.sent: list[str] = []
        self.hanging: str | None = None
        """The session whose POSTs hang, longer than any lease."""
        self.looks = 0
        super().__init__(spool, world, seed=1)

    @property
    def disordered(self) -> int:
        """Sessions of which a turn came before an older one: after an outage that of the probe may."""
        return sum(turns != sorted(turns) for turns in self.arrived.values())

    def bring(self, session: str, turn: str = "t1") -> None:
        name = f"{session} {turn}"
        self.capture(session, turn, [Body(uuid5(NAMESPACE_OID, name), name.encode())])

    def context(self, db: sqlite3.Connection) -> DeliveryContext:
        when_to_confirm = lambda: self.world.now_ms + MINUTE_MS  # noqa: E731 - as the context has them
        return replace(super().context(db), post=self.post, when_to_confirm=when_to_confirm)

    def post(self, claim: Claim, body: Body) -> Outcome:
        session, turn = body.body.decode().split()
        self.sent.append(session)
        self.world.post_ms = HOUR_MS if session == self.hanging else POST_MS
        outcome = self.world.post(claim, body)
        if outcome.kind == "accepted" and turn not in self.arrived[session]:
            self.arrived[session].append(turn)
        return outcome

    def look(self) -> None:
        self.looks += 1
        assert self.looks < LOOKS_MAX, "a busy loop"
        super().look()
        now_ms = self.world.now_ms
        allowance = Allowance(600, 600, now_ms)
        confirm.confirm(
            self.db,
            self.destination.id,
            found,
            now_ms,
            traits=traits_of("helicone"),
            allowance=allowance,
            dice=self.dice.random,
        )

    def next_look_ms(self) -> int:
        (confirm_ms,) = self.db.execute("select min(confirm_ms) from job").fetchone()
        return min(super().next_look_ms(), confirm_ms or super().next_look_ms())

    def row(self, session: str) -> sqlite3.Row:
        sql = "select j.* from job j join session s on s.id = j.session_id where s.name = ? order by j.id"
        row = self.db.execute(sql, (session,)).fetchone()
        assert isinstance(row, sqlite3.Row)
        return row

    def claim(self, session: str) -> job.Claim:
        claimed = claims.claim(
            self.db,
            self.destination.id,
            self.row(session)["key"],
            worker="worker",
            now_ms=self.world.now_ms,
            lease_ms=LEASE_MS,
        )
        assert claimed is not None
        return claimed

    def unsettled(self) -> list[tuple[str, str]]:
        """(session, state) of what is not delivered and confirmed."""
        rows = self.db.execute(
            "select s.name, j.state from job j join session s on s.id = j.session_id"
            " where j.state <> 'delivered' or j.confirm_ms is not null order by s.name"
        ).fetchall()
        return [tuple(row) for row in rows]

    def sources(self) -> Sources:
        environ = {"OPENCODE_HELICONE_SPOOL_DIRECTORY": str(self.spool), "HOME": str(self.spool.parent)}
        return Sources(environ, self.spool.parent, self.spool.parent)

    def status(self) -> Status:
        return read_status(self.sources().load(), self.world.now_ms)

    def noted(self) -> set[str]:
        """What `status` and `doctor` tell, who must tell the same."""
        noted = {one.what for one in self.status().incidents}
        findings = examine(self.sources(), self.spool.parent, self.world.now_ms)
        found = {one.found.partition(": ")[2] for one in findings if one.check == "incident"}
        assert found == noted
        return noted


def found(_: int, request_ids: Sequence[UUID]) -> Mapping[UUID, bool]:
    return dict.fromkeys(request_ids, True)


@pytest.fixture
def machine(tmp_path: Path, migrated: Path) -> Iterator[ConfirmingMachine]:
    shutil.copytree(migrated, tmp_path / "spool")
    with closing(ConfirmingMachine(tmp_path / "spool", World(Receiver()))) as patient:
        yield patient


def later(machine: ConfirmingMachine, ms: int) -> None:
    live(machine.world, [machine], machine.world.now_ms + ms, Coming())


def in_every_situation(machine: ConfirmingMachine, *, is_away: bool) -> None:
    """Jobs that are to be confirmed, dead, held, in backoff, leased and due; while `is_away` also the probe of a pause.

    Of those that are leased and due there are three in a session.
    """
    world, now_ms = machine.world, machine.world.now_ms
    for session in ("confirmed", "dead", "held", "backoff"):
        machine.bring(session)
    claims.dead_letter(machine.db, machine.claim("dead"), FailedAttempt(now_ms, "400: error", 400))
    policy_enforcement.hold(machine.db, machine.claim("held"), due_ms=now_ms + HOUR_MS, reason="off")
    backoff = machine.claim("backoff")
    failed = FailedAttempt(now_ms, "500: error", 500)
    claims.retry_later(machine.db, backoff, failed, delay_ms=4 * MINUTE_MS, is_charged=True)
    later(machine, SECOND_MS)
    assert machine.row("confirmed")["confirm_ms"] is not None
    if is_away:
        world.receiver.answer = unreached
        machine.bring("first")
        machine.bring("second")
        later(machine, 10 * SECOND_MS)
        flow.probe_now(machine.db, machine.destination.id, world.now_ms)
    for session in ("leased", "due"):
        for turn in ("t1", "t2", "t3"):
            machine.bring(session, turn)
        if session == "leased":
            machine.look()
    assert world.receiver.in_flight == 1
    assert machine.row("due")["lease_until_ms"] is None


@pytest.mark.parametrize("is_away", [False, True], ids=["calm", "outage"])
@pytest.mark.parametrize("comes_back", [True, False], ids=["and back", "for good"])
@pytest.mark.parametrize("days", [1, -1, 30, -30])
def test_a_clock_that_is_set_loses_kills_and_delays_nothing_and_is_told_of(
    machine: ConfirmingMachine, *, days: int, comes_back: bool, is_away: bool
) -> None:
    in_every_situation(machine, is_away=is_away)
    requests = machine.world.receiver.requests
    machine.world.set_clock(days * DAY_MS)
    later(machine, 30 * MINUTE_MS)
    if comes_back:
        machine.world.set_clock(-days * DAY_MS)
        later(machine, 10 * MINUTE_MS)
    if is_away:
        assert machine.world.receiver.requests - requests < 60
        machine.world.receiver.answer = accepted
    # The longest pause of a destination, and as long as it takes until what came last is read back.
    later(machine, 10 * MINUTE_MS)
    left = {session for session, _ in machine.unsettled()} - {"held"}
    assert left == {"dead"}
    later(machine, HOUR_MS)
    assert machine.unsettled() == [("dead", "dead")]
    assert [sorted(machine.arrived[session]) for session in ("leased", "due")] == [["t1", "t2", "t3"]] * 2
    assert machine.disordered <= is_away
    status = machine.status()
    assert (status.jobs.dead, status.jobs.dropped) == (1, 0)
    assert sum(one.confirmation.given_up for one in status.destinations) == 0
    assert machine.db.execute("select sum(kills) from job").fetchone()[0] == 0
    assert machine.noted() == ({AHEAD, BACK} if comes_back else {AHEAD} if days > 0 else {BACK})


def test_what_a_clock_set_ahead_for_good_makes_too_old_is_dropped_after_an_hour_and_visibly(
    machine: ConfirmingMachine,
) -> None:
    # The clock may be right now, and have been wrong before: nobody can tell, so age counts in the end.
    machine.world.receiver.answer = unreached
    machine.bring("old", "t1")
    machine.bring("older")
    later(machine, MINUTE_MS)
    machine.world.set_clock(30 * DAY_MS)
    later(machine, MINUTE_MS)
    machine.bring("new")
    later(machine, 55 * MINUTE_MS)
    assert machine.status().jobs.dropped == 0
    later(machine, 10 * MINUTE_MS)
    assert machine.status().dropped_by_reason == {"age": 2}
    findings = [one for one in examine(machine.sources(), machine.spool, machine.world.now_ms) if one.level != "ok"]
    assert "2 dropped: age" in [one.found for one in findings]
    machine.world.receiver.answer = accepted
    later(machine, 10 * MINUTE_MS)
    assert {session for session, _ in machine.unsettled()} == {"old", "older"}
    assert machine.arrived == {"new": ["t1"]}


@pytest.mark.parametrize("down_ms", [MINUTE_MS, 50 * MINUTE_MS])
def test_a_machine_that_slept_for_ten_days_in_the_middle_of_posts_loses_and_kills_nothing(
    machine: ConfirmingMachine, down_ms: int
) -> None:
    machine.bring("confirmed")
    later(machine, SECOND_MS)
    for session in ("ses_1", "ses_2", "ses_3"):
        machine.bring(session, "t1")
        machine.bring(session, "t2")
    machine.look()
    assert machine.world.receiver.in_flight == 3
    machine.world.sleep(10 * DAY_MS)
    machine.world.receiver.answer = unreached
    machine.look()
    assert machine.row("ses_1")["kills"] == 0
    later(machine, down_ms)
    assert machine.status().jobs.pending == 6
    machine.world.receiver.answer = accepted
    later(machine, 10 * MINUTE_MS)
    assert machine.unsettled() == []
    assert [sorted(machine.arrived[session]) for session in ("ses_1", "ses_2", "ses_3")] == [["t1", "t2"]] * 3
    assert machine.disordered <= 1
    assert machine.db.execute("select sum(kills) from job").fetchone()[0] == 0
    assert sum(one.confirmation.given_up for one in machine.status().destinations) == 0
    assert machine.noted() == {AHEAD}
    later(machine, 2 * HOUR_MS)
    assert machine.status().jobs.dropped == 0


# --- leases that run out


def test_a_post_that_outlives_its_lease_is_made_again_and_its_late_answer_changes_nothing(
    machine: ConfirmingMachine,
) -> None:
    machine.hanging = "slow"
    machine.bring("slow")
    machine.look()
    machine.hanging = None
    later(machine, LEASE_MS + 2 * MINUTE_MS)
    assert machine.sent == ["slow", "slow"]
    assert machine.world.receiver.in_flight == 1, "the first one hangs still"
    before = dict(machine.row("slow"))
    assert (before["state"], before["attempt"], before["kills"]) == ("delivered", 2, 1)
    later(machine, HOUR_MS)
    assert machine.world.receiver.in_flight == 0
    assert dict(machine.row("slow")) == before
    assert machine.unsettled() == []


def test_a_job_whose_threads_hang_each_time_is_dead_and_its_neighbours_are_delivered(
    machine: ConfirmingMachine,
) -> None:
    machine.hanging = "slow"
    for session in ("slow", "ses_1", "ses_2"):
        machine.bring(session)
    later(machine, 10 * MINUTE_MS)
    assert machine.unsettled() == [("slow", "dead")]
    assert machine.sent.count("slow") == KILLS_MAX
    (group,) = [group for one in machine.status().destinations for group in one.dead_letters]
    assert (group.reason.startswith("its worker died or hung"), group.jobs) == (True, 1)


@pytest.mark.parametrize(("late_ms", "kills"), [(0, 1), (UNSEEN_MS - 1, 1), (UNSEEN_MS, 0), (10 * DAY_MS, 0)])
def test_a_lease_of_a_living_worker_is_charged_only_if_it_ran_out_under_its_eyes(
    bench: LedgerBench, late_ms: int, kills: int
) -> None:
    bench.put(version())
    bench.claimed()
    bench.now_ms += LEASE_MS + late_ms
    assert maintenance.recover(bench.db, bench.now_ms) == 1
    assert (bench.row()["kills"], bench.row()["due_ms"]) == (kills, bench.now_ms)


def test_a_lease_of_a_dead_worker_is_charged_however_late_it_is_found(bench: LedgerBench) -> None:
    bench.put(version())
    bench.claimed(worker="dead")
    bench.now_ms += 10 * DAY_MS
    assert maintenance.recover(bench.db, bench.now_ms, ["dead"]) == 1
    assert bench.row()["kills"] == 1


@pytest.mark.parametrize("kills", [0, KILLS_MAX - 1], ids=["freed", "dead"])
def test_a_probe_that_ended_with_its_worker_is_made_at_once_by_another(bench: LedgerBench, kills: int) -> None:
    bench.put(version())
    bench.put(version(session="ses_2"))
    bench.pause(probe_ms=bench.now_ms)
    claimed = bench.claimed(worker="dead")
    bench.db.execute("update job set kills = ? where id = ?", (kills, claimed.job_id))
    assert claimed.is_probe
    assert bench.claim(version(session="ses_2")) is None
    assert maintenance.recover(bench.db, bench.now_ms, ["dead"]) == 1
    assert bench.claimed(version(session="ses_2")).is_probe


# --- what a clock that was set back leaves


def test_what_was_delivered_before_the_clock_was_set_back_is_looked_for_now_and_then_as_if_delivered_now(
    bench: LedgerBench,
) -> None:
    bench.now_ms = 40 * DAY_MS
    bench.put(version())
    claimed = bench.claimed()
    bench.acknowledge(claimed, bench.left(claimed)[0])
    claims.complete(bench.db, claimed, bench.now_ms, confirm_ms=bench.now_ms + MINUTE_MS)
    assert maintenance.reset_future_times(bench.db, bench.now_ms) == 0
    bench.now_ms -= DAY_MS
    assert maintenance.reset_future_times(bench.db, bench.now_ms) == 1
    (due,) = confirmations.due_for_confirmation(bench.db, bench.destination, bench.now_ms, 10)
    assert due.delivered_ms == bench.now_ms


def test_a_pause_of_reading_back_ends_when_the_clock_is_set_back(bench: LedgerBench) -> None:
    bench.now_ms = 40 * DAY_MS
    readback.pause_read_back(bench.db, bench.destination, "500: error", bench.now_ms + HOUR_MS)
    assert maintenance.reset_future_times(bench.db, bench.now_ms) == 0
    bench.now_ms -= DAY_MS
    assert readback.read_back_failures(bench.db, bench.destination, bench.now_ms) is None
    assert maintenance.reset_future_times(bench.db, bench.now_ms) == 1
    assert readback.read_back_failures(bench.db, bench.destination, bench.now_ms) == 1


# --- how a worker sees it


@pytest.mark.parametrize(
    ("wall_ms", "steady_ms", "expected_ms"), [(500, 500, 0), (DAY_MS, 500, DAY_MS - 500), (-DAY_MS, 500, -DAY_MS - 500)]
)
def test_a_jump_is_what_the_wall_clock_went_further_than_time(wall_ms: int, steady_ms: int, expected_ms: int) -> None:
    assert jump_ms(Reading(7_000, 3_000), Reading(7_000 + wall_ms, 3_000 + steady_ms)) == expected_ms


def test_clocks_that_nobody_sets_go_on_together() -> None:
    before = clock.read()
    assert abs(jump_ms(before, clock.read())) < SLEEP_MS


def test_a_worker_whose_clock_jumped_between_two_looks_tells_of_it_once(machine: ConfirmingMachine) -> None:
    worker = Worker(machine.sources())
    try:
        worker.poll()
        assert machine.noted() == set()
        assert worker.poller._seen is not None
        worker.poller._seen = replace(worker.poller._seen, wall_ms=worker.poller._seen.wall_ms - 2 * SLEEP_MS)
        worker.poll()
        worker.poll()
    finally:
        worker.close()
    assert [(one.what, one.count) for one in machine.status().incidents] == [(AHEAD, 1)]
    assert AHEAD in (machine.spool / "logs" / "worker.log").read_text("utf-8")


def test_a_probe_that_a_worker_gives_up_as_it_ends_is_made_at_once_by_another(machine: ConfirmingMachine) -> None:
    worker = Worker(machine.sources())
    try:
        worker.announce()
        assert worker._announced is not None
        bench = LedgerBench(worker.db)
        bench.destination, bench.now_ms = worker.target.id, clock.now_ms()
        bench.put(version())
        bench.pause(probe_ms=bench.now_ms)
        assert bench.claimed(worker=worker._announced.name).is_probe
        worker._interrupted()
        bench.now_ms = clock.now_ms()
        assert bench.claimed().is_probe
    finally:
        worker.close()
