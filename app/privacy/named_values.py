r"""Finds secrets known by their name: `password=…`, `"apiKey": "…"`, `--token …`, `<password>…</password>`.

    export DB_PASSWORD=…                  redacted: a word after an environment variable's `=`
    "token": "…"                          redacted: whatever stands in the quotes
    {"name": "DB_PASSWORD", "value": …}   redacted: a name in one field, its value in another
    password: |  and the lines below      redacted: a value on the next line
    "passwords": ["…", "…"]               redacted: a list
    password = get_password()             left: code
    token: string                         left: a type
    max_tokens: 8192                      left: `tokens` is no such name

One search (app.privacy.scout) finds the words of names. What stands around one must be a name of a secret
(app.privacy.secret_names) with what may give it a value behind it. Which shape it is, and whether a secret stands there
(app.privacy.secret_values), is decided by a look at so many bytes around it at most; what a value holds is not looked
at again. So the time grows with the text and no faster.
"""

from __future__ import annotations

import re
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from operator import itemgetter

from app.privacy.assigned_value import Name, Span, Value, read, secret_in
from app.privacy.passwords_in_commands import BEGINNINGS, begins_command, passwords_after
from app.privacy.secret_names import NAME, OPTION, WEAK_NAME, Kind, kind_of
from app.privacy.secret_values import is_random
from app.privacy.structured_values import (
    NEXT_LINE,
    OPENER,
    beside,
    in_cookies,
    in_element,
    in_list,
    in_object,
    on_next_lines,
)

_FULL_WIDTH = rb"\xef\xbc[\x9a\x9d]"
"""The colon and the equals sign of East Asian text."""
_CLOSER = rb"[\\\"'`\]!?]*[ \t]*"
# What may be a value: a quote, a list, the end of the line, `name =` after a type, or a word that does not go on as
# code does: `token: string,` and `token = get(` are no candidates.
_VALUE = (
    rb"[\\\"'`\[{|>\r\n]|[a-z_$.]*[^a-z_$.,;()\[\]<>{} \t]|[a-z_$.]+\Z|[a-z_$.]+[ \t]+[^a-z_$.,;()\[\]<>{} \t]"
    rb"|[a-z_][a-z0-9_.<>\[\]| ?]*=[ \t]*[bfru@$]?[\"'`]"
)
_SIGN_AND_VALUE = rb"(?:=[^ \t>]|(?:=>?|:=?|" + _FULL_WIDTH + rb")[ \t]*(?:" + _VALUE + rb"))"
SEARCH = b"|".join(
    (
        NAME + _CLOSER + _SIGN_AND_VALUE,
        NAME + rb"(?:\\*[\"'][,>/ \t}\r\n]|[\r\n]|[ \t]+'|\('|</(?:key|name)>)",
        rb"(?:" + WEAK_NAME + rb")[\"']?[ \t]*[:=][ \t]*[\"'`]?[a-z_+/=.-]*[0-9]",
        rb"auth\\*[\"']?[ \t]*[:=][ \t]*\\*[\"']?[a-z0-9+/]{8}|key=[\"']?[a-z0-9+/=_-]{16}",
        rb"(?:authorization|cookies?)(?:\\*[\"'](?:[,>/ \t}\r\n]|:[ \t]*\[)|[\r\n]|</(?:key|name)>)",
        OPTION + rb"[ \t]",
        rb"</[a-z0-9:._-]*(?:pass|pwd|secret|token|cred|key)",
        BEGINNINGS,
    )
)
"""Where a secret may stand under a name, in any case of its letters: what matches is no secret yet."""
_CANDIDATE = re.compile(SEARCH)
"""In lower case, in which the search takes half as long."""
_CANDIDATE_MAX = 400

_KEY, _AUTH, _PATS = b"key", b"auth", (b"_pat", b"-pat")
_COMMANDS = (b"curl", b"mysql", b"mariadb", b"sshpass", b"mongo", b"redis-cli", b"login", b"machine", b"identified")
HEADS = (
    *(b"pass", b"pwd", b"pw", b"secret", b"token", b"cred", b"dsn", _KEY, _AUTH, *_PATS),
    *(b"connections", b"connection_s", b"connection-s", b"contrase", b"senha", b"motdepasse", b"wachtwoord", b"cookie"),
    *_COMMANDS,
)
"""Each candidate has one of these in it, in upper or lower case,"""
EXACT_HEADS = tuple(word.encode() for word in ("пароль", "密码", "密碼", "口令", "パスワード", "비밀번호"))
"""one of these as it stands,"""
PORT = rb":(?:[0-9]{4,5}|\*):[^\s:]"
"""or this just before where it is looked for."""
_WORDS_BEFORE = {
    b"k": re.compile(
        rb"(?:api|access|secret|private|account|auth|signing|encryption|master|shared|license)"
        rb"[ _.-]?(?:access[ _.-]?)?$"
    ),
    b"l": re.compile(rb"(?:default|docker|podman)[ \t]+$"),
}
"""What may belong to the head, by its first letter: `api_` before `key`, `docker ` before `login`."""
_OPTION_BYTES = b"abcdefghijklmnopqrstuvwxyz0123456789-"
_TAG_BYTES = _OPTION_BYTES + b":._"
_PORT_BEFORE = re.compile(PORT + rb"$")
_HEAD = re.compile(b"|".join(rb"(?=%b)" % word for word in (*HEADS, *EXACT_HEADS)), re.IGNORECASE)
_PORT = re.compile(PORT[:-6] + rb"(?=[^\s:])")

