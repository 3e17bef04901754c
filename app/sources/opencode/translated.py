"""Translates a session of OpenCode 2 into the form in which OpenCode 1 exports one, which `parse` reads.

    row     {"id", "type", …data}     of the table `session_message`, and of `opencode session export`
    here    {"info": {…}, "parts": [{…}, …]}     with `"v": 2`, so that no turn has the key of one of OpenCode 1

Only what is lasting is taken: a turn's key is made of all that stands here. Rows that are no messages belong to the
turn that runs then; one of a kind that is not known leaves a part of that kind. Read from OpenCode 2's public
description, not yet tried on OpenCode 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from app.transcript.model import Json

Fields = dict[str, Json]

ANSWERS = frozenset({"assistant", "shell", "compaction"})
_SILENT = frozenset({"idle", "system", "skill", "agent-switched", "model-switched", "location-switched"})
"""They leave nothing in a transcript."""
_STATUS: Mapping[Json, str] = {"streaming": "pending", "exited": "completed", "timeout": "error", "killed": "error"}


@dataclass(frozen=True, slots=True)
class Row:
    id: str
    type: str
    created_ms: Json
    data: Fields


@dataclass(slots=True)
class Walk:
    """The rows of a session, gone through in their own order, which is not always that of their times or ids."""

    turn_of: dict[str, str] = field(default_factory=dict)
    """By message."""
    owner: dict[str, str] = field(default_factory=dict)
    """By row the message that it is read with."""
    beside: dict[str, list[str]] = field(default_factory=dict)
    """By question the rows that are read as parts of it."""
    answered_by: dict[str, str] = field(default_factory=dict)
    """By turn the first call of a model."""
    last: dict[str, str] = field(default_factory=dict)
    """By turn its last message."""
    closed: set[str] = field(default_factory=set)
    """Turns that nobody goes on with."""


def walk(rows: Iterable[tuple[str, str]], v1: Mapping[str, str]) -> Walk:
    """`rows` are ids and types. `v1`: messages that are read from OpenCode 1's tables, with their turns.

    A shell command or a compaction while nobody answers is a turn of its own, so that the one before stays as it is.
    """
    found = Walk()
    turn: str | None = None
    message: str | None = None
    runs = False
    for name, kind in rows:
        begins = kind == "user" or (kind == "synthetic" and not runs)
        if name in v1:
            turn, message, runs = v1[name], name, kind == "user"
            continue
        if turn is not None and (begins or kind == "idle"):
            found.closed.add(turn)
        if begins:
            turn = name
        if begins or kind in ANSWERS:
            turn = turn if turn is not None and (runs or kind == "assistant") else name
            message = name
            found.turn_of[name], found.last[turn] = turn, name
        elif kind not in _SILENT and turn in found.turn_of:
            found.beside.setdefault(turn, []).append(name)
        if kind == "assistant" and turn is not None:
            found.answered_by.setdefault(turn, name)
        if message is not None:
            found.owner[name] = message
        runs = kind != "idle" and (begins or runs or kind == "assistant")
    return found


def exported(value: Fields) -> Fields:
    """What `opencode session export` prints, as `opencode export` would."""
    told = _fields(value.get("info"))
    info: Fields = {name: told[name] for name in ("id", "title", "parentID") if name in told}
    times = _fields(told.get("time"))
    info["time"] = _told({name: times.get(name) for name in ("created", "updated", "archived")})
    info["directory"] = _fields(told.get("location")).get("directory")
    rows = [
        Row(str(one.get("id")), str(one.get("type")), _fields(one.get("time")).get("created"), one)
        for one in map(_fields, _items(value, "messages"))
    ]
    walked = walk(((row.id, row.type) for row in rows), {})
    found = messages(walked.turn_of, walked, {row.id: row for row in rows}, told.get("agent"), is_suspended=False)
    return {"info": _told(info), "messages": [*found.values()]}


def beside(names: Iterable[str], walked: Walk) -> set[str]:
    """Other rows that are needed to put these messages together."""
    found = {one for name in names for one in walked.beside.get(name, [])}
    return found | {walked.answered_by[name] for name in names if name in walked.answered_by}


def messages(
    names: Iterable[str], walked: Walk, rows: Mapping[str, Row], agent: Json, *, is_suspended: bool
) -> dict[str, Json]:
    """`rows`: these and those `beside`. `agent` answers where nobody has answered yet.

    `is_suspended`: OpenCode has not let go of the session. What nobody has closed then does not count as ended, as it
    may be taken up again.
    """
    found: dict[str, Json] = {}
    for name in names:
        row, turn = rows[name], walked.turn_of[name]
        if row.type in ANSWERS:
            is_open = walked.last[turn] == name and turn not in walked.closed
            goes_on = is_suspended or row.data.get("finish") == "tool-calls"
            found[name] = _answer(row, turn, is_held=is_open and goes_on)
        else:
            by = walked.answered_by.get(turn)
            told = rows[by].data.get("agent") if by is not None else None
            found[name] = _question(row, [rows[one] for one in walked.beside.get(name, [])], told or agent)
    return found


def _question(row: Row, beside: Iterable[Row], agent: Json) -> Fields:
    """A user's row, or a synthetic one that begins a turn."""
    info: Fields = {"role": "user", "time": {"created": row.created_ms}, "agent": agent}
    return _message(row, info, [*_said(row), *(part for one in beside for part in _said(one))])


