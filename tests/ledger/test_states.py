"""The ledger against a model of it: random histories of a few turns, every row compared after every step."""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.database import derived
from app.ledger import (
    adoption,
    claims,
    confirmations,
    counts,
    dead_letters,
    destinations,
    eviction,
    flow,
    maintenance,
    policy_enforcement,
    pruning,
    readback,
    versions,
)
from app.ledger.claims import ATTEMPTS_KEPT, ISOLATED_KILLS
from app.ledger.confirmations import Unconfirmed
from app.ledger.dead_letters import Choice
from app.ledger.decision import LIVE, RECALL, Reopen
from app.ledger.eviction import Recaptured
from app.ledger.job import Body, Claim, FailedAttempt, Version
from app.ledger.maintenance import KILLS_MAX, UNSEEN_MS
from tests.support.ledger_bench import accepted, without_waiting
from tests.support.ledger_model import LOOSE, Job, Model

LEASE_MS = 1_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

SESSIONS = st.sampled_from(["ses_1", "ses_2"])
TURNS = st.sampled_from(["t1", "t2"])
CONTENTS = st.sampled_from(["a", "b", "c"])
LATER = st.sampled_from([1, 1, 1, 0, -1, -3])
"""How much later than the last version, whatever its turn."""
AMOUNTS = st.integers(0, 4)
DELAYS = st.integers(0, 3)
FINISHES = st.sampled_from(
    [
        *["carry", "carry", "carry", "carry to confirm", "carry to confirm", "acknowledge", "complete"],
        *[
            "die",
            "charge",
            "retry_later",
            "release",
            "dead_letter",
            "dead_letter",
            "hold",
            "policy",
            "size",
            "die",
        ],
    ]
)
ASKED_FOR = Reopen(frozenset({"deleted", "size", "age", "purged"}), body_not_stored=True)
OFF_TOO = replace(ASKED_FOR, dropped=ASKED_FOR.dropped | {"off"})
TABLES = (
    "attempt", "bundle", "record", "acknowledgement", "footprint", "job", "waiting", "turn", "session", "confirmation",
    "destination",
)  # fmt: skip


def records(session: str, turn: str, content: str, count: int) -> list[Body]:
    """The first record is the same in contents a and b: a new version that changes only a part of its turn."""
    texts = ["ab" if content in "ab" else content, content]
    return [Body(uuid.uuid5(uuid.NAMESPACE_OID, f"{session} {turn} {n}"), texts[n].encode()) for n in range(count)]


