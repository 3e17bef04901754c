"""Texts of a log: what was asked and answered, in the shapes that this program sends; any other as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

from app.receiver.manual_log import Log, as_object

Text: TypeAlias = tuple[str, str]
"""Who says it, and what."""


def texts_of(log: Log) -> Iterator[Text]:
    return texts(_object(log.request_body), _object(log.response_body))


def texts(request: dict[str, Any], response: dict[str, Any]) -> Iterator[Text]:
    if not request and not response:
        yield "stored without its bodies", ""
    for message in _objects(request.get("messages")):
        yield from _message(message)
    if "input" in request:
        yield "input", _written(request["input"])
    error = as_object(response.get("error"))
    if error:
        yield "error", str(error.get("message"))
    for choice in _objects(response.get("choices")):
        yield from _message(as_object(choice.get("message")))
    for name in ("output", "result", "message", "data"):
        if name in response:
            yield name, _written(response[name])
    if not request.keys() & {"messages", "input"} and not response.keys() & {"choices", "error", "output"}:
        yield "log", _written(response or request)


def _message(message: dict[str, Any]) -> Iterator[Text]:
    who = str(message.get("role") or "assistant")
    if message.get("reasoning"):
        yield "reasoning", _written(message["reasoning"])
    if message.get("content"):
        yield who, _written(message["content"])
    for call in _objects(message.get("tool_calls")):
        function = as_object(call.get("function"))
        yield f"calls {function.get('name')}", _written(function.get("arguments"))


def _object(text: str) -> dict[str, Any]:
    try:
        return as_object(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
