"""Makes the client of a destination. Loads its HTTP client, which takes longer than most commands run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.exporters.access import Access
from app.exporters.client import Client
from app.exporters.helicone import client as helicone


def connect(access: Access, ca_file: Path | None, redact: Callable[[str], str] | None = None) -> Client:
    """`ca_file`: certificates that are trusted beside the system's.

    `redact`: what every kept answer goes through; without it none is kept. Raises ClientError.
    """
    return helicone.Client(
        access.key or access.headers["Authorization"].removeprefix("Bearer "), ca_file=ca_file, redact=redact
    )
