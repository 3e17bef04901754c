"""Encodes: the encoder of each kind of destination. Light enough for hooks to load."""

from __future__ import annotations

import json

from app.exporters.encoder import Encoder, Overwriting
from app.exporters.helicone import encoder as helicone
from app.transcript.model import Json

HELICONE: Overwriting = helicone
"""By its records pages show a turn, wherever that goes."""


def encoder_of(kind: str) -> Encoder:
    if kind == "otlp":
        from app.exporters.otlp import encoder as otlp  # noqa: PLC0415 - most hooks do without

        return otlp
    return HELICONE


def overwriting(kind: str) -> Overwriting | None:
    """The encoder of a kind at which a record takes the place of another; None where what is recalled is deleted."""
    return HELICONE if kind == "helicone" else None


def legible(kind: str, body: bytes) -> Json:
    """A record's body for a person who looks into it; of what is no JSON the texts in it."""
    told: Json = json.loads(body) if kind == "helicone" else list(encoder_of(kind).texts_of(body))
    return told
