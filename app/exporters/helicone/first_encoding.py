"""Rebuilds a turn as version 0.1.0 showed it, for sessions whose records are written in its encoding.

Their waiting jobs are made again from OpenCode's store, and compared byte by byte: what is shown since then must not
change them.
"""

from __future__ import annotations

from dataclasses import replace

from app.transcript.model import Assistant, File, Message, Other, Part, Retry, Subtask, Tool, Turn


def as_first_encoded(turn: Turn) -> Turn:
    """Messages in the order of their times, parts in that of their ids, and of some kinds only that they were there."""
    messages = sorted(turn.messages, key=lambda message: message.index)
    return replace(turn, messages=tuple(_message(message) for message in messages), is_undone=False)


def _message(message: Message) -> Message:
    is_answer = isinstance(message, Assistant)
    parts = sorted(message.parts, key=lambda part: part.id)
    return replace(message, parts=tuple(_part(part, is_answer=is_answer) for part in parts))


def _part(part: Part, *, is_answer: bool) -> Part:
    match part:
        case Subtask() | Retry():
            return Other(part.id, type(part).__name__.lower())
        case File() if is_answer:
            return replace(part, mime=None)  # which nobody showed
        case Tool(child=child) if child is not None:
            return replace(part, child=replace(child, turns=tuple(as_first_encoded(turn) for turn in child.turns)))
    return part
