"""Keeps the beginning of an answer: redacted, and not at all where it repeats what was sent. Pure."""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from app.privacy.decode import View, layers

CHARS_MAX = 200
WITHHELD = "withheld: it repeats the record"
UNREADABLE = "withheld: it is not in UTF-8"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before the mark of UTF-16, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

# Shorter runs of equal letters and digits are chance ("provider"), longer ones are an echo of what was sent.
_ECHO_CHARS = 16
_NO_LETTERS = re.compile(r"[\W_]+")
_ZEROS = re.compile(r"\0|\\u0000")
_OWN_KEYS_DEPTH = 3
"""So deep the keys of a record are the envelope's and Helicone's own: everybody says these words."""


def excerpt(answer: bytes, sent: bytes, redact: Callable[[str], str]) -> str:
    """At most CHARS_MAX printable characters of the answer to `sent`, on one line."""
    text = _text(answer)
    if text is None:
        return UNREADABLE
    # All of it is redacted before it is cut: half a secret is none that a rule would know.
    shown = "".join(char if char.isprintable() else " " for char in redact(text))
    kept = " ".join(shown.split())[:CHARS_MAX]
    return WITHHELD if repeats(kept, sent) else kept


def _text(answer: bytes) -> str | None:
    """In UTF-8, or in what its mark says; None for anything else, in which no secret would be recognised.

    Without the zeros that UTF-16 without a mark has between letters. The answer may be cut within a letter.
    """
    mark, encoding = next((one for one in _MARKS if answer.startswith(one[0])), (b"", "utf-8"))
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(answer[len(mark) :])
    except UnicodeDecodeError:
        return None
    return _ZEROS.sub("", text)


def repeats(text: str, sent: bytes) -> bool:
    """Whether the text holds a run of letters and digits of the record `sent`, however it is escaped or written."""
    import html  # noqa: PLC0415 - its names take 0.7 MB of each worker

    spellings = {text, html.unescape(text)}
    views = {view.data for spelling in spellings for view in layers(View(spelling.encode("utf-8", "replace")))}
    bare = [one for data in views for one in _bare(data.decode("utf-8", "replace"))]
    runs = {one[at : at + _ECHO_CHARS] for one in bare for at in range(len(one) - _ECHO_CHARS + 1)}
    said = "\n".join(one for part in _texts(sent) for one in _bare(part)) if runs else ""
    return any(run in said for run in runs)


def _bare(text: str) -> tuple[str, str]:
    """Its letters and digits, and its letters alone (words may be numbered); whatever their case and width."""
    plain = _NO_LETTERS.sub("", unicodedata.normalize("NFKC", text).casefold())
    return plain, re.sub(r"\d+", "", plain)


def _texts(sent: bytes) -> Iterator[str]:
    """Every string of a record."""
    try:
        record = json.loads(sent)
    except (ValueError, RecursionError):
        yield sent.decode("utf-8", "replace")
        return
    yield from _strings(record, 1)


def _strings(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if depth > _OWN_KEYS_DEPTH:
                yield key
            yield from _strings(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, depth + 1)
