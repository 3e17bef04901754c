r"""What a secret looks like: the built-in rules.

    ghp_…  sk-ant-…  AKIA…              tokens, known by their beginning
    -----BEGIN … PRIVATE KEY-----       keys, with or without their end
    Authorization: …  ://user:…@        headers and URLs, known by their place
    password = "…"                      assignments, known by their name (app.privacy.named_values)

A rule looks at one view of a text (app.privacy.decode) and says which ranges of it are secret. All searching is RE2's,
in linear time. The forms are those that vendors give their keys.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import re2

from app.privacy.decode import LINE_MARKS, View
from app.privacy.named_values import named_values


def _compiled(pattern: bytes) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return re2.compile(pattern, options)


_Judge = Callable[[View, Any], tuple[int, int] | None]
"""The secret's range where the rule's search has found something; None when it is none after all.

What a judge reads before it says no is bounded, and so is what the search reads again: it goes on one byte further, or
from the end of an empty range, where none can begin before that. So the time grows with the text and no faster.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    regex: Any
    judge: _Judge
    is_key: bool
    """Known by its own letters, so that it is also found where a line end breaks it."""
    length: int
    """How long such a key is, where all are of one length; else 0."""


def find(rule: Rule, view: View, seams: Sequence[int] = ()) -> Iterator[tuple[int, int]]:
    """The ranges that are secret. `seams`: where line ends were taken out of the view; then those that cross one."""
    at = 0
    while (found := rule.regex.search(view.data, at)) is not None:
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
            end = _end_over_cuts(view.data, start, end, cuts, rule.length, _KEY_REST_MIN if rule.is_key else _REST_MIN)
        # What no line end breaks is found in the view that still has them.
        if not seams or (cuts and end > cuts[0]):
            yield start, end
        at = max(at, end)


def _end_over_cuts(data: bytes, start: int, end: int, cuts: Sequence[int], length: int, rest_min: int) -> int:
    """Where a secret ends that seems to go on over line ends: the next line may be its rest, or another word.

    It is the rest as long as the key is shorter than its kind is, and when it looks random and like nothing else: no
    name before a `=`, no call.
    """
    for cut, upto in zip(cuts, (*cuts[1:], end), strict=False):
        if cut - start < length:
            end = min(end, start + length)
            continue
        word: bytes = _WORD.match(data, cut).group()
        follows = data[cut + len(word) : cut + len(word) + 2].lstrip(b" \t")[:1]
        rest = word[: upto - cut]
        if follows in {b"=", b"(", b":", b"["} or not _is_random(rest, rest_min):
            return cut
        if cut + len(rest) < upto:
            return cut + len(rest)
    return end


_WORD = _compiled(rb"[A-Za-z0-9+/_.~-]*={0,2}")
_KEY_REST_MIN, _REST_MIN, _LONG_REST_MIN = 3, 8, 20


def _is_random(word: bytes, length_min: int) -> bool:
    return len(word) >= length_min and any(byte in b"0123456789" for byte in word) and word.upper() != word.lower()


_CUT_OFF = rb"\s*(?:\z|\.\.\.|\xe2\x80\xa6)"
"""Where a tool's output was cut short: the beginning of a key is one too."""
_IS_CUT_OFF = _compiled(_CUT_OFF)
_CUT_MIN, _KEY_MAX = 4, 8192


def _key(name: str, beginning: bytes, body: bytes, least: int, length: int = 0) -> Rule:
    """At least so many letters of a body after a beginning; the beginning is no part of the secret."""
    letters = _compiled(body + rb"{%d,}" % min(least, _CUT_MIN))

    def judge(view: View, found: Any) -> tuple[int, int] | None:
        start = found.end()
        matched = letters.match(view.data, start, start + _KEY_MAX)
        if matched is None:
            return None
        end: int = matched.end()
        return (start, end) if end - start >= least or _IS_CUT_OFF.match(view.data, end) else None

    return Rule(name, _compiled(beginning), judge, is_key=True, length=length)


