"""Command `backfill`: its arguments, the question that it asks, and what it prints."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from app.backfill.backfill import Backfill, Choice, NoRoomError, Plan, Queued, opened
from app.capture.targets import find_target, target
from app.cli import render
from app.cli.options import (
    DONE,
    OF_CAPTURE,
    PROBLEM,
    AsJson,
    StoreFile,
    ask,
    print_json,
    print_lines,
    since_option,
    takes,
)
from app.cli.render import how_to_deliver
from app.ledger.counts import counts
from app.ledger.decision import BACKFILL, DropReason
from app.ledger.destinations import Destination
from app.runtime import clock
from app.runtime.liveness import read_workers
from app.runtime.spool import Spool
from app.runtime.terminal import counted
from app.settings.lookup import Sources
from app.settings.model import HELICONE, Settings
from app.sources.opencode.store import Store, store_file

commands = typer.Typer(rich_markup_mode=None)

MAX_LOGS = 1_000

Since = Annotated[int | None, since_option("Sessions changed since")]
Sessions = Annotated[list[str] | None, typer.Option("--session", metavar="ID", help="This one; may be repeated.")]
InProject = Annotated[Path | None, typer.Option("--project", metavar="DIR", help="Sessions of this folder.")]
MaxLogs = Annotated[int, typer.Option(min=0, metavar="N", help="Ask before sending more.")]


@commands.command("backfill")
@takes(OF_CAPTURE)
def _backfill(  # noqa: PLR0913 - one for each option
    sources: Sources,
    *,
    since: Since = None,
    session: Sessions = None,
    project: InProject = None,
    db: StoreFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and do nothing.")] = False,
    max_logs: MaxLogs = MAX_LOGS,
    include_off: Annotated[
        bool, typer.Option("--include-off", help="Also turns captured while export was off.")
    ] = False,
    body_not_stored: Annotated[
        bool, typer.Option("--body-not-stored", help="Also turns that Helicone kept without body.")
    ] = False,
    json_wanted: AsJson = False,
) -> None:
    """Queue the sessions of OpenCode's own store.

    Those that are not exported yet, of the last 90 days unless told otherwise. Stopped anywhere, it is taken up by the
    next one. No worker is started.
    """
    asked: set[DropReason] = {"off"} if include_off else set()
    choice = Choice(
        since_ms=since,
        sessions=tuple(session or ()),
        directory=None if project is None else project.absolute(),
        reopen=replace(BACKFILL, dropped=BACKFILL.dropped | asked, body_not_stored=body_not_stored),
    )
    settings = sources.load()
    store = Store(db or store_file(os.environ))
    with store.kept_open(), opened(settings.spool_directory, dry_run=dry_run) as queue:
        ours = find_target(queue, settings) if dry_run else target(queue, settings, clock.now_ms())
        history = Backfill(queue, sources, ours, store, choice)
        with render.bar("looking through OpenCode's sessions") as bar:
            plan = history.plan(clock.now_ms(), bar.show)
        if not json_wanted:
            print_lines(_plan_lines(plan, is_helicone=settings.kind == HELICONE))
        if ours is not None and not dry_run:
            if plan.logs > max_logs:
                ask(f"send {plan.logs} logs, more than --max-logs {max_logs}", f"--max-logs {plan.logs}")
            _queue(queue, history, plan, ours, settings, json_wanted=json_wanted)
        elif json_wanted:
            print_json(_as_json(plan, None, 0))
    raise typer.Exit(DONE if plan.is_whole else PROBLEM)


def _queue(
    db: sqlite3.Connection, history: Backfill, plan: Plan, ours: Destination, settings: Settings, *, json_wanted: bool
) -> None:
    """What was queued is told of also where there is no room for the rest, which ends the command."""
    queued = Queued()
    problem: NoRoomError | None = None
    try:
        with render.bar("queueing") as bar:
            history.queue(ours, plan.sessions, queued, bar.show, bar.wait)
    except NoRoomError as error:
        problem = error
    waiting = counts(db, ours.id).pending
    if json_wanted:
        print_json(_as_json(plan, queued, waiting))
    if problem is not None:
        raise problem
    if not json_wanted:
        is_served = any(worker.destination == ours.id for worker in read_workers(Spool(settings.spool_directory)))
        print_lines(_queued_lines(queued, waiting, is_served=is_served, has_key=bool(settings.credential)))


def _as_json(plan: Plan, queued: Queued | None, waiting: int) -> dict[str, object]:
    return {
        "logs": plan.logs,
        "turns": plan.turns,
        "replaced": plan.replaced,
        "sessions": len(plan.sessions),
        "too_old": plan.too_old,
        "projects": [asdict(project) for project in plan.projects.values()],
        "unreadable": [{"session": session, "reason": reason} for session, reason in plan.unreadable.items()],
        "queued": None if queued is None else asdict(queued),
        "waiting": waiting,
    }


def _plan_lines(plan: Plan, *, is_helicone: bool) -> Iterator[str]:
    """What a backfill would send."""
    yield _amount(plan.logs, plan.turns, plan.replaced, len(plan.sessions))
    for project in plan.projects.values():
        name = (project.directory or "(no folder)") + (" (not there any more)" if project.is_gone else "")
        if project.sessions:
            yield f"  {name}: {_amount(project.logs, project.turns, project.replaced, project.sessions)}"
        if project.left_out:
            yield f"  {name}: {counted(project.left_out, 'session')} left out: {project.reason}"
        if project.shut:
            told = "captured while export was off (--include-off takes them), deleted, or recalled"
            yield f"  {name}: {counted(project.shut, 'turn')} not taken: {told}"
    for session, reason in plan.unreadable.items():
        yield f"  {session}: cannot be read: {reason}"
    if plan.too_old:
        why = ": Helicone would blank their bodies" if is_helicone else ""
        told = f"not changed for 90 days{why} (--since takes them)"
        yield f"  {counted(plan.too_old, 'session')} left out, {told}"


def _amount(logs: int, turns: int, replaced: int, sessions: int) -> str:
    told = f"{counted(logs, 'log')} in {counted(turns, 'turn')} of {counted(sessions, 'session')}"
    if not replaced:
        return told
    return f"{told}: {turns - replaced} new, {replaced} known and made anew, because the turn or the settings changed"


def _queued_lines(queued: Queued, waiting: int, *, is_served: bool, has_key: bool) -> Iterator[str]:
    unfinished = (
        f"; {counted(queued.unfinished, 'turn')} left to the OpenCode that is at it" if queued.unfinished else ""
    )
    yield f"{counted(queued.new, 'job')} queued{unfinished}; {counted(waiting, 'job')} wait"
    if waiting:
        yield from how_to_deliver(is_served=is_served, has_key=has_key)
