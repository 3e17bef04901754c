"""Kinds of destination. Commands that encode nothing do without `app.exporters.encoding`."""

from __future__ import annotations

from typing import cast

from app.exporters.helicone import intake
from app.exporters.helicone import traits as helicone
from app.exporters.otlp.traits import Preset
from app.exporters.otlp.traits import traits as otlp
from app.exporters.traits import Traits


def traits_of(kind: str, preset: str = "none", project: str = "") -> Traits:
    """`preset`: which receiver stands behind a kind that several take; `project`: under what it files things."""
    if kind == "otlp":
        return otlp(cast("Preset", preset), project)
    found: Traits = {"helicone": intake if preset == "intake" else helicone}[kind]
    return found
