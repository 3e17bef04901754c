"""Each benchmark of the table runs, in its short form. No time is asserted: it is the machine's."""

from __future__ import annotations

import importlib

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.table import cells


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_gives_rows_that_the_table_can_show(name: str) -> None:
    rows = list(importlib.import_module(f"benchmarks.{name}").rows(short=True))
    assert rows
    for row in rows:
        assert row.what
        assert row.beside
        assert row.ratios
        assert all(cell == cell.strip() for cell in cells(row))
    assert len({row.what for row in rows}) == len(rows)
