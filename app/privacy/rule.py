"""Rule: the type of one rule, what it finds a secret by, where that ends, how it goes on over a line end.

A rule looks at one view of a text (app.privacy.decode), and there only where one of its heads stands, which one search
has found for all rules (app.privacy.scout). What it reads at a head is bounded, so that the time grows with the text
and no faster.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from app.privacy.decode import View
from app.privacy.literals import Literal


@cache
def simple(pattern: bytes) -> re.Pattern[bytes]:
    """Compiled by Python: a match costs a tenth of one of RE2's, and the pattern leaves nothing to try again."""
    return re.compile(pattern)


Judge = Callable[[View, Any], tuple[int, int] | None]
"""The secret's range where the rule's pattern has matched; None when it is none after all.

The search goes on one byte further, or from the end of an empty range, where none can begin before that.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    pattern: bytes
    judge: Judge
    heads: tuple[Literal, ...]
    """Where a text has none of them, the rule finds nothing."""
    compiled: Callable[[bytes], Any] = simple
    """When it is first needed."""
    is_key: bool = False
    """Known by its own letters, so that it is also found where a line end breaks it."""
    length: int = 0
    """How long such a key is, where all are of one length; else 0."""
    least: int = 0
    """So many letters of one word stand after its head, at least."""
    is_bounded: bool = False
    """The byte before it is no letter and no digit."""
    is_one_word: bool = False
    """No space or quote stands in what the rule finds."""
    ends_at: bytes = b""
    """Signs of which none stands in what the rule finds, where that is one word."""
    before: int = 0
    """So many bytes before its head it begins."""
    reach: int = 0
    """So many bytes after its head are decoded, whatever they are."""
    window: int = 0
    """Or it begins somewhere in so many bytes before its head."""
    has_one_head: bool = False
    """It goes over no other head of its own, so that the window is that between two of them."""


def find(rule: Rule, view: View, heads: Iterable[int], seams: Sequence[int] = ()) -> Iterator[tuple[int, int]]:
    """The ranges that are secret. `heads`: where each of the rule's heads begins in the view, in order.

    `seams`: where line ends were taken out of the view; then only the ranges that cross one.
    """
    at, data, regex = 0, view.data, rule.compiled(rule.pattern)
    for head in heads:
        while True:
            if rule.window:
                found = regex.search(data, max(at, head - rule.window), head + _WINDOW_AFTER)
            else:
                start = head - rule.before
                found = regex.match(data, start, start + _MATCH_MAX) if start >= at else None
            if found is None:
                break
            at = found.start() + 1
            span = rule.judge(view, found)
            if span is None:
                continue
            start, end = span
            if start == end:
                at = end
                continue
            cuts = seams[bisect_right(seams, start) : bisect_left(seams, end)]
            if cuts:
                end = end_over_cuts(rule, data, start, end, cuts)
            # What no line end breaks is found in the view that still has them.
            if not seams or (cuts and end > cuts[0]):
                yield start, end
            at = max(at, end)
        if rule.has_one_head:
            at = max(at, head)


_WINDOW_AFTER = 1024
_MATCH_MAX = 1 << 16


def end_over_cuts(rule: Rule, data: bytes, start: int, end: int, cuts: Sequence[int]) -> int:
    """Where a secret ends that seems to go on over line ends: the next line may be its rest, or another word.

    It is the rest as long as the key is shorter than its kind is, and when it looks random and like nothing else: no
    name before a `=`, no call.
    """
    for cut, upto in zip(cuts, (*cuts[1:], end), strict=False):
        if cut - start < rule.length:
            end = min(end, start + rule.length)
            continue
        word = _WORD.match(data, cut, upto + _FOLLOWING_MAX)[0]  # type: ignore[index]  # it may be empty
        follows = data[cut + len(word) : cut + len(word) + 2].lstrip(b" \t")[:1]
        rest = word[: upto - cut]
        if follows in {b"=", b"(", b":", b"["} or not _is_random(rest, _KEY_REST_MIN if rule.is_key else _REST_MIN):
            return cut
        if cut + len(rest) < upto:
            return cut + len(rest)
    return end


_WORD = simple(rb"[A-Za-z0-9+/_.~-]*={0,2}")
_FOLLOWING_MAX = 200
"""So far behind a secret its word is followed to its end."""
_KEY_REST_MIN, _REST_MIN = 3, 8


def _is_random(word: bytes, length_min: int) -> bool:
    return len(word) >= length_min and any(byte in b"0123456789" for byte in word) and word.upper() != word.lower()
