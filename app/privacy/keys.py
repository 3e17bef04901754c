"""Rules for keys known by their own letters: those of the vendors' table, and a few that are no vendor's.

A key is a beginning and at least so many letters of a body. Where a text ends, the beginning of a key is one too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from app.privacy.decode import View
from app.privacy.literals import Literal, heads
from app.privacy.rule import Judge, Rule, simple
from app.privacy.vendors import VENDORS, Vendor

CUT_OFF = rb"\s*(?:\Z|\.\.\.|\xe2\x80\xa6)"
"""Where a tool's output was cut short."""
_CUT_MIN, _CUT_LETTERS_MIN, _KEY_MAX = 4, 8, 8192
_HEAD_MIN, _HEAD_LETTERS = 3, 16
_HEAD_MAX, _LONG_HEAD_MAX = 8, 16
"""So many letters are enough, and fewer are seldom broken. A text is decoded far behind a head of several words."""
_SIGNS = b"(){}[],;"
"""Code goes on with them."""
_WINDOW = 300
"""In front of what it is found by a key has no more than so many letters, unless its row says so."""


def _key_rule(row: Vendor) -> Rule:
    beginning = row.beginning.encode()
    is_one_word = simple(rb"\\s|[ \"]|\[\^").search(beginning) is None
    return Rule(
        row.name,
        beginning,
        _judge(row),
        heads((row.mark or row.beginning).encode(), _HEAD_MAX if is_one_word else _LONG_HEAD_MAX),
        is_key=True,
        length=row.length,
        is_bounded=row.is_bounded,
        is_one_word=is_one_word,
        ends_at=_ends_at(row),
        least=row.least if is_one_word and not row.mark else 0,
    )


def _ends_at(row: Vendor) -> bytes:
    fixed = simple(rb"\{[0-9,]+\}").sub(b"", row.beginning.encode())
    in_key = {sign for sign in b"(){}[]" if b"\\%c" % sign in fixed} | {sign for sign in b",;" if sign in fixed}
    return bytes(sign for sign in _SIGNS if sign not in in_key and not simple(row.body.encode()).match(bytes([sign])))


def _judge(row: Vendor) -> Judge:
    body = b"%b{%d,}" % (row.body.encode(), _fewest(row))

    def judge(view: View, found: Any) -> tuple[int, int] | None:
        start, begin = found.span()
        matched = simple(body).match(view.data, begin, begin + _KEY_MAX)
        if matched is None or (row.is_bounded and _is_tail(view, start)):
            return None
        end = matched.end()
        is_one = end - begin <= row.most if row.most else True
        is_whole = end - begin >= row.least
        if not is_whole:
            end = begin + len(matched[0].rstrip(b"."))
        if not is_one or not (is_whole or _is_cut_off(view.data, begin, end)):
            return None
        return (begin if row.keeps_beginning else start), end

    return judge


def _fewest(row: Vendor) -> int:
    """Letters of the body, even where a key is cut off."""
    return min(row.least, _CUT_MIN)


def _is_tail(view: View, start: int) -> bool:
    """Whether it is the tail of a word: `task-…`, `npm_config_…`."""
    return start > 0 and view.data[start - 1 : start].isalnum() and not view.is_seam(start)


def _is_cut_off(data: bytes, start: int, end: int) -> bool:
    """Whether it is the beginning of a key: no word, with which a text may end as well."""
    if simple(CUT_OFF).match(data, end) is None:
        return False
    letters = data[start:end].translate(None, b"-_.")
    return not letters.isalpha() or (len(letters) >= _CUT_LETTERS_MIN and letters.upper() != letters != letters.lower())


def _vendor(row: Vendor) -> Rule:
    """Found by its first letters, or by its mark; where these are too few, with some of the body."""
    rule, window = _key_rule(row), row.before + _WINDOW
    fewest = min(len(head.word) for head in rule.heads)
    if fewest >= _HEAD_MIN and row.mark:
        return replace(rule, window=window, reach=row.before)
    if fewest >= _HEAD_MIN:
        # Most beginnings stand where no body follows; none of them is tried in another way.
        beginning = b"(?i:%b)" % rule.pattern[4:] if rule.pattern.startswith(b"(?i)") else rule.pattern
        return replace(rule, pattern=b"(?>%b)(?=%b{%d})" % (beginning, row.body.encode(), _fewest(row)))
    sight = row.mark or f"(?:{row.beginning}){row.body}{{{min(row.least, _HEAD_LETTERS)}}}"
    return replace(
        rule, heads=(Literal(sight.encode(), is_pattern=True),), window=row.before + _WINDOW, reach=row.before
    )


def _own(name: str, beginning: str, body: str, least: int, *, keeps_beginning: bool = True) -> Vendor:
    return Vendor(name, "", beginning, body, least, is_bounded=not keeps_beginning, keeps_beginning=keeps_beginning)


def _jwt(rule: Rule) -> Rule:
    """Its beginning is as long as it likes; whatever else begins in there ends at the same dot and is no more one."""

    def judge(view: View, found: Any) -> tuple[int, int]:
        return rule.judge(view, found) or (found.end(), found.end())

    return replace(rule, judge=judge, is_bounded=False)


_BASE64 = "[A-Za-z0-9+/=]"
OWN = (
    *map(
        _key_rule,
        (
            _own("aws", "(?i)secret_?access_?key[^a-z0-9/+]{1,20}", "[A-Za-z0-9/+]", 20),
            _own("aws", "(?i)session_?token[^a-z0-9/+]{1,20}", _BASE64, 60),
            # The private keys of Google's service accounts are PEM; their ids go with them.
            _own("gcp", r"private_key_id[\"'\\]*\s*[:=]\s*[\"'\\]*", "[0-9a-f]", 8),
            _own("authorization", "(?i)bearer[ \t]+", "[A-Za-z0-9._~+/=-]", 16, keeps_beginning=False),
        ),
    ),
    _jwt(_key_rule(_own("jwt", r"eyJ[A-Za-z0-9_-]{6,1000}\.", "[A-Za-z0-9_.-]", 4, keeps_beginning=False))),
)


@cache
def keys() -> tuple[Rule, ...]:
    """Made when a text is first looked at: it takes 20 ms, and not every process has one."""
    return (*map(_vendor, VENDORS), *OWN)
