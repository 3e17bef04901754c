"""Searches for values that are known to be secret, in every form in which a text may show them.

    head                 the first bytes of each form, of all values together: one RE2 search over the text
    ghp_1a2b│3c4d5e…     where a head stands, the forms that begin so are compared byte by byte

So its time hardly grows with the number of values: one search for whole values costs 180 ms per MB at 500 of them, in a
text that it has not seen; one for heads 5.

What it holds is kept in memory for as long as the process runs; never stored, logged or part of an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote_plus

from app.privacy import scout
from app.privacy.literals import any_of
from app.privacy.machine_secrets import LENGTH_MIN

_HEAD_BYTES = 8
"""As long as the shortest value: every form has a head."""
_LINE_MIN = 16
_PIECE_MAX = 128
"""Each letter of it written as an escape, it is not longer than what is decoded around a trace of it."""
_DIGITS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")
"""Of base64, in both of its alphabets."""


@dataclass(frozen=True, slots=True)
class _Form:
    text: bytes
    shares_before: bool = False
    """The base64 digit before it holds bits of the value, too."""
    shares_after: bool = False

    def end(self, data: bytes, at: int) -> int:
        """Where it ends when it stands there; else 0."""
        return at + len(self.text) if data.startswith(self.text, at) else 0


class Search:
    """Finds all forms of all values. Its ranges may overlap: where two secrets do, both go whole."""

    def __init__(self, forms: Iterable[_Form]) -> None:
        by_head: dict[bytes, list[_Form]] = defaultdict(list)
        for form in sorted(forms, key=lambda form: (-len(form.text), form.text)):
            by_head[form.text[:_HEAD_BYTES]].append(form)
        self._by_head = dict(by_head)
        self._heads = any_of(sorted(self._by_head))

    def spans(self, data: bytes) -> Iterator[tuple[int, int]]:
        at = 0
        while (head := self._heads.search(data, at)) is not None:
            begin = head.start()
            at = begin + 1
            for form in self._by_head[head.group()]:
                end = form.end(data, begin)
                if end:
                    yield _with_shared(form, data, begin, end)
                    # In a long run of one letter every byte would begin another one.
                    at = end if head.group().count(head.group()[:1]) == _HEAD_BYTES else at
                    break  # the others there are shorter

    def __repr__(self) -> str:
        return "Search()"


def _with_shared(form: _Form, data: bytes, begin: int, end: int) -> tuple[int, int]:
    """With the digits at either end that are shared with the neighbouring bytes, whatever they are."""
    if form.shares_before and begin and data[begin - 1] in _DIGITS:
        begin -= 1
    if form.shares_after and end < len(data) and data[end] in _DIGITS:
        end += 1
    return begin, end


def search_for(values: Iterable[str]) -> Search | None:
    """One search for every form of every value; None without values.

    JSON and URL escapes are not among the forms: they are undone before (app.privacy.decode).
    """
    return _search(frozenset(values))


@lru_cache(maxsize=2)
def _search(values: frozenset[str]) -> Search | None:
    """Kept, because all folders of a process look for the same values."""
    forms = {form for value in values for piece in _pieces(value) for form in _forms(piece)}
    return Search(forms) if forms else None


def traces_of(values: Iterable[str]) -> frozenset[bytes]:
    """A few letters of each piece of each value: a text in which none of them stands holds no value."""
    pieces = {piece.encode("utf-8", "replace") for value in values for piece in _pieces(value)}
    return frozenset(trace for piece in pieces for trace in scout.traces_of(piece))


def _pieces(value: str) -> Iterator[str]:
    """The value; a long or many-lined one in pieces, so that a line number between two lines hides neither."""
    if "\n" in value:
        lines = (line.strip() for line in value.splitlines())
        # The first and the last line of a key in PEM are the same for everybody.
        yield from (line for line in lines if len(line) >= _LINE_MIN and not line.startswith("-----"))
    last = max(0, len(value) - _PIECE_MAX)
    for start in (*range(0, last, _PIECE_MAX), last):
        piece = value[start : start + _PIECE_MAX]
        if len(piece) >= LENGTH_MIN:
            yield piece


def _forms(value: str) -> Iterator[_Form]:
    """The value itself, `a+b` for `a b`, its hex, and its base64 wherever it stands in a longer text."""
    raw = value.encode("utf-8", "replace")
    for text in (raw, quote_plus(raw).encode(), raw.hex().encode(), raw.hex().upper().encode()):
        yield _Form(text)
    for core in scout.cores(raw):
        yield _Form(core.digits, shares_before=bool(core.before), shares_after=bool(core.after))
