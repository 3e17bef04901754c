r"""Secrets known by their name: `password=…`, `"apiKey": "…"`, `--token …`, `SECRET_KEY = '…'`.

    export DB_PASSWORD=…          redacted: a word after an environment variable's `=`
    "token": "…"                  redacted: whatever stands in the quotes
    password = get_password()     left: code
    token: string                 left: a type
    max_tokens: 8192              left: `tokens` is no such name

A quoted value is taken for a secret unless it is a placeholder. A bare one may be code: `_is_code` weighs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import re2

from app.privacy.decode import LINE_MARKS


def _compiled(pattern: bytes) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.case_sensitive = False
    options.log_errors = False
    return re2.compile(pattern, options)


_PASSWORD = rb"passw(?:or)?d|passphrase|passcode|pwd|[_-]pass"
_KEY_OF = rb"access|secret|private|account|auth|signing|encryption|master|shared|license"
_NAME = (
    rb"(?:" + _PASSWORD + rb"|secret|token|api[ _-]?key|(?:" + _KEY_OF + rb")[ _-]?(?:access[ _-]?)?key"
    rb"|secret_key_base|:_auth)(?:[_-]?[0-9]+)?"
)
WORDS = (b"passw", b"passphrase", b"passcode", b"pwd", b"_pass", b"-pass", b"secret", b"token", b"key", b":_auth")
"""Each name has one of these in it, in upper or lower case."""
_IS_NAMED = _compiled(rb"(?:" + _NAME + rb"|^(?:proxy-)?authorization|^(?:set-)?cookie)$")
_HAS_NAME = _compiled(_NAME)
_IS_PASSWORD = _compiled(rb"^(?:" + _PASSWORD + rb")")
_IS_SHORT = _compiled(rb"^(?:" + _PASSWORD + rb"|secret)")

_OPENER = rb"(?:[bfru@$]{0,2}(\\*[\"'`]))?"
# After `:` may stand a type, but only before a quoted value: `password: str = "…"`. Else base64's own `=` would end it.
ASSIGNMENT = (
    _NAME + rb"(\\*[\"'`]?\]?)(?:"
    rb"[!?]?:[ \t]*[a-z_][a-z0-9_.<>\[\]| ?]{0,60}=[ \t]*[bfru@$]{0,2}(\\*[\"'`])"
    rb"|[ \t]*(:=|=>|=|:)[ \t]*" + _OPENER + rb")"
    rb"|--[a-z0-9-]{0,64}" + _NAME + rb"([ \t]+)" + _OPENER
)
_CLOSED, _TYPED_QUOTE, _SIGN, _QUOTE, _GAP, _OPTION_QUOTE = range(1, 7)

_TO_QUOTE = {
    b'"': _compiled(rb'(?:[^"\\\r\n]|\\[^\r\n])*'),
    b"'": _compiled(rb"(?:[^'\\\r\n]|\\[^\r\n])*"),
    b"`": _compiled(rb"[^`\r\n]*"),
}
_TO_ESCAPED_QUOTE = _compiled(rb"[^\"'`\r\n]*")
_BARE = _compiled(rb"[^\s\"'`\\=:>,;)\]}](?:[^\s\"'`\\]|\\[^\snrt\"'`\\u])*")
_WORD = _compiled(rb"[^,;)\]}&|<>]*")
_HEAD_MAX = 200
"""So much of a bare value decides whether it is code."""
_PIN_MIN, _TOKEN_MIN, _LETTERS_MIN, _OPTION_MIN, _DIGITS_MIN = 4, 8, 16, 5, 3

# What stands before the name on its line where the line is one assignment: `.env`, YAML, ini, Dockerfile, shell.
_LINE_START = _compiled(
    rb"^" + LINE_MARKS + rb"[ \t]*(?:-[ \t]*)?(?:(?:export|set|env|arg|-e|--env|-d|\$env:)[ \t]*)?$"
)
_LINE_LOOKBACK = 200
_NAME_LOOKBACK = 64
_NAME_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
_LEADING_NAME = _compiled(rb"[a-z0-9_-]*")

_PLACEHOLDER = _compiled(
    rb"^(?:<[^<>]*>|(?-i:\[[A-Z_ ]*\])|\{\{?[^{}]*\}?\}|\$\{[^}]*\}?|\$\([^)]*\)?"
    rb"|(?-i:\$[A-Z0-9_]*)|\$[a-z0-9_]*(?:pass|pwd|token|secret|key)[a-z0-9_]*|%[a-z_]*%|(?:%(?:\([a-z_]*\))?[sdr]:?)+"
    rb"|[*.\xe2\x80\xa2\xa6#-]+|x{3,}|your[ _-].*)$"
)
_PLAIN_WORD = _compiled(
    rb"^(?:none|null|nil|undefined|true|false|str|string|bytes|bool|boolean|int|integer|float|double|number|char|any"
    rb"|object|unknown|never|void|self|this|optional|required|text|password|default|empty|yes|no|not|in|is|if|or|and"
    rb"|new|await|async|typeof|lambda|function|return)$"
)
_REFERENCE = _compiled(
    rb"^[*&!]*[a-z_$][a-z0-9_$]*(?:\(|\[|\{|->|::|[?!]?\.[a-z_$]|<[a-z])"
    rb"|^[(\[{]|^[|>][+-]?$|^#[a-z]*$|^[*&!]+[a-z_$]+$|^[a-z_$]{1,2}[+*/-]"
)
_IDENTIFIER = _compiled(rb"^[a-z_$][a-z0-9_$]*$")
_NUMBER = _compiled(rb"^-?[0-9][0-9_.,]*[a-z%]?$")


def is_named(key: str) -> bool:
    """Whether a value under this JSON key is a secret by its name: `apiKey`, `db_password`, `X-Api-Key`, `Cookie`."""
    return _IS_NAMED.search(key.encode("utf-8", "replace")) is not None


def assigned(data: bytes, found: Any) -> tuple[int, int] | None:
    """The secret that a match of ASSIGNMENT assigns; None when it is code, a type or a placeholder."""
    quote = found.group(_TYPED_QUOTE) or found.group(_QUOTE) or found.group(_OPTION_QUOTE)
    start = found.end()
    span = _quoted(data, start, quote, found) if quote else _bare(data, found)
    if span is None or _is_directory(data[found.start() : found.start() + 3], data[span[0] : span[0] + 2]):
        return None
    return span


def _is_directory(name: bytes, value: bytes) -> bool:
    """`PWD=/home/…` in what `env` prints is no password."""
    return name.lower() == b"pwd" and (value[:1] in {b"/", b"~", b"."} or value[1:] == b":")


def _quoted(data: bytes, start: int, quote: bytes, found: Any) -> tuple[int, int] | None:
    measure = _TO_QUOTE[quote] if len(quote) == 1 else _TO_ESCAPED_QUOTE
    value = measure.match(data, start).group().rstrip(b"\\" if len(quote) > 1 else b"")
    # In `input("Password: ")` the quote closes: what follows it is code.
    if not value or value[:1] in b",;)]}: \t" or _PLACEHOLDER.search(value):
        return None
    if found.group(_SIGN) == b":" and not found.group(_CLOSED) and value[:1] in b"+.%<>=\\|&?":
        return None
    return start, start + len(value)


@dataclass(frozen=True, slots=True)
class _Bare:
    """A value without quotes, and where it stands."""

    head: bytes
    word: bytes
    """The head up to the first character that ends an expression."""
    of_password: bool
    may_be_short: bool
    """A password or a secret; a token or key of less than 8 letters is a variable."""
    is_option: bool
    """`--password …`"""
    fills_line: bool
    """The line is this one assignment, as in a file of settings."""


def _bare(data: bytes, found: Any) -> tuple[int, int] | None:
    start = found.end()
    value = _BARE.match(data, start, start + _HEAD_MAX)
    if value is None:
        return None
    head: bytes = value.group()
    word: bytes = _WORD.match(head).group()
    if not word or _PLAIN_WORD.search(word) or _PLACEHOLDER.search(head) or _PLACEHOLDER.search(word):
        return None
    bare = _Bare(
        head=head,
        word=word,
        of_password=_IS_PASSWORD.search(found.group()) is not None,
        may_be_short=_IS_SHORT.search(found.group()) is not None,
        is_option=found.group(_GAP) is not None,
        fills_line=_fills_line(data, found, value.end()),
    )
    if not _is_setting(data, found, bare) and _is_code(data, found, bare):
        return None
    if len(word) < len(head) and not bare.fills_line:
        return start, start + len(word)
    return start, _BARE.match(data, start).end()


def _is_setting(data: bytes, found: Any, bare: _Bare) -> bool:
    """`DB_PASSWORD=…` in a `.env` file or before a command: then anything is meant as it stands."""
    if not _is_tight(data, found):
        return False
    name = _left_of(data, found) + _LEADING_NAME.match(found.group()).group()
    if name == name.upper():
        return bare.fills_line or bare.word == bare.head
    calls = b"(" in bare.head or b"[" in bare.head
    return bare.fills_line and bare.of_password and not calls and _HAS_NAME.search(bare.word) is None


def _is_tight(data: bytes, found: Any) -> bool:
    """No space around the `=`, as in files of settings and on command lines."""
    return data[found.end() - 1 : found.end()] == b"=" and not data[found.end() - 2 : found.end() - 1].isspace()


def _is_code(data: bytes, found: Any, bare: _Bare) -> bool:
    word = bare.word
    if _NUMBER.search(word):
        return not bare.of_password or len(word) < _PIN_MIN
    if _REFERENCE.search(bare.head):
        return not _is_random(word)
    if _IDENTIFIER.search(word) and _HAS_NAME.search(word):
        return True
    if not word.translate(None, b"_").isalpha():
        return not bare.may_be_short and len(word) < _TOKEN_MIN
    # Letters alone are a variable, unless there is no code around for them to belong to.
    alone = bare.fills_line or bare.is_option or (_is_tight(data, found) and word == bare.head)
    letters_min = _LETTERS_MIN if not bare.of_password else _OPTION_MIN if bare.is_option else 1
    return not alone or word[:1].isupper() or len(word) < letters_min


def _is_random(word: bytes) -> bool:
    return len(word) >= _LETTERS_MIN and sum(byte in b"0123456789" for byte in word) >= _DIGITS_MIN


def _fills_line(data: bytes, found: Any, end: int) -> bool:
    rest = data[end : end + 3].lstrip(b" \t")
    if rest and rest[:1] not in b"\r\n#":
        return False
    begin = found.start() - len(_left_of(data, found))
    line = data.rfind(b"\n", max(0, begin - _LINE_LOOKBACK), begin) + 1
    return _LINE_START.search(data[max(line, begin - _LINE_LOOKBACK, 0) : begin]) is not None


def _left_of(data: bytes, found: Any) -> bytes:
    """The part of the name before the word that gives it away: `DB_` of `DB_PASSWORD`."""
    before = data[max(0, found.start() - _NAME_LOOKBACK) : found.start()]
    return before[len(before.rstrip(_NAME_BYTES)) :]