# What follows a head where a value may stand. An escape, or a line end inside of a value, may stand for anything.
_REST_OF_NAME = rb"(?:w(?:or)?[dt]|phrase|code|ential|tring|(?:\xc3[\xb1\x91]|n)a)?s?(?:[0-9_.-][a-z0-9_.-]{0,100}+)?"
_ASSIGNED = (
    rb"(?:[\\%\x1b\r\n]|[\"'`\]!?]*+[ \t]*+(?:[:=>\\%\x1b]|\xef\xbc|\Z)|[\"'][,>/ \t}\r\n]|\(['\\%\x1b]|[ \t]+'|</)"
)
_REST_OF_WEAK = rb"(?:[_-][a-z0-9_-]{0,100}+)?"
_WITH_DIGIT = rb"[\"']?[ \t]*+(?:[\\%\x1b]|[:=][ \t]*+[\"'`]?[a-z_+/=.-]{0,200}+[0-9\\%\x1b\r\n])"
_AFTER_NAME, _AFTER_KEY, _AFTER_AUTH, _AFTER_PAT, _AFTER_COMMAND, _AFTER_OPTION = (
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        _REST_OF_NAME + _ASSIGNED,
        _REST_OF_WEAK + _WITH_DIGIT + rb"|=[\"']?[a-z0-9+/=_-]{16}|_?base",
        _REST_OF_WEAK + _WITH_DIGIT + rb"|[\"']?[ \t]*[:=][ \t]*[\"']?[a-z0-9+/]{8}|orization" + _ASSIGNED,
        _WITH_DIGIT,
        rb"[a-z-]{0,100}+(?:[ \t\"'\\%\x1b]|\Z)",
        rb"[a-z0-9-]{0,100}+[ \t\\%\x1b]",
    )
)
_AFTER = {
    **dict.fromkeys(HEADS, _AFTER_NAME),
    **dict.fromkeys(_PATS, _AFTER_PAT),
    **dict.fromkeys(_COMMANDS, _AFTER_COMMAND),
    _KEY: _AFTER_KEY,
    _AUTH: _AFTER_AUTH,
}


def may_be_named(head: bytes, data: bytes, start: int, end: int) -> bool:
    """Whether a value may be named by the head that stands there. Most stand in another word, or nothing follows."""
    if _AFTER[head].match(data, end):
        return True
    before = data[max(0, start - _NAME_LOOKBACK) : start].lower()
    if head == _KEY and _AFTER_NAME.match(data, end) and _WORDS_BEFORE[b"k"].search(before):
        return True
    is_option = b"-" in before and before.find(b"-", len(before.rstrip(_OPTION_BYTES))) >= 0
    if is_option and _AFTER_OPTION.match(data, end):
        return True
    return b"</" in before and before.rstrip(_TAG_BYTES).endswith(b"</")


_NAME_RUN = re.compile(
    rb"(?:[a-z]+ (?=key)|:(?=_auth))?(?:[a-z0-9_.-]|\xc3[\xb1\x91]|[\xd0-\xed][\x80-\xbf]{1,2})*", re.IGNORECASE
)
_NAME_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
_FIELD_SIGN = re.compile(rb"[:=]|" + _FULL_WIDTH)
_IS_PORT = re.compile(rb":[0-9*]")

# After `:` may stand a type, but only before a quoted value: `password: str = "…"`. Else base64's own `=` would end it.
_SIGNED = re.compile(
    rb"(?P<closed>\\{0,8}[\"'`]?\]?)(?:"
    rb"[!?]?:[ \t]*[a-z_][a-z0-9_.<>\[\]| ?]{0,60}=[ \t]*[bfru@$]{0,2}(?P<typed>\\{0,8}[\"'`])"
    rb"|[ \t]*(?P<sign>:=|=>|=|:|" + _FULL_WIDTH + rb")[ \t]*" + OPENER + rb")",
    re.IGNORECASE,
)
_OPTION_GAP = re.compile(
    rb"(?:[ \t]+(?!-)" + OPENER + rb"|\\{0,8}[\"'][ \t]*,[ \t\r\n]*(?P<element>\\{0,8}[\"'])(?!-))"
)
_COMMA = re.compile(rb"\\{0,8}[\"'`],[ \t]*(?P<quote>\\{0,8}[\"'`])")
_SQL = re.compile(rb"(?:(?<![sS])[ \t]+|(?<=PASSWORD)\()(?P<quote>')")
_PLURAL_LIST = re.compile(rb"\\{0,8}[\"'`]?[ \t]*[:=][ \t]*\[")
_NAME_LOOKBACK = 64


