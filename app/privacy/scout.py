"""Finds where in a text a secret may begin: each rule's first letters, and the same in base64; known values; escapes.

One search (app.privacy.literals) finds them all. What it finds is no secret yet: the rules look there
(app.privacy.rules), and around some of it the text must be decoded first (app.privacy.stretches).
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from functools import cache, lru_cache
from typing import NamedTuple

from app.privacy.decode import LINE_MARK, OCTAL, View
from app.privacy.literals import Literal, Search
from app.privacy.named_values import HEADS, may_be_named
from app.privacy.rules import Heads, rules


class Kind(Enum):
    HEAD = auto()
    """The first letters of what a rule looks for."""
    TRACE = auto()
    """A piece of a known value."""
    PACKED = auto()
    """Either, in base64."""
    ESCAPE = auto()
    """What may stand inside of them, or make them. A quote or a line end may not."""


class Core(NamedTuple):
    """What a word becomes in base64: the letters that are certain, and those that may stand before and after them."""

    digits: bytes
    before: bytes
    """None of them where any letter may."""
    after: bytes


_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def cores(word: bytes) -> Iterator[Core]:
    """Three, as a word begins at one of three places in a group of four letters; more where it has `+` or `/`."""
    for shift in range(3):
        encoded = b64encode(bytes(shift) + word).rstrip(b"=")
        start, end = (shift * 8 + 5) // 6, (shift + len(word)) * 8 // 6
        before = _letters(encoded[start - 1], unknown=range(0, 64, 64 >> shift * 2)) if shift else b""
        free_bits = 6 - (shift + len(word)) * 8 % 6
        after = _letters(encoded[end], unknown=range(1 << free_bits)) if end < len(encoded) else b""
        digits = encoded[start:end]
        for written in {digits, digits.translate(_URL_SAFE)}:
            yield Core(written, before, after)


@cache
def _letters(digit: int, unknown: range) -> bytes:
    known = _DIGITS.index(digit)
    letters = bytes(_DIGITS[known | bits] for bits in unknown)
    return letters + letters.translate(_URL_SAFE)


class Meaning(NamedTuple):
    kind: Kind
    length: int
    rules: tuple[int, ...] = ()
    """Numbers in `rules`."""
    cores: tuple[Core, ...] = ()
    of_known: bool = False
    may_be_broken: bool = False
    """It is looked for over line ends, too."""
    is_bounded: bool = False
    is_one_word: bool = False
    ends_at: bytes = b""
    reach: int = 0
    least: int = 0
    """As its rules say."""
    of_name: bytes = b""
    """One of the heads of names, which means nothing unless a value may follow."""


Hits = Sequence[tuple[int, int]]
"""Where a literal ends, and its number."""

_ESCAPES = (b"\x1b", b"\\u00", b"\\x", b"\\/", b"%", b"\\e[", b"\\0", b"\\1")
_ESCAPES_IN_BASE64 = tuple(map(Literal, (b"\\u00", b"\x1b[0", b"\x1b[1", b"\x1b[3", b"\x1b[9")))
"""Those that are long enough to be told from chance. Base64 that holds one is unpacked, whatever else is in it."""
_IN_URL = Literal(b"%3a%2f%2f", any_case=True)
"""`://`"""
_TRACE_MAX, _TRACE_MIN, _TRACE_OF_SIGNS = 12, 3, 4
_HALF_MIN = 4
"""Of fewer letters half of them stand in too many words."""
_LETTERS = re.compile(rb"[A-Za-z0-9]+")
_UNESCAPED = re.compile(rb"[^\x00-\x20\"'`\\/%]+")
"""What JSON leaves as it is, but for letters beyond ASCII."""


LINE_END = rb"(?:\\?[ \t]*\r?\n|(?:\\{1,4}r)?\\{1,4}n)"
GAP = rb"(?:[ \t]*(?:" + LINE_MARK + rb"|[0-9]{1,7}\\{1,4}t))?(?:[ \t]|\\{1,4}t)*"


class Scout:
    """Which literals there are, and what each of them means."""

    def __init__(self, heads: dict[Literal, list[int]], traces: Iterable[bytes]) -> None:
        table = {head: _of_rules(head, rules) for head, rules in heads.items()}
        known = [word for trace in traces for word in (trace, trace.hex().encode(), trace.hex().upper().encode())]
        for word in known:
            table[Literal(word)] = Meaning(Kind.TRACE, len(word), of_known=True, may_be_broken=True)
        for literal in (*heads, *map(Literal, traces)):
            if not literal.is_pattern and not literal.word.isascii():
                escaped = json.dumps(literal.word.decode("utf-8", "ignore"))[1:-1].encode()
                table[Literal(escaped, any_case=True)] = Meaning(Kind.TRACE, len(escaped))
        for escape in _ESCAPES:
            table[Literal(escape)] = Meaning(Kind.ESCAPE, len(escape))
        table |= _packed([*_ESCAPES_IN_BASE64, *heads, *([_IN_URL] if heads else [])], traces)
        known_last = sorted(table, key=lambda literal: table[literal].of_known)
        self.meanings = tuple(table[literal] for literal in known_last)
        self._conditions = [(one.length, one.is_bounded, one.least, one.of_name, one.cores) for one in self.meanings]
        self._search = Search(
            [literal for literal in known_last if not table[literal].of_known],
            [literal.word for literal in known_last if table[literal].of_known],
        )

    def look(self, view: View) -> Hits:
        """Hits without those that what stands around them makes meaningless; that is most of them."""
        data, has_seams = view.data, view.has_seams
        kept: list[tuple[int, int]] = []
        for hit in self._search.find(data):
            end, number = hit
            length, is_bounded, least, of_name, cores = self._conditions[number]
            start = end - length
            if is_bounded and not has_seams and start and data[start - 1] in _ALNUM and _is_glued(data, start):
                continue
            if least and not _goes_on(data, end, least):
                continue
            if of_name and not may_be_named(of_name, data, start, end):
                continue
            if cores and not _fits(data, start, end, cores):
                continue
            kept.append(hit)
        return kept

    def heads_among(self, hits: Hits) -> Heads:
        """Where the heads of each rule begin."""
        found: dict[int, list[int]] = {}
        for end, number in hits:
            meaning = self.meanings[number]
            for rule in meaning.rules:
                found.setdefault(rule, []).append(end - meaning.length)
        # Heads of one rule differ in length.
        for starts in found.values():
            starts.sort()
        return found

    def sees_known(self, hits: Hits) -> bool:
        return any(self.meanings[number].of_known for _, number in hits)


_AFTER_ESCAPE = re.compile(
    rb"(?:\\[bfnrt]|\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|%[0-9A-Fa-f]{2}|"
    + OCTAL
    + rb"|(?:\x1b|\\(?:e|033|x1b|u001b))\[[0-9;:?]*[ -/]*[@-~])$",
    re.IGNORECASE,
)
_ESCAPE_MAX = 16
_ALNUM = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_PLAIN = frozenset(b" ghijklmnopqrstvwxyzGHIJKLMNOPQRSTUVWXYZ_.(")
"""None of them is the last but one byte of an escape that ends in a letter."""
_RUN = re.compile(rb"[^\s\"'`\\%\x1b<>(),;{}\[\]]*+")
_RUN_GOES_ON = re.compile(rb"%[0-9A-Fa-f]{2}|\x1b|\\+(?:[ux/01e]|\Z)|\s*\Z")
_NEXT_LINE = re.compile(LINE_END + GAP)
"""What may stand between two lines of a word, in a JSON string as well."""
_LONG_RUN = 16


def _is_glued(data: bytes, start: int) -> bool:
    """Whether the letter or digit that stands just before is not of an escape."""
    if data[start - 2] in _PLAIN:
        return True
    return not _AFTER_ESCAPE.search(data, max(0, start - _ESCAPE_MAX), start)


def _fits(data: bytes, start: int, end: int, cores: Sequence[Core]) -> bool:
    before, after = data[start - 1 : start], data[end : end + 1]
    for core in cores:
        if (not core.before or (before and before in core.before)) and (
            not core.after or (after and after in core.after)
        ):
            return True
    return False


def _goes_on(data: bytes, end: int, least: int) -> bool:
    """Whether the word is long enough; or it is cut off, or goes on after an escape or on the next line."""
    upto = _run_end(data, end, end + least)
    if upto - end >= least or _RUN_GOES_ON.match(data, upto) or _IS_CUT.search(data, end, upto):
        return True
    line = _NEXT_LINE.match(data, upto)
    if line is None:
        return False
    rest = _run_end(data, line.end(), line.end() + least) - line.end()
    return upto - end + rest >= least or (rest >= _LONG_RUN and _NEXT_LINE.match(data, line.end() + rest) is not None)


def _run_end(data: bytes, start: int, upto: int) -> int:
    return _RUN.match(data, start, upto).end()  # type: ignore[union-attr]  # it may be empty


_IS_CUT = re.compile(rb"\.\.\.|\xe2\x80\xa6")


def _of_rules(head: Literal, numbers: Sequence[int]) -> Meaning:
    those = [rules()[number] for number in numbers]
    return Meaning(
        Kind.HEAD,
        0 if head.is_pattern else len(head.word),
        tuple(numbers),
        may_be_broken=any(rule.is_key for rule in those),
        is_bounded=all(rule.is_bounded and not rule.window for rule in those),
        is_one_word=all(rule.is_one_word for rule in those),
        ends_at=bytes(sorted(set.intersection(*(set(rule.ends_at) for rule in those)))),
        reach=max(rule.reach for rule in those),
        least=0 if head.is_pattern else min(rule.least for rule in those),
        of_name=head.word if head.any_case and head.word in HEADS else b"",
    )


def _packed(heads: Iterable[Literal], traces: Iterable[bytes]) -> dict[Literal, Meaning]:
    words = [(word, False) for head in heads if not head.is_pattern for word in _cases(head)] + [
        (trace, True) for trace in traces
    ]
    by_digits: dict[bytes, set[Core]] = defaultdict(set)
    known: set[bytes] = set()
    for word, of_known in words:
        for core in cores(word):
            by_digits[core.digits].add(core)
            known |= {core.digits} if of_known else set()
    return {
        Literal(digits): Meaning(
            Kind.PACKED, len(digits), cores=tuple(some), of_known=digits in known, may_be_broken=True
        )
        for digits, some in by_digits.items()
    }


def _cases(literal: Literal) -> set[bytes]:
    word = literal.word
    return {word, word.upper(), word.capitalize()} if literal.any_case else {word}


@lru_cache(maxsize=8)
def scout(traces: frozenset[bytes], *, secrets: bool) -> Scout:
    """The same for the same: making one takes as long as reading ten megabytes."""
    heads: dict[Literal, list[int]] = defaultdict(list)
    for number, rule in enumerate(rules() if secrets else ()):
        for head in rule.heads:
            heads[head].append(number)
    return Scout(heads, sorted(traces))


def traces_of(piece: bytes) -> tuple[bytes, ...]:
    """What no form of a known value is without, where it is whole: letters stand as they are in JSON and URLs.

    Two of them, where it has so many letters: a line end or a colour that breaks one leaves the other.
    """
    runs = sorted(_LETTERS.findall(piece), key=len, reverse=True)
    if not runs or len(runs[0]) < _TRACE_MIN:
        plain = max(_UNESCAPED.findall(piece), key=len, default=b"")
        return ((plain if len(plain) >= _TRACE_MIN else piece)[:_TRACE_OF_SIGNS],)
    longest = runs[0]
    if len(longest) >= 2 * _HALF_MIN:
        half = min(_TRACE_MAX, len(longest) // 2)
        return longest[:half], longest[-half:]
    return tuple(run[:_TRACE_MAX] for run in runs[:2] if len(run) >= _TRACE_MIN)
