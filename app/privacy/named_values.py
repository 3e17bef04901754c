r"""Secrets known by their name: `password=…`, `"apiKey": "…"`, `--token …`, `<password>…</password>`.

    export DB_PASSWORD=…                  redacted: a word after an environment variable's `=`
    "token": "…"                          redacted: whatever stands in the quotes
    {"name": "DB_PASSWORD", "value": …}   redacted: a name in one field, its value in another
    password: |  and the lines below      redacted: a value on the next line
    "passwords": ["…", "…"]               redacted: a list
    password = get_password()             left: code
    token: string                         left: a type
    max_tokens: 8192                      left: `tokens` is no such name

One search finds each word of a name (app.privacy.secret_names) with what may give it a value behind it. Which shape it
is, and whether a secret stands there (app.privacy.secret_values), is decided by a look at so many bytes around it at
most; what a value holds is not looked at again. So the time grows with the text and no faster.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import re2

from app.privacy.decode import LINE_MARKS
from app.privacy.passwords_in_commands import BEGINNINGS, passwords_after
from app.privacy.secret_names import WEAK_WORDS, WORDS, Kind, kind_of
from app.privacy.secret_values import (
    has_digits,
    is_credential,
    is_name,
    is_number,
    is_placeholder,
    is_plain_word,
    is_random,
    is_reference,
)

Span = tuple[int, int]


def _searched(pattern: bytes) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.case_sensitive = False
    options.log_errors = False
    return re2.compile(pattern, options)


_FULL_WIDTH = rb"\xef\xbc[\x9a\x9d]"
"""The colon and the equals sign of East Asian text."""
_CLOSER = rb"[\\\"'`\]!?]*[ \t]*"
# What may be a value: a quote, a list, the end of the line, `name =` after a type, or a word that does not go on as
# code does: `token: string,` and `token = get(` are no candidates.
_VALUE = (
    rb"[\\\"'`\[{|>\r\n]|[a-z_$.]*[^a-z_$.,;()\[\]<>{} \t]|[a-z_$.]+\z|[a-z_$.]+[ \t]+[^a-z_$.,;()\[\]<>{} \t]"
    rb"|[a-z_][a-z0-9_.<>\[\]| ?]*=[ \t]*[bfru@$]?[\"'`]"
)
CANDIDATES = _searched(
    rb"(?:"
    + WORDS
    + rb")[a-z0-9_.-]*(?:"
    + _CLOSER
    + rb"(?:=[^ \t>]|(?:=>?|:=?|"
    + _FULL_WIDTH
    + rb")[ \t]*(?:"
    + _VALUE
    + rb"))"
    rb"|\\*[\"'][,>/ \t}\r\n]|[\r\n]|[ \t]+'|\('|</(?:key|name)>)"
    rb"|(?:" + WEAK_WORDS + rb")[a-z0-9_-]*[\"']?[ \t]*[:=][ \t]*[\"'`]?[a-z_+/=.-]*[0-9]"
    rb"|-[a-z0-9-]*(?:" + WORDS + rb")[a-z0-9-]*[ \t]"
    rb"|</[a-z0-9:._-]*(?:pass|pwd|secret|token|cred|key)"
    rb"|" + BEGINNINGS
)

_NAME_RUN = re.compile(
    rb"(?:[a-z]+ (?=key)|:(?=_auth))?(?:[a-z0-9_.-]|\xc3[\xb1\x91]|[\xd0-\xed][\x80-\xbf]{1,2})*", re.IGNORECASE
)
_NAME_BYTES = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."
_IS_PORT = re.compile(rb":[0-9*]")
_IS_COMMAND = re.compile(BEGINNINGS, re.IGNORECASE)

_OPENER = rb"(?:[bfru@$]{0,2}(?P<quote>\\{0,8}[\"'`]))?"
# After `:` may stand a type, but only before a quoted value: `password: str = "…"`. Else base64's own `=` would end it.
_SIGNED = re.compile(
    rb"(?P<closed>\\{0,8}[\"'`]?\]?)(?:"
    rb"[!?]?:[ \t]*[a-z_][a-z0-9_.<>\[\]| ?]{0,60}=[ \t]*[bfru@$]{0,2}(?P<typed>\\{0,8}[\"'`])"
    rb"|[ \t]*(?P<sign>:=|=>|=|:|" + _FULL_WIDTH + rb")[ \t]*" + _OPENER + rb")",
    re.IGNORECASE,
)
_OPTION_GAP = re.compile(rb"(?:[ \t]+" + _OPENER + rb"|\\{0,8}[\"'][ \t]*,[ \t\r\n]*(?P<element>\\{0,8}[\"']))")
_COMMA = re.compile(rb"\\{0,8}[\"'`],[ \t]*(?P<quote>\\{0,8}[\"'`])")
_SQL = re.compile(rb"(?:[ \t]+|(?<=PASSWORD)\()(?P<quote>')")
_PLURAL_LIST = re.compile(rb"\\{0,8}[\"'`]?[ \t]*[:=][ \t]*\[")
_ITEM = re.compile(rb"(?:[\s,]|" + LINE_MARKS + rb"(?=[ \t]*[\"'`\\]))*(?P<quote>\\{0,8}[\"'`])")
_MEMBER = re.compile(rb"(?P<key>[A-Za-z0-9_.-]*)\\{0,8}[\"']\s*:\s*(?P<quote>\\{0,8}[\"'])")
_SCHEMA = re.compile(rb"[\"'](?:type|description|\$ref|properties|format)\\*[\"']\s*:")
_LIST_MAX_BYTES = 4_096

# A name that stands as a value, `"name": "DB_PASSWORD"`, and the field that holds what it names.
_FIELD = rb"(?:^|[\s\"'`,;{(<\\])"
_NAME_FIELD = re.compile(
    _FIELD + rb"(?:name|key|id|variable|param(?:eter)?|field|header|option|setting)\\{0,8}[\"'`]?[ \t]*(?:=>|[:=])"
    rb"[ \t]*\\{0,8}[\"'`]?$|<(?:key|name)>$",
    re.IGNORECASE,
)
_VALUE_FIELD = re.compile(
    _FIELD
    + rb"(?:(?:string|secret|default|plain)?_?value|val|content|data)\\{0,8}[\"'`]?[ \t]*(?:=>|[:=])[ \t]*"
    + _OPENER,
    re.IGNORECASE,
)
_TEXT_BESIDE = re.compile(
    rb"(?:\\{0,8}[\"'][^<>]{0,100}>|</(?:key|name)>\s*<[a-z]+>)\s*(?P<value>[^<>]{1,1000}?)\s*</", re.IGNORECASE
)
_SIBLING_END = re.compile(rb"[{}>]|\n[ \t]*(?:[0-9]{1,7}[:|\t][ \t]*)?-[ \t]|\n[ \t]*\r?\n")
_NAME_LOOKBACK, _FIELD_LOOKBACK, _SIBLING_LOOK, _ELEMENT_LOOKBACK = 64, 40, 300, 4_096
_OPENING_TAG = re.compile(rb"<(?P<name>[A-Za-z0-9:._-]+)(?:\s[^<>]*)?>$")

_NEXT_LINE = re.compile(rb"[ \t]*(?P<block>[|>][+-]?[0-9]?)?[ \t]*(?:(?<=[ \t])#[^\r\n]*)?\r?\n")
_LINE = re.compile(LINE_MARKS + rb"(?P<spaces>[ \t]*)(?P<text>[^\r\n]*)(?:\r?\n)?")
_ONE_WORD = re.compile(rb"[^\s:={}\[\],;#<>\"'`(|]+$")
_BLOCK_LINES_MAX = 100

_TO_QUOTE = {
    b'"': re.compile(rb'(?:[^"\\\r\n]++|\\[^\r\n])*+'),
    b"'": re.compile(rb"(?:[^'\\\r\n]++|\\[^\r\n])*+"),
    b"`": re.compile(rb"[^`\r\n]*+"),
}
_TO_ESCAPED_QUOTE = re.compile(rb"[^\"'`\r\n]*+")
_BARE = re.compile(rb"[^\s\"'`\\=:>,;)\]}](?:[^\s\"'`\\]++|\\[^\snrt\"'`\\u])*+")
_WORD = re.compile(rb"[^,;)\]}&|<>]*+")
_HEAD_MAX = 200
"""So much of a bare value decides whether it is code."""
_PIN_MIN, _TOKEN_MIN, _LETTERS_MIN, _OPTION_MIN = 4, 8, 16, 5

# What stands before the name on its line where the line is one assignment: `.env`, YAML, ini, Dockerfile, shell.
_LINE_START = re.compile(
    LINE_MARKS + rb"[ \t]*(?:-[ \t]*)?(?:(?:export|set|env|arg|-e|--env|-d|\$env:)[ \t]*)?$",
    re.IGNORECASE,
)
_LINE_LOOKBACK = 200


def named_values(data: bytes) -> Iterator[Span]:
    """The ranges of the values that stand under a secret's name."""
    covered = 0
    for found in CANDIDATES.finditer(data):
        start, end = found.span()
        if end > covered:
            for span in _secrets(data, start, end):
                yield span
                covered = max(covered, span[1])


