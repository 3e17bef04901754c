"""Traits of Helicone: its routes, when a delivered job is looked for, and how often Helicone may be asked."""

from __future__ import annotations

from typing import Literal

from app.exporters.helicone.routes import is_cloud, kind_of, read_back_url, routes, session_url
from app.exporters.traits import Changed, Plan, Recalled, Resent

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

RESENT: Resent = "replaced"
CHANGED: Changed = "replaced"
RECALLED: Recalled = "overwritten"

LOOKS_MS = {"jawn": (2_000, 15_000, 60_000), "worker": (60_000, 600_000, 3_600_000, 21_600_000)}
"""When a job is looked for, after its delivery. A self-hosted jawn stores before it answers; the worker puts into
a queue first, and so may anything on the cloud."""
GROWTH = 4
"""Each round of looks after another sending is so many times as long: before a job is dead, the other side had 16
minutes, or the four days of the longest outage that Helicone's queue is known to have had."""
QUERIES_PER_MINUTE = {"cloud": 30, "self-hosted": 600}
"""The cloud's API allows 200 a minute to a whole organisation on the free tier; a self-hosted one 20,000, if any."""
RECORDS_AT_ONCE = 4
"""Each takes the place of an equal one whenever it arrives, and a session is shown by when its logs start."""
NOT_STORED_CAUSES: tuple[str, ...] = (
    "REQUEST_CACHE_KEY (64 hex characters) is not set in the environment of jawn, Helicone's API server",
    "ClickHouse has no tables: clickhouse-migrate stops at a question without a terminal; give it --skip-confirmation",
    "jawn does not reach the S3 endpoint, or the bucket request-response-storage is missing there",
    "the API key's user is no member of its organisation (a row of organization_member)",
)
"""Why a log that was accepted may not appear, on a Helicone that somebody hosts: jawn answers 200 all the same."""


def read_back(setting: Literal["auto", "on", "off"], endpoint: str, api_key: str, chosen_url: str | None) -> Plan:
    """The key tells the region of the cloud."""
    cloud = is_cloud(endpoint)
    url = None if setting == "off" else read_back_url(endpoint, api_key, chosen_url)
    reason = ""
    if setting == "off":
        reason = "confirm is off"
    elif url is None:
        reason = "where this endpoint can be read back is not known; set readbackUrl (HELICONE_READBACK_URL)"
    return Plan(
        url=url,
        off_reason=reason,
        is_sampled=cloud and setting == "auto",
        queries_per_minute=QUERIES_PER_MINUTE["cloud" if cloud else "self-hosted"],
    )


def deletion_url(endpoint: str) -> str | None:
    """None: nothing that Helicone stores can be deleted by its API."""
    del endpoint
    return None


def looks_ms(route: str | None, resends: int) -> tuple[int, ...]:
    """When a job is looked for, in milliseconds after its delivery by the log URL `route`.

    >>> looks_ms("http://127.0.0.1:8585/v1/trace/custom/log", 1)
    (8000, 60000, 240000)
    """
    kind = "worker" if route is None or is_cloud(route) else kind_of(route)
    return tuple(look_ms * GROWTH**resends for look_ms in LOOKS_MS[kind])
