"""The spans of a turn: their tree, their times, what they say, and what they do not say under `metadata_only`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.privacy.metadata_only import withhold_turn
from app.transcript.model import Assistant, Failure, Text, Tokens, Tool, Turn
from tests.support import recorded
from tests.support.generated_turns import turns
from tests.support.spans import Seen, spans, transcript


def turn_of(name: str, at: int = 0) -> Turn:
    return transcript(name).turns[at]


def check_tree(found: list[Seen]) -> None:
    """One root, each span inside its parent, all of one trace, the root last and with their number."""
    by_id = {span.id: span for span in found}
    assert len(by_id) == len(found)
    assert len({span.trace for span in found}) == 1
    (root,) = (span for span in found if not span.parent)
    assert root is found[-1]
    assert root.attributes["opencode.span.count"] == len(found)
    for span in found:
        assert span.start_ns <= span.end_ns
        if span is not root:
            parent = by_id[span.parent]
            assert parent.start_ns <= span.start_ns
            assert span.end_ns <= parent.end_ns
            assert "opencode.span.count" not in span.attributes


@pytest.mark.parametrize("name", recorded.names())
def test_each_turn_of_a_recording_is_one_tree(name: str) -> None:
    found = [spans(turn) for turn in transcript(name).turns]
    assert found
    for one in found:
        check_tree(one)
    traces = [one[0].trace for one in found]
    assert len(set(traces)) == len(traces)


@given(turns(), st.booleans())
def test_any_turn_is_one_tree(turn: Turn, interrupted: bool) -> None:  # noqa: FBT001
    check_tree(spans(turn, interrupted=interrupted))


def test_a_subagent_stands_below_the_call_that_started_it() -> None:
    found = spans(turn_of("f_subagent"))
    by_id = {span.id: span for span in found}
    told = sorted((" < ".join(_names(span, by_id)) for span in found), key=len)
    assert told == [
        "invoke_agent build",
        "chat fake-large < invoke_agent build",
        "chat fake-large < invoke_agent build",
        "execute_tool task < invoke_agent build",
        "invoke_agent general < execute_tool task < invoke_agent build",
        "chat fake-large < invoke_agent general < execute_tool task < invoke_agent build",
        "chat fake-large < invoke_agent general < execute_tool task < invoke_agent build",
        "execute_tool bash < invoke_agent general < execute_tool task < invoke_agent build",
    ]
    assert {span.attributes["session.id"] for span in found} == {turn_of("f_subagent").session.id}
    assert len({span.attributes["opencode.session.id"] for span in found}) == 2
    kinds = {span.attributes["gen_ai.operation.name"]: span.kind for span in found}
    assert kinds == {"invoke_agent": "INTERNAL", "chat": "CLIENT", "execute_tool": "INTERNAL"}


def _names(span: Seen, by_id: dict[str, Seen]) -> list[str]:
    return [span.name, *(_names(by_id[span.parent], by_id) if span.parent else [])]


def test_a_call_ends_where_the_model_fell_silent_and_not_with_its_tools() -> None:
    turn = turn_of("b_tools")
    call = next(
        one for one in turn.messages if isinstance(one, Assistant) and any(isinstance(part, Tool) for part in one.parts)
    )
    span = next(span for span in spans(turn) if span.name.startswith("chat"))
    said_ms = [part.end_ms or 0 for part in call.parts if isinstance(part, Text)]
    asked_ms = [part.start_ms or 0 for part in call.parts if isinstance(part, Tool)]
    assert said_ms
    assert span.end_ns == max(said_ms + asked_ms) * 10**6
    assert call.completed_ms is not None
    assert span.end_ns < call.completed_ms * 10**6


def test_usage_counts_what_was_cached_as_input_and_reasoning_as_output() -> None:
    turn = turn_of("a_simple")
    counted = tuple(
        replace(one, tokens=Tokens(1, 20, 300, 4_000, 50_000), cost_usd=0.5) if isinstance(one, Assistant) else one
        for one in turn.messages
    )
    root, call = (
        next(s for s in spans(replace(turn, messages=counted)) if s.name.startswith(n)) for n in ("inv", "chat")
    )
    assert {name: value for name, value in call.attributes.items() if "usage" in name} == {
        "gen_ai.usage.input_tokens": 54_001,
        "gen_ai.usage.output_tokens": 320,
        "gen_ai.usage.cache_read.input_tokens": 4_000,
        "gen_ai.usage.cache_creation.input_tokens": 50_000,
        "gen_ai.usage.reasoning.output_tokens": 300,
        "gen_ai.usage.cost": 0.5,
    }
    assert not [name for name in root.attributes if "usage" in name], "it would be counted twice"


def test_a_failed_call_is_an_error_with_its_status_and_the_root_has_that_of_the_last_call() -> None:
    *_, call, root = spans(turn_of("d_error_401"))
    assert (call.status, root.status) == ("ERROR", "ERROR")
    assert call.attributes["error.type"] == root.attributes["error.type"] == "401"
    assert call.status_message == root.status_message != ""
    assert call.events == [("exception", {"exception.type": "401", "exception.message": call.status_message})]
    assert root.events == []


def test_an_error_without_a_status_of_the_provider_goes_by_its_name() -> None:
    turn = turn_of("a_simple")
    failed = tuple(
        replace(one, failure=Failure("MessageAbortedError", "stopped", 200)) if isinstance(one, Assistant) else one
        for one in turn.messages
    )
    *_, root = spans(replace(turn, messages=failed))
    assert (root.status, root.attributes["error.type"], root.status_message) == (
        "ERROR",
        "MessageAbortedError",
        "stopped",
    )


def test_a_call_that_failed_and_was_made_up_for_leaves_the_turn_well() -> None:
    turn = turn_of("b_tools")
    asked, call, *more = turn.messages
    assert isinstance(call, Assistant)
    failed = replace(call, failure=Failure("APIError", "once", 500))
    found = spans(replace(turn, messages=(asked, failed, *more)))
    assert Counter(span.status for span in found if span.name.startswith("chat"))["ERROR"] == 1
    assert found[-1].status == "UNSET"


def test_a_command_that_exits_with_another_number_is_no_error() -> None:
    turn = turn_of("b_tools")
    exits = [span for span in spans(turn) if span.attributes.get("opencode.tool.exit")]
    assert exits, "the recording has one"
    assert all(span.status == "UNSET" for span in exits)


def test_what_never_ended_is_interrupted_or_unfinished() -> None:
    turn = turn_of("a_simple")
    cut = tuple(
        replace(one, completed_ms=None, finish=None) if isinstance(one, Assistant) else one for one in turn.messages
    )
    for interrupted, kind in ((True, "interrupted"), (False, "unfinished")):
        *_, root = spans(replace(turn, messages=cut), interrupted=interrupted)
        assert (root.status, root.attributes["error.type"]) == ("ERROR", kind)
    *_, alone = spans(replace(turn, messages=turn.messages[:1]))
    assert alone.attributes["error.type"] == "interrupted"


def test_the_root_says_what_was_asked_and_answered() -> None:
    *_, root = spans(turn_of("a_simple"), user_id="someone")
    told = root.attributes
    assert told["input.value"] == json.loads(told["gen_ai.input.messages"])[-1]["parts"][0]["content"]
    assert told["output.value"] == json.loads(told["gen_ai.output.messages"])[0]["parts"][0]["content"]
    assert (told["input.mime_type"], told["output.mime_type"], told["user.id"]) == (
        "text/plain",
        "text/plain",
        "someone",
    )


def test_an_undone_turn_says_so() -> None:
    turn = turn_of("a_simple")
    assert spans(replace(turn, is_undone=True))[-1].attributes["opencode.turn.undone"] is True
    assert "opencode.turn.undone" not in spans(turn)[-1].attributes


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("google", "gcp.gemini"),
        ("google-vertex", "gcp.vertex_ai"),
        ("amazon-bedrock", "aws.bedrock"),
        ("azure", "azure.ai.openai"),
        ("xai", "x_ai"),
        ("mistral", "mistral_ai"),
        ("anthropic", "anthropic"),
        ("someone's own", "someone's own"),
    ],
)
def test_providers_go_by_the_names_of_the_conventions(provider: str, name: str) -> None:
    turn = turn_of("a_simple")
    told = tuple(replace(one, provider_id=provider) if isinstance(one, Assistant) else one for one in turn.messages)
    calls = [span for span in spans(replace(turn, messages=told)) if span.name.startswith("chat")]
    assert [call.attributes["gen_ai.provider.name"] for call in calls] == [name]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("tool-calls", "tool_call"), ("content-filter", "content_filter"), ("stop", "stop"), ("x", "x")],
)
def test_finish_reasons_are_spelled_as_the_conventions_do(finish: str, reason: str) -> None:
    turn = turn_of("a_simple")
    told = tuple(replace(one, finish=finish) if isinstance(one, Assistant) else one for one in turn.messages)
    *_, call, root = spans(replace(turn, messages=told))
    assert call.attributes["gen_ai.response.finish_reasons"] == [reason]
    for span in (call, root):
        assert json.loads(span.attributes["gen_ai.output.messages"])[0]["finish_reason"] == reason


CONTENT = "Wort-von-Menschen"


def _planted(turn: Turn) -> Turn:
    def message(one: object) -> object:
        if isinstance(one, Assistant):
            return replace(
                one,
                failure=Failure("APIError", CONTENT, 500),
                parts=tuple(
                    replace(part, text=CONTENT)
                    if isinstance(part, Text)
                    else replace(part, input={CONTENT: CONTENT}, output=CONTENT, error=CONTENT, title=CONTENT)
                    if isinstance(part, Tool)
                    else part
                    for part in one.parts
                ),
            )
        return replace(  # type: ignore[type-var]
            one,
            system=CONTENT,
            parts=tuple(replace(part, text=CONTENT) if isinstance(part, Text) else part for part in one.parts),  # type: ignore[attr-defined]
        )

    return replace(
        turn,
        session=replace(turn.session, title=CONTENT, directory=f"/{CONTENT}", origin=f"/{CONTENT}"),
        messages=tuple(message(one) for one in turn.messages),  # type: ignore[misc]
    )


@pytest.mark.parametrize("name", recorded.names())
def test_under_metadata_only_no_word_leaves(name: str) -> None:
    for turn in map(_planted, transcript(name).turns):
        full = repr(spans(turn))
        assert CONTENT in full
        withheld = spans(withhold_turn(turn))
        assert CONTENT not in repr(withheld)
        assert [(span.id, span.parent, span.start_ns) for span in withheld] == [
            (span.id, span.parent, span.start_ns) for span in spans(turn)
        ], "what is captured again without its text is the same spans"


@given(turns())
def test_under_metadata_only_what_is_written_anywhere_is_withheld(turn: Turn) -> None:
    written = {
        "input.value",
        "output.value",
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "opencode.session.title",
    }
    written |= {"gen_ai.tool.call.arguments", "gen_ai.tool.call.result", "exception.message"}
    for span in spans(withhold_turn(turn)):
        assert not written & set(span.attributes)
        assert all(not written & set(told) for _, told in span.events)
        assert span.status_message in ("", "OpenCode ended before it was complete", "ended without an answer")


def test_a_name_of_a_tool_or_model_is_cut() -> None:
    turn = turn_of("b_tools")
    long = tuple(
        replace(one, parts=tuple(replace(p, name="n" * 600) if isinstance(p, Tool) else p for p in one.parts))
        for one in turn.messages
    )
    names = {span.name for span in spans(replace(turn, messages=long))}
    assert max(map(len, names)) == 128
