"""Sent, for people: what left this machine, by session, and where to."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass

from app.ledger import counts, destinations, sent
from app.ledger.sent import SentJob, SentSession
from app.operations.titles import Titles


@dataclass(frozen=True, slots=True)
class ShownSession:
    sent: SentSession
    title: str
    """'' where OpenCode's store does not have it."""
    directory: str
    """The same."""
    endpoint: str


@dataclass(frozen=True, slots=True)
class Sent:
    sessions: tuple[ShownSession, ...]
    """The latest first."""
    jobs: tuple[SentJob, ...]
    """Of one session, where one was asked for; the earliest first."""
    not_taken: int
    """Jobs of the whole queue that were tried in vain: what was posted of them may have arrived."""
    problem: str
    """Why titles and projects are not known; '' where they are."""


def read_sent(db: sqlite3.Connection, titles: Titles, since_ms: int, session: str | None = None) -> Sent:
    """Of all sessions since then, or of one session ever."""
    found = sent.sent_since(db, since_ms) if session is None else sent.sent_in_all(db, session)
    heads = titles.of([one.session for one in found])
    endpoints = {one.id: one.endpoint for one in destinations.destinations(db)}
    shown = [
        ShownSession(
            one,
            heads[one.session].title if one.session in heads else "",
            heads[one.session].directory if one.session in heads else "",
            endpoints[one.destination_id],
        )
        for one in found
    ]
    jobs = [] if session is None else sent.sent_of_session(db, session)
    total = counts.counts(db)
    return Sent(tuple(shown), tuple(jobs), total.dead + total.retrying, titles.problem)


def as_json(found: Sent) -> dict[str, object]:
    sessions = [
        {**asdict(one.sent), "title": one.title, "directory": one.directory, "endpoint": one.endpoint}
        for one in found.sessions
    ]
    jobs = [asdict(one) for one in found.jobs]
    return {"sessions": sessions, "jobs": jobs, "not_taken": found.not_taken, "problem": found.problem}
