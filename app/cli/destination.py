"""Commands `destination …`: where jobs wait, and moving or giving up what waits at a refused key or a wrong address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer

from app.cli.options import (
    OF_DESTINATION,
    PROBLEM,
    AsJson,
    Yes,
    ask,
    complain,
    print_json,
    print_lines,
    takes,
)
from app.ledger.erasure import erase
from app.operations.destinations import Listed, adopt, chosen, give_up, listed, movable
from app.operations.reading import opened
from app.operations.status import named
from app.runtime import clock
from app.runtime.terminal import counted
from app.settings.lookup import Sources
from app.settings.model import HELICONE

commands = typer.Typer(
    name="destination", no_args_is_help=True, rich_markup_mode=None, help="Where jobs go, and where they wait."
)

Number = Annotated[int, typer.Argument(metavar="N", help="Its number in the list.")]


@commands.command("list")
@takes(OF_DESTINATION)
def _list(sources: Sources, *, json_wanted: AsJson = False) -> None:
    """List addresses and keys with what waits there.

    The one that the settings mean is first, and marked.
    """
    settings = sources.load()
    with closing(opened(settings.spool_directory)) as db:
        found = listed(db, settings, clock.now_ms())
    if json_wanted:
        print_json({"destinations": [asdict(one) for one in found]})
    else:
        print_lines(line for one in found for line in _lines(one))


def _lines(one: Listed) -> Iterator[str]:
    name = f"{one.endpoint or 'any address'} ({f'key {one.key}…' if one.key else 'no key'})"
    name = f"{one.name} ({one.endpoint})" if one.name else name
    yield f"{'*' if one.current else ' '} {'-' if one.id is None else one.id}  {name}"
    why = f": {one.reason}" if one.reason else ""
    yield f"     {one.health}{why}"
    yield f"     {one.pending} wait, {one.dead} dead, {one.delivered} delivered"
    if not one.is_meant and one.pending and one.kind == HELICONE:
        yield f"     move them to *:  opencode-helicone destination adopt {one.id}"
    if not one.is_meant and (one.pending or one.dead):
        yield f"     give them up:    opencode-helicone destination forget {one.id}"


@commands.command("adopt")
@takes(OF_DESTINATION)
def _adopt(sources: Sources, number: Number, *, yes: Yes = False, json_wanted: AsJson = False) -> None:
    """Move what waits there to where the settings say.

    For jobs of a key that is refused, or of an address that was mistyped. They go to whoever reads the new one.
    """
    settings = sources.load()
    with closing(opened(settings.spool_directory)) as db:
        one = movable(db, settings, number, clock.now_ms())
        if not yes and one.jobs.pending:
            ask(f"move {counted(one.jobs.pending, 'job')} of {named(one)} to {settings.endpoint}", "--yes")
        moved = adopt(db, settings, one, clock.now_ms())
    if json_wanted:
        print_json({"jobs": moved})
        return
    print_lines([f"{counted(moved, 'job')} moved to {settings.endpoint}"])
    if moved:
        print_lines(["opencode-helicone flush delivers them now"])


@commands.command("forget")
@takes(OF_DESTINATION)
def _forget(sources: Sources, number: Number, *, yes: Yes = False, json_wanted: AsJson = False) -> None:
    """Give up what waits or is dead there.

    Its text is erased from the queue. An import of a session queues it again.
    """
    settings = sources.load()
    with closing(opened(settings.spool_directory)) as db:
        one = chosen(db, settings, number, clock.now_ms())
        jobs = one.jobs.pending + one.jobs.dead
        if not yes and jobs:
            ask(f"give up {counted(jobs, 'job')} of {named(one)}", "--yes")
        given_up = give_up(db, one, clock.now_ms())
        left = erase(db) if given_up else []
    if json_wanted:
        print_json({"jobs": given_up, "left": left})
    else:
        print_lines([f"{counted(given_up, 'job')} given up"])
        for line in left:
            complain(line)
    raise typer.Exit(PROBLEM if left else 0)
