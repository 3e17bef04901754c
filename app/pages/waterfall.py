"""Waterfall: what happened one below the other, each with a bar for when it ran and how long. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 1000
"""Of the drawing, in its own units."""
NARROWEST = 4
"""A bar that is shorter could not be seen."""
DEEPEST = 12
"""What lies deeper is not moved further to the right."""


@dataclass(frozen=True, slots=True)
class Span:
    """One row."""

    label: str
    depth: int
    """Of the first row 0."""
    kind: str
    """session, user, assistant or tool."""
    start_ms: int
    end_ms: int | None
    """None where that is not known."""
    facts: tuple[str, ...] = ()
    state: str = ""
    is_bad: bool = False
    texts: tuple[tuple[str, str], ...] = ()
    """Who says it, and what."""

    @property
    def length_ms(self) -> int | None:
        return None if self.end_ms is None else max(0, self.end_ms - self.start_ms)

    @property
    def indent(self) -> int:
        return min(max(self.depth, 0), DEEPEST)


@dataclass(frozen=True, slots=True)
class Bar:
    """A row with its place in the drawing."""

    span: Span
    left: int
    width: int
    after_ms: int
    """How long after the first one it began."""


def bars(spans: Sequence[Span]) -> list[Bar]:
    """All on one axis, from the first start to the last end."""
    if not spans:
        return []
    begin_ms = min(span.start_ms for span in spans)
    whole_ms = max(1, *(max(span.start_ms, span.end_ms or 0) - begin_ms for span in spans), 1)
    found = []
    for span in spans:
        left = min(WIDTH * (span.start_ms - begin_ms) // whole_ms, WIDTH - NARROWEST)
        width = max(WIDTH * (span.length_ms or 0) // whole_ms, NARROWEST)
        found.append(Bar(span, left, min(width, WIDTH - left), span.start_ms - begin_ms))
    return found