def _secrets(data: bytes, start: int, end: int) -> Iterable[Span]:
    if data.startswith(b"</", start):
        return _in_element(data, start)
    if (data[end - 1] in b" \t\"'" and _IS_COMMAND.match(data, start)) or _IS_PORT.match(data, start):
        return passwords_after(data, start)
    name = _name(data, start)
    return () if name is None else _of(name)


class _Name(NamedTuple):
    data: bytes
    start: int
    end: int
    text: bytes
    kind: Kind


def _name(data: bytes, start: int) -> _Name | None:
    """The name around a word of one, when it is a secret's."""
    before = data[max(0, start - _NAME_LOOKBACK) : start]
    begin = start - len(before) + len(before.rstrip(_NAME_BYTES))
    end = start + len(_read(_NAME_RUN, data, start))
    text = data[begin:end]
    kind = kind_of(text)
    if kind is None and text[-1:] in b"sS" and _PLURAL_LIST.match(data, end):
        kind = kind_of(text[:-1])
    return None if kind is None else _Name(data, begin, end, text, kind)


class _Value(NamedTuple):
    """Where a value seems to stand."""

    name: _Name
    start: int
    """Without its quote."""
    quote: bytes
    sign: bytes
    """`=`, `:` and the like; empty after an option and in the field beside the name."""
    closed: bool
    """The name stands in quotes."""
    field_start: int
    """Where the name begins, or the field that holds the value."""