def _token(name: str, beginning: bytes, body: bytes, least: int, length: int = 0) -> Rule:
    """The same, where the beginning is the first part of the secret."""
    key = _key(name, beginning, body, least, length)

    def judge(view: View, found: Any) -> tuple[int, int] | None:
        span = key.judge(view, found)
        return None if span is None else (found.start(), span[1])

    return replace(key, judge=judge)


def _word_token(name: str, beginning: bytes, body: bytes, least: int, length: int = 0) -> Rule:
    """A token whose beginning words have too: `task-…`, `npm_config_…`. It is no tail of a word, and has a digit."""
    token, digit = _token(name, beginning, body, least, length), _compiled(body + rb"{0,60}?[0-9]")

    def judge(view: View, found: Any) -> tuple[int, int] | None:
        start = found.start()
        glued = start > 0 and view.data[start - 1 : start].isalnum() and not view.is_seam(start)
        return None if glued or digit.match(view.data, found.end()) is None else token.judge(view, found)

    return replace(token, judge=judge)


def _jwt(token: Rule) -> Rule:
    """Its beginning is as long as it likes; whatever else begins in there ends at the same dot and is no more one."""

    def judge(view: View, found: Any) -> tuple[int, int]:
        return token.judge(view, found) or (found.end(), found.end())

    return replace(token, judge=judge)


def _place(name: str, pattern: bytes, judge: _Judge) -> Rule:
    return Rule(name, _compiled(pattern), judge, is_key=False, length=0)


_LINE_END = rb"[\"'`,;+)\\ \t]*(?:\r?\n" + LINE_MARKS + rb"[ \t\"'`+(]*)+"
_PEM_HEADER = rb"(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset):[^\r\n]*"
_PEM_BEGIN = rb"-----BEGIN[A-Z0-9 +]*PRIVATE KEY(?: BLOCK)?-----"
_PEM_END = rb"-----END[A-Z0-9 +]*PRIVATE KEY(?: BLOCK)?-----"
# The end may be missing or cut. Where spaces stand for line ends, less than 16 letters are a word of a sentence, but
# for a line of the key that is broken or cut.
_PEM_LINE = (
    _LINE_END + rb"(?:" + _PEM_HEADER + rb"|[A-Za-z0-9+/=]+)|[ \t]+[A-Za-z0-9+/=]{16,}|[A-Za-z0-9+/=]+"
    rb"|[ \t]+[A-Za-z0-9+/=]{1,15}(?:" + _LINE_END + rb"[A-Za-z0-9+/=]{16,}|" + _CUT_OFF + rb")"
)
_PEM_GAP = rb"(?:" + _LINE_END + rb"|[ \t]+)"
_PEM = _PEM_BEGIN + rb"(?:" + _PEM_LINE + rb")*(?:" + _PEM_GAP + rb"?-----END[A-Z0-9 +]*-{0,5})?"
_PEM_WITHOUT_BEGIN = rb"(?:[A-Za-z0-9+/=]{16,}" + _LINE_END + rb")+(?:[A-Za-z0-9+/=]+" + _LINE_END + rb")?" + _PEM_END

_PEM_LAST = _compiled(rb"\s+" + LINE_MARKS + rb"[ \t]*[A-Za-z0-9+/=]{1,15}$")


def _pem(view: View, found: Any) -> tuple[int, int]:
    """Without the first word of the line after a key that has no end."""
    start, end = found.span()
    prose = view.data[end : end + 1] == b" " and _PEM_LAST.search(view.data[start:end])
    return start, start + prose.start() if prose else end


_SIGN = (
    rb"(?:\\*[\"'`]\]?[ \t]*(?:=>|[:=,])|[ \t]*(?:=>|[:=]))"  # a comma only after a quote: `setHeader("Cookie", …)`
    rb"[ \t]*(?:[bfru@$]{0,2}\\*[\"'`])?[ \t]*"
)
_SCHEME = _compiled(rb"(?i)(?:bearer|basic|token|digest|negotiate|apikey|api-key|aws4-hmac-sha256)[ \t]+")
# Quoted parts belong to it, `Digest username="…", response="…"`; the quote in `"Cookie: a=" + value` ends it.
_HEADER_VALUE = _compiled(rb"(?:=\\*\"(?:[^\"\r\n ;,)][^\"\r\n]*)?\"|=\\*\"[^\"\r\n ;,)][^\"\r\n]*|[^\r\n\"'`])*")
_HEADER_HEAD_MAX = 200


