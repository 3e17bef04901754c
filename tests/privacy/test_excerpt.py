"""What is kept of Helicone's answers, by a real server that says what it should not."""

from __future__ import annotations

import html
import json
import os
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from urllib.parse import quote

import pytest

from app.exporters.client import ReadBackError
from app.exporters.helicone.client import Client
from app.exporters.outcome import Outcome
from app.privacy.excerpt import CHARS_MAX, UNREADABLE, WITHHELD
from app.privacy.redact import REDACTED, Redaction
from tests.support.fake_secrets import KEYS, noise
from tests.support.servers import answer, api_key, scripted

ID = str(uuid.uuid5(uuid.NAMESPACE_URL, "a record"))
SAID = 'the canary "sings"\n\tin 洞窟 9 at <night> & 100%: ' + "y" * 20
OTHER = "日本語の文章は短くても多くを語ることができる"
CODE = "if (i < n && n > 0) { s = \"a\" & 'b' }; f(x) < g(y) & h(z) > 1"
KNOWN = noise("known", "abcdefghijkmnpqrstuvwxyz23456789", 30)
RECORD = json.dumps(
    {
        "providerRequest": {
            "url": "custom-model-nopath",
            "json": {"input": {"a key as long as a word": SAID}, "said": [CODE, OTHER]},
            "meta": {"Helicone-Request-Id": ID},
        },
        "providerResponse": {"status": 200, "headers": {}, "json": {}},
    },
    ensure_ascii=False,
).encode()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    redaction = Redaction.compile([r"internal-\d+"], known_values=[api_key(), KNOWN])
    with closing(Client(api_key(), redact=redaction.text)) as made:
        yield made


def post(client: Client, body: bytes, status: int = 500, path: str = "/custom/v1/log") -> Outcome:
    with scripted(answer(status, body)) as server:
        return client.post(server.url + path, RECORD, ID, 0)


def test_the_beginning_of_an_answer_is_kept_on_one_line(client: Client) -> None:
    outcome = post(client, b"  upstream\r\n\x1b[31mfailed\x00 " + b"no room left. " * 50)
    assert outcome.answer.startswith("upstream [31mfailed no room left.")
    assert len(outcome.answer) == CHARS_MAX
    assert outcome.answer.isprintable()


def test_words_that_every_record_holds_are_no_echo(client: Client) -> None:
    said = "Invalid providerResponse: 'url' should be a string; Helicone-Request-Id is malformed"
    assert post(client, said.encode(), 400).answer == said


def test_nothing_of_an_accepted_answer_is_kept(client: Client) -> None:
    outcome = post(client, b"", 200, "/v1/trace/custom/log")
    assert (outcome.kind, outcome.answer) == ("accepted", "")


def test_a_client_that_cannot_redact_keeps_no_answer() -> None:
    with closing(Client(api_key())) as plain:
        assert post(plain, b"upstream failed").answer == ""


ECHOES = {
    "as it was sent": RECORD.decode()[90:150],
    "decoded": SAID,
    "another language": f"«{OTHER}»",
    "a key of what a tool was asked": "what is 'a key as long as a word'?",
    "in JSON": json.dumps({"error": SAID}),
    "in JSON with escapes": json.dumps({"error": f"near {OTHER}"}),
    "in JSON in JSON": json.dumps({"error": json.dumps({"text": SAID})}),
    "in a URL": quote(SAID),
    "in HTML": html.escape(CODE),
    "in capitals": SAID.upper(),
    "in wide letters": "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in SAID),
    "with numbered words": " ".join(f"{n}:{word}" for n, word in enumerate(SAID.split())),
    "with other spaces": "the   canary\n'sings' in\t洞窟 9 at night",
}


@pytest.mark.parametrize("said", ECHOES.values(), ids=ECHOES)
def test_an_answer_that_repeats_the_record_is_withheld(client: Client, said: str) -> None:
    assert post(client, f"cannot parse {said}".encode(), 400).answer == WITHHELD


def test_a_reason_that_repeats_the_record_in_escapes_is_withheld(client: Client) -> None:
    outcome = post(client, json.dumps({"error": f"near {OTHER}"}).encode(), 400)
    assert outcome.reason == "400: the answer's text repeats the record and is withheld"


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(char):04x}" if char == "-" else char for char in text)