def _of(name: _Name) -> Iterable[Span]:
    data = name.data
    if signed := _SIGNED.match(data, name.end):
        quote = signed["typed"] or signed["quote"] or b""
        value = _Value(name, signed.end(), quote, signed["sign"] or b":", bool(signed["closed"]), name.start)
        return _assigned(value)
    if name.text.startswith(b"-") and (gap := _OPTION_GAP.match(data, name.end)):
        return _one(
            _Value(name, gap.end(), gap["element"] or gap["quote"] or b"", b"", closed=False, field_start=name.start)
        )
    if field := _NAME_FIELD.search(data, max(0, name.start - _FIELD_LOOKBACK), name.start):
        return _beside(name, field.start())
    if (comma := _COMMA.match(data, name.end)) and name.kind is not Kind.CREDENTIALS:
        # An argument is a message more often than a secret.
        value = _Value(name, comma.end(), comma["quote"], b",", closed=True, field_start=name.start)
        return (span for span in _one(value) if is_random(data[slice(*span)]))
    if name.kind is Kind.PASSWORD and (sql := _SQL.match(data, name.end)):
        return _one(_Value(name, sql.end(), sql["quote"], b"", closed=False, field_start=name.start))
    return ()


def _assigned(value: _Value) -> Iterable[Span]:
    data, at = value.name.data, value.start
    if not value.quote:
        if data[at : at + 1] == b"[" and (items := list(_items(value))):
            return items
        if data[at : at + 1] == b"{" and value.closed and (members := list(_members(value))):
            return members
        if next_line := _NEXT_LINE.match(data, at):
            return _on_next_lines(value, next_line)
    return _one(value)


def _one(value: _Value) -> Iterable[Span]:
    span = _quoted(value) if value.quote else _bare(value)
    data = value.name.data
    if span is None or _is_directory(value.name.text, data[span[0] : span[0] + 2]):
        return ()
    return (span,)


def _is_directory(name: bytes, value: bytes) -> bool:
    """`PWD=/home/…` in what `env` prints is no password."""
    return name.lower().endswith(b"pwd") and (value[:1] in {b"/", b"~", b"."} or value[1:] == b":")


def _quoted(value: _Value) -> Span | None:
    end = _quote_end(value.name.data, value.start, value.quote)
    text = value.name.data[value.start : end]
    # In `input("Password: ")` the quote closes: what follows it is code.
    if not text or text[:1] in b",;)]}: \t" or is_placeholder(text):
        return None
    if value.sign == b":" and not value.closed and text[:1] in b"+.%<>=\\|&?":
        return None
    return (value.start, end) if _fits(value.name.kind, text) else None


