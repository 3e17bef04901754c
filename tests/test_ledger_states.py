"""The ledger against a model of it: random histories of a few turns, every row compared after every step."""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from app import destination, ledger
from app.ledger import ATTEMPTS_KEPT, ISOLATED_KILLS, KILLS_MAX, RING_AGAIN_MS, Body, Claim, Failure, Standing, Version
from app.ledger.upkeep import UNSEEN_MS

LEASE_MS = 1_000

SESSIONS = st.sampled_from(["ses_1", "ses_2"])
TURNS = st.sampled_from(["t1", "t2"])
CONTENTS = st.sampled_from(["a", "b", "c"])
FACTS = st.integers(1, 3)


@dataclass
class Job:
    """What the ledger should say about one key."""

    number: int
    """Older jobs have lower ones; a job keeps its own when it is reopened."""
    session: str
    turn: str
    state: str
    facts_ms: int
    records: dict[uuid.UUID, bytes]
    """Digests by request id, as last inserted."""
    reason: str | None = None
    due_ms: int = 0
    lease_until_ms: int | None = None
    attempt: int = 0
    setbacks: int = 0
    failures: int = 0
    kills: int = 0
    rung_ms: int | None = None
    size: int = 0


@dataclass
class Model:
    jobs: dict[str, Job] = field(default_factory=dict)
    acknowledged: dict[tuple[str, str], dict[uuid.UUID, bytes]] = field(default_factory=dict)

    def current(self, session: str, turn: str) -> tuple[str, Job] | tuple[None, None]:
        for key, job in self.jobs.items():
            if (job.session, job.turn) == (session, turn) and job.state != "superseded":
                return key, job
        return None, None

    def of_session(self, session: str) -> list[tuple[str, Job]]:
        return [(key, job) for key, job in self.jobs.items() if job.session == session]

    def missing(self, job: Job) -> set[uuid.UUID]:
        known = self.acknowledged.get((job.session, job.turn), {})
        return {name for name, digest in job.records.items() if known.get(name) != digest}


def end(job: Job, state: str, reason: str | None = None) -> None:
    """Into a state without bodies."""
    job.state, job.reason, job.size = state, reason, 0


