"""Commands `jobs …`: list what is in the queue, and show one job from its beginning to now."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from app.cli import layout
from app.cli.options import OF_SPOOL, PROGRAM, AsJson, StoreFile, one_of, print_json, print_lines, since_option, takes
from app.ledger.job import SESSION_RECORD
from app.ledger.listing import STATES, Filter
from app.operations.jobs import (
    JobList,
    OpenedJob,
    ShownJob,
    Wanted,
    as_json,
    list_jobs,
    open_jobs,
    opened,
    opened_as_json,
    session_named,
)
from app.operations.reading import ask_ledger
from app.operations.titles import Titles
from app.runtime import clock
from app.runtime.terminal import counted, span
from app.settings.lookup import Sources
from app.sources.opencode.store import Store, store_file

commands = typer.Typer(rich_markup_mode=None)
jobs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What is in the queue, job by job.")
commands.add_typer(jobs, name="jobs")

KEY_CHARACTERS = 12
LIMIT = 20
OF_SESSION_MAX = 1_000
States = Annotated[list[str] | None, one_of(STATES, "--state", "In this state, or these")]


@jobs.command("list")
@takes(OF_SPOOL)
def _list(  # noqa: PLR0913 - one for each option
    sources: Sources,
    *,
    state: States = None,
    session: Annotated[str | None, typer.Option(metavar="PREFIX", help="Of sessions whose id begins so.")] = None,
    project: Annotated[str | None, typer.Option(metavar="NAME|DIR", help="Of this project folder.")] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Of sessions with this in their title.")] = None,
    error: Annotated[str | None, typer.Option(metavar="TEXT|FINGERPRINT", help="That failed with this error.")] = None,
    since: Annotated[int | None, since_option("Queued since")] = None,
    before: Annotated[int | None, since_option("Queued before", name="--before")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, metavar="N", help="How many, the latest first.")] = LIMIT,
    db: StoreFile = None,
    json_wanted: AsJson = False,
) -> None:
    """List jobs, the latest first, with their sessions' titles.

    A job is one turn of a session, or the session's own record.
    """
    chosen = Filter(states=tuple(state or ()), session=session, error=error, since_ms=since, before_ms=before)
    wanted = Wanted(chosen, title, project)
    titles = Titles(Store(db or store_file(os.environ)))
    now_ms = clock.now_ms()
    listed = ask_ledger(sources.load().spool_directory, lambda ledger: list_jobs(ledger, titles, wanted, now_ms, limit))
    if json_wanted:
        print_json(
            {
                "counts": listed.counts,
                "jobs": [as_json(one) for one in listed.jobs],
                "is_all": listed.is_all,
                "problem": listed.problem,
            }
        )
    else:
        print_lines(lines(listed, now_ms, layout.width(), is_narrowed=wanted != Wanted(Filter())))


def lines(listed: JobList, now_ms: int, room: int, *, is_narrowed: bool) -> Iterator[str]:
    """How many there are in each state, then the jobs, then what else can be asked."""
    told = ", ".join(f"{number} {state}" for state, number in listed.counts.items() if number)
    yield f"{counted(sum(listed.counts.values()), 'job')}{f': {told}' if told else ': the queue is empty'}"
    if not listed.jobs and is_narrowed and told:
        yield "none of them is as asked for"
    if listed.problem and listed.jobs:
        yield layout.fit(f"without titles: {listed.problem}", room)
    yield from job_lines(listed.jobs, now_ms, room)
    if not listed.is_all:
        yield f"more: --limit {4 * len(listed.jobs)}, --state, --project, --title, --since"
    if listed.jobs:
        yield f"one of them: {PROGRAM} jobs show {listed.jobs[0].job.key[:KEY_CHARACTERS]}"


def job_lines(shown: tuple[ShownJob, ...], now_ms: int, room: int) -> Iterator[str]:
    """A line for each, and one below it where there is a reason to be told."""
    cells = [
        [
            one.job.key[:KEY_CHARACTERS],
            one.job.state,
            layout.ago(one.job.at_ms, now_ms),
            *([one.project or "-"] if room >= layout.NARROW else []),
            (one.title or one.job.session) + (" (its own record)" if one.job.turn == SESSION_RECORD else ""),
        ]
        for one in shown
    ]
    yield from _with_reasons(shown, cells, room)


def _with_reasons(shown: Sequence[ShownJob], cells: Sequence[Sequence[str]], room: int) -> Iterator[str]:
    for one, line in zip(shown, layout.rows(cells, room), strict=True):
        yield line
        if one.why:
            yield layout.fit(f"  {one.why}", room)


@jobs.command("show")
@takes(OF_SPOOL)
def _show(
    sources: Sources,
    name: Annotated[
        str, typer.Argument(metavar="KEY|SESSION", help="The beginning of a job's key, or of a session's id.")
    ],
    *,
    db: StoreFile = None,
    json_wanted: AsJson = False,
) -> None:
    """Show a job from its beginning to now, or all jobs of a session.

    When it was queued, each attempt, what Helicone took of it, and how it stands.
    """
    titles = Titles(Store(db or store_file(os.environ)))
    now_ms = clock.now_ms()

    def look(ledger: sqlite3.Connection) -> tuple[list[OpenedJob], JobList | None]:
        found = open_jobs(ledger, titles, name, now_ms)
        if found:
            return found, None
        of_session = Wanted(Filter(sessions=(session_named(ledger, name),)))
        listed = list_jobs(ledger, titles, of_session, now_ms, OF_SESSION_MAX)
        return [opened(ledger, one) for one in listed.jobs] if json_wanted else [], listed

    found, listed = ask_ledger(sources.load().spool_directory, look)
    if json_wanted:
        print_json({"jobs": [opened_as_json(one) for one in found], "problem": titles.problem})
        return
    room = layout.width()
    if listed:
        print_lines(session_lines(listed, now_ms, room))
    for one in found:
        print_lines(opened_lines(one, now_ms, room))
    if titles.problem:
        print_lines([layout.fit(f"without titles: {titles.problem}", room)])


def session_lines(listed: JobList, now_ms: int, room: int) -> Iterator[str]:
    first = listed.jobs[0]
    states = Counter(one.job.state for one in listed.jobs)
    yield layout.fit(_heading(first), room)
    yield f"{counted(len(listed.jobs), 'job')}: {', '.join(f'{number} {state}' for state, number in states.items())}"
    cells = [
        [
            one.job.key[:KEY_CHARACTERS],
            one.job.state,
            layout.ago(one.job.at_ms, now_ms),
            "the session's own record" if one.job.turn == SESSION_RECORD else f"turn {one.job.turn}",
        ]
        for one in listed.jobs
    ]
    yield from _with_reasons(listed.jobs, cells, room)
    yield f"one of them: {PROGRAM} jobs show {first.job.key[:KEY_CHARACTERS]}"


def _heading(one: ShownJob) -> str:
    title = f"{one.title}  " if one.title else ""
    return f"{title}({one.directory or 'project not known'}, {one.job.session})"


def opened_lines(opened: OpenedJob, now_ms: int, room: int) -> Iterator[str]:
    """What it is, then what happened to it, the earliest first, then its records."""
    shown, job = opened.shown, opened.shown.job
    yield f"{job.state}{f': {shown.why}' if shown.why else ''}"
    yield layout.fit(f"of  {_heading(shown)}", room)
    yield f"    {'its own record' if job.turn == SESSION_RECORD else f'turn {job.turn}'}, job {job.key}"
    yield f"to  {opened.endpoint or 'any endpoint'}"
    yield ""
    for time_ms, what in sorted(_events(opened), key=lambda event: event[0]):
        yield layout.fit(f"{layout.local(time_ms)}  {what}", room)
    if job.due_ms is not None and job.due_ms > now_ms:
        yield f"{layout.local(job.due_ms)}  next try, in {span(job.due_ms - now_ms)}"
    yield ""
    yield f"{counted(job.records, 'record')}{f', {layout.size(job.body_bytes)} held' if job.body_bytes else ''}"
    cells = [
        [
            "taken" if one.acknowledged_ms is not None else "-" if job.state == "delivered" else "not yet",
            "" if one.acknowledged_ms is None else layout.local(one.acknowledged_ms, "%H:%M:%S"),
            "" if one.size_bytes is None else layout.size(one.size_bytes),
            one.path or one.request_id,
        ]
        for one in opened.records
    ]
    yield from layout.rows(cells, room, right=(2,))
    if job.state == "dead":
        yield f"what to do: {PROGRAM} dead show {job.key[:KEY_CHARACTERS]}"


def _events(opened: OpenedJob) -> Iterator[tuple[int, str]]:
    job = opened.shown.job
    is_retried = any(one.started_ms < job.enqueued_ms for one in opened.attempts)
    yield job.enqueued_ms, "queued again: somebody had it retried" if is_retried else "queued"
    for one in opened.attempts:
        took = "ended with its worker, or goes on" if one.ended_ms is None else f"{one.ended_ms - one.started_ms} ms"
        told = "; ".join(filter(None, [one.error, one.answer and f"the answer began: {one.answer}"]))
        yield one.started_ms, f"attempt {one.number}, {took}{f': {told}' if told else ''}"
    if job.finished_ms is not None:
        tried = f" after {counted(job.attempts, 'attempt')}" if job.attempts else ""
        yield job.finished_ms, f"{job.state}{tried}"
    if job.confirmed_ms is not None:
        yield job.confirmed_ms, "confirmed: read back at Helicone"
