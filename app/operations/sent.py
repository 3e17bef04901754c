"""Sent, for people: what left this machine, by session, and where to."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from app.ledger import counts, destinations, sent
from app.ledger.sent import SentJob
from app.operations.titles import Titles
from app.sources.opencode.rows import Head

JOBS_MAX = 100_000
"""Of one look."""


@dataclass(frozen=True, slots=True)
class SentSession:
    session: str
    title: str
    """'' where OpenCode's store does not have it."""
    directory: str
    """The same."""
    endpoint: str
    last_ms: int
    turns: int
    """Those of which anything left; the session's own record counts as one."""
    records: int
    """That Helicone took."""
    record_bytes: int
    """Of these, as far as that was kept."""
    redactions: int
    """The same."""
    unmeasured: int
    """Turns from before sizes and redactions were kept."""


@dataclass(frozen=True, slots=True)
class Sent:
    sessions: tuple[SentSession, ...]
    """The latest first."""
    jobs: tuple[SentJob, ...]
    """Of one session, where one was asked for; the earliest first."""
    not_taken: int
    """Jobs of the whole queue that were tried in vain: what was posted of them may have arrived."""
    problem: str
    """Why titles and projects are not known; '' where they are."""


def as_json(found: Sent) -> dict[str, object]:
    """Without hashes that nobody can use."""
    jobs = [{name: value for name, value in asdict(job).items() if name != "folder"} for job in found.jobs]
    return {**asdict(found), "jobs": jobs}


def read_sent(db: sqlite3.Connection, titles: Titles, since_ms: int, session: str | None = None) -> Sent:
    jobs = sent.sent_since(db, since_ms, JOBS_MAX) if session is None else sent.sent_of_session(db, session)
    by_session: dict[tuple[str, int], list[SentJob]] = {}
    for job in jobs:
        by_session.setdefault((job.session, job.destination_id), []).append(job)
    heads = titles.of(dict.fromkeys(name for name, _ in by_session))
    endpoints = {one.id: one.endpoint for one in destinations.destinations(db)}
    nobody = Head("", None, "", 0, 0)
    found = [
        _session(of_it, heads.get(name, nobody), endpoints.get(destination, ""))
        for (name, destination), of_it in by_session.items()
    ]
    total = counts.counts(db)
    return Sent(tuple(found), () if session is None else tuple(jobs), total.dead + total.retrying, titles.problem)


def _session(jobs: Sequence[SentJob], head: Head, endpoint: str) -> SentSession:
    return SentSession(
        session=jobs[0].session,
        title=head.title,
        directory=head.directory,
        endpoint=endpoint,
        last_ms=max(job.last_ms for job in jobs),
        turns=len(jobs),
        records=sum(min(job.taken, job.records) for job in jobs),
        record_bytes=sum(sent_bytes(job) or 0 for job in jobs),
        redactions=sum(job.redactions or 0 for job in jobs),
        unmeasured=sum(job.record_bytes is None for job in jobs),
    )


def sent_bytes(job: SentJob) -> int | None:
    """Of what was taken: all of a job that is delivered, of another one its share. None where that was not kept."""
    if job.record_bytes is None or not job.records:
        return None
    return job.record_bytes * min(job.taken, job.records) // job.records