SECRETS = {
    "our key": api_key(),
    "our key in escapes": escaped(api_key()),
    "our key in a URL": api_key().replace("-", "%2D"),
    "our key in base64": b64encode(api_key().encode()).decode(),
    "a secret of this machine": KNOWN,
    "a secret of this machine in hex": KNOWN.encode().hex(),
    "somebody's key": KEYS[0].secret,
    "what a pattern of ours names": "internal-4711",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_an_answer_and_its_reason_are_kept_without_secrets(client: Client, secret: str) -> None:
    outcome = post(client, f'{{"error": "denied to {secret} today"}}'.encode(), 401)
    for kept in (outcome.answer, outcome.reason):
        for told in (secret, api_key(), KNOWN):
            assert told not in kept
        assert REDACTED in kept or "[key]" in kept
        assert "denied to" in kept


UNICODE = {
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 BE": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "UTF-16 BE without a mark": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "UTF-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "zeros between": lambda text: "\0".join(text).encode(),
    "zeros between, escaped": lambda text: json.dumps({"error": "\0".join(text)}).encode(),
    "cut in a letter": lambda text: f"{text} ".encode("utf-16")[:-1],
}


@pytest.mark.parametrize("encode", UNICODE.values(), ids=UNICODE)
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secrets_are_masked_in_whatever_unicode_they_come(
    client: Client, secret: str, encode: Callable[[str], bytes]
) -> None:
    outcome = post(client, encode(f'{{"error": "denied to {secret} today"}}'), 401)
    for kept in (outcome.answer, outcome.reason):
        for told in (secret, api_key(), KNOWN):
            assert bare(told) not in bare(kept)
    assert "denied to" in outcome.answer
    assert REDACTED in outcome.answer or "[key]" in outcome.answer


def bare(text: str) -> str:
    return "".join(char for char in text if char.isalnum())


@pytest.mark.parametrize("encode", UNICODE.values(), ids=UNICODE)
def test_what_was_sent_is_withheld_in_whatever_unicode_it_comes(client: Client, encode: Callable[[str], bytes]) -> None:
    assert post(client, encode(f"cannot parse {SAID[:24]}"), 400).answer == WITHHELD


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "shift_jis", "euc_jp"])
def test_of_what_cannot_be_read_nothing_is_kept(client: Client, encoding: str) -> None:
    assert post(client, f"near {OTHER} here".encode(encoding), 400).answer == UNREADABLE


@pytest.mark.parametrize("length", range(100, 130, 7))
def test_a_secret_that_stands_where_a_reason_is_cut_is_not_cut_in_half(client: Client, length: int) -> None:
    for secret in (api_key(), escaped(api_key()), KNOWN):
        said = f'{{"error": "{"x " * (length // 2)}{secret}"}}'.encode()
        for body in (said, said.decode().encode("utf-16")):
            reason = post(client, body, 401).reason
            assert not any(bare(told)[:8] in bare(reason) for told in (api_key(), KNOWN))


@pytest.mark.parametrize("encode", UNICODE.values(), ids=UNICODE)
def test_why_reading_back_failed_is_said_without_secrets(client: Client, encode: Callable[[str], bytes]) -> None:
    for secret in (api_key(), escaped(api_key()), KNOWN):
        with scripted(answer(500, encode(f'{{"error": "denied to {secret}"}}'))) as server:
            with pytest.raises(ReadBackError) as caught:
                client.stored(server.url, start_ms=0, request_ids=[uuid.UUID(ID)])
            assert not any(bare(told) in bare(str(caught.value)) for told in (api_key(), KNOWN))


def test_a_secret_that_stands_where_the_answer_is_cut_is_not_cut_in_half(client: Client) -> None:
    kept = post(client, b"x " * (CHARS_MAX // 2 - 5) + api_key().encode().replace(b"-", b"%2D")).answer
    assert kept.endswith(REDACTED)


def test_the_key_does_not_come_back_through_escapes_where_nothing_is_redacted() -> None:
    with closing(Client(api_key())) as plain:
        outcome = post(plain, f'{{"error": "unknown {escaped(api_key())}"}}'.encode(), 401)
    assert outcome.reason == "401: error unknown [key]"
