"""Tells by a name what kind of value stands under it: `DB_PASSWORD`, `apiKey`, `github_pat`, `Passwort`.

    DB_PASSWORD, dbPass, pw          PASSWORD      whatever stands there is one
    clientSecret, X-Api-Key          SECRET        so is what stands in quotes; a bare word may be a variable
    credentials, DSN                 CREDENTIALS   may be a setting: the value must look like a user's or a URL's secret
    ALGOLIA_KEY, TOKEN_OLD, *_PAT    KEY           may be any key: the value must look random
    Authorization, Set-Cookie        HEADER        in a list of headers; as a header, see app.privacy.places
    max_tokens, secretary, key_id    none

A name is judged by its words, once: few names make up nearly all of a text.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from functools import lru_cache


class Kind(Enum):
    PASSWORD = auto()
    SECRET = auto()
    CREDENTIALS = auto()
    KEY = auto()
    HEADER = auto()


NAME_MAX = 100
_NAMES_MAX = 4096

_ANY_KEY = (
    rb"(?:api|access|secret|private|account|auth|signing|encryption|master|shared|license)[ _.-]?(?:access[ _.-]?)?key"
)
_FOREIGN = (
    rb"contrase(?:\xc3[\xb1\x91]|n)a|senha|motdepasse|wachtwoord|\xd0\xbf\xd0\xb0\xd1\x80\xd0\xbe\xd0\xbb\xd1\x8c"
    rb"|\xe5\xaf\x86\xe7\xa0\x81|\xe5\xaf\x86\xe7\xa2\xbc|\xe5\x8f\xa3\xe4\xbb\xa4"
    rb"|\xe3\x83\x91\xe3\x82\xb9\xe3\x83\xaf\xe3\x83\xbc\xe3\x83\x89|\xeb\xb9\x84\xeb\xb0\x80\xeb\xb2\x88\xed\x98\xb8"
)
"""Password in Spanish, Portuguese, French, Dutch, Russian, Chinese, Japanese and Korean; German is `passwort`."""
_WORDS = (
    rb"passw(?:or)?[dt]|passphrase|passcode|pass|pwd|pw|secret|token|credential|cred|dsn|connection[_-]?string"
    rb"|key_?base|:_auth|(?:api|access|secret|private|account|auth|signing|encryption|master|shared|license)[ _.-]?key|"
    + _FOREIGN
)
NAME = rb"(?:" + _WORDS + rb")s?(?:[0-9_.-][a-z0-9_.-]*+)?"
"""RE2: the name of a secret, from the word on that gives it away."""
OPTION = rb"-(?=[a-z0-9-]*+[ \t])[a-z0-9-]*(?:" + _WORDS + rb")[a-z0-9-]*+"
WEAK_NAME = rb"(?:key|auth)(?:[_-][a-z0-9_-]*)?|[_-]pat"
"""Or one of these words, which stand everywhere: then a word with a digit must follow."""

_PASSWORD = re.compile(rb"(?:passw(?:or)?[dt]|passphrase|passcode|pwd|" + _FOREIGN + rb")s?$")
_PASS = re.compile(
    rb"(?:^|[_.-])pass$|(?:store|key|user|db|bind|root|admin|ftp|smtp|mail|my|ssh|login|proxy|auth)pass$|(?:^|[_.-])pw$|^pass(?:in|out)$"
)
_PLACE = re.compile(
    rb"(?:next|prev(?:ious)?|page|input|output|continu(?:ation|e)|start(?:ing)?|first|last|current|cancel(?:lation)?|request"
    rb"|expected|idempotency|bos|eos|pad|unk|sep|cls|mask|stop|sync|skip|resume|scroll|read|iteration)_?token$"
)
"""It marks a place in a list or a text, or a request: whoever has it can do nothing with it."""
_READ_TOKEN = re.compile(rb"[A-Z]_(?:READ|REQUEST|SYNC)_TOKEN$")
"""A variable that holds what a service is read with."""
_SECRET = re.compile(rb"(?:secret|token|" + _ANY_KEY + rb"|secret_?key_?base|:_auth)$")
_CREDENTIALS = re.compile(rb"(?:credentials?|creds?|dsn|connection[ _-]?string|[a-z0-9][_-]pat)$")
_KEY = re.compile(
    rb"(?:key|auth|bearer)$|(?:^|[_.-])(?:key|token|secret|pass|password)[_.-]"
    rb"|api_?key|passphrase|credential"
)
_NO_VALUE = re.compile(
    rb"(?:^|[_.-])(?:ids?|names?|file|path|url|uri|endpoint|type|arn|count|limit|len|length|size|prefix|suffix|field|index"
    rb"|alg|algorithm|version|date|time|at|ttl|policy|spec|usage|mode|format|fingerprint|hash|digest|checksum|sha256"
    rb"|public|etag|cache)(?:[_.-]|$)|public|integrity|checksum|cache|sort|primary|foreign|partition|idempotency|object|web_?socket"
)
_HEADER = re.compile(rb"(?:(?:proxy-)?authorization|(?:set-)?cookies?)$", re.IGNORECASE)
_HUMP = re.compile(rb"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NUMBER = re.compile(rb"[_.-]?[0-9]+$")


@lru_cache(_NAMES_MAX)
def kind_of(name: bytes) -> Kind | None:
    """What kind of value stands under this name; None for any other name."""
    if _HEADER.match(name):
        return Kind.HEADER
    words = _NUMBER.sub(b"", _HUMP.sub(b"_", name[-NAME_MAX:]).lower()).lstrip(b"-.")
    whole = words.replace(b"_", b"")
    if _PASSWORD.search(words) or _PASSWORD.search(whole) or _PASS.search(words):
        return Kind.PASSWORD
    if _SECRET.search(words) or _SECRET.search(whole):
        return None if _PLACE.search(words) and not _READ_TOKEN.search(name) else Kind.SECRET
    if _CREDENTIALS.search(words):
        return Kind.CREDENTIALS
    return Kind.KEY if _KEY.search(words) and not _NO_VALUE.search(words) else None


def is_named(key: str) -> bool:
    """Whether a value under this JSON key is a secret by its name: `apiKey`, `db_password`, `X-Api-Key`, `Cookie`."""
    return kind_of(key.encode("utf-8", "replace")) in {Kind.PASSWORD, Kind.SECRET} or key.lower() in _HEADERS


_HEADERS = {"authorization", "proxy-authorization", "cookie", "set-cookie"}
