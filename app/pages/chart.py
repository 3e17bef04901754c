"""Chart: one column for each name, of which each part has its own colour. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 1000, 160
"""Of the drawing, in its own units."""
GAP = 0.25
"""Between two columns, as a part of a column's room."""
COLUMN_MAX = 60


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    parts: tuple[float, ...]
    """From the bottom up."""
    told: str
    """All of it in words."""


@dataclass(frozen=True, slots=True)
class Block:
    """One part of a column."""

    part: int
    """Which one, from 0."""
    x: float
    y: float
    width: float
    height: float
    told: str


@dataclass(frozen=True, slots=True)
class Chart:
    blocks: tuple[Block, ...]
    highest: float
    """What a column of the whole height stands for."""


def chart(columns: Sequence[Column]) -> Chart:
    highest = max((sum(column.parts) for column in columns), default=0.0)
    if not highest:
        return Chart((), 0.0)
    room = min(WIDTH / len(columns), COLUMN_MAX)
    found = []
    for at, column in enumerate(columns):
        bottom = float(HEIGHT)
        for number, part in enumerate(column.parts):
            height = HEIGHT * part / highest
            if height:
                bottom -= height
                x, width = round(room * (at + GAP / 2), 2), round(room * (1 - GAP), 2)
                found.append(Block(number, x, round(bottom, 2), width, round(height, 2), column.told))
    return Chart(tuple(found), highest)
