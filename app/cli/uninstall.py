"""Command `uninstall`: what goes, what stays, and what to type for the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from app.cli import render
from app.cli.options import PROBLEM, PROGRAM, Yes, ask, complain, print_lines, receiver_store
from app.cli.render_status import flush_lines
from app.operations.uninstall import Site, command_for_the_rest, look, purge, remove_plugins
from app.runtime.terminal import counted
from app.settings.lookup import typed

commands = typer.Typer()


@commands.command("uninstall")
def _uninstall(
    *,
    everything: Annotated[
        bool, typer.Option("--purge", help="Also the queue, the configuration and what the receiver keeps.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Take this program out of OpenCode.

    Lists what goes and what stays, and asks. What waits can be delivered first.
    """
    sources = typed(os.environ, Path.cwd())
    site = look(sources, receiver_store())
    if everything and site.problem:
        complain(f"where the queue is cannot be said: {site.problem}")
        raise typer.Exit(PROBLEM)
    print_lines(_plan(site, everything=everything))
    if not yes:
        if site.waiting and sys.stdin.isatty():
            _offer_to_deliver(site)
        ask("remove what is listed", "--yes")
    for path in remove_plugins(site):
        print_lines([f"removed {path}"])
    from app.receiver import background  # noqa: PLC0415 - its HTTP client takes longer to load than most commands run

    if background.stop(receiver_store()):
        print_lines(["the receiver is stopped"])
    if everything:
        print_lines(purge(site))
        print_lines(["queue, configuration and the receiver's store are removed"])
    print_lines([f"the program itself: {command_for_the_rest(Path(sys.prefix))}"])


def _offer_to_deliver(site: Site) -> None:
    from app.operations.flush import flush  # noqa: PLC0415 - as above

    if typer.confirm(f"{counted(site.waiting, 'job')} not delivered yet. Deliver now, first?", default=True, err=True):
        with render.spinner("delivering") as tell:
            flushed = flush(typed(os.environ, Path.cwd()), None, tell)
        print_lines(flush_lines(flushed))


def _plan(site: Site, *, everything: bool) -> Iterator[str]:
    goes, stays = "goes: ", "stays:"
    for one in site.plugins:
        yield f"{goes} {one.path}"
    if not site.plugins:
        yield "the plugin is not installed here"
    yield f"{stays} plugins that you put into other projects: {PROGRAM} uninstall-plugin --project DIR"
    yield from (f"{stays} {place} names the plugin: take it out" for place in site.named)
    kept = goes if everything else stays
    if site.spool is not None:
        waits = (
            f", in which {counted(site.waiting, 'job')} {'waits' if site.waiting == 1 else 'wait'}"
            if site.waiting
            else ""
        )
        yield f"{kept} the queue, {site.spool}{waits}"
    yield from (f"{kept} {path}" for path in site.configuration)
    if site.receiver is not None:
        yield f"{kept} what the receiver keeps, {site.receiver}"
    if not everything and (site.spool or site.configuration or site.receiver):
        yield "--purge takes these, too"
    yield f"{stays} OpenCode and its sessions; what was delivered"
