"""Traits of an intake: it takes logs as Helicone's worker does, and passes them on under a key that this machine lacks.

What became of a log is asked of the intake itself, by its request id (`app.delivery.intake`); Helicone is not reached
from here, so nothing is read back.
"""

from __future__ import annotations

import re
from typing import Literal

from app.exporters.helicone.routes import WORKER_PATH
from app.exporters.helicone.traits import CHANGED, RECALLED, RECORDS_AT_ONCE, RESENT, deletion_url, looks_ms
from app.exporters.traits import Plan
from app.runtime.url import normalise

__all__ = [
    "CHANGED",
    "NOT_STORED_CAUSES",
    "RECALLED",
    "RECORDS_AT_ONCE",
    "RESENT",
    "deletion_url",
    "looks_ms",
    "read_back",
    "routes",
    "session_url",
]

NOT_STORED_CAUSES: tuple[str, ...] = ()
"""The intake answers when a log is in its database, and says itself what became of it."""


def routes(endpoint: str) -> tuple[str, ...]:
    """The one log URL. Raises EndpointError."""
    return (re.sub(f"({re.escape(WORKER_PATH)})?$", WORKER_PATH, normalise(endpoint), count=1),)


def read_back(setting: Literal["auto", "on", "off"], endpoint: str, api_key: str, chosen_url: str | None) -> Plan:
    """Nothing, whatever is set."""
    del setting, endpoint, api_key, chosen_url
    return Plan(url=None, off_reason="the centre does it", is_sampled=False, queries_per_minute=1)


def session_url(endpoint: str, api_key: str, dashboard: str | None, session: str, name: str) -> str | None:
    """None: whose pages at Helicone they are is not known here."""
    del endpoint, api_key, dashboard, session, name
    return None
