"""Metadata only: makes of a turn what may be known of it without a word of its text.

An allow-list: ids, roles, times, the number and kinds of parts, tool names, exit status, provider, model, agent,
tokens, cost, finish, error class and status. A field added to a transcript later stays out until it is named here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from app.transcript.model import (
    Assistant,
    Failure,
    File,
    Other,
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
T = TypeVar("T")

_OF_ANSWER = {"parent_id", "completed_ms", "provider_id", "model_id", "cost_usd", "tokens", "summary"}
_KEPT: Mapping[type, set[str]] = {
    Session: {"id", "parent_id", "created_ms", "updated_ms", "archived_ms"},
    Turn: {"id", "final", "last_event_ms", "digest", "is_copy", "is_undone"},
    User: {"id", "index", "created_ms"},
    Assistant: {"id", "index", "created_ms", *_OF_ANSWER},
    Text: {"id", "synthetic", "start_ms", "end_ms"},
    Reasoning: {"id", "start_ms", "end_ms"},
    Tool: {"id", "status", "exit_code", "truncated", "start_ms", "end_ms"},
    Retry: {"id", "attempt"},
    Failure: {"status"},
    File: {"id"},
    Subtask: {"id"},
    Other: {"id"},
    Transcript: set(),
}
"""What leaves as it is."""
_PLAIN: Mapping[type, set[str]] = {
    User: {"agent"},
    Assistant: {"agent", "mode", "finish"},
    Tool: {"call_id", "name"},
    Failure: {"name"},
    Other: {"type"},
}
"""What leaves where it is a plain name."""
_INSIDE: Mapping[type, set[str]] = {
    Turn: {"session", "messages"},
    User: {"parts"},
    Assistant: {"parts", "failure"},
    Tool: {"child"},
    Retry: {"failure"},
    Transcript: {"session", "turns"},
}
"""What holds more of these. Everything else is as if there were nothing."""


def withhold_session(session: Session) -> Session:
    return _withheld(session)


def withhold_turn(turn: Turn) -> Turn:
    return _withheld(turn)


def _withheld(value: T) -> T:
    kind: Any = type(value)
    made = {field.name: _left(kind, field.name, getattr(value, field.name)) for field in fields(kind)}
    left: T = kind(**made)
    return left


def _left(kind: type, name: str, inner: Any) -> Any:
    if name in _KEPT[kind]:
        return inner
    if inner is not None and name in _PLAIN.get(kind, ()):
        return _plain(inner)
    is_inside = inner is not None and name in _INSIDE.get(kind, ())
    if isinstance(inner, tuple):
        return tuple(map(_withheld, inner)) if is_inside else ()
    return _withheld(inner) if is_inside else None


def _plain(name: str) -> str:
    """The name, unless it is more than one: a sentence, an address, a path. People name agents, servers name tools."""
    return name if _NAME.fullmatch(name) else OTHER
