"""Encoder: what one kind of destination makes of a session. Pure.

    capture   encode, count, lasting_name
    recall    texts_of; where what is stored is overwritten also blank, kind_of, shown_as
    doctor    trial

Hooks import an encoder, so it brings no HTTP client along. Which kinds there are is in `app.exporters.kinds`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from app.transcript.identity import Encoding, Identity
from app.transcript.model import Json, Session, Turn

Kind = Literal["session", "user", "assistant", "tool", "turn"]


@dataclass(frozen=True, slots=True)
class Frame:
    """What the records of one root session have in common."""

    root_session_id: str
    session_name: str
    """As `Encoder.lasting_name` says it."""
    prefix: str
    """Of all session paths, `/opencode` unless set otherwise."""
    user_id: str
    """'' for none. Fixed with the session's first record."""
    interrupted: bool
    """Nobody will complete what is unfinished: OpenCode has ended, or the person went on."""
    encoding: Encoding
    """Fixed with the session's first record: what a record is replaced by may be another in each."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is posted at once, and what the destination tells it from others by."""

    request_id: str
    kind: Kind
    path: str
    provider: str
    model: str
    user_id: str
    start_ms: int
    end_ms: int
    is_failed: bool
    """What it tells of has failed: a call, or a tool."""
    session_name: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Shown:
    """What a destination shows of one stored record."""

    request: Any
    """JSON; None or '' where there is no body."""
    response: Any


class Encoder(Protocol):
    """One kind of destination, without its wire. Equal values make equal bytes: no clock, no program version."""

    def encode(self, what: Session | Turn, frame: Frame) -> Iterator[Record]:
        """The records of a root session itself, or of a turn with its subagents. One is in memory at a time."""

    def count(self, what: Session | Turn) -> int:
        """How many records `encode` makes of it, whatever is withheld; nothing is encoded for that."""

    def lasting_name(self, session: Session, shown: Session, identity: Identity, leave: Callable[[str], str]) -> str:
        """What the session is called there for ever, under what is withheld today.

        `shown` is what may leave of the session; `leave` says it of any text, '' where none may.
        """

    def texts_of(self, body: bytes) -> list[Json]:
        """What in a record's body was written by a person, a model or a tool, its keys included."""

    def trial(self, request_id: uuid.UUID, now_ms: int) -> bytes:
        """The body of a tiny record that is of no session, to see whether it arrives."""


class Overwriting(Encoder, Protocol):
    """An encoder of a destination at which a record takes the place of another one with the same identity."""

    def blank(self, record: Record, root_session_id: str) -> Record:
        """The record with nothing in it but what the destination knows it by; its body is not looked at."""

    def kind_of(self, model: str) -> Kind:
        """What kind of record has this model there."""

    def shown_as(self, body: bytes) -> tuple[Shown, ...]:
        """What the destination shows of a record with this body: one of these."""