def _quote_end(data: bytes, start: int, quote: bytes) -> int:
    measure = _TO_QUOTE[quote] if len(quote) == 1 else _TO_ESCAPED_QUOTE
    text = _read(measure, data, start)
    return start + len(text.rstrip(b"\\") if len(quote) > 1 else text)


def _fits(kind: Kind, text: bytes) -> bool:
    """Whether what is a value fits a name of that kind."""
    if kind is Kind.CREDENTIALS:
        return is_credential(text)
    return kind is not Kind.KEY or is_random(text)


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


def _bare(value: _Value) -> Span | None:
    name, start = value.name, value.start
    found = _BARE.match(name.data, start, start + _HEAD_MAX)
    if found is None:
        return None
    head = found[0]
    word = _read(_WORD, head, 0)
    if not word or is_plain_word(word) or is_placeholder(head) or is_placeholder(word):
        return None
    of_password = name.kind is Kind.PASSWORD
    bare = _Bare(
        head=head,
        word=word,
        of_password=of_password,
        may_be_short=of_password or b"secret" in name.text.lower(),
        fills_line=_fills_line(name.data, value.field_start, found.end()),
    )
    if not _fits(name.kind, word) or (not _is_setting(value, bare) and _is_code(value, bare)):
        return None
    if len(word) < len(head) and not bare.fills_line:
        return start, start + len(word)
    return start, start + len(_read(_BARE, name.data, start))


def _read(letters: re.Pattern[bytes], data: bytes, start: int) -> bytes:
    found = letters.match(data, start)
    return found[0] if found else b""


def _is_setting(value: _Value, bare: _Bare) -> bool:
    """`DB_PASSWORD=…` in a `.env` file or before a command: then anything is meant as it stands."""
    name = value.name.text
    if value.field_start != value.name.start:
        return bare.fills_line and name == name.upper()
    if not _is_tight(value):
        return False
    if name == name.upper():
        return bare.fills_line or bare.word == bare.head
    calls = b"(" in bare.head or b"[" in bare.head
    return bare.fills_line and bare.of_password and not calls and not is_name(bare.word)


def _is_tight(value: _Value) -> bool:
    """No space around the `=`, as in files of settings and on command lines."""
    data, start = value.name.data, value.start
    return data[start - 1 : start] == b"=" and not data[start - 2 : start - 1].isspace()


def _is_code(value: _Value, bare: _Bare) -> bool:
    word, is_option = bare.word, not value.sign and value.field_start == value.name.start
    if is_number(word):
        return not bare.of_password or len(word) < _PIN_MIN
    if is_reference(bare.head):
        return not has_digits(word)
    if is_name(word):
        return True
    if not word.translate(None, b"_").isalpha():
        return not bare.may_be_short and len(word) < _TOKEN_MIN
    # Letters alone are a variable, unless there is no code around for them to belong to.
    alone = bare.fills_line or is_option or (_is_tight(value) and word == bare.head)
    letters_min = _LETTERS_MIN if not bare.of_password else _OPTION_MIN if is_option else 1
    return not alone or word[:1].isupper() or len(word) < letters_min


def _fills_line(data: bytes, begin: int, end: int) -> bool:
    rest = data[end : end + 3].lstrip(b" \t")
    if rest and rest[:1] not in b"\r\n#":
        return False
    line = data.rfind(b"\n", max(0, begin - _LINE_LOOKBACK), begin) + 1
    return _LINE_START.match(data[max(line, begin - _LINE_LOOKBACK, 0) : begin]) is not None


def _items(value: _Value) -> Iterator[Span]:
    """The strings of a list: all of them under a password's name, under another what has a digit."""
    data, at = value.name.data, value.start + 1
    upto = value.start + _LIST_MAX_BYTES
    while at < upto and (item := _ITEM.match(data, at, upto)):
        end = _quote_end(data, item.end(), item["quote"])
        if _is_item(value.name.kind, data[item.end() : end]):
            yield item.end(), end
        at = end + len(item["quote"])


def _is_item(kind: Kind, text: bytes) -> bool:
    if not text or text[:1] in b",;)]}: \t" or is_placeholder(text) or is_plain_word(text) or is_name(text):
        return False
    if kind is Kind.SECRET:
        return len(text) >= _TOKEN_MIN and b" " not in text and any(byte in b"0123456789" for byte in text)
    return _fits(kind, text)


