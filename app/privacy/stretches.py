r"""Chooses the stretches of a text that must be decoded (app.privacy.decode) before the rules see all that is in them.

Decoding costs a hundred times what searching for literals does. So it is done only around what may be part of a
secret that is encoded:

    "token\": \"…          a rule's head with an escape in or behind it
    ghp_…⏎12: …            a rule's head with a line end behind it
    \nghp_…                a rule's head just behind an escape that ends in a letter
    %67%68%70_  ghp⏎_…     a rule's head that is broken itself
    cGFzc3dvcmQ9…          a rule's head in base64
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from app.privacy.decode import LINE_MARK, OCTAL, View, layers
from app.privacy.literals import Literal, Search
from app.privacy.scout import GAP, LINE_END, Hits, Kind, Scout


@dataclass(slots=True)
class Stretch:
    start: int
    end: int
    over_lines: bool = False
    """Line ends are to be taken out."""
    packed: bool = False
    """Base64 is to be unpacked."""

    def is_within(self, other: Stretch) -> bool:
        return (
            other.start <= self.start
            and self.end <= other.end
            and self.over_lines <= other.over_lines
            and self.packed <= other.packed
        )


_UNDONE = rb"(?:\\[uxbfnrt\"'`/\\01e]|%[0-9A-Fa-f]{2}|\x1b)"
_LETTER = rb"[A-Za-z0-9+/=_.~-]"
"""What a word consists of that may go on over a line end (app.privacy.decode.joined)."""
_SEAM = rb"\\?[ \t]*\r?\n(?:[ \t]*" + LINE_MARK + rb")?[ \t]*" + _LETTER


@cache
def _rest_of_word(ends_at: bytes) -> re.Pattern[bytes]:
    """The rest of a word, and what it may go on behind."""
    return re.compile(
        rb"[^\s\"'`\\%%\x1b<>%b]*+(?:(?P<escape>%b)|(?P<seam>(?<=[A-Za-z0-9+/=_.~-])%b))?"
        % (re.escape(ends_at), _UNDONE, _SEAM)
    )


# Of what is known by its place, only a rest that looks random belongs to it (app.privacy.rule.end_over_cuts).
_RANDOM = rb"(?=[A-Za-z0-9+/_.~-]{7})(?=[A-Za-z+/_.~-]{0,200}[0-9])"
_ON_LINE, _VALUE_ON_LINE = (
    re.compile(
        rb"[^\r\n\\%\x1b]{0,200}+(?:(?P<escape>"
        + _UNDONE
        + rb")|(?P<seam>(?<=[A-Za-z0-9+/=_.~ \t-])"
        + _SEAM
        + rest
        + rb"))?"
    )
    for rest in (b"", _RANDOM)
)
_IS_ESCAPE = re.compile(OCTAL + rb"|\\e\[|\x1b|\\u00[0-9a-fA-F]{2}|\\x[0-9a-fA-F]{2}|\\/|%[0-9a-fA-F]{2}")
_NAME_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
_NAME_MAX = 64
_HEAD_MAX = 200
_LETTER_ESCAPE = re.compile(rb"\\[bfnrt]")
_ESCAPE_LETTERS = frozenset((b"b", b"f", b"n", b"r", b"t", b"0", b"1"))
_COLOUR_BEFORE = re.compile(rb"\\(?:e|033|x1b|u001b)\[[0-9;:?]*[ -/]*[@-~][A-Za-z0-9_.-]*$", re.IGNORECASE)
_BASE64_BEFORE = re.compile(rb"[A-Za-z0-9+/_-]*$")
_BASE64_AFTER = re.compile(rb"[A-Za-z0-9+/_-]*")
_IS_SEAM = re.compile(_SEAM)
_RUN_MIN, _RUN_MAX = 20, 8192
_BEFORE, _AFTER = 512, 512
_KNOWN_MAX = 1024
"""A piece of a known value (app.privacy.known_secrets), with escapes in it."""
_ESCAPE_BEFORE, _ESCAPE_AFTER = 64, 96


def stretches(data: bytes, hits: Hits, scout: Scout) -> list[Stretch]:
    """Stretches to decode, in order and apart from each other. `hits`: what the scout has seen in the text."""
    return _merged(
        [*_around_heads(data, hits, scout), *_around_escapes(data, hits, scout), *_around_broken(data, scout)]
    )


def _merged(found: list[Stretch]) -> list[Stretch]:
    made: list[Stretch] = []
    for one in sorted(found, key=lambda stretch: stretch.start):
        if made and one.start <= made[-1].end:
            last = made[-1]
            last.end = max(last.end, one.end)
            last.over_lines |= one.over_lines
            last.packed |= one.packed
        else:
            made.append(one)
    return made


def _stretch(data: bytes, start: int, end: int, *, over_lines: bool = False, packed: bool = False) -> Stretch:
    begin = max(0, start - _BEFORE)
    # From the start of a line, where that is near: what stands there may be a line's number.
    line = data.rfind(b"\n", max(0, begin - _BEFORE), begin) + 1
    return Stretch(line or begin, min(len(data), end + _AFTER), over_lines, packed)


class _Words:
    """One look at a word serves all heads in it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._seen: dict[bytes, re.Match[bytes]] = {}

    def rest(self, start: int, ends_at: bytes) -> re.Match[bytes]:
        seen = self._seen.get(ends_at)
        if seen is None or start > seen.end():
            # It may be empty, but it is always one.
            seen = self._seen[ends_at] = _rest_of_word(ends_at).match(self._data, start, start + _RUN_MAX)  # type: ignore[assignment]
        return seen  # type: ignore[return-value]


