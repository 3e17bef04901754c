"""Reads one Manual-Logger body as Helicone stores and shows it: times, headers, id, model, usage, cost.

    envelope, headers, times ─ stored ─▶ Log

For provider CUSTOM with OpenAI-shaped usage, which is what this program sends. Pure; measured on the real servers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

Object: TypeAlias = dict[str, Any]

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00\r\n\u0100-\U0010ffff]*")
_TIME_MS_MAX = 8_640_000_000_000_000  # JavaScript's last date
_COUNT_MAX = 2**53


@dataclass(frozen=True, slots=True)
class Log:
    """One request as Helicone stores and shows it."""

    request_id: str
    provider: str
    model: str
    user_id: str
    created_ms: int
    ended_ms: int
    ttft_ms: int | None
    status: int
    prompt_tokens: int
    """Without what was read from the cache."""
    completion_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: float
    properties: Mapping[str, str]
    request_body: str
    response_body: str

    @property
    def latency_ms(self) -> int:
        return self.ended_ms - self.created_ms


@dataclass(frozen=True, slots=True)
class Times:
    created_ms: int
    ended_ms: int
    ttft_ms: int | None


def stored(
    envelope: Object,
    *,
    request: Object,
    request_body: str,
    headers: Mapping[str, str],
    times: Times,
    provider: str,
    fresh_id: str,
) -> Log:
    """The row that a valid envelope becomes.

    `request`: where the server looks for model and type; `request_body`: what it keeps; `headers`: as of `merged`;
    `fresh_id`: takes the place of an id that is no UUID of version 1 to 5, in silence, as Helicone has it.
    """
    answer = envelope["providerResponse"]
    response = as_object(answer["json"])
    usage = as_object(response.get("usage"))
    details = as_object(usage.get("prompt_tokens_details"))
    cached = _count(details.get("cached_tokens"))
    reasoning = _count(as_object(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    cost = usage.get("cost")
    sent_id = headers.get("helicone-request-id", "")
    return Log(
        request_id=sent_id if _UUID.fullmatch(sent_id) else fresh_id,
        provider=clean(provider),
        model=clean(_model(headers.get("helicone-model-override"), request, response)),
        user_id=headers.get("helicone-user-id", ""),
        created_ms=times.created_ms,
        ended_ms=times.ended_ms,
        ttft_ms=times.ttft_ms,
        status=_count(answer.get("status")),
        prompt_tokens=max(_count(usage.get("prompt_tokens")) - cached - _count(details.get("audio_tokens")), 0),
        completion_tokens=max(_count(usage.get("completion_tokens")) - reasoning, 0),
        cache_read_tokens=cached,
        cache_write_tokens=_count(details.get("cache_write_tokens")),
        cost_usd=float(cost) if is_number(cost) and provider == "CUSTOM" else 0.0,
        properties=_properties(headers),
        request_body=request_body,
        response_body=clean(str(answer.get("textBody") or "")) or dumped(answer["json"]),
    )


def _model(override: str | None, request: Object, response: Object) -> str:
    kind = request.get("_type")
    if override:
        return override
    if kind == "tool":
        return f"tool:{request.get('toolName')}"
    if kind == "data":
        return f"data:{request.get('name')}"
    return str(response.get("model") or request.get("model") or "")


def _properties(headers: Mapping[str, str]) -> dict[str, str]:
    prefix = "helicone-property-"
    found = {name.removeprefix(prefix): value for name, value in headers.items() if name.startswith(prefix)}
    for name in ("Helicone-Session-Id", "Helicone-Session-Name", "Helicone-Session-Path"):
        if headers.get(name.lower()):
            found[name] = headers[name.lower()]
    return found


def merged(meta: Mapping[str, object], http: Mapping[str, str]) -> dict[str, str] | None:
    """Meta and HTTP headers by lower-case name, HTTP first; None when one of meta is illegal as a header."""
    found: dict[str, str] = {}
    for name, value in meta.items():
        text = (value if isinstance(value, str) else dumped(value)).strip(" \t\r\n")
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(text):
            return None
        found[name.lower()] = text
    return found | dict(http)


def read_times(timing: Object) -> Times | None:
    """Start, end and time to first token; None when they are no times."""
    start_ms, end_ms = moment_ms(timing.get("startTime")), moment_ms(timing.get("endTime"))
    if start_ms is None or end_ms is None:
        return None
    ttft = timing.get("timeToFirstToken")
    return Times(start_ms, end_ms, round(ttft) if is_number(ttft) else None)


def moment_ms(value: object) -> int | None:
    """A time as an object of seconds and milliseconds."""
    told = as_object(value)
    seconds, rest = told.get("seconds"), told.get("milliseconds")
    total = seconds * 1000 + rest if is_number(seconds) and is_number(rest) else _TIME_MS_MAX + 1
    return int(total) if abs(total) <= _TIME_MS_MAX else None


def as_object(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def dumped(value: object) -> str:
    """JSON as JavaScript writes it."""
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def clean(text: str) -> str:
    """Halves of surrogate pairs, which JSON can spell and UTF-8 cannot hold, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(value: object) -> int:
    return int(value) if is_number(value) and 0 <= value < _COUNT_MAX else 0
