"""Where bars and columns stand, and how figures are read."""

from __future__ import annotations

import doctest

import pytest

from app.pages import chart, waterfall
from app.pages.chart import Column
from app.pages.waterfall import Span
from app.runtime import figures


def span(start_ms: int, end_ms: int | None) -> Span:
    return Span("one", 0, "tool", start_ms, end_ms)


def test_bars_share_one_axis_from_the_first_start_to_the_last_end() -> None:
    found = waterfall.bars([span(1_000, 1_500), span(1_500, 2_000), span(1_250, 1_300)])
    assert [(bar.left, bar.width, bar.after_ms) for bar in found] == [(0, 500, 0), (500, 500, 500), (250, 50, 250)]


@pytest.mark.parametrize(
    "spans",
    [
        [span(0, None)],
        [span(5, 5)],
        [span(9, 1)],
        [span(0, 10**15), span(10**15, None)],
        [span(-5, None), span(7, 7)],
    ],
    ids=["no end", "no length", "ends before it begins", "ages", "before 1970"],
)
def test_a_bar_is_seen_and_stays_inside(spans: list[Span]) -> None:
    for bar in waterfall.bars(spans):
        assert bar.width >= 1
        assert 0 <= bar.left <= bar.left + bar.width <= waterfall.WIDTH


def test_nothing_has_no_bars_and_no_columns() -> None:
    assert waterfall.bars([]) == []
    assert chart.chart([]).blocks == chart.chart([Column("a", (0.0, 0.0), "")]).blocks == ()


def test_the_parts_of_a_column_stand_on_each_other() -> None:
    found = chart.chart([Column("a", (1, 3), "a: 4"), Column("b", (2, 0), "b: 2")])
    assert [(block.part, block.y, block.height) for block in found.blocks] == [(0, 120, 40), (1, 0, 120), (0, 80, 80)]
    assert found.highest == 4
    assert found.blocks[0].x == found.blocks[1].x < found.blocks[2].x


def test_figures_are_read_as_their_examples_say() -> None:
    assert doctest.testmod(figures) == (0, 4)
