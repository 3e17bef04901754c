"""A stand-in for an intake, on loopback: it says what a test has it say, takes logs or not, and notes what it heard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.settings.intake import (
    LOG_PATH,
    MACHINE_PATH,
    MODE_HEADER,
    STATES_PATH,
    DeadRecord,
    IntakeAnswer,
    RecordState,
    encoded,
)
from tests.support.servers import Exchange, Heard, Scripted, request_id_of, scripted, whole


def token(letter: str = "t") -> str:
    """A well-formed one, put together here so that no file holds one."""
    return "-".join(["sk", "helicone", "fleet01", *[letter * 7] * 3])


def answer(
    mode: str = "full", *patterns: str, waiting: int = 0, dead: int = 0, records: tuple[DeadRecord, ...] = ()
) -> IntakeAnswer:
    assert mode in {"full", "metadata_only"}
    return IntakeAnswer("full" if mode == "full" else "metadata_only", patterns, waiting, dead, records)


class AllDelivered(dict[str, RecordState]):
    """States of whatever is asked for."""

    def __contains__(self, _: object) -> bool:
        return True

    def __missing__(self, _: str) -> RecordState:
        return RecordState("delivered", "")


@dataclass(slots=True)
class StandIn:
    """What it says from now on, and what it heard."""

    server: Scripted | None = None
    says: IntakeAnswer | bytes | None = None
    """To the machine; None: it is away, with 503."""
    mode: str = "full"
    """What it takes: the tenant's."""
    is_revoked: bool = False
    states: Mapping[str, RecordState] = field(default_factory=dict)

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    def of(self, path: str) -> list[Heard]:
        assert self.server is not None
        return [one for one in self.server.requests if one.line.split()[1] == path]

    @property
    def logs(self) -> list[Heard]:
        return self.of(LOG_PATH)

    def act(self, exchange: Exchange) -> None:
        exchange.read_body()
        heard = exchange.heard
        exchange.send(self._reply(heard.line.split()[1], heard))

    def _reply(self, path: str, heard: Heard) -> bytes:
        if self.is_revoked:
            return whole(401, b"Unauthorized")
        if self.says is None:
            return whole(503, b"the database is away", {"retry-after": "5"})
        if path == MACHINE_PATH:
            return whole(200, self.says if isinstance(self.says, bytes) else encoded(self.says))
        if path == STATES_PATH:
            asked = json.loads(heard.body)["requestIds"]
            return whole(200, encoded({one: self.states[one] for one in asked if one in self.states}))
        return self._taken(heard) if path == LOG_PATH else whole(404, b"")

    def _taken(self, heard: Heard) -> bytes:
        if self.mode == "metadata_only" and heard.headers.get(MODE_HEADER.lower()) != "metadata_only":
            return whole(403, json.dumps({"error": "only metadata_only is taken"}).encode())
        return whole(200, b"ok", {"helicone-id": request_id_of(heard.body)})


@contextmanager
def stand_in(says: IntakeAnswer | None = None, mode: str = "full") -> Iterator[StandIn]:
    made = StandIn(says=says, mode=mode)
    with scripted(made.act) as server:
        made.server = server
        yield made
