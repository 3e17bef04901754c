"""Fake secrets, put together at run time: a secret scanner finds no key in this repository.

Each `Sample` is a text as a tool or a person would write it, and the secret in it.
"""

from __future__ import annotations

import random
import string
from base64 import b64encode
from dataclasses import dataclass

_ALNUM = string.ascii_letters + string.digits
_URL = _ALNUM + "-_"
_BASE64 = _ALNUM + "+/"
_HEX = "0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Sample:
    rule: str
    case: str
    text: str
    secret: str
    """What dresses break, colour and cut."""
    body: str = ""
    """What must not be read again, where that is less than the whole: a PEM's marks may stay."""

    @property
    def id(self) -> str:
        return f"{self.rule}-{self.case}"


def noise(seed: str, alphabet: str, length: int) -> str:
    """The same letters for the same seed, with a digit among the first and the last few, as keys have."""
    dice = random.Random(seed)  # noqa: S311 - the same letters each time, nothing to protect
    letters = [dice.choice(alphabet) for _ in range(length)]
    digits = [letter for letter in alphabet if letter.isdigit()] or [alphabet[0]]
    letters[2], letters[-2] = dice.choice(digits), dice.choice(digits)
    return "".join(letters)


def _key(rule: str, case: str, prefix: tuple[str, ...], alphabet: str, length: int) -> Sample:
    secret = "".join(prefix) + noise(rule + case, alphabet, length)
    return Sample(rule, case, f"the key is {secret} for now", secret)


def jwt() -> str:
    head = b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    body = b64encode(b'{"sub":"1234567890","name":"Jo Doe","iat":1516239022}').decode().rstrip("=")
    return f"{head}.{body}.{noise('jwt', _URL, 43)}"


def aws_secret() -> str:
    return noise("aws-secret", _BASE64, 40)


KEYS = (
    _key("anthropic", "api", ("sk-", "ant-", "api03-"), _URL, 95),
    _key("anthropic", "oauth", ("sk-", "ant-", "oat01-"), _URL, 95),
    _key("openai", "old", ("sk", "-"), _ALNUM, 48),
    _key("openai", "project", ("sk-", "proj-"), _URL, 156),
    _key("openai", "service", ("sk-", "svcacct-"), _URL, 120),
    _key("helicone", "us", ("sk-", "helicone-", "abcdefg-1234567-"), string.ascii_lowercase + string.digits, 15),
    _key("helicone", "eu", ("sk-", "helicone-", "eu-abcdefg-1234567-"), string.ascii_lowercase + string.digits, 15),
    _key("helicone", "public", ("pk-", "helicone-"), string.ascii_lowercase + string.digits, 31),
    _key("openrouter", "v1", ("sk-", "or-", "v1-"), _HEX, 64),
    _key("groq", "api", ("gs", "k_"), _ALNUM, 52),
    _key("xai", "api", ("xa", "i-"), _ALNUM, 80),
    _key("github", "personal", ("gh", "p_"), _ALNUM, 36),
    _key("github", "oauth", ("gh", "o_"), _ALNUM, 36),
    _key("github", "user", ("gh", "u_"), _ALNUM, 36),
    _key("github", "server", ("gh", "s_"), _ALNUM, 36),
    _key("github", "refresh", ("gh", "r_"), _ALNUM, 76),
    _key("github", "fine", ("github", "_pat_"), _ALNUM, 82),
    _key("gitlab", "personal", ("gl", "pat-"), _URL, 20),
    _key("gitlab", "runner", ("gl", "rt-"), _URL, 20),
    _key("aws", "id", ("AK", "IA"), string.ascii_uppercase + "234567", 16),
    _key("aws", "session-id", ("AS", "IA"), string.ascii_uppercase + "234567", 16),
    _key("google", "api", ("AI", "za"), _URL, 35),
    _key("google", "oauth", ("ya", "29."), _URL, 120),
    _key("google", "client", ("GOC", "SPX-"), _URL, 28),
    _key("slack", "bot", ("xo", "xb-"), string.digits + "-" + _ALNUM, 50),
    _key("slack", "user", ("xo", "xp-"), string.digits + "-" + _ALNUM, 70),
    _key("slack", "app", ("xa", "pp-1-"), _ALNUM + "-", 80),
    _key("stripe", "live", ("sk", "_live_"), _ALNUM, 24),
    _key("stripe", "restricted", ("rk", "_live_"), _ALNUM, 24),
    _key("stripe", "test", ("sk", "_test_"), _ALNUM, 24),
    _key("stripe", "webhook", ("wh", "sec_"), _ALNUM, 32),
    _key("npm", "access", ("np", "m_"), _ALNUM, 36),
    _key("pypi", "upload", ("py", "pi-AgEIcHlwaS5vcmc"), _URL, 130),
    _key("huggingface", "user", ("h", "f_"), string.ascii_letters + "123", 34),
    Sample("jwt", "session", f"the session is {jwt()} for now", jwt()),
)

_AWS, _AZURE, _HOOK = aws_secret(), noise("azure", _BASE64, 86) + "==", noise("slack-hook", _ALNUM, 24)
_OPAQUE, _SAS = noise("opaque", _ALNUM, 40), noise("sas", _ALNUM, 43)
_AZURE_CLIENT = noise("client", _ALNUM, 3) + "8" + "Q~" + noise("client2", _ALNUM, 34)
_BASIC = b64encode(f"app:{_OPAQUE}".encode()).decode()
_ID = "AK" + "IA" + noise("pair", string.ascii_uppercase + "234567", 16)
_PASSWORD = "hunt" + "er2"
_WORD = "sword" + "fish"
_STRONG = "Tr0ub" + "4dor&3"

