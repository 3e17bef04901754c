"""Answers one Manual-Logger POST as Helicone does, and says what is kept. Pure: clock and dice are arguments.

    bytes, headers ─ worker_reply | jawn_reply ─▶ Reply(status, body, headers, log)

The rules, their order and their texts were measured on the real worker and the real jawn, the odd ones included: an
unknown key is answered with 200, a malformed id is replaced in silence, garbage times are lost with 200. Where the two
servers differ, so do the two functions. `headers` come by lower-case name; `keys` are the known API keys, None: every
well-formed one is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.receiver.manual_log import (
    Log,
    Object,
    Times,
    as_object,
    dumped,
    is_number,
    merged,
    moment_ms,
    read_times,
    stored,
)

BODY_MAX = 10 * 1024 * 1024
"""UTF-16 code units of the JSON for the worker, bytes for jawn."""

_KEY = re.compile(r"[sp]k(-helicone)?(-eu)?(-cp|-rl)?(-\w{7}){4}", re.ASCII)
_ENVELOPE = frozenset({"providerRequest", "providerResponse", "timing", "provider"})


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered, and what is stored (None: nothing)."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    log: Log | None = None


_UNAUTHORIZED = Reply(401, b"Unauthorized")


def bearer(authorization: str | None) -> str | None:
    """The key of an Authorization header."""
    if authorization is None or "Bearer " not in authorization:
        return None
    return authorization.replace("Bearer ", "", 1).strip()


def is_well_formed(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


# --- the worker ------------------------------------------------------------------------------------------------------


def worker_reply(
    headers: Mapping[str, str], raw: bytes, keys: frozenset[str] | None, now_ms: int, fresh_id: str
) -> Reply:
    """The answer of Helicone's worker, the cloud's door."""
    # Malformed and compressed bodies look empty to it.
    body = _parsed(raw) or {}
    if len(raw) > BODY_MAX and _utf16_units(body) > BODY_MAX:
        return Reply(400, b"Payload too large")
    if "authorization" not in headers:
        return _UNAUTHORIZED
    problem = _schema_problem(body)
    if problem is not None:
        return _error(400, problem)
    envelope_headers = merged(body["providerRequest"]["meta"], headers)
    times = _worker_times(body.get("timing"), now_ms)
    if envelope_headers is None or times is None:
        return Reply(500, _json({"helicone-message": "internal error"}), {"helicone-error": "true"})
    refusal = worker_refusal(headers, keys)
    if refusal is not None:
        return refusal
    # Helicone keeps the whole envelope as the request's body; the fields beside it are what its screens then read.
    beside = {name: value for name, value in body.items() if name not in _ENVELOPE}
    log = stored(
        body,
        request=body,
        request_body=dumped(beside or body),
        headers=envelope_headers,
        times=times,
        provider="CUSTOM",
        fresh_id=fresh_id,
    )
    return Reply(200, b"ok", {"helicone-id": log.request_id}, log)


def worker_refusal(headers: Mapping[str, str], keys: frozenset[str] | None) -> Reply | None:
    """The worker's answer to whoever has no key that it knows; None for a known key."""
    if "authorization" not in headers:
        return _UNAUTHORIZED
    key = bearer(headers["authorization"])
    if key is None:
        return _error(401, "Must included Bearer in API Key")
    if not is_well_formed(key):
        return _error(401, "API Key is not well formed")
    if keys is not None and key not in keys:
        return _error(200, "Auth failed! API key is unknown")
    return None


def _schema_problem(body: Object) -> str | None:
    request, response = body.get("providerRequest"), body.get("providerResponse")
    if not isinstance(request, dict) or not isinstance(response, dict):
        return "One of the required fields is missing, providerRequest or providerResponse"
    rules = (
        (isinstance(request.get("url"), str), "providerRequest: 'url' should be a string"),
        (isinstance(request.get("meta"), dict), "providerRequest: 'meta' should be an object"),
        ("json" in request, "providerRequest: 'json' is undefined"),
        ("json" in response, "providerResponse: 'json' is undefined"),
        (is_number(response.get("status")), "providerResponse: 'status' should be a number"),
        (isinstance(response.get("headers"), dict), "providerResponse: 'headers' should be an object"),
        (_is_timing_valid(body.get("timing")), "timing: numeric seconds and milliseconds, start before end"),
    )
    return next((f"Invalid {text}" for holds, text in rules if not holds), None)


def _is_timing_valid(timing: object) -> bool:
    if not isinstance(timing, dict) or "startTime" not in timing:
        return True  # the real one stumbles over a missing startTime later: 500
    if not isinstance(timing["startTime"], dict) or not isinstance(timing.get("endTime"), dict):
        return False
    start_ms, end_ms = moment_ms(timing["startTime"]), moment_ms(timing["endTime"])
    return start_ms is not None and end_ms is not None and 0 <= start_ms <= end_ms


def _worker_times(timing: object, now_ms: int) -> Times | None:
    if timing is None:
        return Times(now_ms - 1000, now_ms, None)
    return read_times(as_object(timing))


# --- jawn ------------------------------------------------------------------------------------------------------------


def jawn_reply(
    headers: Mapping[str, str], raw: bytes, keys: frozenset[str] | None, now_ms: int, fresh_id: str
) -> Reply:
    """The answer of jawn, Helicone's API server and the door of self-hosted installations."""
    body = _jawn_body(headers, raw)
    if isinstance(body, Reply):
        return body
    refusal = jawn_refusal(headers, keys)
    if refusal is not None:
        return refusal
    request, response = as_object(body.get("providerRequest")), as_object(body.get("providerResponse"))
    envelope_headers = merged(as_object(request.get("meta")), headers)
    timing = body.get("timing")
    broken = timing is not None and not as_object(timing).keys() >= {"startTime", "endTime"}
    if "json" not in request or "json" not in response or envelope_headers is None or broken:
        return Reply(500)
    times = Times(now_ms, now_ms, None) if timing is None else read_times(timing)
    if times is None:
        return Reply(200)  # times that are no dates are answered like all others, and never stored
    log = stored(
        body,
        request=as_object(request["json"]),
        request_body=dumped(request["json"]),
        headers=envelope_headers,
        times=times,
        provider=str(body.get("provider") or "OPENAI"),
        fresh_id=fresh_id,
    )
    return Reply(200, log=log)


def jawn_refusal(headers: Mapping[str, str], keys: frozenset[str] | None) -> Reply | None:
    """The 401 of everything that jawn serves; None for a known key."""
    key = bearer(headers.get("authorization"))
    if key and is_well_formed(key) and (keys is None or key in keys):
        return None
    text = "No API key found" if "authorization" in headers else "No authorization header"
    return Reply(401, _json({"error": text, "trace": "isAuthenticated.error"}))


def _jawn_body(headers: Mapping[str, str], raw: bytes) -> Object | Reply:
    """What the body parser makes of the bytes, before anybody asks for a key."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return {}
    if len(raw) > BODY_MAX:
        return Reply(500, _json({"details": "request entity too large"}))
    body = _parsed(raw)
    return Reply(500, _json({"details": "Unexpected end of JSON input"})) if body is None else body


# --- both ------------------------------------------------------------------------------------------------------------


def _parsed(raw: bytes) -> Object | None:
    """The object in `raw`; None when it is malformed, compressed, or something else."""
    try:
        value = json.loads(raw.decode("utf-8", "replace"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _utf16_units(value: object) -> int:
    return len(dumped(value).encode("utf-16-le")) // 2


def _json(value: object) -> bytes:
    return dumped(value).encode()


def _error(status: int, text: str) -> Reply:
    return Reply(status, _json({"error": text}))
