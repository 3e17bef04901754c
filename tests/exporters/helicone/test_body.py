from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.exporters.helicone import body as envelope
from app.exporters.helicone.body import BODY_BYTES_MAX, KEPT_CHARACTERS_MIN, Log, encode
from app.runtime.header_value import META_CHARACTERS_MAX, below, latin1, readable
from app.transcript.model import Json

MARKER = re.compile(r"…\[(\d+) (characters|items) cut by opencode-helicone\]$")
IDENTITY: dict[str, Json] = {"_type": "tool", "toolName": "bash"}
LOG = Log(IDENTITY, IDENTITY, 200, {"Helicone-Request-Id": "an id"}, 1_795_000_000_123, 1_795_000_001_456, None)


def log(request: Json, response: Json) -> Log:
    return replace(LOG, request={**IDENTITY, "input": request}, response={**IDENTITY, "message": response})


def utf16_units(body: bytes) -> int:
    return len(body.decode("utf-8").encode("utf-16-le")) // 2


@given(st.text())
@example("50% of a\r\nb\x7f\x85 caf\u00e9 \u65e5\ud800 \U0001f30d")
def test_header_value_is_latin_1_and_can_be_undone(value: str) -> None:
    escaped = latin1(value, 10_000)
    assert re.fullmatch("[ -~\u00a0-\u00ff]*", escaped)
    assert unquote(escaped) == re.sub("[\ud800-\udfff]", "\ufffd", value)


@given(st.text())
@example("\u9879\u76ee 100\uff05\ud800\x85")
def test_a_readable_value_is_a_header_as_it_stands_and_holds_no_escape(value: str) -> None:
    shown = readable(value)
    assert re.fullmatch("[ -$&-~\u00a0-\u00ff]{0,1024}", shown)
    assert latin1(shown) == readable(shown) == shown