PLACES = (
    Sample("aws", "environment", f"AWS_SECRET_ACCESS_KEY={_AWS}", _AWS),
    Sample("aws", "credentials", f"aws_secret_access_key = {_AWS}", _AWS),
    Sample("aws", "json", f'"SecretAccessKey": "{_AWS}"', _AWS),
    Sample("aws", "csv", f"{_ID},{_AWS}", _AWS),
    Sample("azure", "storage", f"DefaultEndpointsProtocol=https;AccountName=x;{'Account'}Key={_AZURE};", _AZURE),
    Sample("azure", "bus", f"Endpoint=sb://x.example.com/;{'SharedAccess'}Key={_AZURE}", _AZURE),
    Sample("azure", "sas", f"https://x.example.com/c?sv=2024-01-01&sig={_SAS}&se=2030", _SAS),
    Sample("azure", "client", f"the client secret value is {_AZURE_CLIENT} there", _AZURE_CLIENT),
    Sample("slack", "webhook", f"https://hooks.slack.com/services/T00000000/B00000000/{_HOOK}", _HOOK),
    Sample("gcp", "key-id", f'"{"private"}_key_id": "{noise("gcp", _HEX, 40)}",', noise("gcp", _HEX, 40)),
    Sample("url-password", "database", f"postgres://app:{_STRONG}@db.example.com:5432/app", _STRONG),
    Sample("url-password", "no-user", f"redis://:{_OPAQUE}@cache.example.com:6379", _OPAQUE),
    Sample("url-password", "user-only", f"https://{_OPAQUE}@git.example.com/a.git", _OPAQUE),
    Sample("authorization", "bearer", f"Authorization: Bearer {_OPAQUE}", _OPAQUE),
    Sample("authorization", "curl", f"curl -sH 'Authorization: Bearer {_OPAQUE}' https://example.com", _OPAQUE),
    Sample("authorization", "json", f'"Authorization": "Bearer {_OPAQUE}"', _OPAQUE),
    Sample("authorization", "basic", f"authorization: Basic {_BASIC}", _BASIC),
    Sample("authorization", "call", f'req.setHeader("Authorization", "Bearer {_OPAQUE}")', _OPAQUE),
    Sample("authorization", "digest", f'Authorization: Digest username="x", response="{_OPAQUE}"', _OPAQUE),
    Sample("authorization", "prose", f"I sent bearer {_OPAQUE} along", _OPAQUE),
    Sample("cookie", "request", f"Cookie: theme=dark; session={_OPAQUE}", _OPAQUE),
    Sample("cookie", "response", f"< set-cookie: sid={_OPAQUE}; Path=/; HttpOnly", _OPAQUE),
    Sample("cookie", "quoted", f'Cookie: a="x y"; session="{_OPAQUE}"; b=c', _OPAQUE),
    Sample("cookie", "json", f'"cookie": "sid={_OPAQUE}"', _OPAQUE),
    Sample("assignment", "environment", f"DB_PASSWORD={_WORD}", _WORD),
    Sample("assignment", "export", f"export SERVICE_TOKEN={_OPAQUE}", _OPAQUE),
    Sample("assignment", "quoted", f'password = "{_STRONG}"', _STRONG),
    Sample("assignment", "single", f"'api_key': '{_OPAQUE}',", _OPAQUE),
    Sample("assignment", "json", f'"clientSecret": "{_OPAQUE}"', _OPAQUE),
    Sample("assignment", "typed", f'password: str = "{_STRONG}"', _STRONG),
    Sample("assignment", "prose", f"and with password={_PASSWORD} it works", _PASSWORD),
    Sample("assignment", "yaml", f"  password: {_WORD}", _WORD),
    Sample("assignment", "header", f"X-Api-Key: {_OPAQUE}", _OPAQUE),
    Sample("assignment", "query", f"https://example.com/a?user=x&token={_OPAQUE}&page=2", _OPAQUE),
    Sample("assignment", "option", f"mysql --password {_STRONG} --host x", _STRONG),
    Sample("assignment", "npmrc", f"//registry.example.com/:_authToken={_OPAQUE}", _OPAQUE),
    Sample("assignment", "connection", f"Server=x;User Id=app;Password={_STRONG};Encrypt=true", _STRONG),
    Sample("assignment", "passphrase", f'passphrase: "correct horse {_WORD} staple"', _WORD),
)


def _pem(case: str, name: str, *headers: str, lines: int = 8, line_end: str = "\n") -> Sample:
    body = noise(f"pem {case}", _BASE64, 64 * lines - 20)
    wrapped = (body[at : at + 64] for at in range(0, len(body), 64))
    mark = name.replace("KEY", f"{'PRIV'}ATE KEY")
    block = line_end.join((f"-----BEGIN {mark}-----", *headers, *wrapped, f"-----END {mark}-----"))
    return Sample("pem", case, block, block, body)


PEMS = (
    _pem("rsa", "RSA KEY"),
    _pem("pkcs8", "KEY"),
    _pem("ec", "EC KEY", lines=2),
    _pem("openssh", "OPENSSH KEY"),
    _pem("encrypted", "RSA KEY", "Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-128-CBC,0123456789ABCDEF", ""),
    _pem("pgp", "PGP KEY BLOCK", "Version: GnuPG v2", ""),
    _pem("in-code", "KEY", line_end='\\n" +\n  "'),
    _pem("on-one-line", "KEY", line_end=" "),
)

SAMPLES = KEYS + PLACES + PEMS
