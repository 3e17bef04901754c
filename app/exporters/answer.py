"""Parses JSON of a server, which may be anybody's: checks its size and depth first.

A parsed value takes 56 bytes and more where its text takes two: 60 MB of `[[],[], …]` become 1.6 GB.
"""

from __future__ import annotations

import json
from typing import Any

from app.errors import AppError

VALUES_MAX = 1_000_000
"""In one text. A page of 100 records has tens of thousands."""
DEPTH_MAX = 200
"""Far below what Python's own recursion takes, so that whoever walks through the value needs no bound of his own."""

_OPENING, _CLOSING = b"[{", b"]}"
_OUTLINE = b'"[]{},'
_REST = bytes(set(range(256)) - set(_OUTLINE))


class AnswerError(AppError):
    """The text is no JSON, or not of a size and depth that is worth parsing. Quotes nothing of it."""


class TooManyValuesError(AnswerError):
    """Asked for less, the other side might say less."""


def parsed(text: bytes | str) -> Any:
    """The value of a JSON text, in UTF-8: in another encoding its outline could not be told. Raises AnswerError."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    outline = _outside_strings(raw)
    if len(outline) - sum(map(outline.count, _CLOSING)) > VALUES_MAX:
        raise TooManyValuesError(f"JSON of more than {VALUES_MAX} values")
    depth = 0
    for sign in outline:
        depth += (sign in _OPENING) - (sign in _CLOSING)
        if depth > DEPTH_MAX:
            raise AnswerError(f"JSON nested deeper than {DEPTH_MAX}")
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8-sig", "surrogatepass"))
    except (ValueError, RecursionError):
        raise AnswerError("no JSON") from None


def _outside_strings(text: bytes) -> bytes:
    """Brackets and commas that stand in no string."""
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _REST)
    # Each string is a value or a name, and a name has a value: so many quotes are too much as well.
    if bare.count(b'"') > 4 * VALUES_MAX:
        raise TooManyValuesError(f"JSON of more than {VALUES_MAX} values")
    return b"".join(bare.split(b'"')[::2])