class Histories(RuleBasedStateMachine):
    def __init__(self, db: sqlite3.Connection) -> None:
        super().__init__()
        self.db = db
        self.claims: list[Claim] = []
        """The last few that were made, stale ones included."""
        self.looks: list[Unconfirmed] = []
        """What was last read to be confirmed, stale ones included."""
        for table in (*TABLES, "tally" if isinstance(db, sqlite3.Connection) else "tally_change"):
            db.execute(f"delete from {table}")  # noqa: S608 - names from above
        self.ours = destinations.destination(db, "https://example.invalid", "fingerprint", 0)
        self.destination = self.ours.id
        self.keyless = destinations.destination(db, "", "", 0).id
        self.now_ms = 100 * DAY_MS
        self.last_event_ms = 100
        self.model = Model()
        self.attempts: dict[str, int] = {}
        self.forgotten: set[tuple[str, str]] = set()
        """Turns of which it is no longer known what was acknowledged."""

    # --- versions come in

    @initialize(content=CONTENTS)
    def begin(self, content: str) -> None:
        for session in ("ses_1", "ses_2"):
            self.insert(
                session=session, turn="t1", content=content, later=1, count=2, how="", is_history=False, reopen=LIVE
            )

    @rule(
        session=SESSIONS,
        turn=TURNS,
        content=CONTENTS,
        later=LATER,
        count=st.integers(1, 2),
        how=st.sampled_from(["", "", "", "", "", "", "off", "keyless", "recall", "sealed recall"]),
        is_history=st.booleans(),
        reopen=st.sampled_from([LIVE, Reopen(frozenset({"off"})), ASKED_FOR, OFF_TOO]),
    )
    def insert(  # noqa: PLR0913 - all that one version can be
        self,
        *,
        session: str,
        turn: str,
        content: str,
        later: int,
        count: int,
        how: str,
        is_history: bool,
        reopen: Reopen,
    ) -> None:
        key = f"{session} {turn} {content}".encode().hex().rjust(64, "0")
        policy = LOOSE if content == "a" else "strict"
        self.last_event_ms += later
        version = Version(session, session, turn, key, self.last_event_ms, "", session, policy, is_history)
        off = how == "off"
        version = replace(version, is_recall="recall" in how, is_sealed=how == "sealed recall", is_off=off)
        made = records(session, turn, content, count)
        if version.is_recall:
            reopen = RECALL
        if how == "keyless":
            # Captured before a key was known; whoever knows one takes it over.
            reopen = LIVE
            versions.insert(self.db, self.keyless, version, made, now_ms=self.now_ms)
        expected = self.model.expect(version, off=off, reopen=reopen)
        if how == "keyless":
            adoption.take_over(self.db, self.ours, self.now_ms)
        else:
            given = versions.insert(self.db, self.destination, version, made, now_ms=self.now_ms, reopen=reopen)
            assert given is expected
        self.model.roots.setdefault(session, session)
        self.model.insert(version, made, expected, self.now_ms, off=off)
        if key in self.model.jobs:
            self.model.jobs[key].size = self.stored(key)

    def stored(self, key: str) -> int:
        row = self.db.execute(
            "select coalesce(sum(length(bodies)), 0) from bundle where job_id in"
            " (select id from job where key = ? and destination_id = ?)",
            (key, self.destination),
        ).fetchone()
        return int(row[0])

    # --- jobs go out

    @rule(data=st.data(), then=st.one_of(st.just(""), FINISHES, FINISHES), delay_ms=DELAYS)
    @precondition(lambda self: self.model.due(self.now_ms))
    def claim(self, data: st.DataObject, then: str, delay_ms: int) -> None:
        # Mostly one that is due.
        due = [self.model.key_of(job) for job in self.model.due(self.now_ms)]
        self.take(data.draw(st.sampled_from([*due, *due, *sorted(self.model.jobs)])), then, delay_ms)

    def take(self, key: str, then: str, delay_ms: int) -> None:
        health = self.model.health
        job = self.model.next_claim(self.model.jobs[key].session, self.now_ms)
        in_flight = len(self.model.leased)
        given = claims.claim(self.db, self.destination, key, worker="w", now_ms=self.now_ms, lease_ms=LEASE_MS)
        if job is None:
            assert given is None
            return
        assert given is not None
        assert given.is_probe or health.concurrency is None or in_flight < health.concurrency
        job.attempt += 1
        job.attempted_ms, job.lease_until_ms, job.hold = self.now_ms, self.now_ms + LEASE_MS, None
        numbers = (given.key, given.attempt, given.consecutive_failures, given.failures, given.policy, given.is_probe)
        is_probe = health.probe_ms is not None
        assert numbers == (
            self.model.key_of(job),
            job.attempt,
            job.consecutive_failures,
            job.failures,
            job.policy,
            is_probe,
        )
        if is_probe:
            health.probe_ms = self.now_ms + LEASE_MS
        self.claims = [*self.claims[-3:], given]
        if then:
            self.go_on(given, then, delay_ms)

    @rule(step=FINISHES, data=st.data(), delay_ms=DELAYS)
    @precondition(lambda self: self.claims)
    def go_on_with_a_claim(self, step: str, data: st.DataObject, delay_ms: int) -> None:
        # Mostly with the newest.
        held = data.draw(st.sampled_from([*[self.claims[-1]] * 3, *self.claims]))
        self.go_on(held, step, delay_ms)

    def go_on(self, held: Claim, step: str, delay_ms: int) -> None:
        match step:
            case "acknowledge":
                self.acknowledge(held)
            case "carry" | "carry to confirm":
                while self.left(held):
                    self.acknowledge(held)
                self.complete(held, self.now_ms + delay_ms // 2 if step == "carry to confirm" else None)
            case "complete":
                self.complete(held, None)
            case "charge" | "retry_later" | "release" | "hold":
                self.let_go_of(held, delay_ms, step)
            case "dead_letter" | "policy" | "size":
                self.end(held, step)
            case "die":
                self.recover(died=True)

    def standing_job(self, held: Claim) -> Job | None:
        """The claim's job, if the claim still stands."""
        job = self.model.jobs[held.key]
        stands = job.state == "pending" and job.attempt == held.attempt and not job.is_free
        assert claims.is_current(self.db, held) is stands
        return job if stands else None

    def left(self, held: Claim) -> list[Body]:
        job = self.model.jobs[held.key]
        if job.is_evicted:
            assert eviction.take_recaptured(self.db, held, Recaptured(held.key, tuple(job.made), ""))
            assert eviction.is_evicted(self.db, held) is bool(self.model.missing(job))
        return list(claims.unacknowledged(self.db, held, job.made if job.is_evicted else None))

    def acknowledge(self, held: Claim) -> None:
        job = self.model.jobs[held.key]
        current = self.standing_job(held)
        left = self.left(held)
        if current is not None:
            assert {body.request_id for body in left} == self.model.missing(job)
        if not left:
            return
        body = left[-1]  # in any order
        given = claims.acknowledge(
            self.db, held, [accepted(self.db, held, body, self.now_ms)], now_ms=self.now_ms, lease_ms=LEASE_MS
        )
        assert given is (current is not None)
        self.model.known(job)[body.request_id] = body.digest
        self.model.health.pass_one()
        if current is not None:
            current.consecutive_failures = current.failures = 0
            current.lease_until_ms = self.now_ms + LEASE_MS

    def let_a_lost_one_go(self, held: Claim) -> None:
        """Whoever ends an attempt of a job that is not wanted any more gives its lease back."""
        job = self.model.jobs[held.key]
        if job.state != "pending" and job.attempt == held.attempt:
            job.let_go()

    def complete(self, held: Claim, confirm_ms: int | None) -> None:
        job = self.standing_job(held)
        may = job is not None and not self.model.missing(job)
        assert claims.complete(self.db, held, self.now_ms, confirm_ms=confirm_ms) is may
        if job is not None and may:
            job.end("delivered", self.now_ms, keeps_bodies=confirm_ms is not None)
            job.confirm_ms = confirm_ms
            job.let_go()
            self.forgotten.discard((job.session, job.turn))
        self.let_a_lost_one_go(held)

    def let_go_of(self, held: Claim, delay_ms: int, how: str) -> None:
        job = self.standing_job(held)
        due_ms = self.now_ms + delay_ms
        if how == "release":
            given = claims.release(self.db, held, due_ms=due_ms)
        elif how == "hold":
            given = policy_enforcement.hold(self.db, held, due_ms=due_ms, reason="off")
        else:
            failed = FailedAttempt(self.now_ms, "500")
            given = claims.retry_later(self.db, held, failed, delay_ms=delay_ms, is_charged=how == "charge")
        assert given is (job is not None)
        if job is not None:
            job.consecutive_failures += how in {"charge", "retry_later"}
            job.failures += how == "charge"
            job.hold = "off" if how == "hold" else None
            job.wait(due_ms)
        self.let_a_lost_one_go(held)

    def end(self, held: Claim, how: str) -> None:
        job = self.standing_job(held)
        match how:
            case "dead_letter":
                given = claims.dead_letter(self.db, held, FailedAttempt(self.now_ms, "400"))
            case "size":
                job = job if job is not None and job.is_evicted else None
                given = claims.drop(self.db, held, "size", self.now_ms)
            case _:
                given = claims.drop(self.db, held, "policy", self.now_ms)
        assert given is (job is not None)
        if job is not None:
            if how == "dead_letter":
                job.end("dead", self.now_ms, keeps_bodies=True)
            else:
                job.end("dropped", self.now_ms, how)
            job.let_go()
        self.let_a_lost_one_go(held)

    # --- jobs are read back

    @rule(
        step=st.sampled_from(["", "found", "numbers only", "not yet", "again", "again", "again", "bury", "give up"]),
        data=st.data(),
        delay_ms=DELAYS,
    )
    @precondition(lambda self: self.looks or self.model.due(self.now_ms) or self.model.to_be_confirmed(self.now_ms))
    def read_back(self, step: str, data: st.DataObject, delay_ms: int) -> None:
        waiting = self.model.due(self.now_ms)
        if waiting and not self.model.to_be_confirmed(self.now_ms):
            # So that there is something to be read back.
            self.take(self.model.key_of(waiting[0]), "carry to confirm", 0)
        due = confirmations.due_for_confirmation(self.db, self.destination, self.now_ms, 10)
        assert {one.key for one in due} == self.model.to_be_confirmed(self.now_ms)
        assert all((one.body_bytes is not None) is self.model.jobs[one.key].is_kept for one in due)
        self.looks = [*self.looks[-2:], *due]
        if step and self.looks:
            self.settle(data.draw(st.sampled_from([*due, *due, *self.looks])), step, delay_ms)

    def settle(self, due: Unconfirmed, step: str, delay_ms: int) -> None:
        job = self.model.jobs[due.key]
        may = job.state == "delivered" and job.attempt == due.attempt and job.confirm_ms is not None
        match step:
            case "found":
                given = confirmations.confirmed(self.db, due, self.now_ms, has_body=True)
            case "numbers only":
                given = confirmations.confirmed(self.db, due, self.now_ms, has_body=False)
            case "not yet":
                given = confirmations.not_found_yet(self.db, due, self.now_ms + delay_ms)
            case "again":
                may = may and job.is_kept
                given = confirmations.send_again(self.db, due, self.now_ms)
            case "bury":
                may = may and job.is_kept
                given = confirmations.dead_letter_unstored(self.db, due, self.now_ms, "not stored")
            case _:
                given = confirmations.give_up_confirmation(self.db, self.destination, due) == 1
        assert given is may
        if may:
            self.settled(job, step, delay_ms)

    def settled(self, job: Job, step: str, delay_ms: int) -> None:
        match step:
            case "found" | "numbers only":
                job.close()
                job.confirmed_ms, job.not_stored = self.now_ms, step == "numbers only"
                if job.not_stored:
                    self.model.known(job).clear()
                    self.forgotten.add((job.session, job.turn))
            case "not yet":
                job.confirm_ms = self.now_ms + delay_ms
            case "again":
                job.start_anew(self.now_ms)
                job.resends += 1
                self.model.disbelieve(job)
            case "bury":
                job.end("dead", self.now_ms, keeps_bodies=True)
                self.model.disbelieve(job)
            case _:
                self.model.give_up([job])

    def look_back_or_give_up(self, step: str, amount: int) -> None:
        waiting = self.model.chosen(lambda job: job.confirm_ms is not None)
        waiting.sort(key=lambda job: (job.finished_ms or 0, job.number))
        match step:
            case "look back":
                jobs = self.model.never_looked_for()
                assert confirmations.look_back(self.db, self.destination, self.now_ms) == len(jobs)
                for job in jobs:
                    job.confirm_ms = self.now_ms
            case "stop":
                assert confirmations.give_up_confirmation(self.db, self.destination) == self.model.give_up(waiting)
            case _:
                age_ms, bytes_max = (amount, 1 << 20) if step == "old" else (DAY_MS, 15 * amount)
                held = sum(job.size for job in self.model.jobs.values())
                gone = [job for job in waiting if (job.finished_ms or 0) < self.now_ms - age_ms]
                young = [job for job in waiting if job not in gone and job.size > 0]
                gone += self.model.without_room(young, held - sum(job.size for job in gone) - bytes_max)
                given = confirmations.give_up_confirmations(
                    self.db, self.now_ms, bytes_max=bytes_max, age_ms_max=age_ms
                )
                assert given == self.model.give_up(gone)

    # --- people and settings

    @rule(data=st.data(), session=SESSIONS, amount=AMOUNTS)
    @precondition(lambda self: self.model.jobs)
    def intervene(self, data: st.DataObject, session: str, amount: int) -> None:
        jobs = self.model.jobs.values()
        is_paused = self.model.health.probe_ms is not None
        steps = ["size", "empty", "empty", "aged", "forget", "hold", "drop looser"]
        steps += ["deleted", "place"] * (amount == 0)
        steps += ["probe now", "resume", "resume"] if is_paused else ["pause"]
        steps += ["retry", "retry", "purge"] * any(job.state == "dead" for job in jobs)
        steps += ["release", "release"] * any(job.hold is not None for job in jobs)
        steps += ["look back", "look back", "stop", "old", "no room"] * any(job.state == "delivered" for job in jobs)
        match step := data.draw(st.sampled_from(steps)):
            case "retry" | "purge":
                self.answer_a_dead_letter(step, data)
            case "hold" | "release" | "drop looser":
                self.change_settings(step, session, data.draw(st.sampled_from(["off", "broken"])), amount)
            case "pause" | "resume" | "probe now":
                self.change_health(step, amount)
            case "look back" | "stop" | "old" | "no room":
                self.look_back_or_give_up(step, amount)
            case _:
                self.clean_up(step, session, amount)

    def answer_a_dead_letter(self, step: str, data: st.DataObject) -> None:
        dead = sorted(key for key, job in self.model.jobs.items() if job.state == "dead")
        key = data.draw(st.sampled_from(dead))
        job = self.model.jobs[key]
        if step == "purge":
            assert dead_letters.purge_dead(self.db, Choice(keys=(key,)), self.now_ms) == 1
            job.end("dropped", self.now_ms, "purged")
            return
        assert dead_letters.retry_dead(self.db, Choice(keys=(key,)), self.now_ms) == [(self.destination, key)]
        if job.resends:
            self.model.disbelieve(job)
        job.start_anew(self.now_ms)
        job.enqueued_ms = self.now_ms
        job.kills = job.resends = 0
        job.attempted_ms = None

    def change_settings(self, step: str, session: str, reason: str, delay_ms: int) -> None:
        """Each session has a folder of its own, of its name."""
        of_folder = self.model.chosen(lambda job: job.session == session and job.is_open)
        waiting = [job for job in of_folder if job.state == "pending"]
        match step:
            case "hold":
                jobs = [job for job in waiting if job.is_free and job.hold != reason]
                due_ms = self.now_ms + delay_ms
                given = policy_enforcement.hold_folder(self.db, self.destination, session, due_ms=due_ms, reason=reason)
                for job in jobs:
                    job.due_ms, job.hold = due_ms, reason
            case "release":
                jobs = [job for job in waiting if job.hold is not None]
                given = policy_enforcement.hold_folder(
                    self.db, self.destination, session, due_ms=self.now_ms, reason=None
                )
                for job in jobs:
                    job.hold = None
                    job.wait(self.now_ms)
            case _:
                jobs = [job for job in of_folder if job.is_free and job.policy == LOOSE]
                given = policy_enforcement.drop_looser(self.db, self.destination, session, LOOSE, self.now_ms)
                for job in jobs:
                    job.end("dropped", self.now_ms, "policy")
        assert given == len(jobs)

    def change_health(self, step: str, delay_ms: int) -> None:
        health = self.model.health
        match step:
            case "pause":
                probe_ms = self.now_ms + delay_ms
                flow.pause(
                    self.db,
                    self.destination,
                    health="down",
                    reason="503",
                    count=1,
                    probe_ms=probe_ms,
                    now_ms=self.now_ms,
                )
                health.probe_ms, health.probed_ms = probe_ms, self.now_ms
            case "resume":
                assert flow.resume(self.db, self.destination) is (health.probe_ms is not None)
                if health.probe_ms is not None:
                    health.resume()
            case _:
                may = health.probe_ms is not None and health.probe_ms > self.now_ms
                assert flow.probe_now(self.db, self.destination, self.now_ms) is may
                if may:
                    health.probe_ms = self.now_ms

    # --- time passes, workers die, room is made

    @rule(
        step=st.sampled_from(
            ["wait", "wait", "wait", "expire", "recover", "die", "die", "wake", "let all go", "clock"]
        ),
        amount=AMOUNTS,
    )
    @precondition(lambda self: self.model.jobs)
    def pass_time(self, step: str, amount: int) -> None:
        match step:
            case "wait":
                self.now_ms += 1 + amount
            case "expire":
                self.now_ms += 15 * LEASE_MS
            case "clock" if amount == 0:
                self.set_clock_back()
            case "recover" | "die":
                self.recover(died=step == "die")
            case "wake":
                self.wake()
            case "let all go":
                self.let_all_go()

    def clean_up(self, step: str, session: str, amount: int) -> None:
        match step:
            case "size":
                self.drop_oversize(15 * (1 + amount))
            case "empty":
                self.give_up_bodies(15 * amount)
            case "aged":
                self.drop_aged(amount)
            case "deleted":
                self.drop_session(session)
            case "place":
                self.place_under(session, "ses_0")
            case "forget":
                self.forget_acknowledgements()

    def let_all_go(self) -> None:
        leased = self.model.leased
        assert len(claims.release_all(self.db, "w")) == len(leased)
        for job in leased:
            job.lease_until_ms = None

    def recover(self, *, died: bool) -> None:
        orphans = [job for job in self.model.leased if died or (job.lease_until_ms or 0) <= self.now_ms]
        assert maintenance.recover(self.db, self.now_ms, ["w"] if died else []) == len(orphans)
        if orphans and self.model.health.probe_ms is not None:
            # One of them may have been the probe.
            self.model.health.probe_ms = min(self.model.health.probe_ms, self.now_ms)
        for job in orphans:
            is_seen = (job.lease_until_ms or 0) > self.now_ms - UNSEEN_MS
            job.let_go()
            if job.state != "pending":
                continue
            job.kills += died or is_seen
            if job.kills == KILLS_MAX:
                job.end("dead", self.now_ms, keeps_bodies=True)
                continue
            # Longer each time, once it must be alone.
            job.wait(self.now_ms + (0 if job.kills < ISOLATED_KILLS else 1000 << (job.kills - ISOLATED_KILLS)))

    def wake(self) -> None:
        expected = self.model.to_be_rung(self.now_ms)
        room = self.model.health.room(self.now_ms, len(self.model.leased))
        woken = maintenance.to_wake(self.db, self.destination, self.now_ms, 10)
        assert len(woken) == min(room, len(expected))
        jobs = [self.model.jobs[key] for key in woken]
        assert all(job in expected for job in jobs)
        # Nothing that is history is woken before, or instead of, what is live.
        assert [job.is_history for job in jobs] == sorted(job.is_history for job in expected)[: len(jobs)]
        # Whoever is woken is not woken again; another of the same session is neither.
        assert not set(maintenance.to_wake(self.db, self.destination, self.now_ms, 10, woken)) & set(woken)

    def drop_session(self, session: str) -> None:
        for job in self.model.chosen(lambda job: job.session == session and job.confirm_ms is not None):
            job.close()
        jobs = self.model.chosen(lambda job: job.session == session and job.is_open and not job.is_recall)
        assert pruning.drop_session(self.db, self.destination, session, self.now_ms) == len(jobs)
        for job in jobs:
            job.end("dropped", self.now_ms, "deleted")

    def place_under(self, session: str, root: str) -> None:
        is_new = self.model.roots.get(session) != root
        jobs = self.model.chosen(lambda job: is_new and job.session == session and job.state != "superseded")
        parent = Version(root, root, "t", "", 0, "", session)
        asked = Reopen(sealed=True)
        assert versions.place_under(self.db, self.destination, session, parent, self.now_ms, reopen=asked) == len(jobs)
        self.model.roots[session] = root
        for job in jobs:
            self.model.supersede(job, self.now_ms)

    def oversize(self, bytes_max: int) -> list[Job]:
        """Open jobs with bodies, not in flight and no recalls, the oldest first, as far as they must go."""
        held = self.model.chosen(lambda job: job.is_open and job.size > 0 and not job.is_recall)
        assert eviction.held_bytes(self.db) == sum(job.size for job in held)
        free = sorted((job for job in held if job.is_free), key=lambda job: (job.enqueued_ms, job.number))
        return self.model.without_room(free, sum(job.size for job in held) - bytes_max)

    def give_up_bodies(self, bytes_max: int) -> None:
        gone = self.oversize(bytes_max)
        candidates = eviction.candidates(self.db, None)[: len(gone)]
        assert [(one.session, one.turn, one.body_bytes) for one in candidates] == [
            (job.session, job.turn, job.size) for job in gone
        ]
        assert eviction.give_up_bodies(self.db, [one.job_id for one in candidates], "store") == len(gone)
        for job in gone:
            job.size, job.is_evicted = 0, True
        waiting = self.model.chosen(lambda job: job.state == "pending" and job.is_evicted)
        assert eviction.without_bodies(self.db, self.destination) == len(waiting)

    def drop_oversize(self, bytes_max: int) -> None:
        gone = self.oversize(bytes_max)
        assert pruning.drop_oversize(self.db, self.now_ms, bytes_max) == len(gone)
        for job in gone:
            job.end("dropped", self.now_ms, "size")

    def drop_aged(self, age_ms: int) -> None:
        gone = self.model.chosen(
            lambda job: (
                job.state == "pending"
                and job.is_free
                and not job.is_recall
                and job.enqueued_ms < self.now_ms - age_ms
                and job.enqueued_ms + age_ms <= max(job.attempted_ms or 0, self.model.health.probed_ms)
            )
        )
        assert pruning.drop_aged(self.db, self.now_ms, age_ms) == len(gone)
        for job in gone:
            job.end("dropped", self.now_ms, "age")

    def set_clock_back(self) -> None:
        self.now_ms -= 3 * HOUR_MS
        latest_ms = self.now_ms + 2 * HOUR_MS
        late = self.model.chosen(lambda job: job.due_ms is not None and job.due_ms > latest_ms)
        leased = [job for job in self.model.leased if (job.lease_until_ms or 0) > self.now_ms + 600_000]
        probe = (self.model.health.probe_ms or 0) > latest_ms
        seen = self.model.chosen(lambda job: (job.confirm_ms or 0) > latest_ms and (job.finished_ms or 0) > latest_ms)
        assert maintenance.reset_future_times(self.db, self.now_ms) == len(late) + len(leased) + probe + len(seen)
        for job in seen:
            job.confirm_ms = job.finished_ms = self.now_ms
        for job in late:
            job.due_ms = self.now_ms
        for job in leased:
            job.lease_until_ms = self.now_ms + 600_000
        if probe:
            self.model.health.probe_ms = self.now_ms

    def forget_acknowledgements(self) -> None:
        """As it would be in a hundred days."""
        wanted = {(job.session, job.turn) for job in self.model.jobs.values() if job.is_open}
        old = {turn: known for turn, known in self.model.acknowledged.items() if turn not in wanted}
        given = pruning.forget_acknowledgements(self.db, self.now_ms + 100 * DAY_MS)
        assert given == sum(len(known) for known in old.values())
        for turn, known in old.items():
            known.clear()
            self.forgotten.add(turn)

    # --- what must always hold

    @invariant()
    def every_row_is_as_the_model_says(self) -> None:
        rows = self.db.execute(
            "select job.*, coalesce(p.facts, '') as policy from job left join policy p on p.id = job.policy_id"
            " where destination_id = ?",
            (self.destination,),
        )
        assert {
            row["key"]: (
                (row["state"], row["drop_reason"], row["facts_ms"], row["policy"], row["enqueued_ms"]),
                (row["due_ms"], row["finished_ms"], row["attempted_ms"], row["lease_until_ms"]),
                (row["attempt"], row["setbacks"], row["failures"], row["kills"], row["resends"]),
                row["hold_reason"] if row["state"] == "pending" else None,
                (row["body_bytes"], row["confirm_ms"], bool(row["is_recall"]), bool(row["is_sealed"])),
                (row["confirmed_ms"], bool(row["body_not_stored"])) if row["state"] == "delivered" else None,
            )
            for row in rows
        } == {
            key: (
                (job.state, job.reason, job.last_event_ms, job.policy, job.enqueued_ms),
                (job.due_ms, job.finished_ms, job.attempted_ms, job.lease_until_ms),
                (job.attempt, job.consecutive_failures, job.failures, job.kills, job.resends),
                job.hold if job.state == "pending" else None,
                (job.size, job.confirm_ms, job.is_recall, job.is_sealed),
                (job.confirmed_ms, job.not_stored) if job.state == "delivered" else None,
            )
            for key, job in self.model.jobs.items()
        }

    @invariant()
    def the_destination_is_as_the_model_says(self) -> None:
        health = self.model.health
        one = destinations.by_id(self.db, self.destination)
        assert (one.probe_ms, one.concurrency) == (health.probe_ms, health.concurrency)
        assert readback.confirmations(self.db, self.destination).given_up == self.model.given_up

    @invariant()
    def what_is_kept_about_the_jobs_is_what_they_say(self) -> None:
        assert [table for table in derived.TABLES if not derived.is_right(self.db, table)] == []

    @invariant()
    def nothing_waits_where_no_key_is_known(self) -> None:
        assert counts.counts(self.db, self.keyless).pending == 0

    @invariant()
    def each_turn_has_one_current_version_and_each_session_one_lease(self) -> None:
        doubled = self.db.execute(
            "select turn_id from job where state <> 'superseded' group by turn_id having count(*) > 1"
        ).fetchall()
        assert doubled == []
        crowded = self.db.execute(
            "select session_id from job where lease_until_ms is not null group by session_id having count(*) > 1"
        ).fetchall()
        assert crowded == []

    @invariant()
    def who_must_be_alone_is_alone(self) -> None:
        kills = [job.kills for job in self.model.leased]
        assert len(kills) < 2 or max(kills) < ISOLATED_KILLS

    @invariant()
    def bodies_are_there_exactly_while_they_may_still_be_sent(self) -> None:
        rows = self.db.execute(
            "select j.state, j.confirm_ms, j.body_bytes, j.record_count, count(r.position) as held,"
            " coalesce((select length(bodies) from bundle b where b.job_id = j.id), 0) as stored, j.key"
            " from job j left join record r on r.job_id = j.id group by j.id"
        ).fetchall()
        for row in rows:
            assert row["stored"] == row["body_bytes"]
            # Those that are only looked back at lost them before.
            job = self.model.jobs.get(row["key"])
            may_be_gone = row["state"] == "delivered" and not (job is not None and job.is_kept)
            is_wanted = row["state"] in {"pending", "dead"} or (row["confirm_ms"] is not None and not may_be_gone)
            assert row["held"] == (row["record_count"] if is_wanted else 0)

    @invariant()
    def attempts_are_kept_with_the_bodies_and_are_few(self) -> None:
        rows = self.db.execute(
            "select j.attempt, count(a.number) as kept, max(a.number) as newest,"
            " exists (select 1 from record r where r.job_id = j.id) as has_records"
            " from job j left join attempt a on a.job_id = j.id group by j.id"
        ).fetchall()
        for row in rows:
            assert row["kept"] <= (ATTEMPTS_KEPT if row["has_records"] else 0)
            assert row["newest"] is None or row["newest"] <= row["attempt"]

    @invariant()
    def attempts_never_fall(self) -> None:
        for row in self.db.execute("select key, attempt from job where destination_id = ?", (self.destination,)):
            assert row["attempt"] >= self.attempts.get(row["key"], 0)
            self.attempts[row["key"]] = row["attempt"]

    @invariant()
    def what_is_delivered_was_acknowledged(self) -> None:
        """Every record that a delivered job had is known as taken by Helicone, unless that is known to be nothing."""
        rows = self.db.execute(
            "select s.name as session, t.name as turn, a.request_id, a.digest from acknowledgement a"
            " join turn t on t.id = a.turn_id join session s on s.id = t.session_id where s.destination_id = ?",
            (self.destination,),
        )
        noted: dict[tuple[str, str], dict[uuid.UUID, bytes]] = {}
        for row in rows:
            of_turn = noted.setdefault((row["session"], row["turn"]), {})
            of_turn[uuid.UUID(bytes=row["request_id"])] = row["digest"]
        assert noted == {turn: known for turn, known in self.model.acknowledged.items() if known}
        for job in self.model.chosen(lambda job: job.state == "delivered"):
            turn = (job.session, job.turn)
            assert turn in self.forgotten or set(job.records) <= set(noted.get(turn, {}))


@pytest.mark.slow
def test_ledger_does_what_its_model_does(db: sqlite3.Connection) -> None:
    without_waiting(db)

    class OnThisLedger(Histories):
        def __init__(self) -> None:
            super().__init__(db)

    run_state_machine_as_test(OnThisLedger, settings=settings(max_examples=100, stateful_step_count=50))
