"""`backfill`: its arguments, the question that it asks, and what it prints."""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from app.backfill.backfill import Backfill, Choice, Fed, NoRoomError, Plan, Room
from app.capture.targets import find_target, target
from app.cli import render
from app.cli.options import (
    DONE,
    PROBLEM,
    USAGE,
    AsJson,
    Chosen,
    Endpoint,
    EnvFile,
    ExportMode,
    SpoolDirectory,
    StoreFile,
    agrees,
    complain,
    moment,
    print_json,
    print_lines,
    sources_of,
)
from app.database.open import open_ledger, open_whole
from app.ledger import counts
from app.ledger.decision import BACKFILL, DropReason
from app.runtime import clock
from app.runtime.liveness import read_workers
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import Settings
from app.sources.opencode.store import Store, store_file

backfill = typer.Typer(rich_markup_mode=None)

MAX_LOGS = 1_000
NOWHERE = 0
"""No destination has this number."""

Since = Annotated[
    str | None, typer.Option("--since", metavar="DURATION|DATE", help="Sessions changed since: 12h, 7d, 2026-01-31.")
]
Sessions = Annotated[list[str] | None, typer.Option("--session", metavar="ID", help="This one; may be repeated.")]
InProject = Annotated[Path | None, typer.Option("--project", metavar="DIR", help="Sessions of this folder.")]
MaxLogs = Annotated[int, typer.Option(min=0, metavar="N", help="Ask before sending more.")]


@backfill.command("backfill")
def _backfill(  # noqa: PLR0913 - one for each option
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
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    endpoint: Endpoint = None,
    export_mode: ExportMode = None,
    chosen: Chosen = None,
    json_wanted: AsJson = False,
) -> None:
    """Queue the sessions of OpenCode's own store.

    Those that are not exported yet, of the last 90 days unless told otherwise. Stopped anywhere, it is taken up by the
    next one. No worker is started.
    """
    sources = sources_of(env_file, spool_directory, endpoint, export_mode, chosen=chosen)
    asked: set[DropReason] = {"off"} if include_off else set()
    choice = Choice(
        since_ms=moment(since),
        sessions=tuple(session or ()),
        directory=None if project is None else project.absolute(),
        reopen=replace(BACKFILL, dropped=BACKFILL.dropped | asked, body_not_stored=body_not_stored),
    )
    store = Store(db or store_file(os.environ))
    with store.kept_open():
        if dry_run:
            _tell_plan(_dry_plan(sources, store, choice), json_wanted=json_wanted)
        else:
            _run(sources, store, choice, max_logs, json_wanted=json_wanted)


def _dry_plan(sources: Sources, store: Store, choice: Choice) -> Plan:
    settings = sources.load()
    with _looked_into(settings) as db:
        ours = find_target(db, settings)
        hooks = Spool(settings.spool_directory).hooks
        history = Backfill(db, sources, NOWHERE if ours is None else ours.id, store, hooks, choice)
        return _planned(history)


@contextmanager
def _looked_into(settings: Settings) -> Iterator[sqlite3.Connection]:
    """The ledger; where there is none, an empty one that is gone afterwards."""
    if (settings.spool_directory / "ledger.db").exists():
        with closing(open_ledger(settings.spool_directory)) as db:
            yield db
    else:
        with tempfile.TemporaryDirectory() as nothing, closing(open_ledger(Path(nothing) / "spool")) as db:
            yield db


def _planned(history: Backfill) -> Plan:
    with render.bar("looking through OpenCode's sessions") as bar:
        return history.plan(clock.now_ms(), bar.show)


def _tell_plan(plan: Plan, *, json_wanted: bool) -> None:
    """The whole of a dry run."""
    if json_wanted:
        print_json(_as_json(plan, None, 0))
    else:
        print_lines(render.plan_lines(plan))
    raise typer.Exit(DONE if plan.is_whole else PROBLEM)


def _run(sources: Sources, store: Store, choice: Choice, max_logs: int, *, json_wanted: bool) -> None:
    settings = sources.load()
    spool = Spool(settings.spool_directory)
    with closing(open_whole(spool.path)) as db:
        ours = target(db, settings, clock.now_ms())
        history = Backfill(db, sources, ours.id, store, spool.hooks, choice)
        plan = _planned(history)
        if not json_wanted:
            print_lines(render.plan_lines(plan))
        if plan.logs > max_logs:
            _ask(plan, max_logs)
        fed, problem = _fed(history, plan, db, spool, settings)
        waiting = counts.counts(db, ours.id).pending
        if json_wanted:
            print_json(_as_json(plan, fed, waiting))
        elif not problem:
            is_served = any(worker.destination == ours.id for worker in read_workers(spool))
            print_lines(render.fed_lines(fed, waiting, is_served=is_served, has_key=settings.api_key is not None))
    if problem:
        complain(problem)
    raise typer.Exit(PROBLEM if problem or not plan.is_whole else DONE)


def _fed(history: Backfill, plan: Plan, db: sqlite3.Connection, spool: Spool, settings: Settings) -> tuple[Fed, str]:
    """What was queued, and why it was not all, '' when it was."""
    ours = target(db, settings, clock.now_ms())
    with render.bar("queueing") as bar:
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            bar.show(done, len(plan.sessions))

        room = Room(db, spool, ours, settings.max_spool_bytes, bar.wait)
        fed = Fed()
        try:
            history.feed(plan.sessions, room.admit, fed, step)
        except NoRoomError as error:
            return fed, str(error)
        return fed, ""


def _ask(plan: Plan, max_logs: int) -> None:
    """Ends the command unless somebody says yes."""
    if not sys.stdin.isatty():
        complain(f"this would send {plan.logs} logs, more than --max-logs {max_logs}: say --max-logs {plan.logs}")
        raise typer.Exit(USAGE)
    if not agrees(f"send {plan.logs} logs?"):
        complain("nothing was queued")
        raise typer.Exit(PROBLEM)


def _as_json(plan: Plan, fed: Fed | None, waiting: int) -> dict[str, object]:
    return {
        "logs": plan.logs,
        "turns": plan.turns,
        "sessions": len(plan.sessions),
        "too_old": plan.too_old,
        "projects": [asdict(project) for project in plan.projects.values()],
        "unreadable": [{"session": session, "reason": reason} for session, reason in plan.unreadable.items()],
        "queued": None if fed is None else asdict(fed),
        "waiting": waiting,
    }
