"""Client: what a worker and commands ask of one kind of destination: post a record, find stored ones, show them.

The clients themselves bring an HTTP client along: `app.exporters.connect` loads them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from app.errors import AppError, UsageError
from app.exporters.encoder import Shown
from app.exporters.outcome import Outcome

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class ClientError(UsageError):
    """A client that cannot be built. Names the setting, never the key."""


class ReadBackError(AppError):
    """Stored records could not be read. Says the status or the failed phase."""


class OverlongError(ReadBackError):
    """The answer is longer than is read, or holds too many values: fewer records are to be asked for."""


class Client(Protocol):
    """A pool of connections to a destination under one key, shared by the worker's threads."""

    def post(
        self,
        url: str,
        body: bytes,
        request_id: str,
        now_ms: int,
        deadline_s: float | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Outcome:
        """Send one record's bytes to a URL of `Traits.routes`, and say what the answer means.

        `headers`: what is said beside it, and beside what is said with each.
        """

    def stored(self, url: str, *, start_ms: int, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, bool]:
        """Which of these records are stored, and whether with their bodies. Raises ReadBackError.

        `url` as of `Traits.read_back`. None of them starts before `start_ms`.
        """

    def close(self) -> None: ...


class Showing(Client, Protocol):
    """A client of a destination that shows what it stores, so that what was overwritten there can be compared."""

    def shown(self, url: str, *, start_ms: int, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[Shown]]:
        """The bodies of these records, as of `stored`; several where one was taken for another.

        Raises ReadBackError.
        """


class Deleting(Client, Protocol):
    """A client of a destination that deletes what it stores."""

    def delete(self, url: str, request_ids: Sequence[uuid.UUID], now_ms: int) -> Outcome:
        """Delete what is stored of these records, bodies and all; accepted: none of them is there any more.

        `url` as of `Traits.deletion_url`.
        """
