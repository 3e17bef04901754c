"""Makes the client of a destination. Loads its HTTP client, which takes longer than most commands run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from app.exporters.client import Client

# Else httpx loads its command, and with it rich, pygments and click: 4 MB and 30 ms of each worker, for nothing.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

from app.exporters.helicone import client  # noqa: E402 - after that


def connect(api_key: str, ca_file: Path | None, redact: Callable[[str], str] | None = None) -> Client:
    """`ca_file`: certificates that are trusted beside the system's.

    `redact`: what every kept answer goes through; without it none is kept. Raises ClientError.
    """
    return client.Client(api_key, ca_file=ca_file, redact=redact)
