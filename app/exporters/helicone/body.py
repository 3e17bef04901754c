"""Encodes one Helicone log as the body of a POST to its manual logger.

    {…request…,                                              the request's fields once more: the cloud worker
                                                             takes the whole body for the request
     "providerRequest":  {"url", "json": {…request…}, "meta": {"Helicone-…": "…"}},
     "providerResponse": {"status", "headers", "json": {…response…}},
     "timing": {"startTime": {"seconds", "milliseconds"}, "endTime": {…}, "timeToFirstToken"},
     "provider": "CUSTOM"}

All of Helicone's headers travel in `meta`. The bytes follow from the values alone: no clock, no program version.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from app.runtime.header_value import LONE_SURROGATE
from app.transcript.model import Json

PROVIDER = "CUSTOM"
BODY_BYTES_MAX = 19 * 2**19
"""9.5 MiB, under the servers' 10 MiB. The worker counts UTF-16 units, of which a text never has more than bytes."""
KEPT_CHARACTERS_MIN = 1024
"""A string is not shortened below this, so that ids, names and roles always stay whole."""
_PIECE_CHARACTERS = 2**14
_ESCAPED_IN_HEX = bytes(set(range(32)) - set(b"\b\t\n\f\r"))
_ESCAPED = bytes(range(32)) + b'"\\'

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Log:
    """What one log says, before it is bytes. Neither top level may hold the keys of the envelope."""

    request: dict[str, Json]
    response: dict[str, Json]
    status: int
    meta: dict[str, str]
    start_ms: int
    end_ms: int
    first_token_ms: int | None
    """After `start_ms`; None when there was none, or nobody knows."""