def named_values(data: bytes, heads: Iterable[int] | None = None) -> Iterator[Span]:
    """The ranges of the values that stand under a secret's name.

    `heads`: where each of HEADS begins, in order; None to look for them, in a short text.
    """
    found, upto = _Found(), 0
    looked: dict[bytes, int] = {}
    for head in _heads(data) if heads is None else heads:
        if head < upto or (candidate := _candidate(data, head)) is None:
            continue
        begin, upto = candidate
        if found.holds(begin, upto):
            continue
        if data[upto - 1] in b"\r\n" and not _FIELD_SIGN.search(data, max(0, begin - _NAME_LOOKBACK), upto):
            continue
        for span in _secrets(data, begin, upto, looked):
            yield span
            found.add(span)


class _Found:
    """The values found so far. What one holds is not looked at again; what stands before it is."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._end = 0

    def holds(self, start: int, end: int) -> bool:
        if self._end < end:
            return False
        at = bisect_right(self._spans, start, key=itemgetter(0)) - 1
        return at >= 0 and end <= self._spans[at][1]

    def add(self, span: Span) -> None:
        if not self.holds(*span):
            insort(self._spans, span)
            self._end = max(self._end, span[1])


def _heads(data: bytes) -> list[int]:
    found = {head.start() for head in _HEAD.finditer(data)} | {port.end() + 1 for port in _PORT.finditer(data)}
    return sorted(found)


def _candidate(data: bytes, head: int) -> Span | None:
    start = max(0, head - _NAME_LOOKBACK)
    around = data[start : head + _CANDIDATE_MAX].lower()
    for begin in _beginnings(around, head - start):
        if found := _CANDIDATE.match(around, begin):
            return start + begin, start + found.end()
    return None


def _beginnings(around: bytes, head: int) -> list[int]:
    """Where a candidate with this head in it may begin, the first one first."""
    begins, before = [head], around[:head]
    words_before = _WORDS_BEFORE.get(around[head : head + 1])
    if words_before and (of := words_before.search(before)):
        begins.insert(0, of.start())
    if before[-2:-1] == b":" and (port := _PORT_BEFORE.search(before)):
        begins.insert(0, port.start())
    if b"</" in before and (tag := before.rstrip(_TAG_BYTES)).endswith(b"</"):
        begins.insert(0, len(tag) - 2)
    elif (dash := before.find(b"-", len(before.rstrip(_OPTION_BYTES)))) >= 0:
        begins.insert(0, dash)
    return begins


def _secrets(data: bytes, start: int, end: int, looked: dict[bytes, int]) -> Iterable[Span]:
    if data.startswith(b"</", start):
        return in_element(data, start)
    is_command = data[end - 1] in b" \t\"'" and begins_command(data, start)
    if is_command or (data.startswith(b":", start) and _IS_PORT.match(data, start)):
        return passwords_after(data, start, looked)
    name = _name(data, start)
    if name is not None and name.kind is Kind.HEADER:
        return in_cookies(name) or beside(name)
    return () if name is None else _of(name)


def _name(data: bytes, start: int) -> Name | None:
    """The name around a word of one, when it is a secret's."""
    before = data[max(0, start - _NAME_LOOKBACK) : start]
    begin = start - len(before) + len(before.rstrip(_NAME_BYTES))
    end = start + len(read(_NAME_RUN, data, start))
    text = data[begin:end]
    kind = kind_of(text)
    if kind is None and text[-1:] in b"sS" and _PLURAL_LIST.match(data, end):
        kind = kind_of(text[:-1])
    return None if kind is None else Name(data, begin, end, text, kind)


def _of(name: Name) -> Iterable[Span]:
    data = name.data
    if signed := _SIGNED.match(data, name.end):
        closed, typed, sign, quote = signed.group("closed", "typed", "sign", "quote")
        return _assigned(Value(name, signed.end(), typed or quote or b"", sign or b":", bool(closed), name.start))
    if name.text.startswith(b"-") and (gap := _OPTION_GAP.match(data, name.end)):
        return secret_in(
            Value(name, gap.end(), gap["element"] or gap["quote"] or b"", b"", closed=False, field_start=name.start)
        )
    if spans := beside(name):
        return spans
    if (comma := _COMMA.match(data, name.end)) and name.kind is not Kind.CREDENTIALS:
        # An argument is a message more often than a secret.
        value = Value(name, comma.end(), comma["quote"], b",", closed=True, field_start=name.start)
        return (span for span in secret_in(value) if is_random(data[slice(*span)]))
    if name.kind is Kind.PASSWORD and (sql := _SQL.match(data, name.end)):
        return secret_in(Value(name, sql.end(), sql["quote"], b"", closed=False, field_start=name.start))
    return ()


def _assigned(value: Value) -> Iterable[Span]:
    data, at = value.name.data, value.start
    if not value.quote:
        if data[at : at + 1] == b"[" and (items := in_list(value)):
            return items
        if data[at : at + 1] == b"{" and value.closed and (members := in_object(value)):
            return members
        if next_line := NEXT_LINE.match(data, at):
            return on_next_lines(value, next_line)
    return secret_in(value)
