"""Each benchmark of the table runs, in its short form; how fast it is nobody asks here."""

from __future__ import annotations

from importlib import import_module

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.table import HEAD, Row, cells, page


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_fills_its_rows(name: str) -> None:
    rows = list(import_module(f"benchmarks.{name}").rows(short=True))
    assert rows
    for row in rows:
        assert row.what
        assert row.beside
        assert row.ratios
        assert min(row.ratios) > 0
        assert len(cells(row)) == len(HEAD)
    assert len({(row.what, row.beside) for row in rows}) == len(rows)


def test_the_page_says_which_goals_are_missed() -> None:
    rows = [
        Row("pages a second", "a bare loop", [2.0, 3.0, 4.0], 5, at_least=True),
        Row("waits a turn", "in ms", [1.0], 1),
        Row("a peer's", "none", [9.0], None),
    ]
    told = page({"What reading costs.": rows}, "today.")
    missed, tables = told.split("## Goals that are missed")[1].split("## What reading costs")
    assert [line for line in missed.splitlines() if line] == [
        "- pages a second (a bare loop): 3, and was to be at least 5."
    ]
    assert "| pages a second | a bare loop | 3 | 2.2 to 3.8 | at least 5 | **missed** |" in tables
    assert "## Goals that are missed\n\nNone." in page({"What reading costs.": rows[1:]}, "today.")
