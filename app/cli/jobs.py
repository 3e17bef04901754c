"""Commands `jobs …`: list what is in the queue, and show one job from its beginning to now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from typing import Annotated

import typer

from app.cli import layout
from app.cli.options import OF_SPOOL, PROGRAM, AsJson, StoreFile, print_json, print_lines, since_option, takes
from app.ledger.listing import STATES, Filter
from app.operations.jobs import JobList, ShownJob, Wanted, as_json, list_jobs
from app.operations.reading import ask_ledger
from app.operations.titles import Titles
from app.runtime import clock
from app.runtime.terminal import counted
from app.settings.lookup import Sources
from app.sources.opencode.store import Store, store_file

commands = typer.Typer(rich_markup_mode=None)
jobs = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What is in the queue, job by job.")
commands.add_typer(jobs, name="jobs")

KEY_CHARACTERS = 12
LIMIT = 20
State = Enum("State", {name: name for name in STATES}, type=str)  # type: ignore[misc]  # names known at run time
States = Annotated[
    list[State] | None, typer.Option("--state", metavar="STATE", help=f"In this state, or these: {', '.join(STATES)}.")
]


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
    states = tuple(one.value for one in state or ())
    chosen = Filter(states=states, session=session, error=error, since_ms=since, before_ms=before)
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
            one.title or one.job.session,
        ]
        for one in shown
    ]
    for one, line in zip(shown, layout.rows(cells, room), strict=True):
        yield line
        if one.why:
            yield layout.fit(f"  {one.why}", room)
