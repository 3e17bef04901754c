"""Finds values that stand apart from their names: in a list, in the field beside, in an element, on the next lines.

"passwords": ["…", "…"]                    the strings of a list or an object
{"name": "DB_PASSWORD", "value": "…"}      the field after the name's, or before it; also in YAML and XML
<password>…</password>                     the text of an element
password: |                                the lines that are indented below
…
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from app.privacy.assigned_value import (
    LINE_LOOKBACK,
    TOKEN_MIN,
    Name,
    Span,
    Value,
    fits,
    is_something_else,
    quote_end,
    secret_in,
)
from app.privacy.decode import LINE_MARKS
from app.privacy.secret_names import Kind, kind_of
from app.privacy.secret_values import is_name, is_placeholder, is_reference

OPENER = rb"(?:[bfru@$]{0,2}(?P<quote>\\{0,8}[\"'`]))?"
"""What may stand before a value."""
_ITEM = re.compile(rb"(?:[\s,]|" + LINE_MARKS + rb"(?=[ \t]*[\"'`\\]))*(?P<quote>\\{0,8}[\"'`])")
_MEMBER = re.compile(rb"(?P<key>[A-Za-z0-9_.-]*)\\{0,8}[\"']\s*:\s*(?P<quote>\\{0,8}[\"'])")
_SCHEMA = re.compile(rb"[\"'](?:type|description|\$ref|properties|format)\\*[\"']\s*:")
_ABOUT = re.compile(
    rb"(?:id|name|key|kind|ref|path|arn|date|time|expir[a-z]*|status|url|uri|user|at|in|from|version|title|label)$",
    re.IGNORECASE,
)
"""What an object says about a secret, beside the secret."""
_LIST_MAX_BYTES = 4_096
_LIST_OPENS = re.compile(rb"\\{0,8}[\"'][ \t]*:[ \t]*\[[^\[\]\"']{0,200}\{")
_COOKIES_MAX_BYTES = 16_384
_BRACKET = re.compile(rb"[\[\]]")


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
    + OPENER,
    re.IGNORECASE,
)
_TEXT_BESIDE = re.compile(
    rb"(?:\\{0,8}[\"'][^<>]{0,100}>|</(?:key|name)>\s*<[a-z]+>)\s*(?P<value>[^<>]{1,1000}?)\s*</", re.IGNORECASE
)
_SCHEME = re.compile(rb"(?:bearer|basic|token|digest|negotiate|apikey|api-key)[ \t]+", re.IGNORECASE)
_SIBLING_END = re.compile(rb"[{}>]|\n[ \t]*(?:[0-9]{1,7}[:|\t][ \t]*)?-[ \t]|\n[ \t]*\r?\n")
_FIELD_LOOKBACK, _SIBLING_LOOK, _ELEMENT_LOOKBACK = 40, 300, 4_096
_OPENING_TAG = re.compile(rb"<(?P<name>[A-Za-z0-9:._-]+)(?:\s[^<>]*)?>$")

NEXT_LINE = re.compile(rb"[ \t]*(?P<block>[|>][+-]?[0-9]?)?[ \t]*(?:(?<=[ \t])#[^\r\n]*)?\r?\n")
_LINE = re.compile(LINE_MARKS + rb"(?P<spaces>[ \t]*)(?P<text>[^\r\n]*)(?:\r?\n)?")
_ONE_WORD = re.compile(rb"[^\s:={}\[\],;#<>\"'`(|]+$")
_BLOCK_LINES_MAX = 100


def in_list(value: Value) -> list[Span]:
    """The strings of a list, unless they are the names of secrets."""
    data, at = value.name.data, value.start + 1
    upto = value.start + _LIST_MAX_BYTES
    found: list[Span] = []
    while at < upto and (item := _ITEM.match(data, at, upto)):
        end = quote_end(data, item.end(), item["quote"])
        if is_name(data[item.end() : end]):
            return []
        if _is_item(value.name, data[item.end() : end]):
            found.append((item.end(), end))
        at = end + len(item["quote"])
    return found


def _is_item(name: Name, text: bytes) -> bool:
    if not text or text[:1] in b",;)]}: \t" or is_something_else(name, text):
        return False
    if name.kind is Kind.SECRET:
        return len(text) >= TOKEN_MIN and b" " not in text and any(byte in b"0123456789" for byte in text)
    return fits(name.kind, text)


def in_object(value: Value) -> list[Span]:
    """The strings of an object in JSON that say what the secret is; of a schema none."""
    data, start = value.name.data, value.start
    end = data.find(b"}", start, start + _LIST_MAX_BYTES)
    if end < 0 or value.name.kind not in {Kind.PASSWORD, Kind.SECRET} or _SCHEMA.search(data, start, end):
        return []
    found: list[Span] = []
    for member in _MEMBER.finditer(data, start, end):
        stop = min(quote_end(data, member.end(), member["quote"]), end)
        text = data[member.end() : stop]
        is_value = b"value" in member["key"].lower() or _is_item(value.name, text)
        if text and is_value and not is_something_else(value.name, text) and not _ABOUT.search(member["key"]):
            found.append((member.end(), stop))
    return found


def in_cookies(name: Name) -> list[Span]:
    """The values of the objects in a list of cookies, whatever the cookies are called."""
    data = name.data
    opening = _LIST_OPENS.match(data, name.end)
    if opening is None:
        return []
    upto = opening.end() + _COOKIES_MAX_BYTES
    # Up to the next list as well, so that no byte belongs to two.
    if bracket := _BRACKET.search(data, opening.end(), upto):
        upto = bracket.start()
    found: list[Span] = []
    for field in _VALUE_FIELD.finditer(data, opening.end(), upto):
        stop = quote_end(data, field.end(), field["quote"]) if field["quote"] else field.end()
        if stop > field.end() and not is_placeholder(data[field.end() : stop]):
            found.append((field.end(), stop))
    return found


def beside(name: Name) -> Iterable[Span]:
    """The value in the field after that of the name, or before it; or in the text of its element."""
    data, begin = name.data, max(0, name.start - _FIELD_LOOKBACK)
    is_value = data[begin : name.start].rstrip(b" \t\\\"'`")[-1:] in {b":", b"=", b">"}
    field = _NAME_FIELD.search(data, begin, name.start) if is_value else None
    if field is None:
        return ()
    if text := _TEXT_BESIDE.match(data, name.end, name.end + _SIBLING_LOOK):
        return (text.span("value"),) if _is_text(name, text["value"]) else ()
    end = _SIBLING_END.search(data, name.end, name.end + _SIBLING_LOOK)
    found = _VALUE_FIELD.search(data, name.end, end.start() if end else name.end + _SIBLING_LOOK)
    if found is None:
        begin = max(0, field.start() - _SIBLING_LOOK)
        for end in _SIBLING_END.finditer(data, begin, field.start()):
            begin = end.end() - 1
        found = max(_VALUE_FIELD.finditer(data, begin, field.start()), key=re.Match.start, default=None)
    if found is None:
        return ()
    field_start = found.end() - len(found[0].lstrip(b" \t\r\n\"'`,;{(<\\"))
    scheme = _SCHEME.match(data, found.end()) if name.kind is Kind.HEADER else None
    start = scheme.end() if scheme else found.end()
    return secret_in(Value(name, start, found["quote"] or b"", b"", closed=True, field_start=field_start))


def in_element(data: bytes, closing: int) -> Iterable[Span]:
    """`<password>…</password>`"""
    begin = max(0, closing - _ELEMENT_LOOKBACK)
    is_cdata = data.endswith(b"]]>", begin, closing)
    start = data.rfind(b"<![CDATA[", begin, closing) if is_cdata else data.rfind(b">", begin, closing) + 1
    tag_end = start if not is_cdata else data.rfind(b">", begin, start) + 1
    tag = data.rfind(b"<", begin, tag_end)
    opening = _OPENING_TAG.match(data, tag, tag_end) if begin < tag_end and tag >= 0 else None
    text = opening["name"].rpartition(b":")[2] if opening else b""
    kind = kind_of(text)
    if kind is None or not data.startswith(opening["name"] + b">", closing + 2):  # type: ignore[index]  # kind is of it
        return ()
    start, end = (start + 9, closing - 3) if is_cdata else (start, closing)
    inner = data[start:end]
    start += len(inner) - len(inner.lstrip())
    inner = inner.strip()
    return ((start, start + len(inner)),) if _is_text(Name(data, tag, tag_end, text, kind), inner) else ()


def _is_text(name: Name, text: bytes) -> bool:
    if not text or is_something_else(name, text) or is_name(text):
        return False
    return fits(name.kind, text) and (name.kind is Kind.PASSWORD or b" " not in text)


def on_next_lines(value: Value, first: re.Match[bytes]) -> Iterable[Span]:
    """`password: |` and the lines that are indented below it; or one word or string on the next line."""
    name = value.name
    line = name.data.rfind(b"\n", max(0, name.start - LINE_LOOKBACK), name.start) + 1
    own = _LINE.match(name.data, line)
    if own is None or own.end("spaces") < name.start - 3 or own.end("spaces") > name.start:
        return ()
    lines = list(_lines_below(name.data, first.end(), len(own["spaces"])))
    if not lines:
        return ()
    if first["block"]:
        whole = b"".join(name.data[slice(*span)] for span in lines)
        return lines if fits(name.kind, whole) and not is_placeholder(whole) else ()
    start, end = lines[0]
    text = name.data[start:end]
    if text[:1] in b"\"'":
        return secret_in(Value(name, start + 1, text[:1], value.sign, value.closed, name.start))
    if value.sign != b":" or len(lines) > 1 or not _ONE_WORD.match(text) or not _is_text(name, text):
        return ()
    is_value = name.kind is Kind.PASSWORD or (len(text) >= TOKEN_MIN and any(byte in b"0123456789" for byte in text))
    return lines if is_value and not is_reference(text) else ()


def _lines_below(data: bytes, at: int, column: int) -> Iterator[Span]:
    for _ in range(_BLOCK_LINES_MAX):
        line = _LINE.match(data, at)
        if line is None or len(line["spaces"]) <= column or line.end() == at:
            return
        if text := line["text"].rstrip():
            yield line.start("text"), line.start("text") + len(text)
        at = line.end()
