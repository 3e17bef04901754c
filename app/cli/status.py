"""Commands `status` and `flush`: what waits, and its delivery now."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from app.cli import render
from app.cli.options import DONE, OF_DESTINATION, PROBLEM, STOPPED, AsJson, print_json, print_lines, takes
from app.cli.render_status import flush_lines, status_lines
from app.operations.status import read_status
from app.runtime import clock
from app.settings.lookup import Sources

commands = typer.Typer()


@commands.command("flush")
@takes(OF_DESTINATION)
def _flush(
    sources: Sources,
    *,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Give up after this time.")] = 30,
    expect_some: Annotated[
        bool, typer.Option("--expect-some", help="Exit code 1 where this folder never had a job.")
    ] = False,
    json_wanted: AsJson = False,
) -> None:
    """Deliver what waits, now.

    Waits for live hooks and for a worker, and delivers itself when no worker does. Exit code 0 when nothing is left.
    """
    from app.operations.flush import flush  # noqa: PLC0415 - loads a worker's HTTP client

    with render.spinner("delivering"):
        flushed = flush(sources, timeout, expect_some=expect_some)
    if json_wanted:
        print_json(asdict(flushed))
    else:
        print_lines(flush_lines(flushed))
    is_fine = flushed.is_done and (flushed.captured_here or not expect_some)
    raise typer.Exit(STOPPED if flushed.was_stopped else DONE if is_fine else PROBLEM)


@commands.command("status")
@takes(OF_DESTINATION)
def _status(sources: Sources, *, json_wanted: AsJson = False) -> None:
    """Say what waits, and why."""
    now_ms = clock.now_ms()
    status = read_status(sources.load(), now_ms)
    if json_wanted:
        print_json(asdict(status))
    else:
        print_lines(status_lines(status, now_ms))