def encode(log: Log, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The body, in UTF-8. One over `bytes_max` is shortened first, the longest strings before the others."""
    # What is longer for sure is not made whole to be measured.
    if 2 * _characters(log.request) + _characters(log.response) <= bytes_max:
        body = _dumped(_union(log))
        if len(body) <= bytes_max:
            return body
    log = _strings_cut(log, bytes_max)
    body = _dumped(_union(log))
    while len(body) > bytes_max:
        log = _lists_cut(log)
        body = _dumped(_union(log))
    return body


def _union(log: Log) -> dict[str, Json]:
    timing: dict[str, Json] = {"startTime": _moment(log.start_ms), "endTime": _moment(log.end_ms)}
    if log.first_token_ms is not None:
        timing["timeToFirstToken"] = log.first_token_ms
    meta: dict[str, Json] = dict(log.meta)
    return {
        **log.request,
        "providerRequest": {"url": "custom-model-nopath", "json": log.request, "meta": meta},
        "providerResponse": {"status": log.status, "headers": {}, "json": log.response},
        "timing": timing,
        "provider": PROVIDER,
    }


def _moment(time_ms: int) -> dict[str, Json]:
    seconds, milliseconds = divmod(time_ms, 1000)
    return {"seconds": seconds, "milliseconds": milliseconds}


def _dumped(value: Json) -> bytes:
    text = _json(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return LONE_SURROGATE.sub("\ufffd", text).encode()


_Path = tuple[str | int, ...]


def _size_bytes(text: str) -> int:
    """Of a string as `_dumped` writes it."""
    size_bytes = len('""')
    for at in range(0, len(text), _PIECE_CHARACTERS):
        data = text[at : at + _PIECE_CHARACTERS].encode("utf-8", "surrogatepass")  # as long as what stands for them
        escaped = len(data) - len(data.translate(None, _ESCAPED))
        in_hex = len(data) - len(data.translate(None, _ESCAPED_IN_HEX)) if escaped else 0
        size_bytes += len(data) + escaped * len("\\") + in_hex * len("u000")
    return size_bytes


def _characters(value: Json) -> int:
    """Of its values that are strings."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def _strings_cut(log: Log, bytes_max: int) -> Log:
    """The longest strings cut until the body has `bytes_max`, or all are at the least that is kept."""
    long = [*_strings({"request": log.request, "response": log.response}, ())]
    found = [(_size_bytes(text) * _copies(path), path, text) for path, text in long]
    without = _replaced(log, {path: "" for path, _ in long})
    empty_bytes = sum(len('""') * _copies(path) for path, _ in long)
    excess_bytes = len(_dumped(_union(without))) - empty_bytes + sum(size for size, _, _ in found) - bytes_max
    cuts: dict[_Path, str] = {}
    for size, path, text in sorted(found, key=lambda item: -item[0]):
        if excess_bytes <= 0:
            break
        shorter = _cut(text, (size - excess_bytes) // _copies(path))
        if len(shorter) < len(text):
            cuts[path] = shorter
            excess_bytes -= size - _size_bytes(shorter) * _copies(path)
    return _replaced(log, cuts)


def _replaced(log: Log, strings: dict[_Path, str]) -> Log:
    return replace(
        log, request=_with(log.request, strings, "request"), response=_with(log.response, strings, "response")
    )


def _copies(path: _Path) -> int:
    """How often a string stands in the body: the request does twice."""
    return 2 if path[0] == "request" else 1


def _cut(text: str, size_bytes: int) -> str:
    """As much of the head as fits `size_bytes` of JSON with the marker, but never less than is kept."""
    room = size_bytes - len(_dumped(_marker(len(text), "characters")))
    kept = 0
    for step in (2**16, 2**8, 1):
        while kept < len(text) and (taken := _size_bytes(text[kept : kept + step]) - len('""')) <= room:
            kept += step
            room -= taken
    kept = max(kept, KEPT_CHARACTERS_MIN)
    return text[:kept] + _marker(len(text) - kept, "characters")


def _marker(count: int, what: str) -> str:
    return f"…[{count} {what} cut by opencode-helicone]"


def _strings(value: Json, path: _Path) -> Iterator[tuple[_Path, str]]:
    if isinstance(value, str):
        if len(value) > KEPT_CHARACTERS_MIN:
            yield path, value
        return
    for step, item in _items(value):
        yield from _strings(item, (*path, step))


def _items(value: Json) -> list[tuple[str | int, Json]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _with(fields: dict[str, Json], cuts: dict[_Path, str], side: str) -> dict[str, Json]:
    def rebuilt(value: Json, path: _Path) -> Json:
        if isinstance(value, dict):
            return {name: rebuilt(item, (*path, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [rebuilt(item, (*path, index)) for index, item in enumerate(value)]
        return cuts.get(path, value)

    return {name: rebuilt(value, (side, name)) for name, value in fields.items()}


def _lists_cut(log: Log) -> Log:
    """The longest lists and objects halved: what is left to do when it is their number that makes a log too large."""
    longest = max(_lengths(log.request) + _lengths(log.response))
    return replace(log, request=_halved(log.request, longest), response=_halved(log.response, longest))


def _lengths(fields: dict[str, Json]) -> list[int]:
    """The lengths of all lists and objects below the fields themselves."""
    below: list[int] = [0]
    level = list(fields.values())
    while level:
        below += [len(_items(value)) for value in level]
        level = [item for value in level for _, item in _items(value)]
    return below


def _halved(fields: dict[str, Json], longest: int) -> dict[str, Json]:
    gone = 0

    def rebuilt(value: Json) -> Json:
        nonlocal gone
        items = _items(value)
        if 2 * len(items) > longest:
            gone += len(items) - len(items) // 2
            items = items[: len(items) // 2]
        if isinstance(value, dict):
            return {str(name): rebuilt(item) for name, item in items}
        return [rebuilt(item) for _, item in items] if isinstance(value, list) else value

    kept = {name: rebuilt(value) for name, value in fields.items() if name != "cut"}
    before = fields.get("cut")
    already = int(re.sub(r"\D", "", before)) if isinstance(before, str) else 0
    return {**kept, "cut": _marker(gone + already, "items")} if gone + already else kept
