"""A text that is made to be slow is read as often for each byte, however long it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.checkout import ROOT

GROWTH_MAX = 2
"""Not quite 1, because windows reach over the ends of a short text. With the square of the length it is 10."""


@pytest.mark.slow
def test_what_is_looked_at_grows_with_the_text_and_no_faster() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "tests.support.bytes_read"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    looked_at: dict[str, tuple[float, float]] = json.loads(told)
    assert len(looked_at) > 30
    assert all(short > 0 for short, _ in looked_at.values())
    assert {name: counts for name, counts in looked_at.items() if counts[1] > counts[0] * GROWTH_MAX} == {}
