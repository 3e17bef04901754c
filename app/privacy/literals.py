"""Searches a text for thousands of words at once.

Hyperscan reads the text once, about as fast as memory allows, however many words it looks for. What it finds are
places to look at closely (app.privacy.rules), no secrets yet.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import hyperscan
import re2

_PROGRAM_BYTES_MAX = 1 << 28
"""Room for thousands of words; RE2 takes what it needs."""


def _bytewise() -> re2.Options:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return options


@cache
def linear(pattern: bytes) -> Any:
    """Compiled by RE2, for what Python's own search could take long over."""
    return re2.compile(pattern, _bytewise())


def any_of(words: Iterable[bytes]) -> Any:
    """A search for the first of so many words that stands somewhere; of several there for the first that was given."""
    options = _bytewise()
    options.max_mem = _PROGRAM_BYTES_MAX
    return re2.compile(b"|".join(map(re2.escape, words)), options)


class Literal(NamedTuple):
    word: bytes
    any_case: bool = False
    is_pattern: bool = False
    """A regular expression, which takes a hundred times as long to compile; it is only known where it ends."""


_WORDS_MAX = 5_000


class Search:
    """Compiled when it is first used: not every process has a text to look at."""

    def __init__(self, literals: Sequence[Literal], words: Sequence[bytes] = ()) -> None:
        """`words`, which stand as they are, are numbered after the literals."""
        is_many = len(words) > _WORDS_MAX
        self.literals = (*literals, *(() if is_many else map(Literal, words)))
        self._words = _Words(words, len(literals)) if is_many else None
        self._database: Any = None
        # The scratch memory of a database is one thread's at a time.
        self._lock = threading.Lock()

    def find(self, data: bytes) -> list[tuple[int, int]]:
        """Where a literal ends, and its number; by where they end, overlapping ones included."""
        found: list[tuple[int, int]] = []
        if self.literals and data:
            keep = found.append

            def note(number: int, _start: int, end: int, _flags: int, _context: object) -> None:
                keep((end, number))

            with self._lock:
                if self._database is None:
                    self._database = _compiled(self.literals)
                self._database.scan(data, match_event_handler=note)
        return sorted([*found, *self._words.find(data)]) if self._words else found


_WORD_HEAD = 8


class _Words:
    """For thousands of words: RE2 is ready in a tenth of the time that Hyperscan needs, and reads at half its speed."""

    def __init__(self, words: Sequence[bytes], first: int) -> None:
        numbered = {word: number for number, word in enumerate(words, start=first)}
        beginning: dict[bytes, list[bytes]] = defaultdict(list)
        for word in words:
            beginning[word[:_WORD_HEAD]].append(word)
        # Where one word is the beginning of another both are found.
        sizes = {len(head) for head in beginning}
        self._words = {
            head: [
                (word, numbered[word]) for size in sizes if size <= len(head) for word in beginning.get(head[:size], ())
            ]
            for head in beginning
        }
        self._heads = any_of(sorted(beginning, key=lambda head: (-len(head), head)))  # the longest first

    def find(self, data: bytes) -> Iterator[tuple[int, int]]:
        at = 0
        while (head := self._heads.search(data, at)) is not None:
            at = head.start() + 1
            for word, number in self._words[head.group()]:
                if data.startswith(word, at - 1):
                    yield at - 1 + len(word), number


def _compiled(literals: Sequence[Literal]) -> Any:
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(
        expressions=[literal.word if literal.is_pattern else re.escape(literal.word) for literal in literals],
        ids=list(range(len(literals))),
        elements=len(literals),
        flags=[hyperscan.HS_FLAG_CASELESS if literal.any_case else 0 for literal in literals],
    )
    return database


_HEADS_MAX, _CLASS_MAX = 64, 12


def heads(pattern: bytes, most: int) -> tuple[Literal, ...]:
    """The fixed letters that a pattern begins with: of `(?i)gh[po]_[a-z]+|x-` they are `ghp_`, `gho_` and `x-`.

    No more than so many of them.

    It understands what the rules are written in, and stops before anything else.
    """
    any_case = pattern.startswith(b"(?i)")
    text = pattern.removeprefix(b"(?i)").decode("latin-1")
    words, _ = _alternatives(text)
    short = dict.fromkeys(word[:most].lower() if any_case else word[:most] for word in words)
    return tuple(Literal(word.encode("latin-1"), any_case) for word in short)


def _alternatives(text: str) -> tuple[list[str], bool]:
    """The beginnings of each alternative, and whether these are all of it."""
    words: list[str] = []
    is_whole = True
    for alternative in _split(text):
        found, whole = _sequence(alternative)
        words += found
        is_whole = is_whole and whole
    return words, is_whole


def _split(text: str) -> list[str]:
    parts, depth, at, in_class = [""], 0, 0, False
    while at < len(text):
        step = 2 if text[at] == "\\" else 1
        one = text[at : at + step]
        in_class = one == "[" or (in_class and one != "]")
        depth += 0 if in_class else (one == "(") - (one == ")")
        if one == "|" and depth == 0 and not in_class:
            parts.append("")
        else:
            parts[-1] += one
        at += step
    return parts


def _sequence(text: str) -> tuple[list[str], bool]:
    words = [""]
    while text:
        choices, whole, size = _atom(text)
        after = text[size : size + 1]
        if after == "?":
            choices, size = [*choices, ""], size + 1
        elif after and after in "*+{":
            return words, False
        if not choices or len(words) * len(choices) > _HEADS_MAX:
            return words, False
        words = [word + choice for word in words for choice in choices]
        if not whole:
            return words, False
        text = text[size:]
    return words, True


def _atom(text: str) -> tuple[list[str], bool, int]:
    """What the first atom may be, none where that is too much; whether it ends there; how long it is written."""
    if text[0] == "\\":
        return ([] if text[1].isalnum() else [text[1]]), True, 2
    if text[0] == "[":
        end = text.index("]", 2)
        return _members(text[1:end]), True, end + 1
    if text.startswith("(?:"):
        inner = _group(text)
        words, whole = _alternatives(inner)
        return words, whole, len(inner) + 4
    return ([] if text[0] in ".^$(" else [text[0]]), True, 1


def _group(text: str) -> str:
    depth, at = 0, 0
    while True:
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return text[3:at]
        at += 2 if text[at] == "\\" else 1


def _members(text: str) -> list[str]:
    if text[0] == "^" or "\\" in text:
        return []
    members: list[str] = []
    at = 0
    while at < len(text):
        if text[at + 1 : at + 2] == "-" and at + 2 < len(text):
            members += [chr(code) for code in range(ord(text[at]), ord(text[at + 2]) + 1)]
            at += 3
        else:
            members.append(text[at])
            at += 1
    return members if len(members) <= _CLASS_MAX else []
