"""Encoder of Helicone: puts its modules together as `app.exporters.encoder.Encoder` asks for them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

from app.exporters.encoder import Frame, Record, Shown
from app.exporters.helicone import body as bodies
from app.exporters.helicone.body import Log
from app.exporters.helicone.naming import lasting_name
from app.exporters.helicone.records import blank, encode_session, encode_turn, kind_of, record_count
from app.transcript.model import Json, Session, Turn

__all__ = [
    "blank",
    "count",
    "encode",
    "kind_of",
    "lasting_name",
    "shown_as",
    "texts_of",
    "trial",
]

_NOT_WRITTEN = frozenset({"id", "object", "model", "usage", "parts", "_type", "toolName"})
"""Of a request or response: what nobody wrote, and the redaction leaves as it is."""
_TRIALS = "opencode-helicone-doctor"
"""One session for all trials, so that they lie together in Helicone's list of sessions."""
_TRIAL_MODEL = "opencode/doctor"


def encode(what: Session | Turn, frame: Frame) -> Iterator[Record]:
    return encode_turn(what, frame) if isinstance(what, Turn) else iter([encode_session(what, frame)])


def count(what: Session | Turn) -> int:
    return record_count(what) if isinstance(what, Turn) else 1


def texts_of(body: bytes) -> list[Json]:
    told = json.loads(body.decode())
    sides = (told["providerRequest"]["json"], told["providerResponse"]["json"])
    written: list[Json] = [{name: text for name, text in side.items() if name not in _NOT_WRITTEN} for side in sides]
    return [*written, told["providerRequest"]["meta"].get("Helicone-Session-Name", "")]


def shown_as(body: bytes) -> tuple[Shown, ...]:
    """The cloud's worker stores the whole body in the request's place."""
    told = json.loads(body)
    response = told["providerResponse"]["json"]
    return Shown(told["providerRequest"]["json"], response), Shown(told, response)


def trial(request_id: uuid.UUID, now_ms: int) -> bytes:
    log = Log(
        request={"model": _TRIAL_MODEL, "messages": []},
        response={
            "object": "chat.completion",
            "model": _TRIAL_MODEL,
            "choices": [
                {"index": 0, "message": {"role": "user", "content": "sent by opencode-helicone doctor --send"}}
            ],
        },
        status=200,
        meta={
            "Helicone-Request-Id": str(request_id),
            "Helicone-Session-Id": _TRIALS,
            "Helicone-Session-Name": "opencode-helicone doctor",
            "Helicone-Session-Path": "/doctor",
        },
        start_ms=now_ms,
        end_ms=now_ms,
        first_token_ms=None,
    )
    return bodies.encode(log)
