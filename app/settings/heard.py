"""Heard: what an intake has said of what may leave this machine. A worker keeps it in the spool for all processes.

    worker ── asks ──▶ intake ── answer ──▶ <spool>/intake-….json ──▶ `Settings.heard`, of whoever loads settings

Each address and token has a file of its own. What an intake says is about these alone: of a new token nothing is known.
The last answer counts for as long as there is no other one, however long the intake is away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.privacy.user_patterns import PatternError, compile_pattern
from app.runtime.filesystem import replace_file
from app.runtime.spool import Spool
from app.settings.intake import LOG_PATH, TOKEN, IntakeAnswer
from app.settings.model import Given, Heard, Layer, Origin, Settings, checked

ANSWER_BYTES_MAX = 1024 * 1024
"""Of one answer."""
_KEPT_BYTES_MAX = 2 * ANSWER_BYTES_MAX
SILENT = "the intake has not said yet what may leave"
UNUSABLE = "what the intake says of what may leave cannot be used here"


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of an intake."""

    asked_ms: int
    failure: str
    """Why the last question came to nothing, for a person; '' where it was answered."""
    heard_ms: int | None
    """When it answered last; None: it never has."""
    answer: IntakeAnswer | None
    """Its last one; None where there is none, or where it cannot be understood."""


NOTHING = Kept(0, "", None, None)


def is_intake(settings: Settings) -> bool:
    """Whether the key of these settings is a token."""
    return settings.api_key is not None and TOKEN.fullmatch(settings.api_key.get_secret_value()) is not None


def base(endpoint: str) -> str:
    """The address of an intake, below which its paths are.

    >>> base("https://intake.example.com/custom/v1/log"), base("https://intake.example.com")
    ('https://intake.example.com', 'https://intake.example.com')
    """
    return endpoint.removesuffix(LOG_PATH)


def place(settings: Settings) -> Path:
    """The file of what the intake of these settings has said."""
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    digest = hashlib.sha256(f"{base(settings.endpoint)}\0{key}".encode()).hexdigest()
    return Spool(settings.spool_directory).intake(digest[:16])


def kept(path: Path) -> Kept:
    """What is kept there; NOTHING where nothing is, or what is no such thing."""
    try:
        with path.open("rb") as file:
            return _parsed(file.read(_KEPT_BYTES_MAX + 1))
    except OSError:
        return NOTHING


def keep(path: Path, known: Kept) -> None:
    """In place of what was there, at once. Raises OSError."""
    replace_file(path, _adapter().dump_json(known))


def basis(path: Path) -> object:
    """What of it decides what may leave: equal for as long as that is."""
    known = kept(path)
    said = known.answer and (known.answer.export_mode, known.answer.redact_patterns)
    return known.heard_ms is None, said


def heard(settings: Settings) -> Settings:
    """The settings with what their intake has said, where the key leads to one."""
    if not is_intake(settings):
        return settings
    known = kept(place(settings))
    origin = Origin("intake", f"the intake at {base(settings.endpoint)}")
    if known.heard_ms is None:
        return settings.model_copy(update={"heard": Heard(origin, SILENT)})
    withheld = None if known.answer is None else _withheld(known.answer, origin)
    said = Heard(origin, UNUSABLE) if withheld is None else Heard(origin, "", withheld)
    return settings.model_copy(update={"heard": said})


@lru_cache(maxsize=8)
def _withheld(answer: IntakeAnswer, origin: Origin) -> Layer | None:
    """None where it may withhold more than can be done here."""
    layer: Layer = {}
    if answer.export_mode != "full":
        layer["export_mode"] = Given(answer.export_mode, origin)
    if answer.redact_patterns:
        try:
            layer["redact_patterns"] = Given(checked("redact_patterns", answer.redact_patterns), origin)
            for number, pattern in enumerate(answer.redact_patterns, 1):
                compile_pattern(number, pattern)
        except (ValidationError, PatternError):
            return None
    return layer


@lru_cache(maxsize=2)
def _parsed(text: bytes) -> Kept:
    try:
        return _adapter().validate_json(text)
    except ValidationError:
        return NOTHING


@cache
def _adapter() -> TypeAdapter[Kept]:
    return TypeAdapter(Kept)
