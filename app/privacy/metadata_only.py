"""Metadata only: makes of a turn what may be known of it without a word of its text.

An allow-list by construction. Every value is built anew from the fields that may leave: ids, roles, times, the number
and kinds of parts, tool names, exit status, provider, model, agent, tokens, cost, finish, error class and status. A
field added to a transcript later stays out until it is named here.
"""

from __future__ import annotations

import re

from app.transcript.model import (
    Assistant,
    Failure,
    File,
    Message,
    Other,
    Part,
    Reasoning,
    Retry,
    Session,
    Subtask,
    Text,
    Tool,
    Transcript,
    Turn,
    User,
)

OTHER = "other"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}")


def withhold_session(session: Session) -> Session:
    return Session(
        id=session.id,
        parent_id=session.parent_id,
        version=None,
        created_ms=session.created_ms,
        updated_ms=session.updated_ms,
        archived_ms=session.archived_ms,
        title=None,
        directory=None,
        origin=None,
    )


def withhold_turn(turn: Turn) -> Turn:
    return Turn(
        session=withhold_session(turn.session),
        id=turn.id,
        messages=tuple(_message(message) for message in turn.messages),
        final=turn.final,
        last_event_ms=turn.last_event_ms,
        digest=turn.digest,
        is_copy=turn.is_copy,
        is_undone=turn.is_undone,
    )


def _message(message: Message) -> Message:
    parts = tuple(_part(part) for part in message.parts)
    if isinstance(message, User):
        return User(
            id=message.id,
            index=message.index,
            created_ms=message.created_ms,
            agent=_name(message.agent),
            system=None,
            parts=parts,
        )
    return Assistant(
        id=message.id,
        index=message.index,
        parent_id=message.parent_id,
        created_ms=message.created_ms,
        completed_ms=message.completed_ms,
        agent=_name(message.agent),
        mode=_name(message.mode),
        provider_id=message.provider_id,
        model_id=message.model_id,
        cost_usd=message.cost_usd,
        tokens=message.tokens,
        finish=_name(message.finish),
        summary=message.summary,
        failure=None if message.failure is None else _failure(message.failure),
        parts=parts,
    )


def _failure(failure: Failure) -> Failure:
    return Failure(name=_plain(failure.name), message=None, status=failure.status)


def _part(part: Part) -> Part:
    match part:
        case Text():
            return Text(part.id, None, part.synthetic, part.start_ms, part.end_ms)
        case Reasoning():
            return Reasoning(part.id, None, part.start_ms, part.end_ms)
        case File():
            return File(part.id, mime=None, name=None, size_bytes=None)
        case Tool():
            return _tool(part)
        case Subtask() | Retry():
            return _rare(part)
        case Other():
            return Other(part.id, _plain(part.type))


def _rare(part: Subtask | Retry) -> Part:
    if isinstance(part, Subtask):
        return Subtask(part.id, prompt=None)
    return Retry(part.id, part.attempt, None if part.failure is None else _failure(part.failure))


def _tool(tool: Tool) -> Tool:
    return Tool(
        id=tool.id,
        call_id=_plain(tool.call_id),
        name=_plain(tool.name),
        status=tool.status,
        input=None,
        output=None,
        error=None,
        title=None,
        exit_code=tool.exit_code,
        truncated=tool.truncated,
        start_ms=tool.start_ms,
        end_ms=tool.end_ms,
        child=None if tool.child is None else _transcript(tool.child),
    )


def _transcript(transcript: Transcript) -> Transcript:
    return Transcript(
        session=withhold_session(transcript.session),
        turns=tuple(withhold_turn(turn) for turn in transcript.turns),
    )


def _name(name: str | None) -> str | None:
    return None if name is None else _plain(name)


def _plain(name: str) -> str:
    """The name, unless it is more than one: a sentence, an address, a path. People name agents, servers name tools."""
    return name if _NAME.fullmatch(name) else OTHER
