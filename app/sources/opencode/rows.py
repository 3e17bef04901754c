"""Rows: what a store of OpenCode is asked for, whichever generation of OpenCode wrote it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from app.transcript.fields import Place, turn_name
from app.transcript.model import Json, TranscriptError

SESSIONS_MAX = 64
"""So many are remembered, those that were asked for last."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a store tells of a session without looking into it."""

    id: str
    parent: str | None
    """None also where that one is gone."""
    directory: str
    created_ms: int
    updated_ms: int
    """As OpenCode keeps it. What changed inside of its turns is in `Store.changed_ms`."""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Calls of one turn to one model, by one agent, on one day."""

    session: str
    turn: str
    day: str
    """The local date, in ISO form."""
    model: str
    """provider/model; '' where OpenCode does not say."""
    agent: str
    calls: int
    errors: int
    """Those of them that failed or were aborted."""
    failed_tools: int
    """Tools that these calls asked for, and that failed."""
    input_tokens: int
    """Without those that came out of a cache."""
    cache_read_tokens: int
    cache_write_tokens: int
    output_tokens: int
    """Reasoning included."""
    cost_usd: float


class Rows(Protocol):
    """One state of a store. Messages and parts are rows, also where each is a file. Raises StoreError."""

    def heads(self, directory: str | None = None, among: Collection[str] | None = None) -> list[Head]:
        """Heads of all sessions, or of those of a directory, or of these; the oldest first."""

    def head(self, session: str) -> Head | None: ...

    def below(self, session: str) -> list[str]:
        """The sessions whose parent it is."""

    def info(self, session: str) -> dict[str, Json]:
        """Session as `opencode export` prints it."""

    def listed(self, session: str) -> dict[str, str]:
        """Each message of the session, in order, with the turn that it belongs to."""

    def unreadable(self, session: str) -> Collection[str]:
        """Messages, of these, that are neither a question nor an answer."""

    def undated(self, session: str) -> Collection[str]:
        """Messages, of these, that do not say when they were created."""

    def messages(self, session: str, names: list[str]) -> list[Json]:
        """Messages of these ids, in this order, as `opencode export` prints them."""

    def calls(self, session: str, messages: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Sessions that the tool calls of each of these messages name, in order."""

    def answers(self, session: str) -> Iterable[tuple[str, int, str]]:
        """(message, time.created, where OpenCode worked), in order, of answers that say so."""

    def created_ms(self, session: str) -> dict[str, int]:
        """Creation time of each message, in order."""

    def weighed(self, session: str, messages: list[str]) -> Iterable[tuple[str, int, int]]:
        """Weight of each of these: how many rows it has, itself included, and when one was written last."""

    def weights(self, sessions: Collection[str]) -> dict[str, tuple[int, int]]:
        """The same of whole sessions that are there, each without those below it."""

    def usage(self, since_ms: int, among: Collection[str] | None = None) -> Iterable[Usage]:
        """Usage of all sessions, or of these, by calls that began then or later, without what forks have copied."""


@dataclass(slots=True)
class Known:
    """What cannot change of a session."""

    turn_of: dict[str, str] = field(default_factory=dict)
    """By message."""
    calls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The sessions that a message's tool calls name, in order; of messages that are completed."""
    unreadable: set[str] = field(default_factory=set)
    """Messages that nobody has said."""
    undated: set[str] = field(default_factory=set)
    """Messages that do not say when they were created."""
    created_ms: dict[str, int] = field(default_factory=dict)
    """By message."""
    worked_in: dict[str, str] = field(default_factory=dict)
    """By answer where OpenCode worked."""

    listed: dict[str, str] = field(default_factory=dict)
    """All messages with their turns, in order, as last seen."""
    newest: tuple[object, ...] | None = None
    """The last of them, as the store finds it again."""

    def learn(self, message: str, told: dict[str, Json], written_ms: int) -> None:
        """Learn from a message's `info`, as `parse` finds it."""
        info = Place("", {**told, "id": message})
        try:
            self.turn_of[message] = turn_name(info)
        except TranscriptError:
            self.turn_of[message] = message
        created_ms = info.object("time").moment("created")
        self.created_ms[message] = written_ms if created_ms is None else created_ms
        self.undated.discard(message)
        if not created_ms:
            self.undated.add(message)
        role, cwd = told.get("role"), info.object("path").fields.get("cwd")
        self.unreadable.discard(message)
        if role not in ("user", "assistant"):
            self.unreadable.add(message)
        if role == "assistant" and isinstance(cwd, str):
            self.worked_in[message] = sys.intern(cwd)

    def answers(self, listed: Iterable[str]) -> Iterator[tuple[str, int, str]]:
        return ((name, self.created_ms[name], self.worked_in[name]) for name in listed if name in self.worked_in)


class Memory:
    """What is remembered of sessions from one question to the next."""

    def __init__(self) -> None:
        self._sessions: dict[str, Known] = {}

    def of(self, session: str) -> Known:
        found = self._sessions.pop(session, None) or Known()
        self._sessions[session] = found
        while len(self._sessions) > SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        return found


def is_settled(told: dict[str, Json]) -> bool:
    """Whether a message with this `info` makes no more calls."""
    time = told.get("time")
    return told.get("role") == "user" or (isinstance(time, dict) and time.get("completed") is not None)


def subagent(part: Json) -> str | None:
    """The session that a tool call names."""
    state = part.get("state") if isinstance(part, dict) and part.get("type") == "tool" else None
    metadata = state.get("metadata") if isinstance(state, dict) else None
    name = metadata.get("sessionId") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else None


def subagents(entry: dict[str, Json]) -> Iterator[str]:
    """All that the calls of an export name, in order."""
    messages = entry.get("messages")
    for message in messages if isinstance(messages, list) else ():
        parts = message.get("parts") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else ():
            name = subagent(part)
            if name is not None:
                yield name
