"""What a tenant's patterns take out of a log, and what stays whatever they match."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.intake.masks import DEPTH_MAX, masked
from app.privacy.redact import REDACTED, Redaction
from app.privacy.user_patterns import PatternError
from app.receiver import handler
from app.receiver.manual_log import Log
from app.transcript.identity import Encoding
from app.transcript.model import Json
from app.transcript.parse import parse
from tests.exporters.helicone.test_golden import records, snapshot
from tests.support.intake import envelope
from tests.support.servers import api_key

ONE = "0f1ed2fd-0000-4000-8000-000000000001"
RECORDINGS = ("b_tools", "d_error_400", "f_subagent", "j_unicode_secrets", "l_reasoning", "m_command")


def bodies(name: str, encoding: Encoding = 2) -> list[bytes]:
    return [record.body for record in records(parse(snapshot(name)), encoding)]


def log_of(body: bytes) -> Log:
    """As Helicone reads it."""
    found = handler.worker_reply({"authorization": f"Bearer {api_key()}"}, body, None, 0, "").log
    assert found is not None
    return found


def identity(log: Log) -> tuple[object, ...]:
    of_session = [value for name, value in log.properties.items() if name.startswith("Helicone-Session")]
    return log.request_id, log.provider, log.model, log.user_id, log.created_ms, of_session


def made(body: bytes, *patterns: str) -> Any:
    return json.loads(masked(body, patterns))


def request(body: bytes, *patterns: str) -> Any:
    return made(body, *patterns)["providerRequest"]["json"]


def with_request(json_: dict[str, Any], **meta: str) -> bytes:
    """As the laptop sends it: the request stands beside the envelope once more."""
    asked = {"url": "u", "json": json_, "meta": {"Helicone-Request-Id": ONE, **meta}}
    return envelope(ONE, providerRequest=asked, **json_)


def tool(given: object) -> bytes:
    return with_request({"_type": "tool", "toolName": "acme_search", "input": given})


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("encoding", [1, 2])
def test_where_nothing_matches_the_bytes_are_the_same(name: str, encoding: Encoding) -> None:
    for body in bodies(name, encoding):
        assert masked(body, ("no-such-text",)) == body
        assert masked(body, ()) == body


def test_so_are_bytes_that_nobody_here_would_write() -> None:
    body = b'{ "a" : 1.0e2, "b": "\\u00e9", "provider":"X" }'
    assert masked(body, ("no-such-text",)) == body


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("encoding", [1, 2])
def test_whatever_matches_it_stays_the_same_log_to_helicone(name: str, encoding: Encoding) -> None:
    for body in bodies(name, encoding):
        after = masked(body, (r"\S+", r"[0-9]+"))
        assert after != body
        assert identity(log_of(after)) == identity(log_of(body))
        before_timing, after_timing = json.loads(body)["timing"], json.loads(after)["timing"]
        assert before_timing == after_timing


@pytest.mark.parametrize("name", RECORDINGS)
def test_of_what_matches_nothing_is_left_but_what_a_log_is_known_by(name: str) -> None:
    """All texts of a recording as one pattern each: what the laptop would have taken out is out here, too."""
    for body in bodies(name):
        texts = [one for one in leaves(json.loads(body)) if one.strip()]
        known = {one for part in identity(log_of(body)) for one in (part if isinstance(part, list) else [str(part)])}
        after = json.loads(masked(body, (r"(?s).+",)))
        kept = {one for one in leaves(after) if one != REDACTED}
        assert kept <= known | {"tool", "data"} | {json.loads(body).get("toolName"), json.loads(body).get("name")}
        assert len(texts) > len(kept)


def leaves(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [leaf for inner in items for leaf in leaves(inner)]


def test_each_text_is_masked_wherever_it_stands() -> None:
    body = with_request({"model": "acme/model", "messages": [{"role": "user", "content": "the ACME plan"}]})
    after = made(body, "acme")
    assert after["messages"] == after["providerRequest"]["json"]["messages"]
    assert after["messages"][0]["content"] == "the [REDACTED] plan"
    assert after["model"] == after["providerRequest"]["json"]["model"] == "acme/model"


def test_properties_are_masked_and_what_finds_the_log_is_not() -> None:
    names = ("Session-Id", "session-name", "Session-Path", "User-Id", "Model-Override")
    body = with_request(
        {}, **{f"Helicone-{name}": "acme" for name in names}, **{"Helicone-Property-acme": "an acme one"}
    )
    meta = made(body, "acme")["providerRequest"]["meta"]
    assert {meta[f"Helicone-{name}"] for name in names} == {"acme"}
    assert meta["Helicone-Property-acme"] == "an [REDACTED] one"


def test_a_tools_input_is_masked_with_its_names_and_numbers() -> None:
    given: dict[str, Json] = {
        "acme 1": {"deep": ["acme"]},
        "acme 2": 4711,
        "plain": 4711.5,
        "yes": True,
        "model": "acme",
    }
    after = request(tool(given), "acme [0-9]", "acme", "4711")
    assert after["toolName"] == "acme_search"
    assert after["input"] == {
        "[REDACTED]": {"deep": ["[REDACTED]"]},
        "[REDACTED] 1": "[REDACTED]",
        "plain": "[REDACTED].5",
        "yes": True,
        "model": "[REDACTED]",
    }
    plain = Redaction.compile(("acme [0-9]", "acme", "4711"), secrets=False).json(given)
    assert after["input"] == plain, "as on the laptop"


def test_elsewhere_names_and_numbers_are_the_encoders_own() -> None:
    response = {"status": 200, "headers": {}, "json": {"usage": {"prompt_tokens": 4711}, "parts": {"text": 1}}}
    body = envelope(ONE, "text", providerResponse=response)
    assert made(body, "text", "4711", "200")["providerResponse"] == response


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"to": "acm\\u0065"}', '{"to": "[REDACTED]"}'),
        ("\x1b[31mac\x1b[0mme", "\x1b[31m[REDACTED]"),
        ("acme acmeacme", "[REDACTED] [REDACTED]"),
        ("%61cme \ud83d\ude00", "[REDACTED] \U0001f600"),
        ("acme \ud800", "[REDACTED] \ufffd"),
    ],
)
def test_escapes_hide_nothing(text: str, shown: str) -> None:
    assert request(envelope(ONE, text), "acme")["messages"][0]["content"] == shown


def test_what_is_nested_too_deep_to_be_looked_at_is_masked_whole() -> None:
    nested: Any = "fine"
    for _ in range(DEPTH_MAX - 10):
        nested = [nested]
    assert masked(tool(nested), ("no-such-text",)) == tool(nested)
    for _ in range(20):
        nested = [nested]
    after = masked(tool(nested), ("no-such-text",))
    assert b"fine" not in after
    assert REDACTED.encode() in after


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"[" * 200_000, b'{"a":NaN', b"\xff"])
def test_what_is_no_log_is_left_to_who_refuses_it(raw: bytes) -> None:
    assert masked(raw, ("a",)) == raw


@pytest.mark.parametrize("part", [1, "acme", ["acme"], None])
def test_a_part_of_another_shape_is_masked_as_well(part: object) -> None:
    for name in ("providerRequest", "providerResponse", "timing"):
        assert b"acme" not in masked(json.dumps({name: part, "acme-free": "acme"}).encode(), ("acme",)).replace(
            b"acme-free", b""
        )
    for inner in ("json", "meta"):
        body = envelope(ONE, "acme", providerRequest={"url": "acme", inner: part})
        assert b"acme" not in masked(body, ("acme",))


def test_a_pattern_that_cannot_be_used_is_said_without_its_text() -> None:
    with pytest.raises(PatternError) as raised:
        masked(envelope(ONE), ("fine", "(secret"))
    assert "secret" not in raised.value.without_text


def test_a_pattern_that_is_slow_elsewhere_is_not_here() -> None:
    """RE2's time is linear; Python's own would not come back."""
    assert b"[REDACTED]" not in masked(envelope(ONE, "a" * 100_000 + "!"), (r"(a+)+$",))


def test_a_name_that_stands_twice_hides_nothing() -> None:
    """Whoever parses the log sees the last one alone."""
    twice = envelope(ONE).replace(b'"content": "hello"', b'"content": "swordfish", "content": "hello"')
    assert b"swordfish" in twice
    assert b"swordfish" not in masked(twice, ("swordfish",))
    assert log_of(masked(twice, ("swordfish",))).request_body == log_of(envelope(ONE)).request_body


@pytest.mark.parametrize("value", [{"a": "swordfish"}, ["swordfish"]])
def test_what_should_be_a_text_that_finds_the_log_is_kept_as_a_text_alone(value: object) -> None:
    body = with_request({"model": value, "_type": "data", "name": value}, **{"Helicone-User-Id": value})  # type: ignore[arg-type]  # the point
    body = json.dumps(json.loads(body) | {"provider": value}).encode()
    assert b"swordfish" not in masked(body, ("swordfish",))


def test_names_that_look_alike_then_lose_no_value() -> None:
    given = {"[REDACTED] 2": 1, "swordfish-1": 2, "swordfish-2": 3, "[REDACTED]": 4}
    assert sorted(request(tool(given), "swordfish-[0-9]")["input"].values()) == [1, 2, 3, 4]
