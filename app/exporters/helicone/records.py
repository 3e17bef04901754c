"""Makes Helicone logs of a turn, one for each thing that happened, in the order in which it happened.

    session              /opencode/ses_…
      user message       /opencode/ses_…/msg-0
      assistant message  /opencode/ses_…/msg-1                     one LLM call
        tool part        /opencode/ses_…/msg-1/tool-bash
        subagent         /opencode/ses_…/msg-1/tool-task/ses_…     its session, then its messages below that

Request id, provider, model, user id and start time are what Helicone replaces a log by: they follow from facts that
never change. Content that is None was withheld, and leaves no field behind.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

from app.exporters.encoder import Frame, Kind, Record
from app.exporters.helicone import chat, data_log
from app.exporters.helicone.body import PROVIDER, Log, encode
from app.exporters.helicone.first_encoding import as_first_encoded
from app.exporters.helicone.naming import project_of
from app.runtime.header_value import below, latin1, readable
from app.transcript.model import (
    Assistant,
    Json,
    Message,
    Other,
    Session,
    Text,
    Tool,
    Transcript,
    Turn,
    User,
    is_llm_call,
    project_name,
)

REQUEST_IDS = uuid.UUID("496e8d88-fce8-5dd9-afa3-7328a1253d4d")
"""Namespace of all request ids. Another one would double every log that Helicone already holds."""

_FAILED = 400
"""HTTP statuses from here on are errors."""


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a record stands, and who it is there."""

    frame: Frame
    session: Session
    message: Message | None
    """None for a session's own record."""
    path: str
    is_undone: bool = False


def encode_session(session: Session, frame: Frame) -> Record:
    """The record of a root session."""
    return _session(_Spot(frame, session, None, _root_path(frame)))


def encode_turn(turn: Turn, frame: Frame) -> Iterator[Record]:
    """The turn's records, each subagent's after the tool call that started it. One is in memory at a time."""
    shown = as_first_encoded(turn) if frame.encoding == 1 else turn
    return _turn(shown, frame, _root_path(frame))


def record_count(turn: Turn) -> int:
    """How many records `encode_turn` makes of it, whatever is withheld; nothing is encoded for that."""
    count = 0
    for message in turn.messages:
        count += isinstance(message, User) or is_llm_call(message)
        for part in message.parts:
            if isinstance(part, Tool):
                count += 1
                if part.child is not None:
                    count += 1 + sum(record_count(inner) for inner in part.child.turns)
    return count


def kind_of(model: str) -> Kind:
    """What kind of record has this model at Helicone."""
    if model in {chat.SESSION_MODEL, data_log.SESSION_MODEL}:
        return "session"
    if model in {chat.USER_MODEL, data_log.USER_MODEL}:
        return "user"
    return "tool" if model.startswith("tool:") else "assistant"


def blank(record: Record, root_session_id: str) -> Record:
    """The record with nothing in it but what Helicone knows it by; its body is not looked at.

    The model tells what shape the record had, whichever encoding made it.
    """
    name = record.model.partition(":")[2]
    request: dict[str, Json]
    match record.kind:
        case "session" | "user" if record.model.startswith("data:"):
            request = {"_type": "data", "name": name}
            response: dict[str, Json] = {**request, "status": "success"}
        case "tool":
            request = {"_type": "tool", "toolName": name}
            response = {**request, "status": "success"}
            request["input"] = {}
        case _:
            request = {"model": record.model, "messages": []}
            response = {"object": "chat.completion", "model": record.model, "choices": []}
    log = Log(request, response, 200, {}, record.start_ms, record.start_ms, None)
    return _with_body(record, root_session_id, log, {})


def _with_body(record: Record, root_session_id: str, log: Log, properties: dict[str, str]) -> Record:
    """The record as the log says it; the properties go behind that by which Helicone knows the record."""
    meta = {
        "Helicone-Request-Id": record.request_id,
        "Helicone-Session-Id": latin1(root_session_id),
        "Helicone-Session-Name": latin1(record.session_name),
        "Helicone-Session-Path": record.path,
        "Helicone-User-Id": latin1(record.user_id),
        **properties,
    }
    return replace(record, body=encode(replace(log, meta={name: value for name, value in meta.items() if value})))


def _root_path(frame: Frame) -> str:
    return below("", *filter(None, frame.prefix.split("/")), frame.root_session_id)


def _turn(turn: Turn, frame: Frame, session_path: str) -> Iterator[Record]:
    news: list[Json] = []
    for message in turn.messages:
        path = below(session_path, f"msg-{message.index}")
        spot = _Spot(frame, turn.session, message, path, is_undone=turn.is_undone)
        if isinstance(message, User):
            yield _user(spot, message)
            news += chat.prompt(message)
        elif is_llm_call(message):
            log = chat.log(message, news, frame.encoding, interrupted=frame.interrupted)
            yield _record(spot, "assistant", "assistant", chat.model(message, frame.encoding), log)
            news = []
        for part in message.parts:
            if isinstance(part, Tool):
                yield from _tool(replace(spot, path=below(spot.path, f"tool-{part.name}")), message, part)
                news += chat.result(part)


