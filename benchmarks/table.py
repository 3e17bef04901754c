"""The measurements of `python -m benchmarks`: each a ratio to a floor or a peer that was measured in the same run.

A module `benchmarks/NAME.py` that belongs to the table has `rows(short: bool)`; `short` is for the tests, which assert
its shape and never a time.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    """What is measured, for whoever reads the table alone."""
    beside: str
    """What it is compared with."""
    ratios: Sequence[float]
    """Paired: each of ours to the floor's right before or after it."""
    goal: float | None
    """The median's bound; None where a figure is only reported."""
    at_least: bool = False
    """The goal is a least, not a most: of speeds."""
    note: str = ""
    """Absolute figures with their units."""

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The tenth and the ninetieth percentile."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        tenths = statistics.quantiles(self.ratios, n=10, method="inclusive")
        return tenths[0], tenths[-1]

    @property
    def is_missed(self) -> bool:
        if self.goal is None:
            return False
        return self.median < self.goal if self.at_least else self.median > self.goal


HEAD = ("what", "beside", "median", "p10 to p90", "goal", "")


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table, as `HEAD` names its columns."""
    low, high = row.spread
    goal = "reported" if row.goal is None else f"{'at least' if row.at_least else 'at most'} {row.goal:g}"
    missed = "**missed**" if row.is_missed else ""
    told = " ".join(word for word in (missed, row.note) if word)
    return (row.what, row.beside, f"{row.median:.3g}", f"{low:.3g} to {high:.3g}", goal, told)


def markdown(rows: Sequence[Row]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(found: Mapping[str, Sequence[Row]], where: str) -> str:
    """All of it for people: the rows by what their module says of itself, and which goals are missed."""
    missed = [row for rows in found.values() for row in rows if row.is_missed]
    lines = ["# What it costs", "", f"Made by `python -m benchmarks --write`: {where}", "", _HOW, ""]
    lines += ["## Goals that are missed", ""]
    lines += [f"- {_missed(row)}" for row in missed] or ["None."]
    for what, rows in found.items():
        lines += ["", f"## {what.rstrip('.')}", "", markdown(rows)]
    return "\n".join(lines) + "\n"


_HOW = """A figure without a unit is a ratio: our value divided by that of the comparison beside it, measured in turn
with it in one run. Shown are the median, and the tenth to the ninetieth percentile. What was tried for
speed, and what did not pay, is in [decisions/performance.md](decisions/performance.md)."""


def _missed(row: Row) -> str:
    bound = "at least" if row.at_least else "at most"
    return f"{row.what} ({row.beside}): {row.median:.3g}, and was to be {bound} {row.goal:g}."
