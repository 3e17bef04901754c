"""Transcript: what happened in an OpenCode session, as values.

    Transcript                  one session
      session: Session          its facts: title, directory, times
      turns:   Turn ...         one user message and the answers to it
        messages: User | Assistant ...
          parts: Text | Reasoning | Tool | File | Other ...
            Tool.child: Transcript      a subagent's session, under the call that started it

`app.transcript.parse` is the only door from JSON to these values; nothing inward of it sees OpenCode's dictionaries.
A content field (marked so below) is None when it is absent or was withheld by the policy.
Shapes and traps were measured on OpenCode 1.18.33.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TypeAlias

from app.errors import AppError

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None


class TranscriptError(AppError):
    """A snapshot that cannot be read. The message names the place and the rule, never transcript text."""


@dataclass(frozen=True, slots=True)
class Session:
    """The facts of a session that do not change with every turn (no totals, no update time)."""

    id: str
    parent_id: str | None
    version: str | None
    """OpenCode's version when the session was created."""
    created_ms: int
    updated_ms: int
    archived_ms: int | None
    title: str | None
    """Content."""
    directory: str | None
    """Content: where OpenCode works. Its last element names the project."""
    origin: str | None = None
    """Content: where the first answer was given. `/move` changes the directory, and not this."""


@dataclass(frozen=True, slots=True)
class Text:
    id: str
    text: str | None
    """Content."""
    synthetic: bool
    """Written by OpenCode (an expanded file, a shell notice), not by the person."""
    start_ms: int | None
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class Reasoning:
    id: str
    text: str | None
    """Content."""
    start_ms: int | None
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class File:
    id: str
    mime: str | None
    """Content."""
    name: str | None
    """Content."""
    size_bytes: int | None
    """Of what a data: URL holds; None for a reference. The bytes themselves are never kept."""


@dataclass(frozen=True, slots=True)
class Tool:
    id: str
    call_id: str
    name: str
    status: str
    """`pending`, `running`, `completed` or `error`; the last two are final."""
    input: Json
    """Content; None when withheld."""
    output: str | None
    """Content."""
    error: str | None
    """Content."""
    title: str | None
    """Content."""
    exit_code: int | None
    truncated: bool
    start_ms: int | None
    end_ms: int | None
    child: Transcript | None
    """The subagent's session, under the first call (in order) that names it."""


@dataclass(frozen=True, slots=True)
class Subtask:
    """What a command with `subtask: true` leaves of itself in a user message: OpenCode runs it as a subagent."""

    id: str
    prompt: str | None
    """Content."""


@dataclass(frozen=True, slots=True)
class Retry:
    """An LLM call that failed and was tried again within the same message."""

    id: str
    attempt: int | None
    failure: Failure | None


UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Other:
    """A part that leaves no content of its own (step-start, patch, compaction, agent, unknown kinds)."""

    id: str
    type: str
    """UNREADABLE where OpenCode's data has no shape that is known."""


Part: TypeAlias = Text | Reasoning | File | Tool | Subtask | Retry | Other


@dataclass(frozen=True, slots=True)
class User:
    id: str
    index: int
    """Position by (time.created, id) in its session, from 0: the n of `msg-<n>`."""
    created_ms: int
    agent: str | None
    system: str | None
    """Content: the caller's extra system text."""
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens as OpenCode counts: input excludes cache_read, output excludes reasoning."""

    input: int
    output: int
    reasoning: int
    cache_read: int
    cache_write: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of an assistant message."""

    name: str
    message: str | None
    """Content."""
    status: int | None
    """The provider's HTTP status."""


@dataclass(frozen=True, slots=True)
class Assistant:
    """One LLM call, or a `/shell` command (tool parts, no finish, no error: see `is_llm_call`)."""

    id: str
    index: int
    parent_id: str
    created_ms: int
    completed_ms: int | None
    agent: str | None
    mode: str | None
    provider_id: str
    model_id: str
    cost_usd: float
    tokens: Tokens | None
    """None when the provider reported no usage."""
    finish: str | None
    summary: bool
    """A compaction's summary."""
    failure: Failure | None
    parts: tuple[Part, ...]


Message: TypeAlias = User | Assistant


@dataclass(frozen=True, slots=True)
class Turn:
    """One user message and the assistant messages whose parent it is, tool parts and subagents included."""

    session: Session
    id: str
    """The user message's id, also when that message is gone."""
    messages: tuple[Message, ...]
    """The user message first, also where the clock was set back while it was answered."""
    final: bool
    """Every assistant completed or failed, every tool ended, subagents included, and at least one answer."""
    last_event_ms: int
    """The latest time found in the turn."""
    digest: str
    """SHA-256 (hex) of the turn as OpenCode holds it, in canonical form: the policy-free half of the key."""
    is_copy: bool = False
    """Older than its session, and nothing says that it began in it: a fork may have brought it along."""
    is_undone: bool = False
    """Taken back with `/undo`: OpenCode keeps it until the next prompt, and no longer shows it."""
    faults: tuple[str, ...] = ()
    """What was odd in it and could not be read as it is, as `place: rule`, without text."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A turn that cannot be exported: one of its messages is not in a shape that is known."""

    turn: str | None
    """None where nothing says which turn the message belongs to."""
    why: str
    """As `place: rule`, without text."""


@dataclass(frozen=True, slots=True)
class Transcript:
    session: Session
    turns: tuple[Turn, ...]
    """In order of their first message."""
    unreadable: tuple[Unreadable, ...] = ()
    faults: tuple[str, ...] = ()
    """What was odd outside of its turns."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What the whole session would tell of the messages of some of its turns."""

    positions: tuple[int, ...]
    """Of each of them in order."""
    undone_from: tuple[int, str] | None
    """(time.created, id) of the message that `/undo` went back to."""
    origin: str | None


def project_name(directory: str | None) -> str | None:
    """The last element of a session's directory; None when there is none, or it was withheld."""
    return re.split(r"[/\\]", (directory or "").rstrip("/\\"))[-1] or None


def session_digest(session: Session) -> str:
    """SHA-256 (hex) of what the session's own record holds: the policy-free half of that record's key."""
    facts = {
        "id": session.id,
        "parent": session.parent_id,
        "title": session.title,
        "directory": session.directory,
        "version": session.version,
        "created_ms": session.created_ms,
        "archived_ms": session.archived_ms,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii")).hexdigest()


def key(digest: str, policy_digest: str) -> str:
    """SHA-256 (hex): what a job is known by. The same turn under another policy is another export."""
    return hashlib.sha256(f"{digest}\n{policy_digest}".encode("ascii")).hexdigest()


def is_llm_call(message: Assistant) -> bool:
    """False for a `/shell` command: tool parts alone, without the step-start, finish or tokens of a call."""
    called = message.finish is not None or message.failure is not None or message.tokens is not None
    return called or not message.parts or not all(isinstance(part, Tool) for part in message.parts)


def has_ended(message: Message) -> bool:
    """Nothing of it is unfinished, subagents included."""
    if isinstance(message, Assistant) and message.completed_ms is None and message.failure is None:
        return False
    tools = [part for part in message.parts if isinstance(part, Tool)]
    children = [tool.child for tool in tools if tool.child is not None]
    return all(tool.status in {"completed", "error"} for tool in tools) and all(
        has_ended(message) for child in children for turn in child.turns for message in turn.messages
    )
