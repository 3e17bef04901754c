"""Remote: asks Helicone what it has stored, at the pace that reading back allows itself."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import cast

from app.delivery import confirm
from app.delivery.access import access
from app.delivery.intake import Intake
from app.exporters.client import Client, ReadBackError, Showing
from app.exporters.connect import connect
from app.exporters.encoder import Shown
from app.exporters.kinds import traits_of
from app.runtime import clock
from app.settings.model import Settings
from app.verify.remote_check import AtCentre

LOOK_S = 0.1


class Remote:
    """What lies at one destination. Every query waits until another one may be made."""

    def __init__(self, client: Client, url: str, queries_per_minute: int) -> None:
        self._client = client
        self._url = url
        self._allowance = confirm.Allowance(queries_per_minute, queries_per_minute, clock.read().steady_ms)

    def stored(self, start_ms: int, request_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, bool]:
        """Find stored records, as `Client.stored`."""
        self._wait()
        return self._client.stored(self._url, start_ms=start_ms, request_ids=request_ids)

    def shown(self, start_ms: int, request_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, Sequence[Shown]]:
        """Read what is shown of records, as `Showing.shown`, where a destination shows any."""
        self._wait()
        return cast("Showing", self._client).shown(self._url, start_ms=start_ms, request_ids=request_ids)

    def _wait(self) -> None:
        while not self._allowance.take(clock.read().steady_ms):
            time.sleep(LOOK_S)


class RemoteCentre:
    """The centre behind an intake, which says what became of what it took. What Helicone shows it does not say."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def stored(self, _start_ms: int, request_ids: Sequence[uuid.UUID]) -> Mapping[uuid.UUID, bool | AtCentre]:
        """Find records: True where they are delivered. Raises ReadBackError."""
        found: dict[uuid.UUID, bool | AtCentre] = {}
        for one, said in self._intake.states(request_ids).items():
            is_there = said.state in {"delivered", "confirmed"}
            reason = said.reason if said.state in {"pending", "dead"} else f"dropped there: {said.reason}"
            found[one] = is_there or AtCentre(said.state != "pending", reason)
        return found


@contextmanager
def asked_centre(settings: Settings) -> Iterator[RemoteCentre]:
    """The centre that the settings' key leads to. Raises ClientError."""
    with closing(Intake(settings)) as intake:
        yield RemoteCentre(intake)


@contextmanager
def asked(settings: Settings) -> Iterator[Remote]:
    """The destination that the settings mean. Raises ClientError, and ReadBackError where it cannot be asked."""
    if settings.heard is not None:
        raise ReadBackError("the centre has it; what Helicone shows then cannot be asked from this machine")
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    plan = traits_of(settings.kind, settings.preset, settings.project).read_back(
        "on", settings.endpoint, key, settings.readback_url
    )
    if not settings.credential or plan.url is None:
        raise ReadBackError(plan.off_reason or "there is no key to ask with (HELICONE_API_KEY)")
    with closing(connect(access(settings), settings.ca_file)) as client:
        yield Remote(client, plan.url, plan.queries_per_minute)
