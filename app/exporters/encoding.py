"""Encodes: the encoder of each kind of destination. Light enough for hooks to load."""

from __future__ import annotations

from app.exporters.encoder import Encoder
from app.exporters.helicone import encoder as helicone


def encoder_of(kind: str) -> Encoder:
    found: Encoder = {"helicone": helicone, "otlp": helicone}[kind]
    return found
