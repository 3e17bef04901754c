"""Jobs for people: which there are, each with its session's title, and why it waits or ended as it did."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from app.capture.targets import folder
from app.errors import AppError, UsageError
from app.ledger import counts, destinations, folders, listing
from app.ledger.dead_letters import Attempt, attempts
from app.ledger.destinations import Destination
from app.ledger.listing import Filter, Listed, RecordState
from app.operations.titles import Titles, directories_of, project_name, titled, unknown_project
from app.runtime.terminal import span
from app.sources.opencode.rows import Head


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs a person asked for, in words that only OpenCode's store knows."""

    filter: Filter
    title: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class ShownJob:
    job: Listed
    title: str
    """'' where OpenCode's store does not have the session."""
    directory: str
    """The same."""
    why: str
    """Why it waits, or ended as it did; '' for what is delivered."""

    @property
    def project(self) -> str:
        return project_name(self.directory)


@dataclass(frozen=True, slots=True)
class JobList:
    counts: Mapping[str, int]
    """All jobs that there are, by state."""
    jobs: tuple[ShownJob, ...]
    """The latest of those that were asked for."""
    is_all: bool
    """There are no more of them."""
    problem: str
    """Why titles and projects are not known; '' where they are."""


def list_jobs(db: sqlite3.Connection, titles: Titles, wanted: Wanted, now_ms: int, limit: int) -> JobList:
    """Raises UsageError for a title or project that nobody can look up."""
    found = listing.jobs(db, _as_known(db, titles, wanted), limit + 1)
    shown = shown_jobs(db, titles, found[:limit], now_ms)
    total = counts.counts(db)
    by_state = {state: int(getattr(total, state)) for state in listing.STATES}
    return JobList(by_state, tuple(shown), len(found) <= limit, titles.problem)


def shown_jobs(db: sqlite3.Connection, titles: Titles, jobs: Sequence[Listed], now_ms: int) -> list[ShownJob]:
    """These jobs with what OpenCode's store and their destinations say of them."""
    heads = titles.of(dict.fromkeys(job.session for job in jobs))
    known = {one.id: one for one in destinations.destinations(db)}
    nobody = Head("", None, "", 0, 0)
    shown = []
    for job in jobs:
        head = heads.get(job.session, nobody)
        shown.append(ShownJob(job, head.title, head.directory, why(job, known[job.destination_id], now_ms)))
    return shown


class UnknownJobError(AppError):
    """What was asked for is not there, or could be several. Names keys and ids only."""


@dataclass(frozen=True, slots=True)
class OpenedJob:
    """One job from its beginning to now."""

    shown: ShownJob
    endpoint: str
    attempts: tuple[Attempt, ...]
    """The last few; none of a job that is delivered."""
    records: tuple[RecordState, ...]


def open_jobs(db: sqlite3.Connection, titles: Titles, name: str, now_ms: int) -> list[OpenedJob]:
    """The job whose key begins so: one for each destination. Raises UnknownJobError."""
    found = listing.jobs_of_key(db, name.lower())
    keys = sorted({job.key for job in found})
    if len(keys) > 1:
        raise UnknownJobError(
            f"several jobs' keys begin with {name}: {', '.join(key[: len(name) + 8] for key in keys)}"
        )
    return [opened(db, shown) for shown in shown_jobs(db, titles, found, now_ms)]


def opened(db: sqlite3.Connection, shown: ShownJob) -> OpenedJob:
    return OpenedJob(
        shown,
        destinations.by_id(db, shown.job.destination_id).endpoint,
        tuple(attempts(db, shown.job.job_id)),
        tuple(listing.record_states(db, shown.job)),
    )


def session_named(db: sqlite3.Connection, prefix: str) -> str:
    """The one session in the queue whose id begins so. Raises UnknownJobError."""
    found = listing.session_names(db, prefix)
    if prefix in found:
        return prefix
    if not found:
        raise UnknownJobError(f"nothing in the queue has a key or a session id that begins with {prefix}")
    if len(found) > 1:
        raise UnknownJobError(f"several sessions begin with {prefix}: {', '.join(found)}")
    return found[0]


def _as_known(db: sqlite3.Connection, titles: Titles, wanted: Wanted) -> Filter:
    """The filter by what the ledger knows: ids, and salted hashes of folders. Raises UnknownProjectError."""
    if wanted.title is None and wanted.project is None:
        return wanted.filter
    heads = titles.all()
    if titles.problem and wanted.title is not None:
        raise UsageError(f"--title needs OpenCode's store: {titles.problem}")
    found = wanted.filter
    if wanted.title is not None:
        found = replace(found, sessions=tuple(head.id for head in titled(heads.values(), wanted.title)))
    if wanted.project is not None:
        there = {*directories_of(heads.values(), wanted.project), str(Path(wanted.project).absolute())}
        hashes = [folder(db, one) for one in there]
        if len(there) == 1 and not titles.problem and not any(folders.had_jobs(db, one) for one in hashes):
            unknown_project(heads.values(), wanted.project)
        found = replace(found, folders=tuple(hashes))
    return found


_DROPPED = {
    "age": "waited longer than maxSpoolAge",
    "size": "no room for it (maxSpoolSize)",
    "deleted": "its session was deleted in OpenCode",
    "off": "captured while export was off",
    "policy": "made under looser settings, and not captured again yet",
    "purged": "given up by `dead purge`",
}


def why(job: Listed, at: Destination, now_ms: int) -> str:
    """One line for a person."""
    match job.state:
        case "pending":
            return _why_pending(job, at, now_ms)
        case "dead":
            return job.error
        case "dropped":
            return _DROPPED.get(job.drop_reason, job.drop_reason)
        case "superseded":
            return "a newer version of its turn took its place"
    return ""


def _why_pending(job: Listed, at: Destination, now_ms: int) -> str:
    failed = f": {job.error}" if job.error else ""
    if job.is_in_flight:
        return "is being sent now"
    if job.hold_reason:
        return f"held: {job.hold_reason}"
    if not at.key_fingerprint:
        return "captured without a key: set HELICONE_API_KEY"
    if at.pause_reason is not None:
        return f"{at.endpoint} is {'away' if at.health == 'down' else 'refusing'}: {at.pause_reason}"
    left_ms = (job.due_ms or 0) - now_ms
    if left_ms > 0:
        return f"next try in {span(left_ms)}{failed}"
    return f"waits for a worker{failed}"


def as_json(shown: ShownJob) -> dict[str, object]:
    return {
        **{name: value for name, value in asdict(shown.job).items() if name != "folder"},
        "title": shown.title,
        "directory": shown.directory,
        "why": shown.why,
    }


def opened_as_json(opened: OpenedJob) -> dict[str, object]:
    return {
        "job": as_json(opened.shown),
        "endpoint": opened.endpoint,
        "attempts": [asdict(one) for one in opened.attempts],
        "records": [asdict(one) for one in opened.records],
    }
