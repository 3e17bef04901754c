"""Reads JSON that should have a certain shape, and notes each place where it has not.

    call = place(message, "messages[3]", faults).object("info")
    call.object("tokens").count("input")    12.5 -> 12, and faults gets "messages[3].info.tokens.input: not an integer"

A key that is absent or null reads as None. A number that is odd is rounded or void, a string is cut, what should be a
string and is not becomes JSON: an odd value costs itself. Only what a value cannot be without (an id, a role, a kind)
is refused, with TranscriptError. Places are made of key names that stand in this program and of positions, so that
neither faults nor refusals carry transcript text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

from app.transcript.model import Json, TranscriptError

INTEGER_MAX = 2**53
"""Beyond this JavaScript, which wrote the numbers, cannot tell neighbours apart."""
TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999."""
IDENTITY_CHARACTERS_MAX = 512
"""Ids and names that go into paths and headers whole. OpenCode's own ids have 30, tool names at most 64."""
TAKEN = frozenset({"session", "user", "assistant"})
"""What jobs and records are called besides OpenCode's ids: an id of that name would be taken for one of them."""
DEPTH_MAX = 100
"""Nesting of one message or part. OpenCode's own is under 10; the rest is a tool's input."""

LONG_CHARACTERS_MIN = 2**16
PIECE_CHARACTERS = 2**14
"""Of a long string, which is written as JSON piece by piece."""

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_PLAIN = bytes(set(range(ord(" "), ord("~") + 1)) - set(b'"\\'))
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def refuse(path: str, rule: str) -> NoReturn:
    raise TranscriptError(f"{path or 'snapshot'}: {rule}")


def whole(value: Json) -> int | None:
    """The value as an integer when it is one (3.0 included), else None. True, NaN and infinities are none."""
    if type(value) is int:  # nearly all are
        return value if -INTEGER_MAX < value < INTEGER_MAX else None
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _number(value: Json) -> int | float | None:
    """A number that JavaScript can tell from its neighbours, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -INTEGER_MAX < value < INTEGER_MAX:
        return None
    return value


@dataclass(slots=True)  # not frozen: a message has dozens, and that is a third of what making one takes
class Place:
    """One JSON object and where it stands."""

    path: str
    fields: dict[str, Json]
    faults: list[str] = field(default_factory=list)
    """What was odd here and below, as `place: rule`. Shared by all places that were reached from one `place`."""

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def note(self, key: str, rule: str) -> None:
        self.faults.append(f"{self.at(key)}: {rule}")

    def text(self, key: str) -> str | None:
        value = self.fields.get(key)
        if value is None or isinstance(value, str):
            return value
        self.note(key, "not a string")
        return as_json(value)

    def name(self, key: str) -> str | None:
        """A short string: a word of the program's own, or what somebody has named."""
        value = self.text(key)
        if value is None or len(value) <= IDENTITY_CHARACTERS_MAX:
            return value
        self.note(key, f"longer than {IDENTITY_CHARACTERS_MAX} characters")
        return value[:IDENTITY_CHARACTERS_MAX]

    def called(self, key: str) -> str:
        """A name that paths and headers hold: `unknown` when there is none."""
        value = self.name(key)
        if not value:
            self.note(key, "missing or empty")
            return "unknown"
        if _LONE_SURROGATE.search(value) is None:
            return value
        self.note(key, "holds half a character")
        return _LONE_SURROGATE.sub("\ufffd", value)

    def identity(self, key: str) -> str:
        """What tells one thing from another. Raises TranscriptError for what a database and UTF-8 cannot hold."""
        value = self.fields.get(key)
        if not isinstance(value, str) or not value:
            refuse(self.at(key), "missing or empty" if not value else "not a string")
        if len(value) > IDENTITY_CHARACTERS_MAX:
            refuse(self.at(key), f"longer than {IDENTITY_CHARACTERS_MAX} characters")
        if not value.isascii() and _LONE_SURROGATE.search(value) is not None:
            refuse(self.at(key), "holds half a character")
        return value

    def id(self, key: str) -> str:
        """An id of OpenCode's. Records are known by several of them with slashes between, so none may hold one."""
        value = self.identity(key)
        return value if "/" not in value and value not in TAKEN else refuse(self.at(key), "not an id")

    def count(self, key: str) -> int | None:
        """An integer; a fraction is rounded."""
        value = self.fields.get(key)
        if type(value) is int and -INTEGER_MAX < value < INTEGER_MAX:
            return value
        number = _number(value)
        if value is not None and whole(value) is None:
            self.note(key, "not an integer")
        return None if number is None else round(number)

    def moment(self, key: str) -> int | None:
        """A time in milliseconds; a fraction is rounded."""
        value = self.fields.get(key)
        if type(value) is int and 0 <= value <= TIME_MS_MAX:
            return value
        number = _number(value)
        is_time = number is not None and 0 <= number <= TIME_MS_MAX
        if value is not None and (whole(value) is None or not is_time):
            self.note(key, "not a time in milliseconds")
        return round(number) if number is not None and is_time else None

    def amount(self, key: str) -> float:
        """A finite number, 0.0 when absent."""
        value = self.fields.get(key)
        number = _number(value)
        if value is not None and number is None:
            self.note(key, "not a finite number")
        return 0.0 if number is None else float(number)

    def flag(self, key: str) -> bool:
        value = self.fields.get(key)
        if value is not None and not isinstance(value, bool):
            self.note(key, "not true or false")
        return value is True

    def object(self, key: str) -> Place:
        """The object under `key`; an empty one when it is absent or something else."""
        value = self.fields.get(key)
        if isinstance(value, dict):
            return Place(self.at(key), value, self.faults)
        if value is not None:
            self.note(key, "not an object")
        return Place(self.at(key), {}, self.faults)

    def need(self, key: str) -> Place:
        """The object under `key`. Raises TranscriptError."""
        return place(self.fields.get(key), self.at(key), self.faults)

    def items(self, key: str) -> list[tuple[str, Json]]:
        """What the list under `key` holds, and where each stands. Raises TranscriptError when it is no list."""
        value = self.fields.get(key)
        if not isinstance(value, list):
            refuse(self.at(key), "not a list")
        return [(f"{self.at(key)}[{index}]", item) for index, item in enumerate(value)]


