r"""What a secret looks like: the built-in rules.

    ghp_…  sk-ant-…  AKIA…              tokens, known by their beginning
    -----BEGIN … PRIVATE KEY-----       keys, with or without their end
    Authorization: …  ://user:…@        headers and URLs, known by their place
    password = "…"                      assignments, known by their name (app.assignment)

A rule looks at one view of a text (app.undress) and says which ranges of it are secret. All searching is RE2's, in
linear time. The forms are those that the vendors document for their keys.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from app.assignment import ASSIGNMENT, assigned
from app.undress import LINE_MARK, View


def _compiled(pattern: bytes) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return re2.compile(pattern, options)


_Judge = Callable[[bytes, Any], tuple[int, int] | None]
"""The secret's range in a match; None when it is none after all."""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    pattern: bytes
    regex: Any
    judge: _Judge
    is_word: bool
    """Never the tail of a longer word: `sk-` is no key in `task-…`."""
    is_key: bool
    """Known by its own letters, so that it is also found where a line end breaks it."""
    length: int
    """How long such a key is, where all are of one length; else 0."""


def find(rule: Rule, view: View, seams: Sequence[int] = ()) -> Iterator[tuple[int, int]]:
    """The ranges that are secret. `seams`: where line ends were taken out of the view."""
    at = 0
    while (found := rule.regex.search(view.data, at)) is not None:
        span = rule.judge(view.data, found)
        if span is None or (rule.is_word and _is_glued(view, span[0])):
            at = found.start() + 1
            continue
        start, end = span
        cuts = seams[bisect_right(seams, start) : bisect_left(seams, end)]
        if cuts:
            end = _end_over_cuts(rule, view.data, start, end, cuts)
        # What no line end breaks is found in the view that still has them.
        if not seams or (cuts and end > cuts[0]):
            yield start, end
        at = max(end, found.start() + 1)


def _is_glued(view: View, start: int) -> bool:
    return start > 0 and view.data[start - 1 : start].isalnum() and not view.is_seam(start)


def _end_over_cuts(rule: Rule, data: bytes, start: int, end: int, cuts: Sequence[int]) -> int:
    """Where a secret ends that seems to go on over line ends: the next line may be its rest, or another word.

    It is the rest as long as the key is shorter than its kind is, and when it looks random and like nothing else: no
    name before a `=`, no call.
    """
    for cut, upto in zip(cuts, (*cuts[1:], end), strict=False):
        if cut - start < rule.length:
            end = min(end, start + rule.length)
            continue
        word: bytes = _WORD.match(data, cut).group()
        follows = data[cut + len(word) : cut + len(word) + 2].lstrip(b" \t")[:1]
        rest = word[: upto - cut]
        if follows in {b"=", b"(", b":", b"["} or not _is_random(rest, _KEY_REST_MIN if rule.is_key else _REST_MIN):
            return cut
        if cut + len(rest) < upto:
            return cut + len(rest)
    return end


_WORD = _compiled(rb"[A-Za-z0-9+/_.~-]*={0,2}")
_KEY_REST_MIN, _REST_MIN = 3, 8


def _is_random(word: bytes, length_min: int) -> bool:
    return len(word) >= length_min and any(byte in b"0123456789" for byte in word) and word.upper() != word.lower()


def _first_group(_: bytes, found: Any) -> tuple[int, int]:
    spans = (found.span(group) for group in range(1, found.re.groups + 1))
    span: tuple[int, int] = next((span for span in spans if span[0] >= 0), found.span())
    return span


def _with_digit(data: bytes, found: Any) -> tuple[int, int] | None:
    """For beginnings that words have too: `npm_config_…`, `sk-fading-circle-…`."""
    start, end = _first_group(data, found)
    return (start, end) if any(byte in b"0123456789" for byte in data[start + 4 : end]) else None


def _place(name: str, pattern: bytes, judge: _Judge = _first_group) -> Rule:
    return Rule(name, pattern, _compiled(pattern), judge, is_word=False, is_key=False, length=0)


def _key(name: str, pattern: bytes, judge: _Judge = _first_group) -> Rule:
    return Rule(name, pattern, _compiled(pattern), judge, is_word=False, is_key=True, length=0)


def _token(name: str, prefix: bytes, body: bytes, least: int, length: int = 0) -> Rule:
    """Known by its beginning, with at least so many letters of a body after it."""
    pattern = _token_pattern(prefix, body, least)
    return Rule(name, pattern, _compiled(pattern), _first_group, is_word=False, is_key=True, length=length)