def _header(view: View, found: Any) -> tuple[int, int] | None:
    """A header's value after its scheme; not a variable, a template or a type in its place."""
    scheme = _SCHEME.match(view.data, found.end())
    start: int = scheme.end() if scheme else found.end()
    head = _HEADER_VALUE.match(view.data, start, start + _HEADER_HEAD_MAX).group()
    if not head.strip(b"*.x\\ \t") or head[:1] in b"{$<%[(,;:)]}&|+.=!>":
        return None
    word = head.split(None, 1)[0]
    is_code = b"(" in word or b"[" in word or word.strip(b",;:)}").translate(None, b"._-").isalpha()
    if scheme is None and is_code:
        return None
    value = _HEADER_VALUE.match(view.data, start).group().rstrip(b"\\ \t")
    return start, start + len(value)


def _cookie(view: View, found: Any) -> tuple[int, int]:
    """All of the header: a value stands among names and attributes."""
    return found.start(1), _HEADER_VALUE.match(view.data, found.end() - 1).end()


_URL_PASSWORD = rb"(?:[^\s/:@\"'`<>]*:([^\s/\"'`<>]+)@|([A-Za-z0-9_-]{20,})@)"

# A number alone would be a port.
_CUT_URL_PASSWORD = rb"[^\s/:@\"'`<>]*:([0-9]*[^\s/:@\"'`<>0-9][^\s/:@\"'`<>]*)"


def _url_password(view: View, found: Any) -> tuple[int, int] | None:
    """Not `{name}`, `${NAME}`, `<name>` or `%s` in its place."""
    start, end = found.span(1) if found.start(1) >= 0 else found.span(2)
    password = view.data[start:end]
    name = password.strip(b"{}()<>[]$%")
    is_template = not name or (name != password and name.translate(None, b"_.").isalpha())
    return None if is_template else (start, end)


