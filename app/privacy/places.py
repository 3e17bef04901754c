"""Rules for secrets that are known by where they stand: private keys, headers, cookies, URLs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from app.privacy.decode import LINE_MARKS, View
from app.privacy.keys import CUT_OFF
from app.privacy.literals import Literal, linear
from app.privacy.rule import Judge, Rule, simple
from app.privacy.secret_values import is_placeholder


def _place(name: str, pattern: bytes, judge: Judge, word: bytes, compiled: Callable[[bytes], Any] = linear) -> Rule:
    return Rule(name, pattern, judge, (Literal(word, any_case=True),), compiled)


_LINE_END = rb"[\"'`,;+)\\ \t]*(?:\r?\n" + LINE_MARKS + rb"[ \t\"'`+(]*)+"
_PEM_HEADER = rb"(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset):[^\r\n]*"
_PEM_BEGIN = rb"-----BEGIN[A-Za-z0-9 +_-]{0,100}PRIVATE KEY(?: BLOCK)?-----"
_PEM_END = rb"-----END[A-Z0-9 +]*PRIVATE KEY(?: BLOCK)?-----"
# The end may be missing or cut. Where spaces stand for line ends, less than 16 letters are a word of a sentence, but
# for a line of the key that is broken or cut.
_RE2_CUT_OFF = CUT_OFF.replace(rb"\Z", rb"\z")
_PEM_LINE = (
    _LINE_END + rb"(?:" + _PEM_HEADER + rb"|[A-Za-z0-9+/=]+)|[ \t]+[A-Za-z0-9+/=]{16,}|[A-Za-z0-9+/=]+"
    rb"|[ \t]+[A-Za-z0-9+/=]{1,15}(?:" + _LINE_END + rb"[A-Za-z0-9+/=]{16,}|" + _RE2_CUT_OFF + rb")"
)
_PEM_GAP = rb"(?:" + _LINE_END + rb"|[ \t]+)"
_PEM = _PEM_BEGIN + rb"(?:" + _PEM_LINE + rb")*(?:" + _PEM_GAP + rb"?-----END[A-Z0-9 +]*-{0,5}|(?: BLOCK)?-----)?"
_PEM_WITHOUT_BEGIN = rb"(?:[A-Za-z0-9+/=]{16,}" + _LINE_END + rb")+(?:[A-Za-z0-9+/=]+" + _LINE_END + rb")?" + _PEM_END

_PEM_LAST = linear(rb"\s+" + LINE_MARKS + rb"[ \t]*[A-Za-z0-9+/=]{1,15}$")


_PEM_MARK = simple(rb"-----(?:BEGIN|END)(?:[^\r\n]*?KEY(?: BLOCK)?-----|[^-\r\n]*)")
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_PEM_BODY_MIN = 16


def _pem(view: View, found: Any) -> tuple[int, int] | None:
    """Without the first word of the line after a key that has no end; a mark alone is none."""
    start, end = found.span()
    body = _PEM_MARK.sub(b"", view.data[start:end])
    if len(body) - len(body.translate(None, _BASE64)) < _PEM_BODY_MIN:
        return None
    prose = view.data[end : end + 1] == b" " and _PEM_LAST.search(view.data[start:end])
    return start, start + prose.start() if prose else end


_SIGN = (
    # a comma only between quotes: `setHeader("Cookie", "…")`
    rb"(?:\\*[\"'`][ \t]*,[ \t]*[bfru@$]{0,2}\\*[\"'`]"
    rb"|(?:\\*[\"'`]\]?)?[ \t]*(?:=>|[:=])[ \t]*(?:[bfru@$]{0,2}\\*[\"'`])?)[ \t]*"
)
_SCHEME = simple(rb"(?i)(?:bearer|basic|token|digest|negotiate|apikey|api-key|aws4-hmac-sha256)[ \t]+")
# Quoted parts belong to it, `Digest username="…", response="…"`; the quote in `"Cookie: a=" + value` ends it.
_HEADER_VALUE = linear(rb"(?:=\\*\"(?:[^\"\r\n ;,)][^\"\r\n]*)?\"|=\\*\"[^\"\r\n ;,)][^\"\r\n]*|[^\r\n\"'`])*")
_HEADER_HEAD_MAX = 200
_WORDS = simple(rb"[a-z]+ [A-Za-z]+(?: |$)")
_NAME = simple(rb"[,;:)}]*[A-Za-z._-]+[,;:)}]*")


def _header(view: View, found: Any) -> tuple[int, int] | None:
    """A header's value after its scheme; not a variable, a template or a type in its place."""
    scheme = _SCHEME.match(view.data, found.end())
    start: int = scheme.end() if scheme else found.end()
    head = _HEADER_VALUE.match(view.data, start, start + _HEADER_HEAD_MAX).group()
    if not head.strip(b"*.x\\ \t") or head[:1] in b"{$<%[(,;:)]}&|+.=!>":
        return None
    word = head.split(None, 1)[0]
    if is_placeholder(word.rstrip(b",;)}\\")) or _WORDS.match(head):
        return None
    is_code = b"(" in word or b"[" in word or b"://" in word or _NAME.fullmatch(word) is not None
    if scheme is None and is_code:
        return None
    value = _HEADER_VALUE.match(view.data, start).group().rstrip(b"\\ \t")
    return start, start + len(value)


def _cookie(view: View, found: Any) -> tuple[int, int]:
    """All of the header: a value stands among names and attributes."""
    return found.start(1), _HEADER_VALUE.match(view.data, found.end() - 1).end()


# Neither goes over a slash, so that no letter is looked at for two of them.
_URL = rb"[a-z0-9]://(?:[^\s/:@\"'`<>]*:([^\s/\"'`<>]+)@|([A-Za-z0-9_-]{20,})@)"

# A number alone would be a port.
_CUT_URL = rb"[a-z0-9]://[^\s/:@\"'`<>]*:([0-9]*[^\s/:@\"'`<>0-9][^\s/:@\"'`<>]*)" + CUT_OFF


def _url_password(view: View, found: Any) -> tuple[int, int] | None:
    """Not `{name}`, `${NAME}`, `<name>` or `%s` in its place."""
    start, end = found.span(1) if found.start(1) >= 0 else found.span(2)
    password = view.data[start:end]
    name = password.strip(b"{}()<>[]$%")
    is_template = not name.strip(b"*") or (name != password and name.translate(None, b"_.").isalpha())
    return None if is_template else (start, end)


PLACES = (
    replace(_place("pem", _PEM, _pem, b"-----begin"), is_key=True, reach=4096),
    replace(_place("pem", _PEM_WITHOUT_BEGIN, _pem, b"-----end"), window=16_384, has_one_head=True, reach=64),
    _place("authorization", rb"(?i)authorization" + _SIGN, _header, b"authoriz"),
    _place("cookie", rb"(?i)cookie" + _SIGN + rb"([a-z0-9_.%!#$&*+^|~-]+=)", _cookie, b"cookie"),
    replace(
        _place("url-password", _URL, _url_password, b"://", simple),
        is_key=True,
        is_one_word=True,
        ends_at=b"/",
        before=1,
    ),
    replace(_place("url-password", _CUT_URL, _url_password, b"://", simple), is_one_word=True, ends_at=b"/", before=1),
)
