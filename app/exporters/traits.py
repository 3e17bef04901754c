"""Traits: how one kind of destination is reached, and what it can be asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Plan:
    """What is read back at a destination, and where."""

    url: str | None
    """None: nothing is."""
    off_reason: str
    """Why nothing is; '' otherwise."""
    is_sampled: bool
    """One job an hour; otherwise every one."""
    queries_per_minute: int


class Traits(Protocol):
    """How a kind of destination is reached, and what it can be asked. Pure."""

    RECORDS_AT_ONCE: int
    """Of one job; 1 where it matters in which order they arrive."""
    CHANGED: Literal["replaced", "deleted first", "not sent"]
    """How a newer version of a turn is brought."""
    RECALLED: Literal["overwritten", "deleted", "impossible"]
    NOT_STORED_CAUSES: tuple[str, ...]
    """Why a record that was accepted may not appear there, for a person."""

    def routes(self, endpoint: str) -> tuple[str, ...]:
        """The URLs that take records; each is tried when the one before it answered 404. Raises EndpointError."""

    def read_back(
        self, setting: Literal["auto", "on", "off"], endpoint: str, api_key: str, chosen_url: str | None
    ) -> Plan:
        """Where stored records can be asked for, and how often. `endpoint` as of `url.normalise`."""

    def deletion_url(self, endpoint: str) -> str | None:
        """What `Deleting.delete` is given; None where nothing can be deleted."""

    def looks_ms(self, route: str | None, resends: int) -> tuple[int, ...]:
        """When a job is looked for, in milliseconds after its delivery by the URL `route`."""

    def session_url(self, endpoint: str, api_key: str, dashboard: str | None, session: str, name: str) -> str | None:
        """Where a browser finds a session; None where that is not known. Raises EndpointError."""
