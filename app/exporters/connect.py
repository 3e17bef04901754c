"""Makes the client of a destination. Loads its HTTP client, which takes longer than most commands run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from app.exporters.access import Access
from app.exporters.client import Client

# Else httpx loads its command, and with it rich, pygments and click: 4 MB and 30 ms of each worker, for nothing.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

from app.exporters.helicone import client as helicone  # noqa: E402 - after that
from app.exporters.otlp import client as otlp  # noqa: E402 - the same
from app.exporters.otlp.traits import Preset  # noqa: E402 - the same


def connect(access: Access, ca_file: Path | None, redact: Callable[[str], str] | None = None) -> Client:
    """`ca_file`: certificates that are trusted beside Mozilla's list.

    `redact`: what every kept answer goes through; without it none is kept. Raises ClientError.
    """
    if access.kind == "otlp":
        preset = cast("Preset", access.preset)
        return otlp.Client(access.headers, preset=preset, project=access.project, ca_file=ca_file, redact=redact)
    return helicone.Client(access.key, ca_file=ca_file, redact=redact)
