"""Assigned values: whether what stands under a secret's name is a secret, and where it ends.

"…"                 whatever stands in the quotes, but for a placeholder
hunter2,            a bare word up to what ends an expression, unless it is code
p@ss,w(rd           all of it where the line is one assignment, as in a file of settings
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from app.privacy.decode import LINE_MARKS
from app.privacy.secret_names import Kind
from app.privacy.secret_values import (
    begins_sentence,
    has_digits,
    has_name,
    is_call,
    is_credential,
    is_key,
    is_label,
    is_login,
    is_name,
    is_named_after,
    is_no_token,
    is_number,
    is_opening,
    is_place,
    is_placeholder,
    is_plain_word,
    is_prose,
    is_random,
    is_reference,
    is_setting,
    is_template,
    is_variable,
    is_wording,
)

Span = tuple[int, int]

_TO_QUOTE = {
    b'"': re.compile(rb'(?:[^"\\\r\n]++|\\[^\r\n])*+'),
    b"'": re.compile(rb"(?:[^'\\\r\n]++|\\[^\r\n])*+"),
    b"`": re.compile(rb"[^`\r\n]*+"),
}
_TO_ESCAPED_QUOTE = re.compile(rb"[^\"'`\r\n]*+")
_BARE = re.compile(rb"[^\s\"'`\\=:>,;)\]}](?:[^\s\"'`\\]++|\\[^\snrt\"'`\\u])*+")
_WORD = re.compile(rb"[^,;)\]}&|<>]*+")
_COMMAND_END = re.compile(rb"[ \t]*(?:[\r\n\"'`|;&\\]|-|\Z)")
_HEAD_MAX = 200
"""So much of a bare value decides whether it is code."""
_PIN_MIN, TOKEN_MIN, _LETTERS_MIN, _OPTION_MIN = 4, 8, 16, 5

# What stands before the name on its line where the line is one assignment: `.env`, YAML, ini, Dockerfile, shell.
_COMPLAINT = re.compile(rb"(?:unexpected|invalid|missing|expected|illegal) $|\? ?[\"'`]$", re.IGNORECASE)
_BEFORE_NAME = 12
_BEFORE_NAME_ON_LINE = LINE_MARKS + rb"[ \t]*(?:-[ \t]*)?(?:(?:export|set|env|arg|-e|--env|-d|\$env:)[ \t]*)?$"
_LINE_START = re.compile(_BEFORE_NAME_ON_LINE, re.IGNORECASE)
# The same where the line is the first or the last one of a string in JSON.
_STRING_START = re.compile(rb"(?:[\"'][ \t]*:[ \t]*[\"']|\\[nrt])" + _BEFORE_NAME_ON_LINE, re.IGNORECASE)
_STRING_END = re.compile(rb"[\"'][ \t]*(?:[,}\]]|\s*\Z)")
LINE_LOOKBACK = 200


class Name(NamedTuple):
    data: bytes
    start: int
    end: int
    text: bytes
    kind: Kind


class Value(NamedTuple):
    """Where a value seems to stand."""

    name: Name
    start: int
    """Without its quote."""
    quote: bytes
    sign: bytes
    """`=`, `:` and the like; empty after an option and in the field beside the name."""
    closed: bool
    """The name stands in quotes."""
    field_start: int
    """Where the name begins, or the field that holds the value."""


def secret_in(value: Value) -> Iterable[Span]:
    data, name = value.name.data, value.name
    before = data[max(0, name.start - _BEFORE_NAME) : name.start]
    # A resource's name has colons on both sides, a package's before it; and messages say "unexpected token: 'x'".
    last = before[-1:]
    if last in {b":", b"/"} and (value.sign == b":" or value.closed):
        return ()
    if last in {b" ", b'"', b"'", b"`"} and _COMPLAINT.search(before):
        return ()
    span = _quoted(value) if value.quote else _bare(value)
    if span is None or _is_directory(value.name.text, data[span[0] : span[0] + 2]):
        return ()
    return (span,)


def _is_directory(name: bytes, value: bytes) -> bool:
    """`PWD=/home/…` in what `env` prints is no password."""
    return name.lower().endswith(b"pwd") and (value[:1] in {b"/", b"~", b"."} or value[1:] == b":")


def _quoted(value: Value) -> Span | None:
    end = quote_end(value.name.data, value.start, value.quote)
    text = value.name.data[value.start : end]
    # In `input("Password: ")` the quote closes: what follows it is code.
    if not text or text[:1] in b",;)]}: \t" or is_something_else(value.name, text):
        return None
    if value.sign == b":" and not value.closed and text[:1] in b"+.%<>=\\|&?":
        return None
    is_secret = fits(value.name.kind, text) or (_is_variable(value) and is_setting(text))
    return (value.start, end) if is_secret else None


def _is_variable(value: Value) -> bool:
    """`SERVICE_KEY="…"` in a file of settings."""
    name = value.name
    return name.text == name.text.upper() and value.start == name.end + len(value.quote) + 1 and value.sign == b"="


def is_something_else(name: Name, text: bytes) -> bool:
    """A placeholder, a label or a sentence in the place of a secret."""
    if is_key(text):
        return False
    if is_placeholder(text) or is_template(text) or is_label(text) or is_place(text):
        return True
    if is_named_after(text, name.text):
        return True
    if is_prose(text) and (b"passphrase" not in name.text.lower() or has_name(text)):
        return True
    return name.kind is Kind.SECRET and (is_no_token(text) or (b"secret" not in name.text.lower() and is_wording(text)))


def quote_end(data: bytes, start: int, quote: bytes) -> int:
    measure = _TO_QUOTE[quote] if len(quote) == 1 else _TO_ESCAPED_QUOTE
    text = read(measure, data, start)
    return start + len(text.rstrip(b"\\") if len(quote) > 1 else text)


def fits(kind: Kind, text: bytes) -> bool:
    """Whether what is a value fits a name of that kind."""
    if kind is Kind.CREDENTIALS:
        return is_credential(text)
    return kind is not Kind.KEY or is_random(text) or is_login(text)


class _Bare(NamedTuple):
    """A value without quotes."""

    head: bytes
    word: bytes
    """The head up to the first character that ends an expression."""
    of_password: bool
    may_be_short: bool
    """A password or a secret; a token or key of less than 8 letters is a variable."""
    fills_line: bool
    """The line is this one assignment, as in a file of settings."""


def _bare(value: Value) -> Span | None:
    name, start = value.name, value.start
    if name.data[start : start + 1] == b"=" and name.text == name.text.upper() and _is_tight(value):
        start += 1  # in a file of settings a value may begin with it
    found = _BARE.match(name.data, start, start + _HEAD_MAX)
    if found is None or _needs_quotes(value):
        return None
    head = found[0]
    word = read(_WORD, head, 0)
    if word == head and (is_key(word) or is_login(word)) and name.kind is not Kind.CREDENTIALS:
        return start, start + len(read(_BARE, name.data, start))
    if _is_no_value(head, word) or is_named_after(word, name.text):
        return None
    of_password = name.kind in {Kind.PASSWORD, Kind.HEADER}
    bare = _Bare(
        head=head,
        word=word,
        of_password=of_password,
        may_be_short=of_password or b"secret" in name.text.lower(),
        fills_line=_fills_line(name.data, value.field_start, found.end()),
    )
    is_set = _is_setting(value, bare)
    if (not fits(name.kind, word) and not (is_set and is_setting(word))) or (not is_set and _is_code(value, bare)):
        return None
    if len(word) < len(head) and not bare.fills_line:
        return start, start + len(word)
    return start, start + len(read(_BARE, name.data, start))


def _is_no_value(head: bytes, word: bytes) -> bool:
    if not word.strip(b"/-_.:") or is_plain_word(word) or is_placeholder(head) or is_placeholder(word):
        return True
    if (head[:1] == b"%" and is_template(head)) or is_place(word):
        return True
    return is_opening(head) or (head[-1:] == b"," and is_name(word))


def _needs_quotes(value: Value) -> bool:
    """`options["pass"] = x`, `$token = Get-Token`: in code, a bare word is none of the program's own strings."""
    data, name = value.name.data, value.name
    return data[name.start - 1 : name.start] == b"$" or (value.closed and data.find(b"]", name.end, value.start) >= 0)


