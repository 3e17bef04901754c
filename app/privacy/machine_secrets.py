r"""Collects this machine's secrets: values told by the name that they stand under and by what they look like.

    DATABASE_URL=postgres://app:…@db/main      the password in it
    WATSONX_AI_APIKEY=…                        all of it
    "headers": {"Authorization": "Bearer …"}   what follows the scheme
    API_KEYS=…,…                               all of it, and each of them
    SSH_AUTH_SOCK=/tmp/…, TOKEN_TYPE=bearer    nothing: a path, a description

What a name says about a value in a text (app.privacy.secret_names) it says here as well; beyond that, a variable may be
a secret by a word in the middle of its name.

A value that counts is masked wherever it stands in a text, so one that is an ordinary word must not: it would take that
word out of every transcript.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from app.privacy.secret_names import Kind, kind_of

LENGTH_MIN = 8
"""Characters. Shorter values are words and numbers that stand everywhere."""

_IS_PASSWORD = re.compile(r"PASSWORD|PASSWD|PASSPHRASE|PASSCODE|SECRET[0-9]*$|(?:^|_)(?:PASS|PWD)[0-9]*_")
_IS_KEY = re.compile(r"(?:(?:^|_)(?:KEYS?|PAT|JWT|COOKIE|AUTHORIZATION)|API_?KEYS|TOKEN)[0-9]*$")
_HOLDS_KEY = re.compile(
    r"(?:^|_)(?:KEY|PAT|JWT)[0-9]*_|TOKEN[0-9]*_|SECRETS?[0-9]*(?:_|$)|APIKEY|CREDENTIAL|CONNECTION_?STRING|(?:^|_)DSN_"
    r"|(?:ACCESS|ACCOUNT|APP|AUTH|ENCRYPTION|LICENSE|MASTER|PRIVATE|SERVICE|SHARED|SIGNING)KEY(?:_|$)"
)
_DESCRIBES = re.compile(
    r"_(?:ADDR|AGE|ALG|ALGORITHM|ARN|AUDIENCE|COUNT|DAYS|DIR|DIRECTORY|DOMAIN|ENABLED|ENDPOINT|EXPIR[A-Z]*|FILE|FORMAT"
    r"|HEADER|HELPER|HOST|ISSUER|LENGTH|LIMIT|LOCATION|METHOD|MODE|MS|NAME|PATH|PORT|PREFIX|PROTO|PROVIDER|REGION|SCOPES?"
    r"|SECONDS|SIZE|SOCK|SOURCE|STORE|STRATEGY|TTL|TYPE|URI|URL|USERNAME|VERSION)$"
    r"|(?:^|_)PUB(?:LIC|LISHABLE)?_?KEYS?$"
)
_PUBLIC_FIELD = re.compile(r"(?:type|url|scopes?|expires?|expiresat|expiry)$", re.IGNORECASE)
_IS_AUTH = re.compile(r"(?:^|_)AUTH(?:_|$)")
"""Also of what says how one logs in."""
_AMONG_SECRETS = {"environment", "env", "headers"}
"""Parts of OpenCode's configuration that hold whatever a server or a provider wants to be given."""
_PROSE = {"prompt", "description", "template"}
"""Parts of it that a person wrote for a model or a person: what stands there as a password may be any word."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_USER_OF_URL = re.compile(r"://([^/?#@:\s]*)(?::([^/@\s]*))?@")
_PAIR = re.compile(r"(?:^|[?&;\s])(-{0,2}[A-Za-z][\w. -]{0,63}?)\s*=\s*([^&;#\s]+)")
_LISTED_PAIR = re.compile(r"(?:^|,)\s*([A-Za-z][\w.-]{0,63})=([^,;&#\s]+)")
_HEADER = re.compile(r"(?:^|[\"'=\s])([A-Za-z][\w-]{0,63})\s*:(?!//)[ \t]*([^\"'\n]+)")
"""`Authorization: Bearer …`, in an option of a command or a line of a variable."""
_USER_OF_SOCKET = re.compile(r"^[^:@/\s]*:([^@\s]+)@(?:tcp|unix|udp)\(")
_SCHEME = re.compile(r"^(?:Bearer|Basic|Token|Bot|Key|ApiKey|Api-Key)[ \t]+(\S+)$", re.IGNORECASE)
_BASIC = re.compile(r"\bBasic[ \t]+([\w+/-]+=*)", re.IGNORECASE)
_SEPARATOR = re.compile(r"(?:[\s,;&|\"'`()\[\]{}<>\ufffd]|\\n)+|:(?!//)|=(?![=,;\s]|$)")
"""Between several keys in one text, and between each and what it is called there."""
_MIXED = re.compile(r"[A-Za-z0-9]{16}|(?=[0-9]*[A-Za-z])(?=[A-Za-z]*[0-9])[A-Za-z0-9]{8}")
_PATH = re.compile(r"(?:/|~/|\.{1,2}/|[A-Za-z]:[\\/])[^\n]*")
_FINGERPRINT = re.compile(r"(?:0x)?[0-9A-Fa-f]{16,40}(?:[\s,]+[0-9A-Fa-f]{16,40})*")
"""Of public keys: `GPG_KEY` in the images of Python."""
_NUMBER = re.compile(r"[0-9]{1,15}")
_WORD = re.compile(r"[A-Za-z]{1,15}")
_PLAIN_PART = re.compile(r"[A-Za-z]{0,15}|[0-9]{1,4}")
_SHORT_PART = re.compile(r"[A-Za-z0-9]{1,4}")
_RUN_MIN = 20
_COMMON = frozenset(
    {
        *("administrator", "changeit", "changeme", "elastic", "minioadmin", "passphrase", "password", "postgres"),
        *("postgresql", "rabbitmq", "username", "database", "default", "development", "production", "localhost"),
        *("enabled", "disabled", "required", "undefined", "example", "aws4-hmac-sha256"),
    }
)
"""Passwords by default, and no passwords: words that stand everywhere, and the name of a scheme."""
_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)(?:"\s*(:?)|$)', re.DOTALL)
_DEPTH_MAX = 64


def of_environment(environ: Mapping[str, str]) -> Iterator[str]:
    """The secrets among variables. What `OPENCODE_AUTH_CONTENT` holds is for `of_logins`."""
    for name, value in environ.items():
        if name != "OPENCODE_AUTH_CONTENT":
            yield from _of(name, value, is_among_secrets=False)


def of_configuration(document: Mapping[str, Any]) -> Iterator[str]:
    """The secrets in one of OpenCode's configurations: keys of providers, and what MCP servers are given."""
    return _of_tree("", document, is_among_secrets=False)


