"""Writes what was said to a model and by it as the message lists of the GenAI conventions 1.41.0, in JSON.

    [{"role": "user", "parts": [{"type": "text", "content": "…"}]},
     {"role": "tool", "parts": [{"type": "tool_call_response", "id": "…", "response": "…"}]}]

A receiver drops a whole list for one message that is not of the schema, and says nothing: an answer needs its
`finish_reason`, and a tool's result is its `response`. Content that was withheld is None here, and leaves no part.
"""

from __future__ import annotations

import json
import re

from app.transcript.blobs import described
from app.transcript.model import Assistant, File, Json, Part, Reasoning, Subtask, Text, Tool, User

BYTES_MAX = 2**20
"""Of one attribute."""
KEPT_CHARACTERS_MIN = 1024
"""A text is not cut below this, so that ids, names and roles stay whole."""
KEPT_NAMES_MIN = 8
"""An object is not cut below this: a message and its parts have fewer."""
_FINISH_REASONS = {"tool-calls": "tool_call", "content-filter": "content_filter"}
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def prompt(message: User) -> list[Json]:
    """What the caller and OpenCode added, one message each, then what the person wrote."""
    added = [_message("system", _text(message.system))] if message.system else []
    added += [_message("user", _text(text)) for text in _added(message)]
    written = _written(message)
    return [*added, _message("user", _text("\n".join(written)))] if written else added


def asked(message: User) -> str | None:
    """What the person wrote, as one text; what OpenCode wrote where that is all there is."""
    return "\n".join(_written(message) or _added(message)) or None


def result(tool: Tool) -> list[Json]:
    """What the next call is told of a tool call; nothing as long as it runs."""
    told = tool.output if tool.output is not None else tool.error
    if told is None:
        return []
    return [_message("tool", {"type": "tool_call_response", "id": tool.call_id, "response": told})]


def answer(call: Assistant) -> list[Json]:
    """What the model said and asked for, as one message; none where nothing may be told of it."""
    parts = [part for each in call.parts for part in _answered(each)]
    return [_said(call, parts)] if parts else []


def last_text(call: Assistant) -> str | None:
    """What the person read of an answer."""
    return "\n\n".join(part.text for part in call.parts if isinstance(part, Text) and part.text) or None


def final(call: Assistant) -> list[Json]:
    """The same as a message."""
    text = last_text(call)
    return [] if text is None else [_said(call, [_text(text)])]


def finish_reason(call: Assistant) -> str:
    """In the words of the conventions, which OpenCode spells in another way."""
    if call.finish is not None:
        return _FINISH_REASONS.get(call.finish, call.finish)
    return "error" if call.failure is not None or call.completed_ms is None else "stop"


def fitted(value: Json, bytes_max: int = BYTES_MAX) -> str:
    """The value in JSON. One over `bytes_max` is shortened first, its longest texts before its lists."""
    characters, items = bytes_max // 2, 2**16
    dumped = _dumped(value)
    while len(dumped.encode("utf-8", "surrogatepass")) > bytes_max:
        if not items:
            return _dumped(_marker(len(dumped), "characters"))
        value = _shortened(value, characters, items)
        dumped = _dumped(value)
        if characters > KEPT_CHARACTERS_MIN:
            characters //= 4
        else:
            items //= 4
    return dumped


def _dumped(value: Json) -> str:
    """PostgreSQL, in which receivers keep spans, has no NUL in its JSON either."""
    dumped = _json(value)
    return _NUL.sub("\\1\ufffd", dumped) if "\\u0000" in dumped else dumped


def cut(text: str, bytes_max: int = BYTES_MAX) -> str:
    """As much of the beginning as fits, and how much was cut."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= bytes_max:
        return text
    marker = _marker(len(text), "characters")
    kept = data[: bytes_max - len(marker.encode())].decode("utf-8", "ignore")
    return kept + _marker(len(text) - len(kept), "characters")


def _marker(count: int, what: str) -> str:
    return f"…[{count} {what} cut by opencode-helicone]"


def _shortened(value: Json, characters: int, items: int) -> Json:
    match value:
        case str():
            gone = len(value) - characters
            return value if gone <= 0 else value[:characters] + _marker(gone, "characters")
        case dict():
            kept = list(value.items())[: max(items, KEPT_NAMES_MIN)]
            return {str(_shortened(name, characters, items)): _shortened(one, characters, items) for name, one in kept}
        case list():
            made = [_shortened(one, characters, items) for one in value[:items]]
            return made if len(value) <= items else [*made, _left_out(value[0], len(value) - items)]
        case _:
            return value


def _left_out(like: Json, count: int) -> Json:
    """Stands for what was cut off a list, in the shape of what was in it."""
    marker = _marker(count, "items")
    if isinstance(like, dict) and "role" in like:
        return {"role": "user", "parts": [_text(marker)], "finish_reason": "stop"}
    return _text(marker) if isinstance(like, dict) and "type" in like else marker


def _message(role: str, *parts: Json) -> Json:
    return {"role": role, "parts": list(parts)}


def _said(call: Assistant, parts: list[Json]) -> Json:
    return {"role": "assistant", "parts": parts, "finish_reason": finish_reason(call)}


def _text(content: str) -> Json:
    return {"type": "text", "content": content}


def _added(message: User) -> list[str]:
    return [part.text for part in message.parts if isinstance(part, Text) and part.synthetic and part.text is not None]


def _written(message: User) -> list[str]:
    found: list[str] = []
    for part in message.parts:
        if isinstance(part, Text) and not part.synthetic and part.text is not None:
            found.append(part.text)
        elif isinstance(part, File) and part.mime is not None:
            found.append(described(part.mime, part.size_bytes))
        elif isinstance(part, Subtask) and part.prompt is not None:
            found.append(part.prompt)
    return found


def _answered(part: Part) -> list[Json]:
    """What a part adds to the answer; a stream that was dropped and tried again leaves an empty text behind."""
    match part:
        case Text(text=str(text)) if text:
            return [_text(text)]
        case Reasoning(text=str(text)) if text:
            return [{"type": "reasoning", "content": text}]
        case File(mime=str(mime)):
            return [_text(described(mime, part.size_bytes))]
        case Tool(input=arguments) if arguments is not None:
            return [{"type": "tool_call", "id": part.call_id, "name": part.name, "arguments": arguments}]
        case _:
            return []
