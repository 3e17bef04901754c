"""Reads JSON that must have a certain shape, and names the place where it has not.

    place(message, "messages[3]").need("info").need("time").moment("created")
        -> 1795345855321, or TranscriptError: messages[3].info.time.created: not a time in milliseconds

A key that is absent or null reads as None; another type than the one asked for is refused. Places are made of key
names that stand in this program and of positions, so that a refusal never carries transcript text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from app.transcript import Json, TranscriptError

INTEGER_MAX = 2**53
"""Beyond this JavaScript, which wrote the numbers, cannot tell neighbours apart."""
IDENTITY_CHARACTERS_MAX = 512
"""Ids and names that go into paths and headers whole. OpenCode's own ids have 30, tool names at most 64."""
TAKEN = frozenset({"session", "user", "assistant"})
"""What jobs and records are called besides OpenCode's ids: an id of that name would be taken for one of them."""
DEPTH_MAX = 100
"""Nesting of one message. OpenCode's own is under 10; the rest is a tool's input."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def refuse(path: str, rule: str) -> NoReturn:
    raise TranscriptError(f"{path or 'snapshot'}: {rule}")


def whole(value: Json) -> int | None:
    """The value as an integer when it is one (3.0 included), else None. True, NaN and infinities are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -INTEGER_MAX < value < INTEGER_MAX:
        return None
    return int(value) if value == int(value) else None


@dataclass(frozen=True, slots=True)
class Place:
    """One JSON object and where it stands."""

    path: str
    fields: dict[str, Json]

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def text(self, key: str) -> str | None:
        value = self.fields.get(key)
        if value is None or isinstance(value, str):
            return value
        refuse(self.at(key), "not a string")

    def name(self, key: str) -> str | None:
        """A short string: an id or a word of the program's own."""
        value = self.text(key)
        if value is not None and len(value) > IDENTITY_CHARACTERS_MAX:
            refuse(self.at(key), f"longer than {IDENTITY_CHARACTERS_MAX} characters")
        return value

    def identity(self, key: str) -> str:
        """A name that must be there, and that a database and UTF-8 can hold."""
        value = self.name(key) or refuse(self.at(key), "missing or empty")
        return value if _LONE_SURROGATE.search(value) is None else refuse(self.at(key), "holds half a character")

    def id(self, key: str) -> str:
        """An id of OpenCode's. Records are known by several of them with slashes between, so none may hold one."""
        value = self.identity(key)
        return value if "/" not in value and value not in TAKEN else refuse(self.at(key), "not an id")

    def count(self, key: str) -> int | None:
        value = self.fields.get(key)
        if value is None:
            return None
        number = whole(value)
        return number if number is not None else refuse(self.at(key), "not an integer")

    def position(self, key: str) -> int | None:
        number = self.count(key)
        return number if number is None or number >= 0 else refuse(self.at(key), "negative")

    def moment(self, key: str) -> int | None:
        value = self.fields.get(key)
        if value is None:
            return None
        number = whole(value)
        return number if number is not None and number >= 0 else refuse(self.at(key), "not a time in milliseconds")

    def need_moment(self, key: str) -> int:
        number = self.moment(key)
        return number if number is not None else refuse(self.at(key), "missing")

    def amount(self, key: str) -> float:
        """A finite number, 0.0 when absent."""
        value = self.fields.get(key)
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not -INTEGER_MAX < value < INTEGER_MAX:
            refuse(self.at(key), "not a finite number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.fields.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        refuse(self.at(key), "not true or false")

    def object(self, key: str) -> Place:
        """The object under `key`; an empty one when it is absent."""
        value = self.fields.get(key)
        return place({} if value is None else value, self.at(key))

    def need(self, key: str) -> Place:
        if self.fields.get(key) is None:
            refuse(self.at(key), "missing")
        return self.object(key)

    def objects(self, key: str) -> list[Place]:
        """The list of objects under `key`, which must be there."""
        value = self.fields.get(key)
        if not isinstance(value, list):
            refuse(self.at(key), "not a list")
        return [place(item, f"{self.at(key)}[{index}]") for index, item in enumerate(value)]


def place(value: Json, path: str) -> Place:
    if not isinstance(value, dict):
        refuse(path, "not an object")
    return Place(path, value)


def canonical(value: Json, path: str) -> str:
    """One text for equal values: sorted keys, no spaces, ASCII (in which lone surrogates have a form, too)."""
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [item for parent in level if isinstance(parent, list | dict) for item in _items(parent)]
        if not level:
            break
    else:
        refuse(path, f"nested deeper than {DEPTH_MAX} levels")
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError:
        refuse(path, "holds a number that is not finite, or too long")


def _items(parent: list[Json] | dict[str, Json]) -> list[Json]:
    return parent if isinstance(parent, list) else list(parent.values())
