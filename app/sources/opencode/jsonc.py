"""Parses JSON with comments and trailing commas, as OpenCode reads its configuration, with the line of every key.

OpenCode uses Microsoft's `jsonc-parser`; what that one refuses is refused here.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from app.errors import AppError

if TYPE_CHECKING:
    from app.transcript.model import Json  # 12 ms

DEPTH_MAX = 200
_KEPT = 64
"""Texts whose reading is remembered: a configuration is looked at again and again, and seldom changes."""
_BLANK = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"[^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*)*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORD = re.compile("true|false|null")
_WORDS: Mapping[str, Json] = {"true": True, "false": False, "null": None}
_EXACT_MAX = 2**53
"""Up to here each whole number is the same in JavaScript."""

Path = tuple[str | int, ...]
"""Keys and positions that lead from the outermost value to one inside of it."""


class NotJsonError(AppError):
    """A text that is no JSON. Holds nothing of it but the line."""

    def __init__(self, line: int) -> None:
        super().__init__(f"not JSON at line {line}")
        self.line = line


@dataclass(frozen=True, slots=True)
class Parsed:
    value: Json
    lines: Mapping[Path, int]
    """Of each key in an object, and of each element of a list; from 1."""
    overruled: Mapping[Path, Json]
    """What stands under a key that its object holds again further down: here, as in OpenCode, the last one counts."""


@lru_cache(maxsize=_KEPT)
def parse(text: str) -> Parsed:
    """Raises NotJsonError."""
    reader = _Reader(text)
    try:
        value = reader.value(())
        reader.skip_blank()
        reader.require(reader.at == len(text))
    except (_UnexpectedError, ValueError):
        raise NotJsonError(reader.line) from None
    return Parsed(value, reader.lines, reader.overruled)


class _UnexpectedError(Exception):
    pass


class _Reader:
    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self.overruled: dict[Path, Json] = {}
        self.at = 0
        self._text = text
        self._breaks = [found.start() for found in re.finditer("\n", text)]

    @property
    def line(self) -> int:
        return bisect_right(self._breaks, self.at - 1) + 1

    def require(self, fits: bool) -> None:  # noqa: FBT001 - reads as "require that"
        if not fits:
            raise _UnexpectedError

    def skip_blank(self) -> None:
        self._take(_BLANK)

    def value(self, path: Path) -> Json:
        self.require(len(path) <= DEPTH_MAX)
        self.skip_blank()
        match self._text[self.at : self.at + 1]:
            case "{":
                return self._object(path)
            case "[":
                return self._list(path)
            case '"':
                return self._string()
            case "t" | "f" | "n":
                return _WORDS[self._take(_WORD)]
            case _:
                return _number(self._take(_NUMBER))

    def _object(self, path: Path) -> dict[str, Json]:
        found: dict[str, Json] = {}
        self.at += 1
        while not self._is_next("}"):
            line, key = self.line, self._string()
            place = (*path, key)
            if key in found:
                self.overruled[place] = found[key]
            self.lines[place] = line
            self.require(self._is_next(":"))
            found[key] = self.value(place)
            self._separate("}")
        return found

    def _list(self, path: Path) -> list[Json]:
        found: list[Json] = []
        self.at += 1
        while not self._is_next("]"):
            place = (*path, len(found))
            self.lines[place] = self.line
            found.append(self.value(place))
            self._separate("]")
        return found

    def _is_next(self, character: str) -> bool:
        """Whether it comes next, after blanks; then it is taken."""
        self.skip_blank()
        if not self._text.startswith(character, self.at):
            return False
        self.at += 1
        return True

    def _separate(self, end: str) -> None:
        """A comma, or the end, which is left to be seen."""
        if not self._is_next(","):
            self.require(self._text.startswith(end, self.at))

    def _string(self) -> str:
        start = self.at
        literal = self._take(_STRING)
        try:
            text: str = json.loads(literal)
        except ValueError:
            self.at = start
            raise
        return text

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self.at)
        if found is None:
            raise _UnexpectedError
        self.at = found.end()
        return found[0]


def _number(literal: str) -> int | float:
    """As JavaScript has it: 1e3 and 1000.0 are the whole number 1000."""
    value = float(literal)
    return int(value) if value.is_integer() and abs(value) <= _EXACT_MAX else value
