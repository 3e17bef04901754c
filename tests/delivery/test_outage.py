"""Outages in short; `make outage` has the long form: four days, 300 turns of 1 MB."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress import outage
from tests.stress.outage import Answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "answers",
    [[outage.broken], [outage.unreached, outage.broken, outage.limited]],
    ids=["503", "changing"],
)
def test_an_outage_loses_and_kills_nothing_and_is_waited_for_calmly(tmp_path: Path, answers: list[Answer]) -> None:
    told = outage.outage(tmp_path, answers, days=0.4, turns=10, turn_bytes=3_000)
    assert told.states == {"delivered": 11}
    assert told.out_of_order <= 1
    # The first backoffs take as many as two hours of the full length.
    assert told.requests < 1_500 / 10 + 30
    assert told.statements[0] == told.statements[1]


@pytest.mark.slow
def test_what_waited_for_a_refused_key_goes_with_the_key_that_its_project_has_since(tmp_path: Path) -> None:
    told = outage.rotated_key(tmp_path, turns=10, turn_bytes=3_000)
    assert told.states == {"delivered": 11}


@pytest.mark.slow
def test_many_spools_come_back_more_gently_than_they_work_when_all_is_well(tmp_path: Path) -> None:
    steady = outage.herd(tmp_path / "steady", 5, 12, is_away=False)
    after = outage.herd(tmp_path / "after", 5, 12, is_away=True)
    assert after[0] < 2 * steady[0]
    assert after[1] < 2 * steady[1]


@pytest.mark.slow
def test_a_spool_without_room_for_an_outage_loses_nothing_that_opencode_still_has(tmp_path: Path) -> None:
    told = outage.little_room(tmp_path, days=0.5, turns=60, turn_bytes=6_000, bytes_max=20_000)
    assert told.captured_bytes > 4 * told.held_bytes_max
    assert told.held_bytes_max <= 20_000
    assert told.emptied_max > 40
    assert set(told.states) == {"delivered"}
    assert told.keys_are_same
    assert told.records == 60 * 3 + told.states["delivered"] - 60
    assert told.each_stored_once


@pytest.mark.slow
def test_a_destination_that_refuses_for_a_day_delays_and_charges_nothing_of_another(tmp_path: Path) -> None:
    alone = outage.beside(tmp_path / "alone", turns=60, turn_bytes=3_000, is_there=False)
    told = outage.beside(tmp_path / "beside", turns=60, turn_bytes=3_000)
    assert told.delays_ms == alone.delays_ms
    assert len(told.delays_ms) == 60
    assert told.charged == 0
    # A probe takes two records' time at the most, and pauses come to five minutes.
    assert 10 < told.requests < 24 * 60 / 5 * 1.5
    assert told.states == {("helicone", "delivered"): 60, ("otlp", "delivered"): 60}