def _word_token(name: str, prefix: bytes, body: bytes, least: int, length: int = 0) -> Rule:
    """A token whose beginning is short, or could be that of a word."""
    pattern = _token_pattern(prefix, body, least)
    return Rule(name, pattern, _compiled(pattern), _with_digit, is_word=True, is_key=True, length=length)


_CUT_OFF = rb"\s*(?:\z|\.\.\.|\xe2\x80\xa6)"
"""Where a tool's output was cut short: the beginning of a key is one too."""


def _token_pattern(prefix: bytes, body: bytes, least: int) -> bytes:
    return rb"((?:%b)%b{%d,})|((?:%b)%b{4,})%b" % (prefix, body, least, prefix, body, _CUT_OFF)


_LINE_END = rb"[\"'`,;+)\\ \t]*(?:\r?\n[ \t]*(?:" + LINE_MARK + rb")?[ \t\"'`+(]*)+"
_PEM_HEADER = rb"(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset):[^\r\n]*"
_PEM_BEGIN = rb"-----BEGIN[A-Z0-9 +]*PRIVATE KEY(?: BLOCK)?-----"
_PEM_END = rb"-----END[A-Z0-9 +]*PRIVATE KEY(?: BLOCK)?-----"
# The end may be missing or cut. Where spaces stand for line ends, a body of 16 and more is no word of a sentence.
_PEM = (
    _PEM_BEGIN
    + rb"(?:" + _LINE_END + rb"(?:" + _PEM_HEADER + rb"|[A-Za-z0-9+/=]+)|[ \t]+[A-Za-z0-9+/=]{16,})*"
    + rb"(?:(?:" + _LINE_END + rb"|[ \t]+(?:[A-Za-z0-9+/=]+[ \t]+)?)?-----END[A-Z0-9 +]*-{0,5})?"
)
_PEM_WITHOUT_BEGIN = rb"(?:[A-Za-z0-9+/=]{16,}" + _LINE_END + rb")+(?:[A-Za-z0-9+/=]+" + _LINE_END + rb")?" + _PEM_END

_SIGN = (
    rb"(?:\\*[\"'`]\]?[ \t]*(?:=>|[:=,])|[ \t]*(?:=>|[:=]))"  # a comma only after a quote: `setHeader("Cookie", …)`
    rb"[ \t]*(?:[bfru@$]{0,2}\\*[\"'`])?[ \t]*"
)
_SCHEME = _compiled(rb"(?i)^(?:bearer|basic|token|digest|negotiate|apikey|api-key|aws4-hmac-sha256)[ \t]+")


def _header(data: bytes, found: Any) -> tuple[int, int] | None:
    """A header's value after its scheme; not a variable, a template or a type in its place."""
    start, end = found.span(1)
    scheme = _SCHEME.search(data[start:end])
    start += scheme.end() if scheme else 0
    value = data[start:end].rstrip(b"\\ \t")
    if not value.strip(b"*.x") or value[:1] in b"{$<%[(,;:)]}&|+.=!>":
        return None
    word = value.split(None, 1)[0]
    is_code = b"(" in word or b"[" in word or word.strip(b",;:)}").translate(None, b"._-").isalpha()
    return None if scheme is None and is_code else (start, start + len(value))


def _url_password(data: bytes, found: Any) -> tuple[int, int] | None:
    start, end = _first_group(data, found)
    value = data[start:end]
    is_template = value[:1] in b"{$<%[(" and (value[-1:] in b"}>])s" or value[1:].replace(b"_", b"").isalpha())
    return None if is_template or value.isdigit() else (start, end)


