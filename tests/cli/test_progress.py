"""How far long work has come, where nobody watches a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from app.cli import render
from tests.support.waiting import wait_until


def told_to(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error, and lines in quick succession. No fixture: pytest sets its own again between these and a test."""
    monkeypatch.setattr(render, "FIRST_S", 0.01)
    monkeypatch.setattr(render, "EVERY_S", 0.01)
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    return told


def test_long_work_is_told_of_before_its_steps_are_known_and_then_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = told_to(monkeypatch)
    with render.bar("looking") as bar:
        wait_until(lambda: "opencode-helicone: looking\n" in told.getvalue(), 60)
        bar.show(2, 7)
        wait_until(lambda: "opencode-helicone: looking: 2 of 7\n" in told.getvalue(), 60)


def test_work_of_few_steps_is_not_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_to(monkeypatch)
    with render.bar("looking", total_min=5) as few, render.bar("counting") as other:
        few.show(1, 4)
        other.show(1, 1)
        wait_until(lambda: "opencode-helicone: counting: 1 of 1\n" in told.getvalue(), 60)
        assert "looking" not in told.getvalue()
        few.show(1, 5)
        wait_until(lambda: "opencode-helicone: looking: 1 of 5\n" in told.getvalue(), 60)