def of_logins(text: str | bytes) -> Iterator[str]:
    """What a text in the form of `auth.json` or `mcp-auth.json` holds: every string but what is plainly public.

    Also of one that is broken, cut off or not UTF-8, as far as its strings can be told; why is not said, nor kept.
    """
    whole = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "replace")
    try:
        yield from _of_login("", json.loads(whole.removeprefix("\ufeff"), object_pairs_hook=_all, strict=False))
    except (ValueError, RecursionError):
        torn = text if isinstance(text, str) else text.replace(b"\0", b"").decode("utf-8", "replace")
        yield from _of_strings(torn)


def _all(pairs: list[tuple[str, Any]]) -> dict[str, list[Any]]:
    """An object in which a name may stand again."""
    found: dict[str, list[Any]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def _of_strings(torn: str) -> Iterator[str]:
    """Each string of what is no JSON, under the name before it; and what looks like a key, wherever quotes stand."""
    field = ""
    for raw, colon in _STRING.findall(torn):
        try:
            told = json.loads(f'"{raw}"', strict=False)
        except ValueError:
            told = raw
        if colon:
            field = told
        else:
            yield from _of_login(field, told)
    yield from _several(torn, is_named=True)


def is_secret_name(name: str) -> bool:
    """Whether what stands under it is a secret, unless it looks like none."""
    return _kind(name) is not None


def _kind(name: str) -> Kind | None:
    """`KEY`: by its middle, so that a number or a word is none."""
    spelled = _spelled(name)
    if _DESCRIBES.search(spelled):
        return None
    in_text = kind_of(name.encode("utf-8", "replace"))
    if in_text is Kind.PASSWORD or _IS_PASSWORD.search(spelled):
        return Kind.PASSWORD
    if in_text is Kind.SECRET or _IS_KEY.search(spelled):
        return Kind.SECRET
    return Kind.KEY if in_text is Kind.CREDENTIALS or _HOLDS_KEY.search(spelled) else None


def _of_login(field: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "metadata":  # an account's name, a gateway's
                yield from _of_tree("", inner, is_among_secrets=True)
            else:
                yield from _of_login(name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _of_login(field, inner)
    elif isinstance(value, str) and not _PUBLIC_FIELD.search(field) and not _URL.match(value):
        yield from filter(_is_long, [value.strip()])
        yield from _several(value, is_named=True)


def _of_tree(name: str, value: Any, *, is_among_secrets: bool, depth: int = 0) -> Iterator[str]:
    """The secrets in a JSON value that stands under a name."""
    if depth > _DEPTH_MAX:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            is_among = is_among_secrets or key in _AMONG_SECRETS
            yield from _of_tree(key, inner, is_among_secrets=is_among, depth=depth + 1)
    elif isinstance(value, list):
        before = ""
        for inner in value:
            option = before if before.startswith("-") else name
            yield from _of_tree(option, inner, is_among_secrets=is_among_secrets, depth=depth + 1)
            before = inner if isinstance(inner, str) else ""
    elif isinstance(value, str):
        yield from _of(name, value, is_among_secrets=is_among_secrets)


def _of(name: str, value: str, *, is_among_secrets: bool) -> Iterator[str]:
    """The secrets in one text that stands under a name."""
    if value.lstrip()[:1] in {"{", "["} and (tree := _tree(value)) is not None:
        yield from _of_tree(name, tree, is_among_secrets=is_among_secrets or is_secret_name(name))
        return
    yield from _whole(name, value, is_among_secrets=is_among_secrets)
    for inner in _inside(value):
        if _is_long(inner) and not (name in _PROSE and _is_readable(inner)):
            yield inner


def _whole(name: str, value: str, *, is_among_secrets: bool) -> Iterator[str]:
    """The value without its scheme, if it counts, and each of several keys in it."""
    value = value.strip()
    scheme = _SCHEME.match(value)
    bare = scheme[1] if scheme else value
    for packed in _BASIC.findall(value):
        yield from filter(_is_long, _password_of(packed))
    if _counts(name, bare, is_among_secrets=is_among_secrets):
        yield bare
        if "\\n" in bare:  # a key of many lines in one, which tools print as many
            yield bare.replace("\\n", "\n")
        yield from _several(bare, is_named=_kind(name) in {Kind.PASSWORD, Kind.SECRET})


def _several(value: str, *, is_named: bool) -> Iterator[str]:
    """Keys that stand together in one text: between commas, line ends, quotes, behind names. Words are none of them."""
    for part in _SEPARATOR.split(value):
        is_no_key = not _is_long(part) or _URL.match(part) or _is_path(part) or _is_readable(part)
        if not is_no_key and (is_named or _MIXED.search(part)):
            yield part


def _inside(value: str) -> Iterator[str]:
    """Passwords in a URL or a connection string, and what stands behind a name inside of a text."""
    for user, password in _USER_OF_URL.findall(value):
        told = password or ("" if _is_readable(user) else user)
        yield from (told, unquote(told))
    for password in _USER_OF_SOCKET.findall(value):
        yield password
    for name, inner in (*_PAIR.findall(value), *_LISTED_PAIR.findall(value)):
        if _counts(name, inner, is_among_secrets=False):
            yield from (inner, unquote(inner))
    for name, inner in _HEADER.findall(value):
        yield from _whole(name, inner, is_among_secrets=False)


def _counts(name: str, value: str, *, is_among_secrets: bool) -> bool:
    """Whether the value under this name is a secret: all of it, as it stands."""
    if not _is_long(value) or _URL.match(value) or _is_path(value):
        return False
    spelled = _spelled(name)
    is_fingerprint = re.search("GPG|PGP", spelled) is not None and _FINGERPRINT.fullmatch(value) is not None
    kind = None if is_fingerprint else _kind(name)
    if kind is Kind.PASSWORD:
        return True
    if kind is not None:
        return not _WORD.fullmatch(value) and (kind is Kind.SECRET or not _NUMBER.fullmatch(value))
    return (is_among_secrets or _IS_AUTH.search(spelled) is not None) and not _is_readable(value)


def _spelled(name: str) -> str:
    """`clientSecret`, `client-secret` and `client_secret` are one name."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[^A-Za-z0-9]+", "_", apart).strip("_").upper()


def _is_long(value: str) -> bool:
    return len(value) >= LENGTH_MIN and value.lower() not in _COMMON


def _is_path(value: str) -> bool:
    """A secret in base64 may begin with a slash, too, but has a long run of letters and digits."""
    return _PATH.fullmatch(value) is not None and not any(map(_is_random, re.findall(r"[A-Za-z0-9+]+", value)))


def _is_random(run: str) -> bool:
    kinds = (str.isdigit, str.isupper, str.islower)
    return len(run) >= _RUN_MIN and all(any(map(kind, run)) for kind in kinds)


def _is_readable(value: str) -> bool:
    """Words and short numbers: `us-east-1`, `2024-06-01`, `application/json`, `gpt-4o-mini`, `client/1.0 (Linux)`."""
    odd = [part for part in re.split(r"[^A-Za-z0-9]+", value) if not _PLAIN_PART.fullmatch(part)]
    return not odd or (len(odd) == 1 and _SHORT_PART.fullmatch(odd[0]) is not None)


def _tree(text: str) -> dict[str, Any] | list[Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _password_of(packed: str) -> Iterator[str]:
    """Of `user:password` in base64."""
    try:
        _, _, password = b64decode(packed + "=" * (-len(packed) % 4)).decode().partition(":")
    except ValueError:
        return
    yield password
