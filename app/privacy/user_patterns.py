"""Compiles the user's own patterns, RE2, whatever the case; and finds what they match in a text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import re2

from app.errors import UsageError


class PatternError(UsageError):
    """A pattern that cannot be used. The message holds its number and text, and what is wrong with it and where."""

    def __init__(self, number: int, pattern: str, place: int | None, problem: str) -> None:
        at = "" if place is None else f"at character {place}, "
        super().__init__(
            f"redaction pattern {number}, {pattern if pattern.isprintable() else ascii(pattern)}: {at}{problem}"
        )
        self.without_text = f"redaction pattern {number} cannot be used ({at or 'as a whole'})".replace(", )", ")")
        """For logs: somebody may have written the very secret down as a pattern."""


@dataclass(frozen=True, slots=True)
class Pattern:
    name: str
    """`pattern 1`: its number in the settings, from 1."""
    regex: Any

    def spans(self, text: bytes) -> Iterator[tuple[int, int]]:
        """Start and end, in bytes, of all that it matches in UTF-8 text."""
        for found in self.regex.finditer(text):
            if found.end() > found.start():
                yield found.span()


def compile_pattern(number: int, pattern: str) -> Pattern:
    """Raises PatternError; also for a pattern that matches nothing at all, between any two letters."""
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    try:
        regex = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode("utf-8", "replace")
        raise PatternError(number, pattern, _place(pattern, reason), f"RE2 says: {reason}") from None
    except UnicodeEncodeError as error:
        raise PatternError(number, pattern, error.start, "half a character") from None
    if any(found.start() == found.end() for probe in ("", "a", "a b", "1\n-") for found in regex.finditer(probe)):
        raise PatternError(number, pattern, None, "it matches the empty text, so it must ask for one letter at least")
    return Pattern(f"pattern {number}", regex)


def _place(pattern: str, reason: str) -> int:
    """Where RE2's reason applies, from 0. RE2 names a fragment; for a parenthesis that is the whole pattern."""
    fragment = reason.rpartition(": ")[2]
    if fragment != pattern:
        return pattern.find(fragment) if fragment in pattern else len(pattern) - 1
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(pattern)
    except re.error as error:
        return error.pos or 0
    return 0
