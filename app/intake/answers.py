"""Answers: what an intake says to a machine, whatever it was asked. `app.intake.server` says what each status means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from app.settings.intake import IDS_MAX

FULL_S = 60
AWAY_S = 5


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]


JSON = {"content-type": "application/json"}


def _refusal(status: int, why: str, retry_after_s: int | None = None) -> Answer:
    """A machine shows its person the `error`."""
    later = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return Answer(status, json.dumps({"error": why}).encode(), {**JSON, **later})


KNOWN = Answer(200, b"", {})
UNKNOWN = _refusal(401, "the token is revoked, or never was one")
TOO_MUCH = _refusal(403, "this centre takes logs of export mode metadata_only alone")
FULL = _refusal(429, "what waits at the centre has reached its limit", FULL_S)
AWAY = _refusal(503, "the centre's database is away", AWAY_S)
LATE = _refusal(503, "it came too late, and may be older than what came since", AWAY_S)
NEWER = _refusal(503, "the centre is being upgraded", FULL_S)
NO_PATTERN = _refusal(503, "a redaction pattern of the tenant cannot be used", FULL_S)
TOO_LARGE = Answer(400, b"Payload too large", {})
NO_LOG = _refusal(400, "its numbers cannot be read")
NO_ID = _refusal(400, "Helicone-Request-Id must be a UUID, and Helicone-Session-Id no longer than 512 characters")
NO_QUESTION = _refusal(400, f"requestIds must be a list of at most {IDS_MAX} UUIDs")
