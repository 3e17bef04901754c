"""Reads one message of OpenCode, with its parts.

A part that cannot be read is an `Other` of the kind UNREADABLE, and so stands in its message's count of parts. A
message without an id or a role, or with numbers that JSON does not have, is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.transcript.attachments import data_url_bytes
from app.transcript.fields import Canonical, Place, canonical, joined, place, refuse, turn_name, whole
from app.transcript.id_times import distance, ticks
from app.transcript.model import (
    UNREADABLE,
    Assistant,
    Failure,
    File,
    Json,
    Message,
    Other,
    Part,
    Reasoning,
    Retry,
    Subtask,
    Text,
    Tokens,
    Tool,
    Transcript,
    TranscriptError,
    User,
)

FindChild = Callable[[Place], Transcript | None]
"""The subagent's session that a tool part has started."""


@dataclass(frozen=True, slots=True)
class Read:
    """A message, and what its turn needs to know of it beside its value."""

    value: Message
    told: Canonical
    """Without the fields that OpenCode still writes after the turn has ended."""
    latest_ms: int


@dataclass(frozen=True, slots=True)
class _Found:
    """A part: its value, itself in canonical form, and the times in it."""

    value: Part
    told: Canonical
    times_ms: tuple[int, ...]


def read_message(message: Place, index: int, created_ms: int, child_of: FindChild) -> Read:
    """`created_ms` is where `time.created` puts it. Raises TranscriptError."""
    info = message.need("info")
    name, role = info.id("id"), info.identity("role")
    if role not in {"user", "assistant"}:
        refuse(info.at("role"), "neither user nor assistant")
    # An assistant's `summary` is the mark of a compaction, a user's the turn's diffs, which come late.
    lasting = {key: value for key, value in info.fields.items() if role == "assistant" or key != "summary"}
    told = canonical(lasting, info.path)
    found = _parts(message, child_of)
    parts = tuple(part.value for part in _in_order(found, name, created_ms))
    value = _user(info, index, created_ms, parts) if role == "user" else _assistant(info, index, created_ms, parts)
    times_ms = [*_times_ms(info.fields), *(time_ms for part in found for time_ms in part.times_ms)]
    return Read(
        value=value,
        told=('{"info":', *told, ',"parts":[', *joined(part.told for part in found), "]}"),
        latest_ms=max(times_ms, default=created_ms),
    )


def _user(info: Place, index: int, created_ms: int, parts: tuple[Part, ...]) -> User:
    return User(
        id=info.id("id"),
        index=index,
        created_ms=created_ms,
        agent=info.name("agent"),
        system=info.text("system"),
        parts=parts,
    )


def _assistant(info: Place, index: int, created_ms: int, parts: tuple[Part, ...]) -> Assistant:
    return Assistant(
        id=info.id("id"),
        index=index,
        parent_id=turn_name(info),
        created_ms=created_ms,
        completed_ms=info.object("time").moment("completed"),
        agent=info.name("agent"),
        mode=info.name("mode"),
        provider_id=info.name("providerID") or "unknown",
        model_id=info.name("modelID") or "unknown",
        cost_usd=info.amount("cost"),
        tokens=_tokens(info.object("tokens")),
        finish=info.name("finish"),
        summary=info.flag("summary"),
        failure=_failure(info),
        parts=parts,
    )


def _tokens(counts: Place) -> Tokens | None:
    cache = counts.object("cache")
    tokens = Tokens(
        input=counts.count("input") or 0,
        output=counts.count("output") or 0,
        reasoning=counts.count("reasoning") or 0,
        cache_read=cache.count("read") or 0,
        cache_write=cache.count("write") or 0,
    )
    # OpenCode writes zeros when the provider reported nothing, and before it did.
    return None if tokens == Tokens(0, 0, 0, 0, 0) else tokens


def _failure(holder: Place) -> Failure | None:
    value = holder.fields.get("error")
    if not value:
        return None
    if not isinstance(value, dict):  # and yet it has failed
        holder.note("error", "not an object")
        return Failure("UnknownError", holder.text("error"), None)
    error = holder.object("error")
    data = error.object("data")
    return Failure(error.name("name") or "UnknownError", data.text("message"), data.count("statusCode"))


