"""Makes the client of a destination. Loads its HTTP client, which takes longer than most commands run."""

from __future__ import annotations

from collections.abc import Callable

from app.exporters.client import Client
from app.exporters.helicone import client


def connect(api_key: str, redact: Callable[[str], str] | None = None) -> Client:
    """`redact`: what every kept answer goes through; without it none is kept. Raises ClientError."""
    return client.Client(api_key, redact=redact)
