"""Kinds of destination. Commands that encode nothing do without `app.exporters.encoding`."""

from __future__ import annotations

from app.exporters.helicone import traits as helicone
from app.exporters.traits import Traits


def traits_of(kind: str, preset: str = "") -> Traits:  # noqa: ARG001 - of the kinds that have several
    """`preset`: which receiver stands behind it, where a kind is taken by several."""
    found: Traits = {"helicone": helicone, "otlp": helicone}[kind]
    return found