def let_go(job: Job) -> None:
    job.lease_until_ms = None


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
        for table in ("attempt", "bundle", "record", "acknowledgement", "job", "turn", "session", "destination"):
            db.execute(f"delete from {table}")  # noqa: S608 - names from the line above
        self.destination = destination.destination(db, "https://example.invalid", "fingerprint", 0).id
        self.now_ms = 100_000
        self.model = Model()
        self.attempts: dict[str, int] = {}

    def key(self, session: str, turn: str, content: str) -> str:
        return f"{session} {turn} {content}".encode().hex().rjust(64, "0")

    # --- versions come in

    @rule(
        session=SESSIONS,
        turn=TURNS,
        content=CONTENTS,
        facts=FACTS,
        count=st.integers(1, 2),
        off=st.sampled_from([False] * 7 + [True]),
        reopen=st.sampled_from([(), ("off",), ("deleted", "size", "age")]),
    )
    def insert(
        self, *, session: str, turn: str, content: str, facts: int, count: int, off: bool, reopen: tuple[str, ...]
    ) -> None:
        key = self.key(session, turn, content)
        version = Version(session, session, turn, key, facts, "", "")
        made = records(session, turn, content, count)
        expected = self.expect(version, off=off, reopen=reopen)
        given = ledger.insert(self.db, self.destination, version, made, now_ms=self.now_ms, reopen=reopen, off=off)
        assert given is expected
        current_key, current = self.model.current(session, turn)
        if expected in {Standing.KNOWN, Standing.SHUT}:
            if current is not None and current_key == key:
                current.facts_ms = max(current.facts_ms, facts)
            return
        if expected is Standing.SUPERSEDED:
            self.write(version, "superseded", None, [])
            return
        if current is not None and current_key != key:
            end(current, "superseded")
        self.write(version, "dropped" if off else "pending", "off" if off else None, [] if off else made)

    def expect(self, version: Version, *, off: bool, reopen: tuple[str, ...]) -> Standing:
        key, current = self.model.current(version.session, version.turn)
        known = version.key in self.model.jobs
        if current is None:
            return Standing.REOPENED if known else Standing.NEW
        if key == version.key:
            return Standing.REOPENED if current.reason in reopen else Standing.KNOWN
        if current.reason in {"off", "deleted"} and current.reason not in reopen:
            return Standing.SHUT
        if off and version.facts_ms <= current.facts_ms:
            return Standing.KNOWN
        if version.facts_ms < current.facts_ms:
            return Standing.KNOWN if known else Standing.SUPERSEDED
        return Standing.REOPENED if known else Standing.NEW

    def write(self, version: Version, state: str, reason: str | None, made: list[Body]) -> None:
        before = self.model.jobs.get(version.key)
        self.model.jobs[version.key] = Job(
            number=len(self.model.jobs) if before is None else before.number,
            session=version.session,
            turn=version.turn,
            state=state,
            facts_ms=version.facts_ms,
            records={body.request_id: body.digest for body in made},
            reason=reason,
            due_ms=self.now_ms,
            attempt=0 if before is None else before.attempt + 1,
            size=self.stored(version.key),
        )

    def stored(self, key: str) -> int:
        row = self.db.execute(
            "select coalesce(sum(length(bodies)), 0) from bundle where job_id = (select id from job where key = ?)",
            (key,),
        ).fetchone()
        return int(row[0])

    # --- jobs go out

    @rule(data=st.data())
    @precondition(lambda self: self.model.jobs)
    def claim(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.jobs)))
        given = ledger.claim(self.db, self.destination, key, worker="w", now_ms=self.now_ms, lease_ms=LEASE_MS)
        of_session = self.model.of_session(self.model.jobs[key].session)
        due = [(job.number, name) for name, job in of_session if self.is_claimable(job)]
        leased = [job for job in self.model.jobs.values() if job.lease_until_ms is not None]
        alone = due and self.model.jobs[min(due)[1]].kills >= ISOLATED_KILLS
        is_taken = any(job.session == self.model.jobs[key].session for job in leased)
        if not due or is_taken or (leased and alone) or any(job.kills >= ISOLATED_KILLS for job in leased):
            assert given is None
            return
        assert given is not None
        _, name = min(due)
        job = self.model.jobs[name]
        job.attempt += 1
        job.lease_until_ms = self.now_ms + LEASE_MS
        numbers = (given.key, given.attempt, given.setbacks, given.failures)
        assert numbers == (name, job.attempt, job.setbacks, job.failures)
        self.claims = [*self.claims[-3:], given]

    def is_claimable(self, job: Job) -> bool:
        """Due, and not kept back by one that must be alone."""
        due = [job for job in self.model.jobs.values() if job.state == "pending" and job.due_ms <= self.now_ms]
        return job in due and (job.kills >= ISOLATED_KILLS or all(one.kills < ISOLATED_KILLS for one in due))

    @rule(
        step=st.sampled_from(
            ["acknowledge", "carry", "carry", "complete", "charge", "set_back", "give_back", "bury", "abandon"]
        ),
        data=st.data(),
        delay_ms=st.integers(0, 3),
    )
    @precondition(lambda self: self.claims)
    def go_on_with_a_claim(self, step: str, data: st.DataObject, delay_ms: int) -> None:
        # Mostly with the newest.
        held = data.draw(st.sampled_from([*[self.claims[-1]] * 3, *self.claims]))
        match step:
            case "acknowledge":
                self.acknowledge(held)
            case "carry":
                while list(ledger.unacknowledged(self.db, held)):
                    self.acknowledge(held)
                self.complete(held)
            case "complete":
                self.complete(held)
            case "charge" | "set_back" | "give_back":
                self.let_go_of(held, delay_ms, step)
            case "bury":
                self.bury(held)
            case "abandon":
                self.abandon(held)

    def standing_job(self, held: Claim) -> Job | None:
        """The claim's job, if the claim still stands."""
        job = self.model.jobs[held.key]
        stands = job.state == "pending" and job.attempt == held.attempt and job.lease_until_ms is not None
        assert ledger.is_current(self.db, held) is stands
        return job if stands else None

    def acknowledge(self, held: Claim) -> None:
        job = self.model.jobs[held.key]
        current = self.standing_job(held)
        left = list(ledger.unacknowledged(self.db, held))
        if current is not None:
            assert {body.request_id for body in left} == self.model.missing(job)
        if not left:
            return
        body = left[-1]  # in any order
        given = ledger.acknowledge(self.db, self.destination, held, body, now_ms=self.now_ms, lease_ms=LEASE_MS)
        assert given is (current is not None)
        self.model.acknowledged.setdefault((job.session, job.turn), {})[body.request_id] = body.digest
        if current is not None:
            current.setbacks = current.failures = 0
            current.lease_until_ms = self.now_ms + LEASE_MS

    def complete(self, held: Claim) -> None:
        job = self.standing_job(held)
        may = job is not None and not self.model.missing(job)
        assert ledger.complete(self.db, held, self.now_ms) is may
        if job is not None and may:
            end(job, "delivered")
            let_go(job)

    def let_go_of(self, held: Claim, delay_ms: int, how: str) -> None:
        job = self.standing_job(held)
        due_ms = self.now_ms + delay_ms
        if how == "give_back":
            given = ledger.give_back(self.db, held, due_ms=due_ms)
        else:
            given = ledger.set_back(
                self.db,
                held,
                now_ms=self.now_ms,
                due_ms=due_ms,
                failure=Failure("500"),
                passes=0,
                charged=how == "charge",
            )
        assert given is (job is not None)
        if job is not None:
            job.setbacks += how != "give_back"
            job.failures += how == "charge"
            job.due_ms, job.rung_ms = due_ms, None
            let_go(job)

    def bury(self, held: Claim) -> None:
        job = self.standing_job(held)
        assert ledger.bury(self.db, held, self.now_ms, Failure("400")) is (job is not None)
        if job is not None:
            job.state = "dead"
            let_go(job)

    def abandon(self, held: Claim) -> None:
        job = self.model.jobs[held.key]
        may = job.state != "pending" and job.attempt == held.attempt and job.lease_until_ms is not None
        assert ledger.abandon(self.db, held) is may
        if may:
            let_go(job)

    # --- time passes, workers die, room is made

    @rule(
        step=st.sampled_from(["wait", "wait", "expire", "recover", "die", "ring", "size", "deleted"]),
        session=SESSIONS,
        amount=st.integers(0, 4),
    )
    @precondition(lambda self: self.model.jobs)
    def pass_time_or_clean_up(self, step: str, session: str, amount: int) -> None:
        match step:
            case "wait":
                self.now_ms += 1 + amount
            case "expire":
                self.now_ms += RING_AGAIN_MS
            case "recover" | "die":
                self.recover(died=step == "die")
            case "ring":
                self.ring()
            case "size":
                self.drop_oversize(15 * amount)
            case "deleted" if amount == 0:
                self.drop_session(session)

    def recover(self, *, died: bool) -> None:
        orphans = [
            job
            for job in self.model.jobs.values()
            if job.lease_until_ms is not None and (died or job.lease_until_ms <= self.now_ms)
        ]
        assert ledger.recover(self.db, self.now_ms, ["w"] if died else []) == len(orphans)
        for job in orphans:
            is_seen = job.lease_until_ms is not None and job.lease_until_ms > self.now_ms - UNSEEN_MS
            let_go(job)
            if job.state == "pending":
                job.kills += died or is_seen
                job.state = "dead" if job.kills == KILLS_MAX else "pending"
                # Longer each time, once it must be alone.
                waits_ms = 0 if job.kills < ISOLATED_KILLS else 1000 << (job.kills - ISOLATED_KILLS)
                job.due_ms = self.now_ms + waits_ms
            if job.state != "dead":
                job.rung_ms = None

    def ring(self) -> None:
        expected = set()
        for session in ("ses_1", "ses_2"):
            of_session = [job for _, job in self.model.of_session(session)]
            due = [job for job in of_session if self.is_claimable(job)]
            rung = [job for job in due if job.rung_ms is not None and job.rung_ms > self.now_ms - RING_AGAIN_MS]
            if due and not rung and not any(job.lease_until_ms is not None for job in of_session):
                oldest = min(due, key=lambda job: job.number)
                oldest.rung_ms = self.now_ms
                expected.add(next(key for key, job in self.model.jobs.items() if job is oldest))
        assert set(ledger.to_ring(self.db, self.destination, self.now_ms, 10)) == expected

    def drop_session(self, session: str) -> None:
        open_jobs = [job for _, job in self.model.of_session(session) if job.state in {"pending", "dead"}]
        assert ledger.drop_session(self.db, self.destination, session, self.now_ms) == len(open_jobs)
        for job in open_jobs:
            end(job, "dropped", "deleted")

    def drop_oversize(self, bytes_max: int) -> None:
        excess = sum(job.size for job in self.model.jobs.values()) - bytes_max
        age = {row["key"]: (row["enqueued_ms"], row["id"]) for row in self.db.execute("select * from job")}
        dropped = 0
        for _, job in sorted(self.model.jobs.items(), key=lambda item: age[item[0]]):
            if excess > 0 and job.size > 0 and job.lease_until_ms is None:
                excess -= job.size
                end(job, "dropped", "size")
                dropped += 1
        assert ledger.drop_oversize(self.db, self.now_ms, bytes_max) == dropped

    # --- what must always hold

    @invariant()
    def every_row_is_as_the_model_says(self) -> None:
        rows = {row["key"]: row for row in self.db.execute("select * from job")}
        assert {
            key: (
                row["state"],
                row["drop_reason"],
                row["facts_ms"],
                row["attempt"],
                row["setbacks"],
                row["failures"],
                row["kills"],
                row["lease_until_ms"],
                row["due_ms"],
                row["rung_ms"] if row["state"] == "pending" else None,
                row["body_bytes"],
            )
            for key, row in rows.items()
        } == {
            key: (
                job.state,
                job.reason,
                job.facts_ms,
                job.attempt,
                job.setbacks,
                job.failures,
                job.kills,
                job.lease_until_ms,
                job.due_ms if job.state == "pending" else None,
                job.rung_ms if job.state == "pending" else None,
                job.size,
            )
            for key, job in self.model.jobs.items()
        }

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
    def bodies_are_there_exactly_while_they_may_still_be_sent(self) -> None:
        rows = self.db.execute(
            "select j.state, j.body_bytes, j.record_count, count(r.position) as held,"
            " coalesce((select length(bodies) from bundle b where b.job_id = j.id), 0) as stored"
            " from job j left join record r on r.job_id = j.id group by j.id"
        ).fetchall()
        for row in rows:
            assert row["stored"] == row["body_bytes"]
            assert row["held"] == (row["record_count"] if row["state"] in {"pending", "dead"} else 0)

    @invariant()
    def attempts_are_kept_with_the_bodies_and_are_few(self) -> None:
        rows = self.db.execute(
            "select j.state, j.attempt, count(a.number) as kept, max(a.number) as newest"
            " from job j left join attempt a on a.job_id = j.id group by j.id"
        ).fetchall()
        for row in rows:
            assert row["kept"] <= (ATTEMPTS_KEPT if row["state"] in {"pending", "dead"} else 0)
            assert row["newest"] is None or row["newest"] <= row["attempt"]

    @invariant()
    def attempts_never_fall(self) -> None:
        for row in self.db.execute("select key, attempt from job"):
            assert row["attempt"] >= self.attempts.get(row["key"], 0)
            self.attempts[row["key"]] = row["attempt"]

    @invariant()
    def what_is_delivered_was_acknowledged(self) -> None:
        """Every record that a delivered job had is known as taken by Helicone, unless a newer one took its place."""
        for row in self.db.execute("select key from job where state = 'delivered'"):
            job = self.model.jobs[row["key"]]
            taken = {
                uuid.UUID(bytes=note["request_id"])
                for note in self.db.execute(
                    "select a.request_id from acknowledgement a join turn t on t.id = a.turn_id"
                    " join session s on s.id = t.session_id where t.name = ? and s.name = ?",
                    (job.turn, job.session),
                )
            }
            assert set(job.records) <= taken


def test_ledger_does_what_its_model_does(db: sqlite3.Connection) -> None:
    db.execute("pragma synchronous = off")  # nobody cuts the power here

    class OnThisLedger(Histories):
        def __init__(self) -> None:
            super().__init__(db)

    run_state_machine_as_test(OnThisLedger, settings=settings(max_examples=100, stateful_step_count=50))
