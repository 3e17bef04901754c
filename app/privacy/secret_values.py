r"""Tells whether a value is a secret, and no placeholder, no type, no piece of code.

    <your password>  ${DB_PASSWORD}  ****     placeholders
    None  str  optional                       plain words
    get_password()  self.token  &mut x        references
    9f8a7c…  Tr0ub4dor&3                      values

The bytes that these look at are few: Python's own engine needs no automaton built before it can begin, as RE2 does.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Callable


def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.IGNORECASE)


def _matches(pattern: bytes) -> Callable[[bytes], bool]:
    """Tells whether the pattern stands somewhere in a value."""
    search = _compiled(pattern).search
    return lambda value: search(value) is not None


is_placeholder = _matches(
    rb"^(?:<[^<>]*>|(?-i:\[[A-Z_ ]*\])|\{\{?[^{}]*\}?\}|[$#]\{[^}]*\}?|\$\([^)]*\)?|(?-i:\$[A-Z0-9_]*)"
    rb"|\$[a-z0-9_]*(?:pass|pwd|token|secret|key)[a-z0-9_]*|@[a-z0-9_]*(?:password|passwd|pwd|token|secret|key)"
    rb"|%[a-z_]*%|(?:%(?:\([a-z_]*\))?[sdr]:?)+|(?:[a-z]{1,12}[_-]){0,3}[*.\xe2\x80\xa2\xa6#-]+|x{3,}|your[ _-].*)$"
)
is_plain_word = _matches(
    rb"^(?:none|null|nil|undefined|true|false|str|string|bytes|bool|boolean|int|integer|float|double|number|char|any"
    rb"|object|unknown|never|void|self|this|optional|required|text|password|default|empty|yes|no|not|in|is|if|or|and"
    rb"|value|val|new|await|async|typeof|lambda|function|return|bearer|requires|must"
    rb"|cannot|options?|flags?|arguments?|parameters?|fields?)$"
)
is_reference = _matches(
    rb"^[*&!]*[a-z_$][a-z0-9_$]*(?:\(|\[|\{|->|::|[?!]?\.[a-z_$]|<[a-z])"
    rb"|^@?[(\[{]|^[a-z_$][a-z0-9_$.]*[?]|^[|>][+-]?$|^#[a-z]*$|^[*&!+]+[a-z_$]+;?$|^\$[a-z_]+[,;)]+$|^[a-z_$]+\.<|^[a-z_$]{1,2}[+*/-]"
    rb"|^/[^/]*[(\[\\^$|]"
)
_IDENTIFIER = _compiled(rb"^[a-z_$][a-z0-9_$]*$")
is_number = _matches(rb"^[-!]?(?:0x[0-9a-f]+|[0-9][0-9_.,]*[a-z%]?)$")
_VERSION = _compiled(rb"^[~^<>=v]*[0-9]+\.[0-9]+(?:\.[0-9x]+(?:[ -].*)?)?$")
_TYPE = _compiled(rb"^[a-z_.]+\[[a-z_.,| \[\]]*\]$")
_PATH = re.compile(rb"^(?:/[a-z._-]+){2,}$")
_FILE = _compiled(rb"[a-z0-9_/-]\.(?:pem|key|crt|p12|json|ya?ml)$")
_URL = _compiled(rb"^[a-z]+://[^\s@]+$")
_WORDS = re.compile(rb"^[a-z]+(?:[./-][a-z]+)+$")
_FIRST_WORD = re.compile(rb"^[A-Z][a-z]+[/-][a-z]+$")
_HAS_NAME = re.compile(
    rb"passw(?:or)?d|passphrase|passcode|pwd|[_-]pass|secret|token|credential"
    rb"|(?:api|access|private|public|account|auth|signing|encryption|master|shared|license)[ _-]?key"
)
is_call = _matches(rb"^[*&!]*[a-z_$][a-z0-9_$.]*\(|^(?:self|this|cls|super)\b")
_TEMPLATE = _compiled(rb"\$?\{[^{}]*\}|%(?:\([a-z_]*\))?[sdr]|<[a-z_ -]+>")
_PROSE = _compiled(rb"(?:\S+\s+){3}\S")
_FUNCTION_WORD = _compiled(rb"\b(?:the|a|an|of|for|to|your|is|in|and|or|not|with|must|be)\b")
_URL_SECRET = _compiled(rb"://[^\s/@]*:[^\s/@]+@|://[^\s/@:]{16,}@|[a-z0-9]:[^\s:@/]+@(?:tcp|unix|udp)?\(")
_CONNECTION_SECRET = _compiled(rb"(?:password|pwd|accountkey|sharedaccesskey|accesskey|secret|token)=[^\s;&]")
_USER_SECRET = _compiled(rb"^[a-z0-9_.@-]+:[^\s:/]{3,}$")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_LOGIN = re.compile(rb"[!-9;-~]+:[ -~]+")
_LONG_RUN = _compiled(rb"[0-9]{12}|[a-z0-9]{16}")
_OPENING = _compiled(rb"^[a-z_$][a-z0-9_$.]*[(\[{:]$")
_UUID = _compiled(rb"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_RUN = re.compile(rb"[A-Za-z0-9+/_=-]{16,}+")
_ALTERNATIONS = re.compile(rb"(?:(?>.*?(?:[A-Za-z][0-9]|[0-9][A-Za-z]))){3}", re.DOTALL)

_RANDOM_MIN, _DIGITS_MIN, _CREDENTIAL_MIN, _TOKEN_MIN, _SETTING_MIN = 16, 3, 6, 3, 8


def has_name(word: bytes) -> bool:
    """A variable that is named after what it holds: `user_password`, `auth.token`."""
    word = word.lower()
    # One of them is in each such name, and in few other words.
    if b"pass" in word or b"pwd" in word or b"secret" in word or b"token" in word or b"cred" in word or b"key" in word:
        return _HAS_NAME.search(word) is not None
    return False


def is_named_after(text: bytes, name: bytes) -> bool:
    """`MUST_PASS = "must_pass"`, `oid.CHALLENGE_PASSWORD: "challengePassword"`"""
    text, name = _letters(text), _letters(name.rpartition(b".")[2])
    return _digits(text) == 0 and (text == name or (name.endswith(text) and has_name(text)))


def is_name(word: bytes) -> bool:
    return has_name(word) and _IDENTIFIER.search(word) is not None


def is_opening(head: bytes) -> bool:
    """`credentials[` before a quote, `parser.get(`"""
    return head in {b"(", b"[", b"{"} or _OPENING.search(head) is not None


def is_variable(word: bytes) -> bool:
    """An identifier with one digit at most: `defaultToConfig2`."""
    return _IDENTIFIER.search(word) is not None and _digits(word) <= 1


def is_template(text: bytes) -> bool:
    """`Bearer {token}`: a secret stands only where what is around the fields has digits."""
    rest, fields = _TEMPLATE.subn(b"", text)
    return fields > 0 and _digits(rest) < _DIGITS_MIN


def is_place(text: bytes) -> bool:
    """Where something is: a file, or an address without a password or random letters."""
    if _PATH.search(text) or _FILE.search(text):
        return True
    return _URL.search(text) is not None and not is_random(text)


def begins_sentence(word: bytes) -> bool:
    """`App-level`, `Password/secret`"""
    return _FIRST_WORD.search(word) is not None


def is_prose(text: bytes) -> bool:
    """A sentence about a password."""
    return _PROSE.search(text) is not None and _FUNCTION_WORD.search(text) is not None


def is_label(text: bytes) -> bool:
    """What is written in the place of a password: its name, a type, a version: `New password:`, `INVALID_PASSWORD`."""
    if is_plain_word(text) or _VERSION.search(text) or _TYPE.search(text):
        return True
    return has_name(text) and _digits(text) == 0 and b"=" not in text and (b" " in text or text == text.upper())


def is_no_token(text: bytes) -> bool:
    """What stands in quotes under the name of a token or key and is none: a name, a pattern, words, a letter."""
    if len(text) < _TOKEN_MIN or text[:1] in b"^([#" or not text.isascii():
        return True
    is_constant = b"_" in text and text == text.upper()
    return _digits(text) == 0 and (is_constant or has_name(text))


def is_wording(text: bytes) -> bool:
    """Words, which make no token or key, though they may make a secret: `is not`, `xet-auth`."""
    return _digits(text) == 0 and (b" " in text or _WORDS.search(text) is not None)


def has_digits(word: bytes) -> bool:
    """Whether it has digits as a long random word has them; `self.token.value` does not."""
    return len(word) >= _RANDOM_MIN and _digits(word) >= _DIGITS_MIN


def is_random(value: bytes) -> bool:
    """Letters and digits mixed as in no name, date, path or UUID."""
    if len(value) < _RANDOM_MIN or b" " in value or _digits(value) < _DIGITS_MIN:
        return False
    return _ALTERNATIONS.match(value) is not None and _UUID.search(value) is None


def is_key(value: bytes) -> bool:
    """One run of letters and digits, as keys have it: no placeholder, address, label or piece of code looks so.

    Most secrets do, and need no closer look.
    """
    if _RUN.fullmatch(value) is None or value[1:2] in {b"x", b"X"} or value[:4].lower() == b"your":
        return False
    return is_random(value) and not has_name(value)


def is_login(value: bytes) -> bool:
    """`user:password` in base64, as Docker and npm keep it."""
    if len(value) < _SETTING_MIN or _BASE64.fullmatch(value) is None:
        return False
    try:
        return _LOGIN.fullmatch(a2b_base64(value + b"=" * (-len(value) % 4))) is not None
    except ValueError:
        return False


def is_credential(value: bytes) -> bool:
    """`user:password`, a URL or connection string with a password, a random word; no path and no setting."""
    if _URL_SECRET.search(value) or _CONNECTION_SECRET.search(value):
        return True
    if len(value) < _CREDENTIAL_MIN or any(byte in value for byte in b" \t/\\(){}<>;$") or has_name(value):
        return is_random(value) and b"://" not in value
    is_mixed = value.upper() != value.lower() and _digits(value) > 0 and not is_variable(value)
    return _USER_SECRET.search(value) is not None or is_mixed


def is_setting(value: bytes) -> bool:
    """Whether an environment variable's value may be a secret: no path, switch, short number or plain word."""
    if (b"/" in value and not is_random(value)) or (has_name(value) and _digits(value) == 0):
        return False
    is_mixed = len(value) >= _SETTING_MIN and _digits(value) > 0 and value.upper() != value.lower()
    return is_mixed or _LONG_RUN.search(value) is not None


def _letters(name: bytes) -> bytes:
    return name.translate(None, b"_- ").lower()


def _digits(value: bytes) -> int:
    return len(value) - len(value.translate(None, b"0123456789"))
