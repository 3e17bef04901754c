"""Message lists keep to the GenAI conventions, whatever is in a turn: a receiver drops a list for one odd message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.exporters.otlp import messages
from app.transcript.model import Json, Turn
from tests.support import recorded
from tests.support.genai_schema import FINISH_REASONS, faults
from tests.support.generated_turns import JSON, turns
from tests.support.spans import LISTS, Seen, spans, transcript

MARKER = "cut by opencode-helicone]"


def lists(found: list[Seen]) -> list[tuple[bool, Any]]:
    """Whether each is an output, and what it holds."""
    return [
        (name.startswith("gen_ai.output"), json.loads(span.attributes[name], parse_constant=pytest.fail))
        for span in found
        for name in LISTS
        if name in span.attributes
    ]


@pytest.mark.parametrize("name", recorded.names())
def test_all_lists_of_a_recording_are_valid(name: str) -> None:
    for is_output, found in [one for turn in transcript(name).turns for one in lists(spans(turn))]:
        assert faults(found, is_output=is_output) == []
        assert not is_output or all(message["finish_reason"] in FINISH_REASONS for message in found)


@given(turns(), st.booleans())
def test_all_lists_of_any_turn_are_valid(turn: Turn, interrupted: bool) -> None:  # noqa: FBT001
    for is_output, found in lists(spans(turn, interrupted=interrupted)):
        assert faults(found, is_output=is_output) == []
        assert all(sum(part["type"] == "tool_call_response" for part in message["parts"]) <= 1 for message in found), (
            "Phoenix shows one result of a message"
        )


def test_the_recordings_hold_every_kind_of_part() -> None:
    """Otherwise the tests above would say nothing of it."""
    found = [
        part["type"]
        for name in recorded.names()
        for turn in transcript(name).turns
        for _, each in lists(spans(turn))
        for message in each
        for part in message["parts"]
    ]
    assert set(found) == {"text", "reasoning", "tool_call", "tool_call_response"}


@pytest.mark.parametrize(
    ("broken", "where"),
    [
        ({"role": "assistant", "parts": [{"type": "text", "content": "x"}]}, "0.finish_reason"),
        ({"role": "owner", "parts": [{"type": "text", "content": "x"}], "finish_reason": "stop"}, "0.role"),
        (
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "result": "x"}], "finish_reason": ""},
            "0.",
        ),
        ({"role": "assistant", "parts": [], "finish_reason": "stop"}, "0.parts"),
        ({"role": "assistant", "parts": [{"type": "image"}], "finish_reason": "stop"}, "0.parts.0.type"),
        (
            {"role": "assistant", "parts": [{"type": "text", "content": None}], "finish_reason": "stop"},
            "0.parts.0.content",
        ),
    ],
)
def test_the_rules_find_what_breaks_them(broken: Json, where: str) -> None:
    (fault,) = faults([broken], is_output=True)
    assert fault.startswith(where)


@given(JSON, st.integers(200, 2000))
def test_any_value_fits(value: Json, bytes_max: int) -> None:
    made = messages.fitted(value, bytes_max)
    assert len(made.encode("utf-8", "surrogatepass")) <= bytes_max
    json.loads(made, parse_constant=pytest.fail)


def test_a_value_that_fits_is_left_as_it_is() -> None:
    value: Json = {"path": "a", "lines": [1, 2.5, None, True, 'ü\n"\\']}
    assert json.loads(messages.fitted(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "parts": [{"type": "text", "content": "x" * 5_000_000}]}],
        [{"role": "user", "parts": [{"type": "text", "content": "ü" * 1_000_000}] * 20}],
        [{"role": "user", "parts": [{"type": "text", "content": "x"}]}] * 20_000,
        [{"role": "user", "parts": [{"type": "text", "content": "x"}] * 40_000}],
    ],
    ids=["one long text", "many long texts", "many messages", "many parts"],
)
def test_a_list_that_is_too_long_is_shortened_and_says_so(value: Json) -> None:
    made = messages.fitted(value)
    assert 100_000 < len(made.encode()) <= messages.BYTES_MAX
    assert MARKER in made
    assert faults(json.loads(made), is_output=False) == []


@pytest.mark.parametrize(
    "value",
    [{"x" * 3_000_000: 1}, {str(n): "y" * 100 for n in range(20_000)}, [[[["z" * 500] * 20] * 20] * 20]],
    ids=["a long name", "many names", "lists in lists"],
)
def test_arguments_that_are_too_long_are_shortened(value: Json) -> None:
    made = messages.fitted(value)
    json.loads(made)
    assert len(made.encode()) <= messages.BYTES_MAX


@given(st.text(st.characters()), st.integers(100, 300))
def test_a_text_is_cut_between_characters(text: str, bytes_max: int) -> None:
    made = messages.cut(text, bytes_max)
    assert len(made.encode("utf-8", "surrogatepass")) <= bytes_max
    assert made == text or made.endswith(MARKER)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("a\0b", "a\ufffdb"),
        ("\0\0", "\ufffd\ufffd"),
        ("\\u0000", "\\u0000"),
        ("\\\0", "\\\ufffd"),
        ("\\\\u0000\0", "\\\\u0000\ufffd"),
    ],
)
def test_a_nul_is_replaced_and_what_only_looks_like_one_is_not(text: str, sent: str) -> None:
    assert json.loads(messages.fitted([text])) == [sent]
