"""Lays out lines for people: columns that fit the terminal, times that are local and relative, sizes.

What goes to a file or a pipe is not cut: there a line is as long as it is.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import typer

from app.runtime.figures import ago, ahead, day, local, short, size
from app.runtime.terminal import span, visible

__all__ = [
    "ago",
    "ahead",
    "at",
    "columns_of",
    "day",
    "fit",
    "local",
    "rows",
    "short",
    "show",
    "size",
    "width",
    "wrapped",
]

WIDTH_MIN = 40
NARROW = 72
"""Below this what is said once in a while is left out, and what is long gets a line of its own."""
UNCUT = 1 << 20


def width() -> int:
    """How many columns a line may have."""
    return max(WIDTH_MIN, shutil.get_terminal_size().columns) if sys.stdout.isatty() else UNCUT


def wrapped(line: str, room: int) -> list[str]:
    """The line in pieces that fit; those behind the first stand two columns further to the right. No word is cut."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        visible(line), room, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def show(lines: Iterable[str], *, anew: bool = False) -> None:
    """Prints lines, wrapped where a terminal is narrower; `anew`: in place of all that stands on it."""
    text = "\n".join(piece for line in lines for piece in wrapped(line, width()))
    if anew and sys.stdout.isatty():
        typer.echo("\x1b[H\x1b[2J", nl=False, color=True)
    typer.echo(text)


def at(time_ms: int, now_ms: int) -> str:
    """When that was: how long ago, and the local time."""
    clock = local(time_ms, "%H:%M" if day(time_ms) == day(now_ms) else "%Y-%m-%d %H:%M")
    return f"{span(now_ms - time_ms)} ago ({clock})"


def columns_of(text: str) -> int:
    """How many columns of a terminal it takes."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else not unicodedata.combining(one) for one in text)


def fit(text: str, columns: int) -> str:
    """The text, cut to so many columns.

    >>> fit("a long title", 8), fit("short", 8)
    ('a long…', 'short')
    """
    text = visible(text)
    if columns_of(text) <= columns:
        return text
    kept = ""
    taken = 1
    for one in text:
        taken += columns_of(one)
        if taken > columns:
            break
        kept += one
    return f"{kept.rstrip()}…"


def rows(cells: Sequence[Sequence[str]], room: int, *, right: Sequence[int] = ()) -> Iterator[str]:
    """Lines of columns; the last one is cut where there is no more room. `right`: the columns of numbers."""
    shown = [[visible(cell) for cell in row] for row in cells]
    count = max(map(len, shown), default=0)
    widths = [max(columns_of(row[at]) for row in shown) for at in range(count)]
    for row in shown:
        line = ""
        for at, cell in enumerate(row):
            gap = " " * (widths[at] - columns_of(cell))
            line += ("  " if at else "") + (f"{gap}{cell}" if at in right else f"{cell}{gap}")
        yield fit(line.rstrip(), room)