@given(st.text(min_size=META_CHARACTERS_MAX // 12, alphabet="a%\u65e5\U0001f30d/"))
def test_bounded_values_break_no_escape(value: str) -> None:
    for bounded in (latin1(value), below("", value), below("/opencode" * 100, value, value)):
        assert len(bounded) <= META_CHARACTERS_MAX
        assert re.fullmatch("(?:[^%]|%[0-9A-F]{2})*", bounded)


def test_step_of_a_path_holds_no_slash() -> None:
    assert below("/a", "b/c", "d") == "/a/b%2Fc/d"


def test_body_under_the_limit_is_left_alone() -> None:
    text = "x" * (BODY_BYTES_MAX - 1_000)
    assert json.loads(encode(log({}, text)))["providerResponse"]["json"]["message"] == text


def test_body_over_the_limit_is_shortened_at_its_longest_string() -> None:
    longest, other = "日" * 4_000_000, "o" * 2_000_000
    body = encode(log({"command": other}, longest))
    assert BODY_BYTES_MAX - 100 < len(body) <= BODY_BYTES_MAX
    assert utf16_units(body) <= BODY_BYTES_MAX
    whole = json.loads(body)
    message = whole["providerResponse"]["json"]["message"]
    found = MARKER.search(message)
    assert found is not None
    assert len(message) - len(found[0]) + int(found[1]) == len(longest)
    assert whole["input"] == whole["providerRequest"]["json"]["input"] == {"command": other}


@given(st.text(st.characters() | st.sampled_from('\ud800\U0001f600"\\\n\x00\x7f'), max_size=20))
def test_a_string_is_measured_as_it_is_written(text: str) -> None:
    with patch.object(envelope, "_PIECE_CHARACTERS", 3):
        assert envelope._size_bytes(text) == len(envelope._dumped(text))


def test_every_character_that_json_escapes_is_measured() -> None:
    for code in range(256):
        assert envelope._size_bytes(chr(code)) == len(envelope._dumped(chr(code))), code


def test_what_is_much_too_long_is_never_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    dumped = envelope._dumped

    def noted(value: Json) -> bytes:
        written.append(len(dumped(value)))
        return dumped(value)

    monkeypatch.setattr(envelope, "_dumped", noted)
    body = encode(log({"command": "c" * 1_000_000}, "o" * 1_000_000), 20_000)
    assert len(body) <= 20_000
    assert max(written) < 100_000


def test_both_copies_of_the_request_are_shortened() -> None:
    body = encode(log({"command": "c" * 8_000_000}, "short"))
    assert BODY_BYTES_MAX - 100 < len(body) <= BODY_BYTES_MAX
    whole = json.loads(body)
    assert whole["input"] == whole["providerRequest"]["json"]["input"]
    assert MARKER.search(whole["input"]["command"])
    assert whole["providerResponse"]["json"]["message"] == "short"


@pytest.mark.slow
def test_many_small_items_are_shortened_by_number() -> None:
    whole = json.loads(encode(log([{"n": str(number)} for number in range(2_000)], "short"), 20_000))
    kept = whole["input"]
    assert kept == [{"n": str(number)} for number in range(len(kept))]
    assert 0 < len(kept) < 2_000
    assert whole["cut"] == f"…[{2_000 - len(kept)} items cut by opencode-helicone]"


STRINGS = st.text(max_size=30) | st.builds(
    lambda unit, count: unit * count,
    st.sampled_from(["a", '"', "\\", "\x00", "é", "日", "\U0001f30d", "\ud800"]),
    st.integers(0, 12_000),
)
TREES = st.recursive(
    STRINGS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=5) | STRINGS, inner, max_size=5),
    max_leaves=30,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(TREES, TREES)
@example([["x"] * 3] * 3_000, {"k" * 30_000: 1})
def test_no_content_makes_a_body_too_large(request: Any, response: Any) -> None:
    made = log(request, response)
    body = encode(made, 20_000)
    assert len(body) <= 20_000
    assert utf16_units(body) <= 20_000
    assert encode(made, 20_000) == body
    whole = json.loads(body)
    told = whole["providerRequest"]["json"]
    assert {name: whole[name] for name in told} == told
    assert {name: whole[name] for name in IDENTITY} == IDENTITY
    assert whole["providerRequest"]["meta"] == LOG.meta
    assert whole["timing"]["startTime"] == {"seconds": 1_795_000_000, "milliseconds": 123}


@given(st.text(max_size=KEPT_CHARACTERS_MIN))
def test_short_strings_are_never_cut(short: str) -> None:
    body = encode(log({"command": "c" * 50_000}, short), 20_000)
    assert json.loads(body)["providerResponse"]["json"]["message"] == re.sub("[\ud800-\udfff]", "\ufffd", short)


def test_no_string_is_cut_below_what_is_kept() -> None:
    made = log({}, {"long": "c" * 3_000, "others": ["x" * 1_000] * 30})
    message = json.loads(encode(made, len(encode(made)) - 2_500))["providerResponse"]["json"]["message"]
    assert re.fullmatch(f"c{{{KEPT_CHARACTERS_MIN}}}….*", message["long"])
    assert set(message["others"]) == {"x" * 1_000}


def test_the_values_of_a_log_are_not_touched() -> None:
    value: Json = {"command": "c" * 50_000}
    encode(log(value, ["x"] * 50_000), 20_000)
    assert value == {"command": "c" * 50_000}


@pytest.mark.parametrize(("end_ms", "told"), [(1_795_000_001_456, 456), (1_795_000_002_000, 0)])
def test_times_are_seconds_and_milliseconds(end_ms: int, told: int) -> None:
    timing = json.loads(encode(replace(LOG, end_ms=end_ms, first_token_ms=7)))["timing"]
    assert timing["endTime"] == {"seconds": end_ms // 1000, "milliseconds": told}
    assert timing["timeToFirstToken"] == 7
