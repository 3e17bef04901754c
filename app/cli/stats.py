"""Command `stats`: what OpenCode's calls came to, and how much of it is at Helicone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer

from app.cli import layout
from app.cli.options import OF_SPOOL, PROGRAM, AsJson, StoreFile, one_of, print_json, print_lines, since_option, takes
from app.ledger.counters import Counter
from app.operations.reading import ask_ledger
from app.operations.stats import GROUPS, Stats, Sum, names, read_stats
from app.runtime import clock
from app.runtime.figures import midnight_ms, usd
from app.runtime.terminal import counted
from app.settings.lookup import Sources
from app.sources.opencode.store import Store, store_file

commands = typer.Typer(rich_markup_mode=None)

DAYS = 30
DAY_MS = 24 * 3_600_000
WIDE, IDS, WITH_IDS = 120, 52, 128
"""From so many columns of the terminal on every number has room; sessions' ids and when they were last used take so
many, and stand in the same line from so many on."""
By = Annotated[str, one_of(GROUPS, "--by", "By one of these")]


@commands.command("stats")
@takes(OF_SPOOL)
def _stats(
    sources: Sources,
    *,
    by: By = "day",
    since: Annotated[int | None, since_option(f"Calls since ({DAYS}d)", whole_days=True)] = None,
    project: Annotated[str | None, typer.Option(metavar="NAME|DIR", help="Of this project folder.")] = None,
    db: StoreFile = None,
    json_wanted: AsJson = False,
) -> None:
    """Sum up turns, calls, tokens, cost and errors.

    From OpenCode's own store; what of it was delivered is from the queue.
    """
    now_ms = clock.now_ms()
    since_ms = midnight_ms(now_ms - DAYS * DAY_MS) if since is None else since
    if by == "day":
        since_ms = midnight_ms(since_ms)  # half a day is no figure
    store = Store(db or store_file(os.environ))
    found = ask_ledger(sources.load().spool_directory, lambda ledger: read_stats(ledger, store, by, since_ms, project))
    if json_wanted:
        print_json(asdict(found))
    else:
        print_lines(lines(found, layout.width()))


def lines(found: Stats, room: int) -> Iterator[str]:
    since = _minute(found.since_ms)
    if found.sums:
        yield from _sum_lines(found, since, room)
    else:
        yield f"no calls since {since}: --since 1000d looks further back"
    yield from _counter_lines(found.counters, room)


def _counter_lines(counters: Sequence[Counter], room: int) -> Iterator[str]:
    """What the queue did meanwhile, a line for each kind."""
    for kind, of_one in groupby(counters, key=lambda one: one.kind):
        found = list(of_one)
        total = sum(one.count for one in found)
        told = ", ".join(f"{one.name} ({one.count})" for one in found if one.name)
        what = {"delivered": "jobs delivered", "failed": "attempts failed", "lost": "jobs lost"}.get(kind, kind)
        yield layout.fit(f"{total} {what}{f': {told}' if told else ''}", room)


def _sum_lines(found: Stats, since: str, room: int) -> Iterator[str]:
    total = found.total
    calls = counted(total.calls, "call") + (f" ({total.errors} failed)" if total.errors else "")
    tools = f"{counted(total.failed_tools, 'failed tool')}, " if total.failed_tools else ""
    yield f"since {since}: {counted(total.turns, 'turn')}, {calls}, {tools}{usd(total.cost_usd)}"
    sums = [*found.sums, *([total] if len(found.sums) > 1 else [])]
    head = _head(found.by, room)
    table = [head, *([*_cells(one, name, head, room)] for one, name in zip(sums, names(sums), strict=True))]
    first, *rows = layout.rows(table, room, right=range(1, len(head) - 2 * ("id" in head)))
    yield first
    for one, row in zip(sums, rows, strict=True):
        yield row
        if one.last_ms and "id" not in head:
            yield f"  {one.name}, last used {_minute(one.last_ms)}"
    if total.delivered < total.turns:
        yield f"{total.turns - total.delivered} of {counted(total.turns, 'turn')} not delivered: {PROGRAM} verify"


def _head(by: str, room: int) -> list[str]:
    if room < layout.NARROW:
        return [by, "calls", "tokens", "cost", "delivered"]
    ids = ["last used", "id"] if by == "session" and room >= WITH_IDS else []
    if room < WIDE + (IDS if ids else 0):
        return [by, "calls", "failed calls", "failed tools", "tokens", "cost", "delivered", *ids]
    return [by, "turns", "calls", "failed calls", "failed tools", "in", "cached", "out", "cost", "delivered", *ids]


def _cells(one: Sum, name: str, head: Sequence[str], room: int) -> Sequence[str]:
    cached = one.cache_read_tokens + one.cache_write_tokens
    cells = {
        "turns": str(one.turns),
        "calls": layout.short(one.calls) if room < layout.NARROW else str(one.calls),
        "failed calls": str(one.errors),
        "failed tools": str(one.failed_tools),
        "tokens": layout.short(one.input_tokens + cached + one.output_tokens),
        "in": layout.short(one.input_tokens),
        "cached": layout.short(cached),
        "out": layout.short(one.output_tokens),
        "cost": usd(one.cost_usd),
        "delivered": f"{100 * one.delivered // one.turns} %" if one.turns else "-",
        "last used": _minute(one.last_ms) if one.last_ms else "",
        "id": one.name if one.title else "",
    }
    shown = name if room == layout.UNCUT else layout.fit(name, room - _REST[len(head)])
    return [shown, *(cells[column] for column in head[1:])]


def _minute(time_ms: int) -> str:
    return layout.local(time_ms, "%Y-%m-%d %H:%M")


_REST = {5: 36, 7: 64, 9: 64 + IDS, 10: 88, 12: 88 + IDS}
"""How many columns of the terminal the numbers take, by how many of them there are."""
