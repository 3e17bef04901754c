"""Traits: how one kind of destination is reached, and what it can be asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

Resent: TypeAlias = Literal["replaced", "ignored", "unknown"]
"""What becomes of a record that is sent again, its bytes unchanged."""
Changed: TypeAlias = Literal["replaced", "deleted first", "not sent"]
"""How a newer version of a turn comes there: it takes the place of what is there, after that was deleted or not."""
Recalled: TypeAlias = Literal["overwritten", "deleted", "impossible"]
"""How what is stored is taken back."""


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

    @property
    def RECORDS_AT_ONCE(self) -> int:  # noqa: N802 - constants, of a module or of a value
        """Of one job; 1 where it matters in which order they arrive."""

    @property
    def NOT_STORED_CAUSES(self) -> tuple[str, ...]:  # noqa: N802
        """Why a record that was accepted may not appear there, for a person."""

    @property
    def RESENT(self) -> Resent: ...  # noqa: N802

    @property
    def CHANGED(self) -> Changed: ...  # noqa: N802

    @property
    def RECALLED(self) -> Recalled: ...  # noqa: N802

    def routes(self, endpoint: str) -> tuple[str, ...]:
        """The URLs that take records; each is tried when the one before it answered 404. Raises EndpointError."""

    def read_back(
        self, setting: Literal["auto", "on", "off"], endpoint: str, api_key: str, chosen_url: str | None
    ) -> Plan:
        """Where stored records can be asked for, and how often. `endpoint` as of `url.normalise`."""

    def looks_ms(self, route: str | None, resends: int) -> tuple[int, ...]:
        """When a job is looked for, in milliseconds after its delivery by the URL `route`."""

    def deletion_url(self, endpoint: str) -> str | None:
        """Where stored records can be deleted; None where nothing can. Raises EndpointError."""

    def session_url(self, endpoint: str, api_key: str, dashboard: str | None, session: str, name: str) -> str | None:
        """Where a browser finds a session; None where that is not known. Raises EndpointError."""
