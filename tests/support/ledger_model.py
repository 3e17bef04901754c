"""What the ledger should say: a model of its jobs and of their destination, for `test_states.py`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from app.ledger.claims import ISOLATED_KILLS
from app.ledger.decision import Decision, Reopen
from app.ledger.flow import CONCURRENCY_MAX
from app.ledger.job import Body, Version

LOOSE = "loose"


@dataclass
class Job:
    """What the ledger should say about one key."""

    number: int
    """Older jobs have lower ones; a job keeps its own when it is reopened."""
    session: str
    turn: str
    state: str
    last_event_ms: int
    records: dict[uuid.UUID, bytes]
    """Digests by request id, as last inserted."""
    policy: str
    enqueued_ms: int
    reason: str | None = None
    due_ms: int | None = None
    finished_ms: int | None = None
    attempted_ms: int | None = None
    lease_until_ms: int | None = None
    attempt: int = 0
    consecutive_failures: int = 0
    failures: int = 0
    kills: int = 0
    hold: str | None = None
    size: int = 0
    made: tuple[Body, ...] = ()
    """As last inserted."""
    is_evicted: bool = False
    """Its bodies were given up, and are made again when they are wanted."""
    confirm_ms: int | None = None
    confirmed_ms: int | None = None
    resends: int = 0
    not_stored: bool = False
    is_history: bool = False
    is_recall: bool = False
    is_sealed: bool = False

    @property
    def is_open(self) -> bool:
        return self.state in {"pending", "dead"}

    @property
    def is_kept(self) -> bool:
        """It is known what its bodies are."""
        return self.size > 0 or self.is_evicted

    @property
    def is_free(self) -> bool:
        return self.lease_until_ms is None

    def end(self, state: str, now_ms: int, reason: str | None = None, *, keeps_bodies: bool = False) -> None:
        self.state, self.reason, self.finished_ms, self.due_ms, self.confirm_ms = state, reason, now_ms, None, None
        if not keeps_bodies:
            self.forget()

    def forget(self) -> None:
        self.size, self.is_evicted = 0, False

    def let_go(self) -> None:
        self.lease_until_ms = None

    def wait(self, due_ms: int) -> None:
        """In no hand any more."""
        self.due_ms, self.lease_until_ms = due_ms, None

    def close(self) -> None:
        """Delivered; nobody looks for it any more."""
        self.confirm_ms = None
        self.forget()

    def start_anew(self, now_ms: int) -> None:
        """Pending again with the bodies that it has; another attempt, so that nobody settles it who held it before."""
        self.state, self.finished_ms, self.confirm_ms = "pending", None, None
        self.attempt += 1
        self.consecutive_failures = self.failures = 0
        self.wait(now_ms)


@dataclass
class Health:
    """What the ledger should say about the destination."""

    probe_ms: int | None = None
    """None: it is not paused."""
    probed_ms: int = 0
    concurrency: int | None = None

    def resume(self) -> None:
        self.probe_ms, self.concurrency = None, 1

    def pass_one(self) -> None:
        if self.concurrency is not None:
            doubled = 2 * self.concurrency
            self.concurrency = doubled if doubled < CONCURRENCY_MAX else None

    def room(self, now_ms: int, leased: int) -> int:
        """How many jobs may be claimed now."""
        if self.probe_ms is not None:
            return int(self.probe_ms <= now_ms)
        return CONCURRENCY_MAX if self.concurrency is None else max(0, self.concurrency - leased)


@dataclass
class Model:
    jobs: dict[str, Job] = field(default_factory=dict)
    health: Health = field(default_factory=Health)
    acknowledged: dict[tuple[str, str], dict[uuid.UUID, bytes]] = field(default_factory=dict)
    given_up: int = 0
    roots: dict[str, str] = field(default_factory=dict)

    def chosen(self, wanted: Callable[[Job], bool]) -> list[Job]:
        return [job for job in self.jobs.values() if wanted(job)]

    def key_of(self, job: Job) -> str:
        return next(key for key, one in self.jobs.items() if one is job)

    def current(self, session: str, turn: str) -> tuple[str, Job] | tuple[None, None]:
        for key, job in self.jobs.items():
            if (job.session, job.turn) == (session, turn) and job.state != "superseded":
                return key, job
        return None, None

    @property
    def leased(self) -> list[Job]:
        return self.chosen(lambda job: not job.is_free)

    # --- what was acknowledged

    def known(self, job: Job) -> dict[uuid.UUID, bytes]:
        return self.acknowledged.setdefault((job.session, job.turn), {})

    def missing(self, job: Job) -> set[uuid.UUID]:
        known = self.known(job)
        return {name for name, digest in job.records.items() if known.get(name) != digest}

    def disbelieve(self, job: Job) -> None:
        for request_id in job.records:
            self.known(job).pop(request_id, None)

    def supersede(self, job: Job, now_ms: int) -> None:
        if job.confirm_ms is not None and job.is_kept:
            self.disbelieve(job)  # accepted, and not yet seen
        job.end("superseded", now_ms)

    # --- versions come in

    def expect(self, version: Version, *, off: bool, reopen: Reopen) -> Decision:
        key, current = self.current(version.session, version.turn)
        known = version.key in self.jobs
        if current is None:
            return Decision.REOPENED if known else Decision.NEW
        reason = "body_not_stored" if current.not_stored else current.reason
        if key == version.key:
            reasons = {reason, current.state if current.is_free else "in flight"}
            asked = {"policy", *reopen.dropped, *reopen.states} | (
                {"body_not_stored"} if reopen.body_not_stored else set()
            )
            return Decision.REOPENED if reasons & asked else Decision.KNOWN
        shut = {reason} & {"off", "deleted"} | ({"sealed"} if current.is_sealed else set())
        if shut - {*reopen.dropped, *({"sealed"} if reopen.sealed else ())}:
            return Decision.REFUSED
        if off and version.last_event_ms <= current.last_event_ms:
            return Decision.KNOWN
        if version.last_event_ms < current.last_event_ms:
            return Decision.KNOWN if known else Decision.SUPERSEDED
        return Decision.REOPENED if known else Decision.NEW

    def insert(self, version: Version, made: list[Body], verdict: Decision, now_ms: int, *, off: bool) -> None:
        key, current = self.current(version.session, version.turn)
        if verdict in {Decision.KNOWN, Decision.REFUSED}:
            if current is not None and key == version.key:
                current.last_event_ms = max(current.last_event_ms, version.last_event_ms)
            return
        if verdict is Decision.SUPERSEDED:
            self._write(version, [], "superseded", None, now_ms)
            return
        if current is not None and current.is_recall:
            if key == version.key and version.is_recall and current.state == "delivered":
                self.known(current).clear()
            version = replace(version, is_recall=version.is_recall or current.state != "delivered")
        if current is not None and key != version.key:
            self.supersede(current, now_ms)
        if off:
            self._write(version, [], "dropped", "off", now_ms)
        else:
            self._write(version, made, "pending", None, now_ms)

    def _write(self, version: Version, made: list[Body], state: str, reason: str | None, now_ms: int) -> None:
        before = self.jobs.get(version.key)
        self.jobs[version.key] = Job(
            number=len(self.jobs) if before is None else before.number,
            session=version.session,
            turn=version.turn,
            state=state,
            last_event_ms=version.last_event_ms,
            records={body.request_id: body.digest for body in made},
            policy=version.policy,
            made=tuple(made),
            enqueued_ms=now_ms,
            reason=reason,
            due_ms=now_ms if state == "pending" else None,
            finished_ms=None if state == "pending" else now_ms,
            attempt=0 if before is None else before.attempt + 1,
            is_history=version.is_history,
            is_recall=version.is_recall,
            is_sealed=version.is_sealed,
        )

    # --- jobs go out

    def is_due(self, job: Job, now_ms: int) -> bool:
        return job.state == "pending" and job.due_ms is not None and job.due_ms <= now_ms

    def due(self, now_ms: int) -> list[Job]:
        """What is due in sessions of which nothing is in flight; the oldest first."""
        taken = {job.session for job in self.leased}
        found = self.chosen(lambda job: self.is_due(job, now_ms) and job.session not in taken)
        return sorted(found, key=lambda job: job.number)

    def claimable(self, now_ms: int) -> list[Job]:
        """Of what is due all that is not kept back by one that must be alone."""
        suspects = self.chosen(lambda job: self.is_due(job, now_ms) and job.kills >= ISOLATED_KILLS)
        return [job for job in self.due(now_ms) if job.kills >= ISOLATED_KILLS or not suspects]

    def next_claim(self, session: str, now_ms: int) -> Job | None:
        if self.health.room(now_ms, len(self.leased)) == 0:
            return None
        if self.health.probe_ms is not None:
            # In vain asked about, it is due from then on: behind all that waited already, and behind what is new.
            candidates = sorted(self.due(now_ms), key=self._since)
            newest = max(self.chosen(lambda job: job.state == "pending"), key=lambda job: (job.enqueued_ms, job.number))
            if newest in candidates and candidates[0].attempted_ms is not None and newest.attempted_ms is None:
                candidates = [newest]
        else:
            own = [job for job in self.claimable(now_ms) if job.session == session]
            candidates = sorted(own, key=lambda job: (job.is_history, not self._is_oldest(job), self._rank(job)))
        if not candidates:
            return None
        chosen = candidates[0]
        must_be_alone = any(job.kills >= ISOLATED_KILLS for job in [chosen, *self.leased])
        return None if self.leased and must_be_alone else chosen

    def _since(self, job: Job) -> tuple[int, bool, int, int]:
        """Since when it is due; of several those of the session that was seen first."""
        return job.due_ms or 0, job.is_history, list(self.roots).index(job.session), job.number

    def _is_oldest(self, job: Job) -> bool:
        """Of its kind in its session, the suspects aside that must be alone."""
        if job.kills >= ISOLATED_KILLS:
            return True
        own = self.chosen(
            lambda one: (one.state, one.session, one.is_history) == ("pending", job.session, job.is_history)
        )
        return job is min(own, key=lambda one: one.number)

    def to_be_rung(self, now_ms: int) -> list[Job]:
        """One of each session: that which is due for the longest time; first where something is live."""
        found: dict[str, Job] = {}
        for job in sorted(self.claimable(now_ms), key=lambda job: (job.is_history, self._rank(job))):
            found.setdefault(job.session, job)
        return list(found.values())

    def _rank(self, job: Job) -> tuple[int, ...]:
        return (job.number,) if job.kills >= ISOLATED_KILLS else self._since(job)

    # --- jobs are read back

    def to_be_confirmed(self, now_ms: int) -> set[str]:
        return {
            key
            for key, job in self.jobs.items()
            if job.confirm_ms is not None and job.confirm_ms <= now_ms and (job.is_kept or self.known(job))
        }

    def never_looked_for(self) -> list[Job]:
        seen = self.chosen(lambda job: job.state == "delivered" and job.confirmed_ms is not None and not job.not_stored)
        since_ms = max((job.finished_ms or 0 for job in seen), default=0)
        return self.chosen(
            lambda job: (
                job.state == "delivered"
                and job.confirm_ms is None
                and job.confirmed_ms is None
                and (job.finished_ms or 0) > since_ms
                and bool(self.known(job))
            )
        )

    def give_up(self, jobs: list[Job]) -> int:
        for job in jobs:
            job.close()
        self.given_up += len(jobs)
        return len(jobs)

    def without_room(self, jobs: list[Job], excess: int) -> list[Job]:
        """The first of these, until they free as much."""
        gone = []
        for job in jobs:
            if excess <= 0:
                break
            excess -= job.size
            gone.append(job)
        return gone