def place(value: Json, path: str, faults: list[str] | None = None) -> Place:
    """Raises TranscriptError for what is no object."""
    if not isinstance(value, dict):
        refuse(path, "missing" if value is None and path else "not an object")
    return Place(path, value, [] if faults is None else faults)


def as_json(value: Json) -> str:
    """JSON for a person to read; '' for what cannot be written as JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        return ""


@dataclass(frozen=True, slots=True)
class Long:
    """A string of a canonical form that is not written as JSON yet, as it would be as large once more."""

    text: str

    def spelled(self) -> Iterator[str]:
        """JSON in pieces. ASCII has a form of its own for each character, whatever stands beside it."""
        yield '"'
        for at in range(0, len(self.text), PIECE_CHARACTERS):
            piece = self.text[at : at + PIECE_CHARACTERS]
            # What JSON leaves as it is, such as an attachment in base64, is told faster than it is written.
            is_plain = piece.isascii() and not piece.encode().translate(None, _PLAIN)
            yield piece if is_plain else _canonical(piece)[1:-1]
        yield '"'


Canonical: TypeAlias = tuple[str | Long, ...]
"""One text for equal values, in pieces."""


def canonical(value: Json, path: str) -> Canonical:
    """Sorted keys, no spaces, ASCII (in which lone surrogates have a form, too).

    Raises TranscriptError for what is nested too deeply, and for numbers that JSON does not have.
    """
    has_long = False
    level = [value]
    for _ in range(DEPTH_MAX):
        below: list[Json] = []
        for item in level:
            if isinstance(item, str):
                has_long = has_long or len(item) >= LONG_CHARACTERS_MIN
            elif isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
        if not level:
            break
    else:
        refuse(path, f"nested deeper than {DEPTH_MAX} levels")
    try:
        return tuple(_in_pieces(value)) if has_long else (_canonical(value),)
    except ValueError:
        refuse(path, "holds a number that is not finite, or too long")


def _in_pieces(value: Json) -> Iterator[str | Long]:
    if isinstance(value, str) and len(value) >= LONG_CHARACTERS_MIN:
        yield Long(value)
    elif isinstance(value, dict) and value:
        for number, (name, item) in enumerate(sorted(value.items())):
            yield f"{',' if number else '{'}{_canonical(name)}:"
            yield from _in_pieces(item)
        yield "}"
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield "," if number else "["
            yield from _in_pieces(item)
        yield "]"
    else:
        yield _canonical(value)


def joined(items: Iterable[Canonical]) -> Iterator[str | Long]:
    """JSON of a list with these items."""
    for number, pieces in enumerate(items):
        if number:
            yield ","
        yield from pieces


def sha256(pieces: Iterable[str | Long]) -> str:
    """SHA-256, in hex, of a text in canonical form."""
    digest = hashlib.sha256()
    for piece in pieces:
        for some in piece.spelled() if isinstance(piece, Long) else (piece,):
            digest.update(some.encode("ascii"))
    return digest.hexdigest()


def turn_name(info: Place) -> str:
    """Name of the turn that a message belongs to: its parent's id, or its own. Raises TranscriptError."""
    if info.fields.get("role") != "user" and info.fields.get("parentID"):
        try:
            return info.id("parentID")
        except TranscriptError as error:
            info.faults.append(str(error))
    return info.id("id")