def _parts(message: Place, child_of: FindChild) -> list[_Found]:
    """In the order of their ids, in which they are hashed; as they stand where one has no id of its own."""
    if not isinstance(message.fields.get("parts"), list):
        message.note("parts", "not a list")
        return []
    items = message.items("parts")
    names = [_part_id(item, path, message.faults) for path, item in items]
    listed = [(name or "", path, item) for name, (path, item) in zip(names, items, strict=True)]
    if len({name for name, _, _ in listed if name}) == len(listed):
        listed.sort(key=lambda one: one[0])
    taken: set[str] = set()
    found = []
    for position, (name, path, item) in enumerate(listed):
        if name in taken:
            message.faults.append(f"{path}.id: the same part twice")
        own = name if name and name not in taken else f"part-{position:04}"
        taken.add(own)
        found.append(_read_part(item, path, own, message.faults, child_of))
    return found


def _part_id(item: Json, path: str, faults: list[str]) -> str | None:
    try:
        return place(item, path).id("id")
    except TranscriptError as error:
        faults.append(str(error))
        return None


def _read_part(item: Json, path: str, name: str, faults: list[str], child_of: FindChild) -> _Found:
    try:
        part = place(item, path, faults)
        told, times_ms = canonical(_lasting(part.fields), path), tuple(_part_times_ms(part.fields))
    except TranscriptError as error:
        faults.append(str(error))
        return _Found(Other(name, UNREADABLE), (f'"{UNREADABLE}"',), ())
    try:
        return _Found(_part(part, name, child_of), told, times_ms)
    except TranscriptError as error:
        faults.append(str(error))
        return _Found(Other(name, UNREADABLE), told, times_ms)


def _in_order(found: list[_Found], message: str, created_ms: int) -> list[_Found]:
    """In the order in which they were made: ids began anew in August 2026, so that theirs is another one there."""
    numbers = [ticks(part.value.id) for part in found]
    made = [number for number in numbers if number is not None]
    if len(made) < len(found):
        return found
    began = ticks(message)
    base = created_ms << 12 if began is None else began
    ordered = sorted(zip(made, found, strict=True), key=lambda one: (distance(one[0], base), one[1].value.id))
    return [part for _, part in ordered]


def _part(part: Place, name: str, child_of: FindChild) -> Part:
    kind, time = part.identity("type"), part.object("time")
    value: Part = Other(name, kind)
    match kind:
        case "text":
            start_ms, end_ms = time.moment("start"), time.moment("end")
            value = Text(name, part.text("text") or "", part.flag("synthetic"), start_ms, end_ms)
        case "reasoning":
            value = Reasoning(name, part.text("text") or "", time.moment("start"), time.moment("end"))
        case "file":
            value = File(name, part.text("mime"), part.text("filename"), data_url_bytes(part.text("url") or ""))
        case "tool":
            value = _tool(part, name, child_of(part))
        case "subtask":
            value = Subtask(name, part.text("prompt"))
        case "retry":
            value = Retry(name, part.count("attempt"), _failure(part))
    return value


def _tool(part: Place, name: str, child: Transcript | None) -> Tool:
    state = part.need("state")
    metadata = state.fields.get("metadata")
    told = metadata if isinstance(metadata, dict) else {}
    value = state.fields.get("input")
    return Tool(
        id=name,
        call_id=part.name("callID") or name,
        name=part.called("tool"),
        status=state.identity("status"),
        input={} if value is None else value,
        output=state.text("output"),
        error=state.text("error"),
        title=state.text("title"),
        exit_code=whole(told.get("exit")),
        truncated=told.get("truncated") is True,
        start_ms=state.object("time").moment("start"),
        end_ms=state.object("time").moment("end"),
        child=child,
    )


def _lasting(part: dict[str, Json]) -> dict[str, Json]:
    """Without when OpenCode stopped sending this output to the provider."""
    state = part.get("state")
    time = state.get("time") if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(time, dict) or "compacted" not in time:
        return part
    return {**part, "state": {**state, "time": {key: value for key, value in time.items() if key != "compacted"}}}


def _part_times_ms(part: dict[str, Json]) -> Iterator[int]:
    yield from _times_ms(part)
    state = part.get("state")
    if part.get("type") == "tool" and isinstance(state, dict):
        yield from _times_ms(state)


def _times_ms(holder: dict[str, Json]) -> Iterator[int]:
    time = holder.get("time")
    for key, value in time.items() if isinstance(time, dict) else ():
        moment_ms = whole(value)
        if key != "compacted" and moment_ms is not None:
            yield moment_ms
