"""Tail: tells from one look at the queue to the next what has happened to its jobs and destinations."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.ledger import destinations, listing
from app.ledger.destinations import Destination
from app.ledger.listing import Listed
from app.operations.jobs import why
from app.operations.titles import Titles, project_name

WATCHED = 1_000
"""Of older jobs is told what a worker does with them."""
LOOK_BACK_MS = 10_000
"""What was acknowledged just before a look may be committed just after it."""


@dataclass(frozen=True, slots=True)
class Event:
    at_ms: int
    what: str
    """queued, failed, held, delivered, confirmed, dead, dropped, superseded; away or back, of a destination."""
    key: str
    """'' for a destination's."""
    session: str
    title: str
    project: str
    why: str


@dataclass(slots=True)
class Tail:
    titles: Titles
    _jobs: dict[int, Listed] = field(default_factory=dict)
    _destinations: dict[int, Destination] = field(default_factory=dict)
    _looked_ms: int = 0

    def begin(self, db: sqlite3.Connection, now_ms: int, count: int) -> list[Event]:
        """The last events that there were, one for each job at the most, the earliest first."""
        jobs = self._look(db, now_ms)
        last = sorted(jobs.values(), key=lambda job: (job.at_ms, job.job_id))[-count:] if count else []
        self._jobs = jobs
        return [self._event(job, "queued" if job.state == "pending" else job.state, job.at_ms, now_ms) for job in last]

    def look(self, db: sqlite3.Connection, now_ms: int) -> list[Event]:
        """What has happened since the last look."""
        known_jobs, known_destinations = self._jobs, self._destinations
        found = self._look(db, now_ms)
        newest = max(known_jobs, default=0)
        events = [
            event
            for job_id, job in found.items()
            if job_id in known_jobs or job_id > newest
            for event in self._changes(known_jobs.get(job_id), job, now_ms)
        ]
        for one in self._destinations.values():
            before = known_destinations.get(one.id)
            if before is not None and (before.pause_reason is None) != (one.pause_reason is None):
                what = "back" if one.pause_reason is None else "away"
                events.append(Event(now_ms, what, "", "", one.endpoint, "", one.pause_reason or ""))
        # What is seen no more was finished long ago.
        self._jobs = found
        return sorted(events, key=lambda event: event.at_ms)

    def _look(self, db: sqlite3.Connection, now_ms: int) -> dict[int, Listed]:
        found = listing.watched(db, self._looked_ms - LOOK_BACK_MS if self._looked_ms else now_ms, WATCHED)
        self._destinations = {one.id: one for one in destinations.destinations(db)}
        self._looked_ms = now_ms
        return {job.job_id: job for job in found}

    def _changes(self, before: Listed | None, job: Listed, now_ms: int) -> Iterator[Event]:
        if before is None or (job.state == "pending" and before.state != "pending"):
            yield self._event(job, "queued", job.enqueued_ms, now_ms)
        if before is not None and before.state == job.state == "pending" and not job.is_in_flight:
            if job.hold_reason and job.hold_reason != before.hold_reason:
                yield self._event(job, "held", now_ms, now_ms)
            elif job.error and (job.error != before.error or job.due_ms != before.due_ms):
                yield self._event(job, "failed", now_ms, now_ms)
        if job.state != "pending" and (before is None or before.state != job.state):
            yield self._event(job, job.state, job.at_ms, now_ms)
        if job.confirmed_ms is not None and (before is None or before.confirmed_ms is None):
            yield self._event(job, "confirmed", job.confirmed_ms, now_ms)

    def _event(self, job: Listed, what: str, at_ms: int, now_ms: int) -> Event:
        head = self.titles.of([job.session]).get(job.session)
        title, directory = (head.title, head.directory) if head else ("", "")
        told = "" if what == "queued" else why(job, self._destinations[job.destination_id], now_ms)
        return Event(at_ms, what, job.key, job.session, title or job.session, project_name(directory), told)
