"""Command `tail`: what happens in the queue, a line for each event."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.cli import layout
from app.cli.options import OF_SPOOL, AsJson, StoreFile, print_lines, takes
from app.database.open import recover_after
from app.operations.reading import opened
from app.operations.tail import Event, Tail
from app.operations.titles import Titles
from app.runtime import clock
from app.settings.lookup import Sources
from app.sources.opencode.store import Store, store_file

commands = typer.Typer(rich_markup_mode=None)

LOOK_S = 0.25
KEY_CHARACTERS = 12


@commands.command("tail")
@takes(OF_SPOOL)
def _tail(
    sources: Sources,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    count: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=1_000, metavar="N", help="So many of the last.")
    ] = 10,
    db: StoreFile = None,
    json_wanted: AsJson = False,
) -> None:
    """Print what happens to jobs, a line for each event.

    The last events, and with -f each that comes.
    """
    tail = Tail(Titles(Store(db or store_file(os.environ))))

    def show(events: Sequence[Event]) -> None:
        if json_wanted:
            for event in events:
                typer.echo(json.dumps(asdict(event)))
        else:
            print_lines(line(event, layout.width()) for event in events)

    spool = sources.load().spool_directory
    watch(spool, tail, show, count, pause=lambda: follow and _slept())


def _slept() -> bool:
    time.sleep(LOOK_S)
    return True


def watch(
    spool: Path, tail: Tail, show: Callable[[Sequence[Event]], None], count: int, *, pause: Callable[[], bool]
) -> None:
    """Until `pause` says that it is over. A ledger that was replaced meanwhile is opened anew."""
    is_begun = False
    while True:
        with closing(opened(spool)) as db:
            try:
                if not is_begun:
                    show(tail.begin(db, clock.now_ms(), count))
                    is_begun = True
                _follow(db, tail, show, pause)
            except sqlite3.Error as error:
                if not recover_after(db, error):
                    raise
            else:
                return


def _follow(
    db: sqlite3.Connection, tail: Tail, show: Callable[[Sequence[Event]], None], pause: Callable[[], bool]
) -> None:
    seen = None
    while pause():
        (version,) = db.execute("pragma data_version").fetchone()  # another one as soon as anybody has written
        if version != seen:
            seen = version
            show(tail.look(db, clock.now_ms()))


def line(event: Event, room: int) -> str:
    told = f": {event.why}" if event.why else ""
    where = f"{event.project or '-':12}  " if room >= layout.NARROW else ""
    key = f"{event.key[:KEY_CHARACTERS]:{KEY_CHARACTERS}}  " if room >= layout.NARROW else ""
    return layout.fit(
        f"{layout.local(event.at_ms, '%H:%M:%S')}  {event.what:10}  {key}{where}{event.title}{told}", room
    )
