"""Classifies what an OTLP receiver answers. Pure.

    2xx, empty or an answer of OTLP        accepted; a part of it that was rejected is a remark, and is not sent again
    2xx, HTML or anything else             refused: it is somebody else's
    400, 413, 414, 415, 431                permanent
    422                                    retry: MLflow says so of any error that it does not expect
    408, 425, 429, 502, 503, 504           wait
    500, 501, any other 5xx                retry
    401, 403, 404, 3xx, any other          refused

One receiver says 400 and 422 of a body, another one of the settings. So they are doubtful: as long as a destination has
accepted nothing, it is refused, and nobody is charged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from app.exporters.otlp.protobuf import WireError, fields
from app.exporters.otlp.traits import Preset
from app.exporters.outcome import REASON_CHARS_MAX, Kind, Outcome, date_ms, retry_after_ms

ERROR_CHARS_MAX = 120
PERMANENT = frozenset({400, 413, 414, 415, 431})
UNPROCESSABLE = 422
WAIT = frozenset({408, 425, 429, 502, 503, 504})

Redact: TypeAlias = Callable[[str], str]


def classify(
    preset: Preset, status: int, headers: Mapping[str, str], body: bytes, now_ms: int, redact: Redact = str
) -> Outcome:
    """What an answer to a POST means. `headers` by lower-case name; `body` may be cut.

    The reason holds the status, the kind of body and at most 120 characters of what it says of the error, redacted.
    """
    kind, said, remark, is_doubtful = _meaning(preset, status, body, redact)
    return Outcome(
        kind=kind,
        reason=f"{status}: {said}"[:REASON_CHARS_MAX],
        status=status,
        retry_after_ms=retry_after_ms(headers.get("retry-after", ""), now_ms),
        server_ms=date_ms(headers.get("date", "")),
        is_doubtful=is_doubtful,
        remark=remark[:REASON_CHARS_MAX],
    )


def _meaning(preset: Preset, status: int, body: bytes, redact: Redact) -> tuple[Kind, str, str, bool]:
    said = described(body, redact)
    if status // 100 == 2:  # noqa: PLR2004 - HTTP's own numbers read better than names here
        partial = _partial_success(preset, body, redact)
        return (
            ("refused", f"not an answer of OTLP ({said})", "", False)
            if partial is None
            else ("accepted", "ok", partial, False)
        )
    if status in PERMANENT:
        return "permanent", said, "", True
    if status == UNPROCESSABLE:
        return "retry", said, "", True
    if status in WAIT:
        return "wait", said, "", False
    return ("retry" if status >= 500 else "refused"), said, "", False  # noqa: PLR2004


def _partial_success(preset: Preset, body: bytes, redact: Redact) -> str | None:
    """What was not taken, '' for nothing; None where the body is no answer of OTLP."""
    if body.lstrip()[:1] == b"{":
        # Not by the specification, but of receivers that take OTLP beside their own API.
        told = json_object(body)
        partial = told.get("partialSuccess")
        told_of = partial if isinstance(partial, dict) else {}
        is_answer = preset == "none" and bool(told or body.strip() == b"{}") and "error" not in told
        return (
            _remark(told_of.get("rejectedSpans", 0), str(told_of.get("errorMessage", "")), redact)
            if is_answer
            else None
        )
    try:
        found = list(fields(body))
        if any(number != 1 for number, _ in found):
            return None
        inner = dict(fields(b"".join(value for _, value in found if isinstance(value, bytes))))
    except WireError:
        return None
    message = inner.get(2, b"")
    return _remark(inner.get(1, 0), message.decode("utf-8", "replace") if isinstance(message, bytes) else "", redact)


def _remark(rejected: object, message: str, redact: Redact) -> str:
    number = str(rejected) if str(rejected).isdecimal() else "some"
    if number == "0" and not message:
        return ""
    said = _shown(message, redact)
    return f"{number} spans rejected" + (f": {said}" if said else "")


def described(body: bytes, redact: Redact) -> str:
    """The kind of body, and what JSON says of an error: nothing else of an answer is worth the risk of keeping it."""
    start = body.lstrip()[:1]
    if not start:
        return "empty body"
    if start == b"<":
        return "HTML"
    told = json_object(body)
    for name in ("error", "message", "detail", "error_code"):
        said = told.get(name)
        said = said.get("message") if isinstance(said, dict) else said
        if isinstance(said, str) and said:
            return "error " + _shown(said, redact)
    return "JSON" if start in b"{[" else "text"


def json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _shown(text: str, redact: Redact) -> str:
    # Redacted before it is cut: half a secret is none that a rule would know.
    return "".join(char if char.isprintable() else " " for char in redact(text.replace("\0", "")))[:ERROR_CHARS_MAX]