def read(letters: re.Pattern[bytes], data: bytes, start: int) -> bytes:
    found = letters.match(data, start)
    return found[0] if found else b""


def _is_setting(value: Value, bare: _Bare) -> bool:
    """`DB_PASSWORD=…` in a `.env` file or before a command: then anything is meant as it stands."""
    name = value.name.text
    if value.field_start != value.name.start:
        return bare.fills_line and name == name.upper()
    if not _is_tight(value):
        return False
    if name == name.upper():
        is_result = is_call(bare.head) and bare.head.endswith(b"),")
        return not is_result and (bare.fills_line or bare.word == bare.head)
    calls = b"(" in bare.head or b"[" in bare.head
    return bare.fills_line and bare.of_password and not calls and not has_name(bare.word)


def _is_tight(value: Value) -> bool:
    """No space around the `=`, as in files of settings and on command lines."""
    data, start = value.name.data, value.start
    return data[start - 1 : start] == b"=" and not data[start - 2 : start - 1].isspace()


def _is_code(value: Value, bare: _Bare) -> bool:
    word, is_option = bare.word, not value.sign and value.field_start == value.name.start
    if is_number(word):
        return not bare.of_password or len(word) < _PIN_MIN or bare.head[-1:] in b",;" or word[1:2] in b"xX"
    if is_reference(bare.head):
        return is_call(bare.head) or has_name(word) or not has_digits(word)
    if is_name(word):
        return True
    if begins_sentence(word) and not bare.fills_line:
        return True
    if not word.translate(None, b"_").isalpha():
        is_argument = bare.head[-1:] in b",;)" and is_variable(word)
        return not bare.may_be_short and (len(word) < TOKEN_MIN or is_argument)
    # Letters alone are a variable, unless there is no code around for them to belong to.
    ends_command = is_option and _COMMAND_END.match(value.name.data, value.start + len(word)) is not None
    is_member = value.name.text.startswith((b"self.", b"this.", b"cls.", b"_"))
    is_line = bare.fills_line and not is_member and not _is_statement(value)
    alone = is_line or ends_command or (_is_tight(value) and word == bare.head)
    letters_min = _LETTERS_MIN if not bare.of_password else _OPTION_MIN if is_option else 1
    return not alone or word[:1].isupper() or len(word) < letters_min


def _is_statement(value: Value) -> bool:
    """`    password = content`: code is indented and spaced so, files of settings hardly."""
    before = value.name.data[max(0, value.field_start - 4) : value.field_start]
    return value.sign == b"=" and not _is_tight(value) and (before == b"    " or before.endswith(b"\t\t"))


def _fills_line(data: bytes, begin: int, end: int) -> bool:
    ends_string = _STRING_END.match(data, end) is not None
    rest = data[end : end + 3].lstrip(b" \t")
    if rest and rest[:1] not in b"\r\n#" and not ends_string:
        return False
    line = data.rfind(b"\n", max(0, begin - LINE_LOOKBACK), begin) + 1
    before = data[max(line, begin - LINE_LOOKBACK, 0) : begin]
    return _LINE_START.match(before) is not None or (ends_string and _STRING_START.search(before) is not None)