def _around_heads(data: bytes, hits: Hits, scout: Scout) -> Iterator[Stretch]:
    words = _Words(data)
    for end, number in hits:
        meaning = scout.meanings[number]
        start = end - meaning.length
        if meaning.kind is Kind.PACKED:
            if (packed := _base64_run(data, start, end)) is not None:
                yield _stretch(data, *packed, over_lines=True, packed=True)
        elif meaning.kind is Kind.TRACE:
            yield _stretch(data, end - _KNOWN_MAX, end + _KNOWN_MAX, over_lines=True)
        elif meaning.kind is Kind.HEAD:
            if not meaning.is_one_word:
                rest = (_ON_LINE if meaning.may_be_broken else _VALUE_ON_LINE).match(data, end)
            else:
                rest = words.rest(end, meaning.ends_at)
            if rest and (rest["escape"] or rest["seam"]):
                yield _stretch(data, start, rest.end(), over_lines=True)
            elif meaning.reach:
                yield _stretch(data, start, end + meaning.reach, over_lines=True)
            elif _is_behind_escape(data, start) or (not meaning.length and _has_letter_escape(data, end)):
                yield _stretch(data, start, end)


def _is_behind_escape(data: bytes, start: int) -> bool:
    r"""Whether the word that goes on at `start` begins with the end of a `\n` or `\e[33m`, which is none of it."""
    before = data[max(0, start - _NAME_MAX) : start]
    if b"\\" not in before:
        return False
    escape = before[len(before.rstrip(_NAME_BYTES)) - 1 :][:2]
    if escape[:1] == b"\\" and escape[1:] in _ESCAPE_LETTERS:
        return True
    return _COLOUR_BEFORE.search(before) is not None


def _has_letter_escape(data: bytes, end: int) -> bool:
    """The same for a head of which only the end is known."""
    return _LETTER_ESCAPE.search(data, max(0, end - _HEAD_MAX), end) is not None


def _base64_run(data: bytes, start: int, end: int) -> tuple[int, int] | None:
    begin = _BASE64_BEFORE.search(data, max(0, start - _RUN_MIN), start).start()  # type: ignore[union-attr]
    upto = _BASE64_AFTER.match(data, end, end + _RUN_MAX).end()  # type: ignore[union-attr]
    is_short = upto - begin < _RUN_MIN and not _IS_SEAM.match(data, upto)
    return None if is_short else (begin, upto)