_KEYS = (
    # The private keys of Google's service accounts are PEM; their ids go with them.
    _place("pem", _PEM),
    _place("pem", _PEM_WITHOUT_BEGIN),
    _key("gcp", rb"private_key_id[\"'\\]*\s*[:=]\s*[\"'\\]*([0-9a-f]{8,})"),
    _token("anthropic", rb"sk-ant-", rb"[A-Za-z0-9_-]", 16),
    _token("helicone", rb"[sp]k-helicone-", rb"[A-Za-z0-9-]", 10),
    _token("openrouter", rb"sk-or-", rb"[A-Za-z0-9_-]", 16, length=73),
    _token("openai", rb"sk-(?:proj|svcacct|admin|service|None)-", rb"[A-Za-z0-9_-]", 16),
    _word_token("openai", rb"sk-|sess-", rb"[A-Za-z0-9_-]", 20),
    _word_token("groq", rb"gsk_", rb"[A-Za-z0-9]", 20, length=56),
    _word_token("xai", rb"xai-", rb"[A-Za-z0-9]", 20, length=84),
    _token("github", rb"gh[pou]_", rb"[A-Za-z0-9_]", 20, length=40),
    _token("github", rb"gh[sr]_", rb"[A-Za-z0-9_]", 20),
    _token("github", rb"github_pat_", rb"[A-Za-z0-9_]", 20, length=93),
    _token("gitlab", rb"gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|ffct|wt)-", rb"[A-Za-z0-9_.=-]", 16),
    _word_token("aws", rb"AKIA|ASIA|ABIA|ACCA", rb"[A-Z0-9]", 16, length=20),
    _key("aws", rb"A[KS]IA[A-Z0-9]{16}[\s,;:|\"']{1,8}(?:([A-Za-z0-9/+]{40})|([A-Za-z0-9/+]{4,})" + _CUT_OFF + rb")"),
    _key("aws", rb"(?i)secret_?access_?key[^a-z0-9/+]{1,20}([a-z0-9/+]{20,})"),
    _key("aws", rb"(?i)session_?token[^a-z0-9/+]{1,20}([a-z0-9/+=]{60,})"),
    _token("google", rb"AIza", rb"[A-Za-z0-9_-]", 30, length=39),
    _token("google", rb"ya29\.|GOCSPX-|1//0", rb"[A-Za-z0-9_-]", 20),
    _key("azure", rb"(?i)(?:Account|SharedAccess)Key=([a-z0-9+/=]{8,})"),
    _key("azure", rb"[?&;]sig=([A-Za-z0-9%+/=_-]{8,})"),
    _key("azure", rb"[A-Za-z0-9_~.-]{3}[78]Q~[A-Za-z0-9_~.-]{8,}"),
    _token("slack", rb"xox[abeoprs]-|xoxe\.xox[bp]-|xapp-[0-9]-", rb"[A-Za-z0-9-]", 10),
    _key("slack", rb"hooks\.slack(?:-gov)?\.com/(?:services|workflows|triggers)/([A-Za-z0-9/_-]{8,})"),
    _token("stripe", rb"[rs]k_(?:live|test)_", rb"[A-Za-z0-9]", 10),
    _token("stripe", rb"whsec_", rb"[A-Za-z0-9+/=]", 16),
    _word_token("npm", rb"npm_", rb"[A-Za-z0-9]", 30, length=40),
    _word_token("pypi", rb"pypi-", rb"[A-Za-z0-9_-]", 30),
    _word_token("huggingface", rb"hf_", rb"[A-Za-z0-9]", 20, length=37),
    _key("jwt", rb"eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){0,4}"),
    _key("authorization", rb"(?i)\bbearer[ \t]+([a-z0-9._~+/=-]{16,})", _with_digit),
    _key("url-password", rb"[a-z0-9]://[^\s/:@\"'`<>]*:([^\s/\"'`<>]+)@", _url_password),
    _key("url-password", rb"[a-z0-9]://([A-Za-z0-9_-]{20,})@"),
)
_PLACES = (
    _place("authorization", rb"(?i)authorization" + _SIGN + rb"([^\r\n\"'`]+)", _header),
    _place("cookie", rb"(?i)cookie" + _SIGN + rb"([a-z0-9_.%!#$&*+^|~-]+=(?:\"[^\"\r\n]*\"|[^\"'`\r\n])*)"),
    _place("url-password", rb"[a-z0-9]://[^\s/:@\"'`<>]*:([^\s/:@\"'`<>]+)" + _CUT_OFF, _url_password),
    _place("assignment", rb"(?i)" + ASSIGNMENT, assigned),
)
RULES = _KEYS + _PLACES
_ANY_KEY = _compiled(b"|".join(rb"(?:%b)" % rule.pattern for rule in _KEYS))


def secrets(view: View, seams: Sequence[int] = ()) -> Iterator[tuple[Rule, int, int]]:
    """Each rule with a range that it finds. `seams`: where line ends were taken out of the view."""
    # One search for all of them together tells that most texts hold none of the keys.
    for rule in RULES if _ANY_KEY.search(view.data) else _PLACES:
        for start, end in find(rule, view, seams):
            yield rule, start, end
