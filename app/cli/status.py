"""Commands `status` and `flush`: what waits, and its delivery now."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer

from app.cli import render
from app.cli.layout import show
from app.cli.options import DONE, OF_DESTINATION, PROBLEM, STOPPED, AsJson, print_json, print_lines, takes
from app.cli.render_status import flush_lines, overview_lines, status_lines
from app.ledger.folders import held_folders
from app.operations.status import Looked, nobody_looked
from app.operations.verdict import judged
from app.runtime import clock
from app.settings.lookup import Sources
from app.sources.opencode.access import StoreError
from app.sources.opencode.folders import store_file
from app.sources.opencode.title import title

commands = typer.Typer()

WATCH_S = 2.0
"""Between two looks."""


@commands.command("flush")
@takes(OF_DESTINATION)
def _flush(
    sources: Sources,
    *,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Give up after this time; so long what is away is tried again."),
    ] = None,
    expect_some: Annotated[
        bool, typer.Option("--expect-some", help="Exit code 1 where this folder never had a job.")
    ] = False,
    json_wanted: AsJson = False,
) -> None:
    """Deliver what waits, now.

    Waits for live hooks and for a worker, and delivers itself when no worker does. Without --timeout it ends as soon as
    what is left cannot go now. Exit code 0 when nothing is left.
    """
    from app.operations.flush import flush  # noqa: PLC0415 - loads a worker's HTTP client

    with render.spinner("delivering") as tell:
        flushed = flush(sources, timeout, tell, expect_some=expect_some)
    if json_wanted:
        print_json(asdict(flushed))
    else:
        print_lines(flush_lines(flushed, to_centre=sources.load().heard is not None))
    is_fine = flushed.is_done and (flushed.captured_here or not expect_some)
    raise typer.Exit(STOPPED if flushed.was_stopped else DONE if is_fine else PROBLEM)


@commands.command("status")
@takes(OF_DESTINATION)
def _status(
    sources: Sources,
    *,
    check: Annotated[bool, typer.Option("--check", help="Exit code 1 unless the first line says ok.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew all the time, until Ctrl-C.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="All there is to say.")] = False,
    json_wanted: AsJson = False,
) -> None:
    """Say at a glance whether sessions arrive.

    And if not, why, when it is tried again, and what to type.
    """
    if watch and (check or json_wanted):
        raise typer.BadParameter("--watch goes on until Ctrl-C: it excludes --check and --json")
    while True:
        now_ms = clock.now_ms()
        status = judged(sources.load(), now_ms, _title, lambda db: _looked(db, sources))
        if json_wanted:
            print_json(asdict(status))
        else:
            lines = status_lines(status, now_ms) if verbose else overview_lines(status, now_ms)
            show(lines, anew=watch)
        if not watch:
            break
        time.sleep(WATCH_S)
    raise typer.Exit(PROBLEM if check and status.verdict.level != "ok" else DONE)


def _looked(db: sqlite3.Connection, sources: Sources) -> Looked:
    if not held_folders(db):
        return nobody_looked(db)
    from app.capture.mended import mended, named  # noqa: PLC0415 - reads OpenCode's store
    from app.sources.opencode.store import Store  # noqa: PLC0415 - the same

    store = Store(store_file(os.environ))
    return Looked(named(db, sources, store), mended(db, sources, store))


def _title(session: str) -> str:
    path = store_file(os.environ)
    with suppress(StoreError):
        found = title(path, session)
        if found is not None or not (path.parent / "storage").is_dir():
            return found or ""
    from app.operations.titles import Titles  # noqa: PLC0415 - reads all that OpenCode ever wrote, and takes long to load
    from app.sources.opencode.store import Store  # noqa: PLC0415 - the same

    head = Titles(Store(path)).of([session]).get(session)
    return head.title if head is not None else ""