_BASE64, _URL_SAFE = rb"[A-Za-z0-9+/=]", rb"[A-Za-z0-9_-]"
_KEYS = (
    _token("anthropic", rb"sk-ant-", _URL_SAFE, 16),
    _token("helicone", rb"[sp]k-helicone-", rb"[A-Za-z0-9-]", 10),
    _token("openrouter", rb"sk-or-", _URL_SAFE, 16, length=73),
    _token("openai", rb"sk-(?:proj|svcacct|admin|service|None)-", _URL_SAFE, 16),
    _word_token("openai", rb"sk-|sess-", _URL_SAFE, 20),
    _word_token("groq", rb"gsk_", rb"[A-Za-z0-9]", 20, length=56),
    _word_token("xai", rb"xai-", rb"[A-Za-z0-9]", 20, length=84),
    _token("github", rb"gh[pou]_", rb"[A-Za-z0-9_]", 20, length=40),
    _token("github", rb"gh[sr]_", rb"[A-Za-z0-9_]", 20),
    _token("github", rb"github_pat_", rb"[A-Za-z0-9_]", 20, length=93),
    _token("gitlab", rb"gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|ffct|wt)-", rb"[A-Za-z0-9_.=-]", 16),
    _word_token("aws", rb"AKIA|ASIA|ABIA|ACCA", rb"[A-Z0-9]", 16, length=20),
    _key("aws", rb"A[KS]IA[A-Z0-9]{16}[\s,;:|\"']{1,8}", rb"[A-Za-z0-9/+]", 40),
    _key("aws", rb"(?i)secret_?access_?key[^a-z0-9/+]{1,20}", rb"[A-Za-z0-9/+]", 20),
    _key("aws", rb"(?i)session_?token[^a-z0-9/+]{1,20}", _BASE64, 60),
    # The private keys of Google's service accounts are PEM; their ids go with them.
    _key("gcp", rb"private_key_id[\"'\\]*\s*[:=]\s*[\"'\\]*", rb"[0-9a-f]", 8),
    _token("google", rb"AIza", _URL_SAFE, 30, length=39),
    _token("google", rb"ya29\.|GOCSPX-|1//0", _URL_SAFE, 20),
    _key("azure", rb"(?i)(?:Account|SharedAccess)Key=", _BASE64, 8),
    _key("azure", rb"[?&;]sig=", rb"[A-Za-z0-9%+/=_-]", 8),
    _token("azure", rb"[A-Za-z0-9_~.-]{3}[78]Q~", rb"[A-Za-z0-9_~.-]", 8),
    _token("slack", rb"xox[abeoprs]-|xoxe\.xox[bp]-|xapp-[0-9]-", rb"[A-Za-z0-9-]", 10),
    _key("slack", rb"hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/", rb"[A-Za-z0-9/_-]", 8),
    _token("stripe", rb"[rs]k_(?:live|test)_", rb"[A-Za-z0-9]", 10),
    _token("stripe", rb"whsec_", _BASE64, 16),
    _word_token("npm", rb"npm_", rb"[A-Za-z0-9]", 30, length=40),
    _word_token("pypi", rb"pypi-", _URL_SAFE, 30),
    _word_token("huggingface", rb"hf_", rb"[A-Za-z0-9]", 20, length=37),
    _jwt(_token("jwt", rb"eyJ[A-Za-z0-9_-]{6,}\.", rb"[A-Za-z0-9_.-]", 4)),
    _word_token("authorization", rb"(?i)bearer[ \t]+", rb"[A-Za-z0-9._~+/=-]", 16),
)
_PLACES = (
    replace(_place("pem", _PEM, _pem), is_key=True),
    _place("pem", _PEM_WITHOUT_BEGIN, _pem),
    _place("authorization", rb"(?i)authorization" + _SIGN, _header),
    _place("cookie", rb"(?i)cookie" + _SIGN + rb"([a-z0-9_.%!#$&*+^|~-]+=)", _cookie),
    replace(_place("url-password", rb"[a-z0-9]://" + _URL_PASSWORD, _url_password), is_key=True),
    _place("url-password", rb"[a-z0-9]://" + _CUT_URL_PASSWORD + _CUT_OFF, _url_password),
)
RULES = _KEYS + _PLACES
NAMES = (*dict.fromkeys(rule.name for rule in RULES), "assignment")
_ANY_KEY = _compiled(b"|".join(rb"(?:%b)" % rule.regex.pattern for rule in _KEYS))


def secrets(view: View) -> Iterator[tuple[str, int, int]]:
    """The name of each rule, with a range that it finds."""
    # One search for all beginnings together tells that most texts hold no key.
    for rule in RULES if _ANY_KEY.search(view.data) else _PLACES:
        for start, end in find(rule, view):
            yield rule.name, start, end
    for start, end in named_values(view.data):
        yield "assignment", start, end


def broken_secrets(view: View, begun: AbstractSet[tuple[str, int]]) -> Iterator[tuple[str, int, int]]:
    """The same in a view whose line ends were taken out: what goes over one.

    What is known by its place alone must have `begun` (rule and start in the text) in the line before: it is a secret
    without the next line, too. Only a next line that is long and random as a key needs no such beginning.
    """
    for rule in RULES if _ANY_KEY.search(view.data) else _PLACES:
        for start, end in find(rule, view, view.starts):
            rest = end - view.starts[bisect_right(view.starts, start)]
            if rule.is_key or rest >= _LONG_REST_MIN or (rule.name, view.source(start, end)[0]) in begun:
                yield rule.name, start, end
    for start, upto in named_values(view.data):
        cuts = view.starts[bisect_right(view.starts, start) : bisect_left(view.starts, upto)]
        end = _end_over_cuts(view.data, start, upto, cuts, 0, _REST_MIN) if cuts else upto
        is_broken = cuts and end > cuts[0]
        if is_broken and (end - cuts[0] >= _LONG_REST_MIN or ("assignment", view.source(start, end)[0]) in begun):
            yield "assignment", start, end