def _answer(row: Row, turn: str, *, is_held: bool) -> Fields:
    data, time = row.data, _fields(row.data.get("time"))
    info: Fields = {"role": "assistant", "parentID": turn}
    completed = time.get("completed")
    parts: list[Fields] = []
    match row.type:
        case "assistant":
            # A call's answer is there when it was streamed; after that its tools run.
            ended = completed if time.get("streamed") is None or completed is None else time["streamed"]
            info |= {"agent": data.get("agent"), "mode": data.get("agent"), "finish": data.get("finish")}
            parts = [_content(_fields(item)) for item in _items(data, "content")]
        case "shell":
            ended = None if data.get("status") == "running" else _or(completed, row.created_ms)
            parts = [_shell(row)]
        case _:
            ended = None if data.get("status") == "running" else row.created_ms
            info |= {"agent": "compaction", "mode": "compaction", "summary": True}
            parts = [{"type": "text", "text": data.get("summary")}]
    if is_held and data.get("error") is None:
        ended = None
    info["time"] = _told({"created": row.created_ms, "completed": ended})
    return _message(row, info | _call(data), parts)


def _message(row: Row, info: Fields, parts: list[Fields]) -> Fields:
    numbered: list[Json] = [_told({"id": f"{row.id}:{at:04}", **part}) for at, part in enumerate(parts)]
    return {"info": _told({"v": 2, **info, "id": row.id}), "parts": numbered}


def _call(data: Fields) -> Fields:
    model, error, tokens = (_fields(data.get(name)) for name in ("model", "error", "tokens"))
    told: Fields = {
        "providerID": model.get("providerID"),
        "modelID": model.get("id"),
        "variant": model.get("variant"),
        "cost": data.get("cost"),
        "tokens": {name: tokens.get(name) for name in ("input", "output", "reasoning", "cache")} if tokens else None,
    }
    if error:
        told["error"] = {"name": error.get("type"), "data": _failure(error)}
    return told


def _failure(error: Fields) -> Fields:
    return _told({"message": error.get("message"), "statusCode": error.get("status")})


def _said(row: Row) -> list[Fields]:
    """The parts of a question, or one of what is no message."""
    if row.type == "synthetic":
        return [{"type": "text", "text": row.data.get("text"), "synthetic": True}]
    if row.type != "user":
        return [{"type": row.type}]
    parts: list[Fields] = [{"type": "text", "text": row.data.get("text")}]
    parts += [{"type": "file", **_file(_fields(one))} for one in _items(row.data, "files")]
    for name, kind in (("agents", "agent"), ("skills", "skill")):
        parts += [{"type": kind} for _ in _items(row.data, name)]
    return parts


def _file(file: Fields) -> Fields:
    held = file.get("data")
    url = f"data:{file.get('mime')};base64,{held}" if isinstance(held, str) else _fields(file.get("source")).get("uri")
    return {"mime": file.get("mime"), "filename": file.get("name"), "url": url}


def _content(item: Fields) -> Fields:
    time = _fields(item.get("time"))
    if item.get("type") == "tool":
        return _tool(item, time)
    told = _told({"start": time.get("created"), "end": time.get("completed")})
    return {"type": item.get("type"), "text": item.get("text"), "time": told or None}


def _tool(item: Fields, time: Fields) -> Fields:
    state = _fields(item.get("state"))
    status, given, metadata = state.get("status"), state.get("input"), _fields(state.get("metadata"))
    has_ended = status in {"completed", "error"}
    texts = [_fields(one).get("text") for one in _items(state, "content")] if has_ended else []
    known = {"sessionId": metadata.get("sessionID")}
    if has_ended:
        known |= {"exit": metadata.get("exit"), "truncated": metadata.get("truncated")}
    told: Fields = {
        "status": _STATUS.get(status, str(status)),
        "input": given if status != "streaming" else None,
        "output": "\n".join(text for text in texts if isinstance(text, str)) if texts else None,
        "error": _fields(state.get("error")).get("message"),
        "metadata": _told(known),
        "time": _told({"start": _or(time.get("ran"), time.get("created")), "end": time.get("completed")}),
    }
    return {"type": "tool", "callID": item.get("id"), "tool": item.get("name"), "state": _told(told)}


def _shell(row: Row) -> Fields:
    output, status = _fields(row.data.get("output")), row.data.get("status")
    told: Fields = {
        "status": _STATUS.get(status, str(status)),
        "input": {"command": row.data.get("command")},
        "output": output.get("output"),
        "error": status if _STATUS.get(status) == "error" else None,
        "metadata": _told({"exit": row.data.get("exit"), "truncated": output.get("truncated")}),
        "time": _told({"start": row.created_ms, "end": _fields(row.data.get("time")).get("completed")}),
    }
    return {"type": "tool", "callID": row.data.get("shellID"), "tool": "shell", "state": _told(told)}


def subagents(data: Fields) -> list[str]:
    """The sessions that the tool calls of an assistant's row name, in order."""
    states = [_fields(_fields(item).get("state")) for item in _items(data, "content")]
    names = [_fields(state.get("metadata")).get("sessionID") for state in states]
    return [name for name in names if isinstance(name, str)]


def _told(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}


def _fields(value: Json) -> Fields:
    return value if isinstance(value, dict) else {}


def _items(fields: Fields, name: str) -> list[Json]:
    value = fields.get(name)
    return value if isinstance(value, list) else []


def _or(value: Json, other: Json) -> Json:
    return other if value is None else value
