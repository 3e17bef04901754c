"""Makes the client of a destination. Loads its HTTP client, which takes longer than most commands run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.exporters.client import Showing
from app.exporters.helicone import client


def connect(api_key: str, ca_file: Path | None, redact: Callable[[str], str] | None = None) -> Showing:
    """`ca_file`: certificates that are trusted beside the system's.

    `redact`: what every kept answer goes through; without it none is kept. Raises ClientError.
    """
    return client.Client(api_key, ca_file=ca_file, redact=redact)
