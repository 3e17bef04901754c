"""Each benchmark of the table runs, in its short form; how fast it is nobody asks here."""

from __future__ import annotations

from importlib import import_module

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.table import HEAD, cells


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