def _around_escapes(data: bytes, hits: Hits, scout: Scout) -> Iterator[Stretch]:
    """Where undoing an escape makes a head."""
    for window in _merged(list(_escapes(data, hits, scout))):
        part = View(data[window.start : window.end])
        for view in layers(part)[1:]:
            for end, number in scout.look(view):
                meaning = scout.meanings[number]
                if meaning.kind is not Kind.ESCAPE:
                    start, upto = view.source(end - meaning.length, end)
                    yield _stretch(
                        data,
                        window.start + start - (_KNOWN_MAX if meaning.kind is Kind.TRACE else 0),
                        window.start + upto + _RUN_MAX // 8,
                        over_lines=True,
                        packed=meaning.kind is Kind.PACKED,
                    )


def _escapes(data: bytes, hits: Hits, scout: Scout) -> Iterator[Stretch]:
    for end, number in hits:
        meaning = scout.meanings[number]
        if meaning.kind is Kind.ESCAPE and _IS_ESCAPE.match(data, end - meaning.length):
            yield Stretch(max(0, end - _ESCAPE_BEFORE), min(len(data), end + _ESCAPE_AFTER))


_REST_MIN = 12
"""So many letters of a broken key, at least, are on the line after its head."""
_BROKEN = Search([Literal(b"%b%b%b%b{%d}" % (_LETTER, LINE_END, GAP, _LETTER, _REST_MIN), is_pattern=True)])
_GAP_AFTER = re.compile(GAP)
_LINE_FEED = ord("\n")
_GAP_MAX = 200
_GLUED = 24
"""So much of either line is looked at: no head is longer."""


def _around_broken(data: bytes, scout: Scout) -> Iterator[Stretch]:
    """Where a head goes over a line end: what stands on either side of it is put together, and looked through."""
    glued: list[bytes] = []
    starts: list[int] = []
    cuts: list[tuple[int, int]] = []
    """Where in what was glued the line end was, and where in the text."""
    length = 0
    for end, _ in _BROKEN.find(data):
        line = end - _REST_MIN - 1
        if data[line] != _LINE_FEED:
            low = max(0, line - _GAP_MAX)
            line = max(data.rfind(b"\n", low, line + 1), data.rfind(b"\\n", low, line + 1) + 1)
        if line <= 0:
            continue
        before = _before(data, line)
        for after in _afters(data[line + 1 : end + _GLUED]):
            starts.append(length)
            cuts.append((length + len(before), line))
            piece = b"%b%b\n" % (before, after)
            glued.append(piece)
            length += len(piece)
    for end, number in scout.look(View(b"".join(glued), has_seams=True)):
        cut, line = cuts[bisect_right(starts, end - 1) - 1]
        meaning = scout.meanings[number]
        if end - meaning.length < cut < end and meaning.may_be_broken:
            yield _stretch(data, line, line + _GLUED, over_lines=True, packed=meaning.kind is Kind.PACKED)


def _before(data: bytes, line: int) -> bytes:
    before = data[max(0, line - _GLUED) : line]
    if data[line - 1] in b" \t\r\\":
        before = data[max(0, line - _GAP_MAX) : line].rstrip(b" \t\r\\")
        if before.endswith(b"\\r"):
            before = before[:-2].rstrip(b"\\")
    return before[-_GLUED:]


def _afters(line: bytes) -> tuple[bytes, ...]:
    """What may go on there: a mark is one only if the line before has one of its kind."""
    plain = line if line[0] not in b" \t" else line.lstrip(b" \t")
    if plain[0] not in b"0123456789L+-\\":
        return (plain,)
    return plain, line[_GAP_AFTER.match(line).end() :]  # type: ignore[union-attr]  # it may be empty