def _members(value: _Value) -> Iterator[Span]:
    """The strings of an object in JSON; of a schema none, and no name or kind of the secret."""
    data, start = value.name.data, value.start
    end = data.find(b"}", start, start + _LIST_MAX_BYTES)
    if end < 0 or _SCHEMA.search(data, start, end):
        return
    for member in _MEMBER.finditer(data, start, end):
        stop = min(_quote_end(data, member.end(), member["quote"]), end)
        if member["key"].lower() not in {b"name", b"key", b"id", b"kind", b"ref", b"path"} and _is_item(
            value.name.kind, data[member.end() : stop]
        ):
            yield member.end(), stop


def _beside(name: _Name, field_start: int) -> Iterable[Span]:
    """The value in the field after the name's or before it; or in the text of its element."""
    data = name.data
    if text := _TEXT_BESIDE.match(data, name.end, name.end + _SIBLING_LOOK):
        return (text.span("value"),) if _is_text(name.kind, text["value"]) else ()
    end = _SIBLING_END.search(data, name.end, name.end + _SIBLING_LOOK)
    found = _VALUE_FIELD.search(data, name.end, end.start() if end else name.end + _SIBLING_LOOK)
    if found is None:
        begin = max(0, field_start - _SIBLING_LOOK)
        for end in _SIBLING_END.finditer(data, begin, field_start):
            begin = end.end()
        found = max(_VALUE_FIELD.finditer(data, begin, field_start), key=re.Match.start, default=None)
    if found is None:
        return ()
    field = found.end() - len(found[0].lstrip(b" \t\r\n\"'`,;{(<\\"))
    return _one(_Value(name, found.end(), found["quote"] or b"", b"", closed=True, field_start=field))


def _in_element(data: bytes, closing: int) -> Iterable[Span]:
    """`<password>…</password>`"""
    begin = max(0, closing - _ELEMENT_LOOKBACK)
    is_cdata = data.endswith(b"]]>", begin, closing)
    start = data.rfind(b"<![CDATA[", begin, closing) if is_cdata else data.rfind(b">", begin, closing) + 1
    tag_end = start if not is_cdata else data.rfind(b">", begin, start) + 1
    tag = data.rfind(b"<", begin, tag_end)
    opening = _OPENING_TAG.match(data, tag, tag_end) if begin < tag_end and tag >= 0 else None
    kind = kind_of(opening["name"].rpartition(b":")[2]) if opening else None
    if kind is None or not data.startswith(opening["name"] + b">", closing + 2):  # type: ignore[index]  # kind is of it
        return ()
    start, end = (start + 9, closing - 3) if is_cdata else (start, closing)
    text = data[start:end]
    start += len(text) - len(text.lstrip())
    text = text.strip()
    return ((start, start + len(text)),) if _is_text(kind, text) else ()


def _is_text(kind: Kind, text: bytes) -> bool:
    if not text or is_placeholder(text) or is_plain_word(text) or is_name(text):
        return False
    return _fits(kind, text) and (kind is Kind.PASSWORD or b" " not in text)


def _on_next_lines(value: _Value, first: re.Match[bytes]) -> Iterable[Span]:
    """`password: |` and the lines that are indented below it; or one word or string on the next line."""
    name = value.name
    line = name.data.rfind(b"\n", max(0, name.start - _LINE_LOOKBACK), name.start) + 1
    own = _LINE.match(name.data, line)
    if own is None or own.end("spaces") < name.start - 3 or own.end("spaces") > name.start:
        return ()
    lines = list(_lines_below(name.data, first.end(), len(own["spaces"])))
    if not lines:
        return ()
    if first["block"]:
        whole = b"".join(name.data[slice(*span)] for span in lines)
        return lines if _fits(name.kind, whole) and not is_placeholder(whole) else ()
    start, end = lines[0]
    text = name.data[start:end]
    if text[:1] in b"\"'":
        return _one(_Value(name, start + 1, text[:1], value.sign, value.closed, name.start))
    if value.sign != b":" or len(lines) > 1 or not _ONE_WORD.match(text) or not _is_text(name.kind, text):
        return ()
    is_value = name.kind is Kind.PASSWORD or (len(text) >= _TOKEN_MIN and any(byte in b"0123456789" for byte in text))
    return lines if is_value and not is_reference(text) else ()


def _lines_below(data: bytes, at: int, column: int) -> Iterator[Span]:
    for _ in range(_BLOCK_LINES_MAX):
        line = _LINE.match(data, at)
        if line is None or len(line["spaces"]) <= column or line.end() == at:
            return
        if text := line["text"].rstrip():
            yield line.start("text"), line.start("text") + len(text)
        at = line.end()
