"""Intake: what a machine and its company's intake say to each other, and what of it the machine keeps in its spool.

    machine ─ POST /custom/v1/log, under its token ─▶ intake    a log, with the two headers below
    machine ─ GET /custom/v1/machine ───────────────▶ intake    `IntakeAnswer`: what may leave, what became of the rest
    machine ─ POST /custom/v1/states ───────────────▶ intake    what became of some records

Only the form of the token makes a destination an intake: an address tells nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

TOKEN = re.compile(r"sk-helicone-fleet\d\d(-[a-z0-9]{7}){3}", re.ASCII)
"""As a key of Helicone, so that a machine needs nothing but another key and another endpoint."""

LOG_PATH = "/custom/v1/log"
MACHINE_PATH = "/custom/v1/machine"
STATES_PATH = "/custom/v1/states"

MODE_HEADER = "OpenCode-Helicone-Mode"
"""Of a log: the export mode that it was made under."""
TURN_HEADER = "OpenCode-Helicone-Turn-Ms"
"""Of a log: the time of the last event of its turn, in milliseconds UTC. A version that comes late is known by it."""

DEAD_MAX = 20
"""So many dead letters are named in one answer, the latest first."""
IDS_MAX = 500
"""Records in one question about their states."""


class IntakeAnswerError(ValueError):
    """What an intake has answered, or what was kept of it, is none of its answers. Quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A log of this machine that the centre could not deliver."""

    session: str
    request_id: str
    reason: str
    finished_ms: int


@dataclass(frozen=True, slots=True)
class IntakeAnswer:
    """What an intake says to one machine."""

    export_mode: Literal["full", "metadata_only"]
    redact_patterns: tuple[str, ...]
    waiting: int
    """Logs of this machine that the centre has, and has not delivered yet."""
    dead: int
    """Those that it gave up."""
    dead_records: tuple[DeadRecord, ...]
    """Of them the latest, at most DEAD_MAX."""


State: TypeAlias = Literal["pending", "delivered", "confirmed", "dead", "dropped"]
"""Of a record at the centre; `confirmed`: delivered, and read back at Helicone."""


@dataclass(frozen=True, slots=True)
class RecordState:
    state: State
    reason: str
    """Why it is dead or dropped, or has not been delivered yet; '' otherwise."""


_ANSWER = TypeAdapter(IntakeAnswer)
_STATES = TypeAdapter(dict[str, RecordState])


def encoded(answer: IntakeAnswer | Mapping[str, RecordState]) -> bytes:
    """As JSON: an answer about a machine, or states by request id; one that nobody knows has none."""
    if isinstance(answer, IntakeAnswer):
        return _ANSWER.dump_json(answer)
    return _STATES.dump_json(dict(answer))


def read_answer(text: bytes) -> IntakeAnswer:
    """Raises IntakeAnswerError."""
    try:
        return _ANSWER.validate_json(text)
    except ValidationError:
        raise IntakeAnswerError("not an answer of an intake") from None


def read_states(text: bytes) -> dict[str, RecordState]:
    """By request id. Raises IntakeAnswerError."""
    try:
        return _STATES.validate_json(text)
    except ValidationError:
        raise IntakeAnswerError("not an answer of an intake") from None


def question(request_ids: list[str]) -> bytes:
    """About the states of at most IDS_MAX records."""
    return json.dumps({"requestIds": request_ids}).encode()
