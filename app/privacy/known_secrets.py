"""Secrets that this machine is known to hold: what `env` and `cat auth.json` would print.

Kept in memory for as long as the process runs; never stored, logged or part of an error.
"""

from __future__ import annotations

import contextlib
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import re2

from app.privacy.scout import trace_of

LENGTH_MIN = 8
"""Characters. Shorter values are words and numbers that stand everywhere."""

_LINE_MIN = 16
_PIECE_MAX = 512
_PROGRAM_BYTES_MAX = 1 << 28
"""Room for hundreds of values; RE2 takes what it needs."""

_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_DIGIT = rb"[A-Za-z0-9+/_-]?"
_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET)$|PASSWORD", re.IGNORECASE)
_PUBLIC_FIELD = re.compile(r"type$|url$", re.IGNORECASE)
_PUBLIC_VALUE = re.compile(r"https?://", re.IGNORECASE)


def known_values(environ: Mapping[str, str], auth_file: Path) -> tuple[str, ...]:
    """Values of variables named like a secret, and what OpenCode's `auth.json` holds, longest first.

    The file may be missing or broken: then it says nothing. `OPENCODE_AUTH_CONTENT` holds the same JSON, for OpenCode
    runs without a file.
    """
    found = {value for name, value in environ.items() if _NAME.search(name)}
    found |= _credentials(environ.get("OPENCODE_AUTH_CONTENT", ""))
    with contextlib.suppress(OSError):
        found |= _credentials(auth_file.read_bytes())
    long = {value.strip() for value in found if len(value.strip()) >= LENGTH_MIN}
    return tuple(sorted(long, key=lambda value: (-len(value), value)))


def search_for(values: Iterable[str]) -> Any | None:
    """One compiled RE2 search for every form of every value; None without values.

    JSON and URL escapes are not among the forms: they are undone before (app.privacy.decode).
    """
    forms: set[bytes] = {form for value in values for piece in _pieces(value) for form in _forms(piece)}
    if not forms:
        return None
    longest_first: list[bytes] = sorted(forms, key=lambda form: (-len(form), form))
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    options.max_mem = _PROGRAM_BYTES_MAX
    return re2.compile(b"|".join(longest_first), options)


def traces_of(values: Iterable[str]) -> frozenset[bytes]:
    """A few letters of each piece of each value: a text in which none of them stands holds no value."""
    return frozenset(trace_of(piece.encode("utf-8", "replace")) for value in values for piece in _pieces(value))


def _pieces(value: str) -> Iterator[str]:
    """The value; a long or many-lined one in pieces, so that a line number between two lines hides neither."""
    if "\n" in value:
        yield from (line.strip() for line in value.splitlines() if len(line.strip()) >= _LINE_MIN)
    for start in range(0, len(value), _PIECE_MAX):
        piece = value[start : start + _PIECE_MAX]
        if len(piece) >= LENGTH_MIN:
            yield piece


def _forms(value: str) -> Iterator[bytes]:
    """Patterns for the value itself, its base64 wherever it stands in a longer text, its hex, and `a+b` for `a b`."""
    raw = value.encode("utf-8", "replace")
    yield re2.escape(raw)
    yield re2.escape(quote_plus(raw).encode())
    yield re2.escape(raw.hex().encode())
    yield re2.escape(raw.hex().upper().encode())
    for shift in range(3):
        digits: bytes = b64encode(bytes(shift) + raw)
        # The digits at either end are shared with the neighbouring bytes: any digit will do there.
        whole: bytes = digits[(shift * 8 + 5) // 6 : (shift + len(raw)) * 8 // 6]
        for form in {whole, whole.translate(_URL_SAFE)}:
            yield _DIGIT + re2.escape(form) + _DIGIT if shift else re2.escape(form) + _DIGIT


def _credentials(text: str | bytes) -> set[str]:
    """What a text in the form of `auth.json` holds. One that is broken holds nothing; why is not said, nor kept."""
    try:
        return set(_strings(json.loads(text)))
    except (ValueError, RecursionError):
        return set()


def _strings(value: Any, field: str = "") -> Iterator[str]:
    """Every string but what is plainly public: the kind of login, the address of its server."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, field)
    elif isinstance(value, str) and not _PUBLIC_FIELD.search(field) and not _PUBLIC_VALUE.match(value):
        yield value
