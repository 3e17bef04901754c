"""Expected content: digests of what Helicone is to show of a record once it is overwritten."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass

from app.exporters.encoding import overwriting
from app.ledger.job import Body


@dataclass(frozen=True, slots=True)
class ExpectedContent:
    """What a record is to show, by digests: no text is kept to compare with."""

    session: str
    request_id: uuid.UUID
    path: str
    start_ms: int
    requests: frozenset[bytes]
    """Digests of what its request may be there."""
    response: bytes
    is_gone: bool = False
    """It is to show nothing: it is deleted."""
    is_shown: bool = True
    """The destination shows what it has; else nothing says more than that it has something."""


def expected_content(session: str, body: Body, kind: str) -> ExpectedContent:
    """Where a kind deletes, its content is not compared: what was there is gone before anything comes in its place."""
    encoder = overwriting(kind)
    shown = () if encoder is None else encoder.shown_as(body.body)
    return ExpectedContent(
        session=session,
        request_id=body.request_id,
        path=body.identity_fields.path if body.identity_fields else "",
        start_ms=body.identity_fields.start_ms if body.identity_fields else 0,
        requests=frozenset(json_digest(one.request) for one in shown),
        response=json_digest(shown[0].response) if shown else b"",
        is_gone=not body.body,
        is_shown=encoder is not None,
    )


def json_digest(value: object) -> bytes:
    """Equal for equal JSON, in whatever order, and whether a number was written 1 or 1.0."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).digest()


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