def _subagent(child: Transcript, frame: Frame, path: str) -> Iterator[Record]:
    yield _session(_Spot(frame, child.session, None, path))
    for turn in child.turns:
        yield from _turn(turn, frame, path)


def _session(spot: _Spot) -> Record:
    encoder = chat if spot.frame.encoding > 1 else data_log
    log = encoder.session(spot.session, project_name(spot.session.directory))
    return _record(spot, "session", "session", encoder.SESSION_MODEL, log)


def _user(spot: _Spot, message: User) -> Record:
    encoder = chat if spot.frame.encoding > 1 else data_log
    return _record(spot, "user", "user", encoder.USER_MODEL, encoder.user(message, _flag(message)))


def _tool(spot: _Spot, message: Message, tool: Tool) -> Iterator[Record]:
    head: dict[str, Json] = {"_type": "tool", "toolName": tool.name}
    status, told = _ending(tool, spot.frame)
    response: dict[str, Json] = {**head, "status": status}
    if told is not None:
        response["message"] = told
    if told is not None and status != "success":
        response["error"] = {"message": told}
    response["metadata"] = chat.known(
        {
            "call_id": tool.call_id,
            "title": tool.title or None,
            "exit": tool.exit_code,
            "truncated": tool.truncated,
            "duration_ms": _duration_ms(tool),
        }
    )
    # Its own start, when it had one: Helicone takes a log with another start for another log.
    start_ms = message.created_ms if tool.start_ms is None else tool.start_ms
    end_ms = start_ms + (_duration_ms(tool) or 0)
    request: dict[str, Json] = {**head, "input": {} if tool.input is None else tool.input}
    http_status = 200 if status == "success" else 500
    log = Log(request, response, http_status, {}, start_ms, end_ms, None)
    yield _record(spot, "tool", tool.id, f"tool:{tool.name}", log)
    if tool.child is not None:
        yield from _subagent(tool.child, spot.frame, below(spot.path, tool.child.session.id))


def _ending(tool: Tool, frame: Frame) -> tuple[str, str | None]:
    """Status and output or error. A shell command that exits with 3 has succeeded as a tool call."""
    if tool.status == "completed":
        return "success", tool.output
    if tool.status == "error":
        return "error", tool.error
    if frame.interrupted:
        return "interrupted", "interrupted: OpenCode ended before the tool was done"
    return "unfinished", "unfinished: the tool was not done when it was read"


def _duration_ms(tool: Tool) -> int | None:
    if tool.start_ms is None or tool.end_ms is None:
        return None
    return max(0, tool.end_ms - tool.start_ms)


def _record(spot: _Spot, kind: Kind, leaf: str, model: str, log: Log) -> Record:
    """`leaf` is what makes the id one's own within the message: the part's id, or the kind."""
    frame = spot.frame
    steps = [spot.session.id, leaf] if spot.message is None else [spot.session.id, spot.message.id, leaf]
    properties = {
        "agent": spot.message.agent if spot.message is not None else None,
        "mode": spot.message.mode if isinstance(spot.message, Assistant) else None,
        "finish": spot.message.finish if isinstance(spot.message, Assistant) and kind == "assistant" else None,
        "flag": _flag(spot.message) if kind != "tool" else None,
        "undone": "true" if spot.is_undone else None,
        "project": _project(spot),
        "message_id": spot.message.id if spot.message is not None else None,
    }
    spelled = readable if frame.encoding > 1 else latin1
    told = {f"Helicone-Property-{name}": spelled(value) for name, value in properties.items() if value}
    record = Record(
        request_id=str(uuid.uuid5(REQUEST_IDS, "/".join(steps))),
        kind=kind,
        path=spot.path,
        provider=PROVIDER,
        model=model,
        user_id=frame.user_id,
        start_ms=log.start_ms,
        end_ms=log.end_ms,
        is_failed=log.status >= _FAILED,
        session_name=frame.session_name,
        body=b"",
    )
    return _with_body(record, frame.root_session_id, log, told)


def _project(spot: _Spot) -> str | None:
    """What the session is named after, so that a turn's records stay the same when its session is moved."""
    if spot.frame.encoding == 1:
        return project_name(spot.session.directory)
    return project_of(spot.frame.session_name)


def _flag(message: Message | None) -> str | None:
    """`compaction` (asked for, or its summary), or `synthetic` for a message that nobody wrote."""
    if isinstance(message, Assistant):
        return "compaction" if message.summary else None
    if message is None:
        return None
    if any(isinstance(part, Other) and part.type == "compaction" for part in message.parts):
        return "compaction"
    texts = [part for part in message.parts if isinstance(part, Text)]
    return "synthetic" if texts and all(part.synthetic for part in texts) else None
