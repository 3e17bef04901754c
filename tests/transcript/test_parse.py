from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.privacy.policy import Policy
from app.transcript import fields
from app.transcript.fields import DEPTH_MAX, canonical, sha256
from app.transcript.model import (
    UNREADABLE,
    Assistant,
    Excerpt,
    Failure,
    Other,
    Text,
    Tokens,
    Tool,
    Transcript,
    TranscriptError,
    Turn,
    is_llm_call,
    key,
    session_digest,
)
from app.transcript.parse import SUBAGENT_DEPTH_MAX, parse
from tests.support import recorded
from tests.support.snapshots import (
    CREATED_MS,
    Fields,
    assistant,
    entry,
    snapshot,
    task,
    text,
    tool,
    unfinished,
    user,
)


def only_turn(*messages: Fields, others: tuple[Fields, ...] = ()) -> Turn:
    (turn,) = parse(snapshot(entry(*messages), *others)).turns
    return turn


def children_of(turn: Turn) -> list[Transcript]:
    return [part.child for message in turn.messages for part in message.parts if isinstance(part, Tool) and part.child]


def child(*messages: Fields, name: str = "ses_child", parent: str = "ses_root", **info: Any) -> Fields:
    return entry(*messages, name=name, parentID=parent, **info)


# Turns and order


def test_messages_stand_in_order_of_creation_and_then_of_id() -> None:
    turn = only_turn(assistant("msg_c", 2_000_000), assistant("msg_b", 2_000_000), user("msg_1", 1_500_000))
    assert [(message.id, message.index) for message in turn.messages] == [("msg_1", 0), ("msg_b", 1), ("msg_c", 2)]


def test_parts_stand_in_order_of_id() -> None:
    turn = only_turn(user("msg_1", 1_500_000, text(name="prt_2"), text(name="prt_1")))
    assert [part.id for part in turn.messages[0].parts] == ["prt_1", "prt_2"]


def test_an_excerpt_tells_the_positions() -> None:
    (turn,) = parse(snapshot(entry(user(), assistant())), Excerpt((40, 41), None, None)).turns
    assert [message.index for message in turn.messages] == [40, 41]


def test_assistants_without_their_user_message_form_a_turn_named_by_it() -> None:
    first, second = parse(snapshot(entry(assistant(parent="msg_gone"), user("msg_3", 3_000_000)))).turns
    assert (first.id, len(first.messages)) == ("msg_gone", 1)
    assert second.id == "msg_3"


def minted(kind: str, at_ms: int, tail: str = "0" * 14) -> str:
    """An id as OpenCode makes it at this time."""
    return f"{kind}_{at_ms % 2**36:09x}001{tail}"


FORKED_MS = 1_795_990_143_564
OLD_MS = FORKED_MS - 5_000


def of_fork(*messages: Fields) -> Transcript:
    return parse(snapshot(entry(*messages, id=minted("ses", FORKED_MS), time={"created": FORKED_MS})))


def test_what_a_fork_has_copied_has_ids_from_when_it_was_made() -> None:
    copied, answer = minted("msg", FORKED_MS + 30), minted("msg", FORKED_MS + 31)
    asked = minted("msg", FORKED_MS + 90)
    first, second = of_fork(
        user(copied, OLD_MS), assistant(answer, OLD_MS + 10, parent=copied), user(asked, FORKED_MS + 90)
    ).turns
    assert (first.id, first.is_copy, second.id, second.is_copy) == (copied, True, asked, False)
    assert [message.index for message in (*first.messages, *second.messages)] == [0, 1, 2]


@pytest.mark.parametrize("apart_ms", [0, 1, 7])
def test_a_message_from_before_its_session_with_an_id_of_its_own_time_is_no_copy(apart_ms: int) -> None:
    (turn,) = of_fork(user(minted("msg", OLD_MS - apart_ms), OLD_MS)).turns
    assert not turn.is_copy


def test_ids_tell_a_copy_across_the_day_on_which_they_began_anew() -> None:
    wrap_ms = 26 << 36
    name = minted("msg", wrap_ms + 5)
    value = snapshot(entry(user(name, wrap_ms - 3_000), time={"created": wrap_ms}))
    assert parse(value).turns[0].is_copy
    own = snapshot(entry(user(minted("msg", wrap_ms - 3_000), wrap_ms - 3_000), time={"created": wrap_ms}))
    assert not parse(own).turns[0].is_copy


def test_an_id_of_another_form_does_not_tell() -> None:
    assert of_fork(user("msg_1", OLD_MS)).turns[0].is_copy
    assert not of_fork(user("msg_1", FORKED_MS)).turns[0].is_copy


def test_a_turn_that_goes_on_in_a_fork_is_what_the_fork_added() -> None:
    copied, own = minted("msg", FORKED_MS + 30), minted("msg", FORKED_MS + 90)
    (turn,) = of_fork(user(copied, OLD_MS), assistant(own, FORKED_MS + 90, parent=copied)).turns
    assert ([message.id for message in turn.messages], turn.is_copy) == ([own], False)


def test_recorded_fork_is_a_copy_from_end_to_end() -> None:
    sessions = recorded.replayed("g_admin").values()
    fork = next(value for value in sessions if "fork" in value["sessions"][0]["info"]["title"])
    assert len(fork["sessions"][0]["messages"]) == 7
    copies = parse(fork).turns
    assert copies
    assert all(turn.is_copy for turn in copies)
    origins = {turn.last_event_ms for value in sessions if value is not fork for turn in parse(value).turns}
    assert {turn.last_event_ms for turn in copies if turn.final} <= origins


# Undone


def test_what_is_undone_has_a_key_of_its_own_and_nothing_else_changes() -> None:
    talk = [message for number in (1, 2, 3) for message in turn_of(number)]
    before = parse(snapshot(entry(*talk))).turns
    after = parse(snapshot(entry(*talk, revert={"messageID": "msg_2a"}))).turns
    assert [turn.is_undone for turn in after] == [False, True, True]
    assert [one.digest == other.digest for one, other in zip(before, after, strict=True)] == [True, False, False]


def turn_of(number: int) -> tuple[Fields, Fields]:
    at_ms = CREATED_MS + 1_000 * number
    return user(f"msg_{number}a", at_ms), assistant(f"msg_{number}b", at_ms + 10, parent=f"msg_{number}a")


def test_a_turn_read_alone_is_undone_as_in_its_session() -> None:
    names = [minted("msg", FORKED_MS + 1_000 * number) for number in range(3)]
    talk = [user(name, FORKED_MS + 1_000 * number) for number, name in enumerate(names)]
    facts: Fields = {"time": {"created": FORKED_MS}, "revert": {"messageID": names[1]}}
    whole = parse(snapshot(entry(*talk, **facts))).turns
    alone = [
        parse(snapshot(entry(message, **facts)), Excerpt((at,), None, None)).turns[0] for at, message in enumerate(talk)
    ]
    assert [turn.digest for turn in alone] == [turn.digest for turn in whole]


# Final or not


@pytest.mark.parametrize(
    ("messages", "final"),
    [
        pytest.param([user(), assistant()], True, id="answered"),
        pytest.param([user()], False, id="unanswered"),
        pytest.param([user(), unfinished()], False, id="answer unfinished"),
        pytest.param([user(), assistant(), unfinished("msg_3", 2_000_000)], False, id="second answer unfinished"),
        pytest.param([user(), unfinished(error={"name": "APIError", "data": {}})], True, id="failed"),
        pytest.param([user(), assistant("msg_2", 2_000_000, tool())], True, id="tool completed"),
        pytest.param([user(), assistant("msg_2", 2_000_000, tool(status="error"))], True, id="tool failed"),
        pytest.param([user(), assistant("msg_2", 2_000_000, tool(status="running"))], False, id="tool runs"),
        pytest.param([user(), assistant("msg_2", 2_000_000, tool(status="pending"))], False, id="tool pending"),
        pytest.param([user(), assistant("msg_2", 2_000_000, tool(status="parked"))], False, id="unknown status"),
        pytest.param([user(), assistant("msg_2", 2_000_000, task("ses_absent"))], True, id="child not carried"),
    ],
)
def test_turn_is_final_when_nothing_in_it_can_change(messages: list[Fields], final: bool) -> None:  # noqa: FBT001
    assert only_turn(*messages).final is final


def test_unfinished_subagent_keeps_the_turn_open() -> None:
    messages = [user(), assistant("msg_2", 2_000_000, task("ses_child"))]
    assert only_turn(*messages, others=(child(user(), assistant()),)).final
    assert not only_turn(*messages, others=(child(user(), unfinished()),)).final
    working = child(user(), assistant("msg_2", 2_000_000, tool(status="running")))
    assert not only_turn(*messages, others=(working,)).final


# Subagents


def test_child_hangs_under_the_first_call_that_names_it() -> None:
    root = entry(
        user(),
        assistant("msg_2", 2_000_000, task("ses_child", "prt_b"), task("ses_child", "prt_a")),
        assistant("msg_3", 3_000_000, task("ses_child")),
    )
    first, second, third = [
        part
        for message in parse(snapshot(child(user(), assistant()), root) | {"root": "ses_root"}).turns[0].messages
        for part in message.parts
        if isinstance(part, Tool)
    ]
    assert first.child is not None
    assert (first.id, first.child.session.id) == ("prt_a", "ses_child")
    assert (second.child, third.child) == (None, None)


def test_grandchild_belongs_to_the_child_even_if_the_root_names_it_later() -> None:
    turn = only_turn(
        user(),
        assistant("msg_2", 2_000_000, task("ses_child")),
        assistant("msg_3", 3_000_000, task("ses_grandchild")),
        others=(
            child(user(), assistant()) | {"messages": [user(), assistant("msg_2", 2_000_000, task("ses_grandchild"))]},
            child(user(), assistant(), name="ses_grandchild", parent="ses_child"),
        ),
    )
    (only_child,) = children_of(turn)
    assert [inner.session.id for inner in children_of(only_child.turns[0])] == ["ses_grandchild"]


def test_sessions_that_name_each_other_end() -> None:
    turn = only_turn(
        user(),
        assistant("msg_2", 2_000_000, task("ses_root", "prt_1"), task("ses_child", "prt_2")),
        others=(child(user(), assistant("msg_2", 2_000_000, task("ses_root", "prt_3"), task("ses_child", "prt_4"))),),
    )
    (only_child,) = children_of(turn)
    assert only_child.session.id == "ses_child"
    assert children_of(only_child.turns[0]) == []


def test_fork_does_not_take_over_the_subagent_of_its_origin() -> None:
    messages = [user(), assistant("msg_2", 2_000_000, task("ses_child"))]
    turn = only_turn(*messages, others=(child(user(), assistant(), parent="ses_origin"),))
    assert children_of(turn) == []


def test_copies_in_a_fork_claim_no_subagent() -> None:
    copied = assistant("msg_0", CREATED_MS - 10, task("ses_child"))
    others = (child(user(), parent="ses_origin"),)
    (turn,) = parse(snapshot(entry(copied), *others)).turns
    assert (turn.is_copy, children_of(turn)) == (True, [])


def test_subagents_nested_too_deeply_are_left_out_and_counted() -> None:
    depth = SUBAGENT_DEPTH_MAX + 2
    sessions = [
        entry(user(), assistant("msg_2", 2_000_000, task(f"ses_{level + 1}")), name=f"ses_{level}")
        for level in range(depth)
    ]
    (turn,) = parse(snapshot(*sessions)).turns
    assert turn.faults == (f"sessions[{depth - 1}]: subagents nested deeper than {SUBAGENT_DEPTH_MAX}",)
    (turn,) = parse(snapshot(*sessions[: SUBAGENT_DEPTH_MAX + 1])).turns
    assert turn.faults == ()


# Values


def test_zeros_mean_that_the_provider_reported_no_usage() -> None:
    tokens = {"input": 1, "output": 2, "reasoning": 3, "cache": {"read": 4, "write": 5}}
    silent, told = only_turn(user(), assistant(), assistant("msg_3", tokens=tokens)).messages[1:]
    assert isinstance(silent, Assistant)
    assert isinstance(told, Assistant)
    assert silent.tokens is None
    assert told.tokens is not None
    assert (told.tokens.input, told.tokens.cache_read, told.tokens.cache_write) == (1, 4, 5)


def test_what_is_missing_is_none() -> None:
    message_info = {"id": "msg_2", "role": "assistant", "time": {"created": 2_000_000}}
    session_info = {"id": "s", "time": {"created": 1}}
    bare: Fields = {
        "root": "s",
        "sessions": [{"info": session_info, "messages": [{"info": message_info, "parts": []}]}],
    }
    transcript = parse(bare)
    session, message = transcript.session, transcript.turns[0].messages[0]
    assert (session.title, session.directory, session.version, session.parent_id) == (None, None, None, None)
    assert isinstance(message, Assistant)
    assert (message.agent, message.mode, message.finish, message.tokens, message.failure) == (None,) * 5
    assert transcript.turns[0].id == "msg_2"


def test_a_tools_own_metadata_may_hold_anything() -> None:
    odd = {"exit": "three", "truncated": "yes", "sessionId": {"not": "an id"}}
    call = assistant("msg_2", 2_000_000, tool(metadata=odd), tool("prt_z", metadata=[1]))
    first, second = only_turn(user(), call).messages[1].parts
    assert isinstance(first, Tool)
    assert isinstance(second, Tool)
    assert (first.exit_code, first.truncated, first.child) == (None, False, None)
    assert (second.exit_code, second.truncated, second.child) == (None, False, None)


def test_lone_surrogates_and_nul_survive() -> None:
    odd = "a\ud800b\x00c"
    part = only_turn(user("msg_1", 2_000_000, text(odd))).messages[0].parts[0]
    assert isinstance(part, Text)
    assert part.text == odd


# What makes two captures the same export


def digest_after(change: Callable[[Fields], object], name: str = "f_subagent") -> tuple[str, str]:
    before = recorded.export(name)
    after = copy.deepcopy(before)
    change(after)
    return parse(before).turns[0].digest, parse(after).turns[0].digest


def root_message(value: Fields, index: int) -> Fields:
    message: Fields = value["sessions"][0]["messages"][index]
    return message


def tool_state(value: Fields) -> Fields:
    state: Fields = next(part["state"] for part in root_message(value, 1)["parts"] if part["type"] == "tool")
    return state


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda value: value["sessions"].reverse(), id="order of sessions"),
        pytest.param(lambda value: value["sessions"][0]["messages"].reverse(), id="order of messages"),
        pytest.param(lambda value: root_message(value, 1)["parts"].reverse(), id="order of parts"),
        pytest.param(lambda value: value["sessions"][0]["info"].update(title="new", version="9"), id="root's title"),
        pytest.param(lambda value: value["sessions"][1]["info"]["time"].update(updated=9**14), id="update time"),
        pytest.param(lambda value: value["sessions"][1]["info"].update(cost=1, tokens={}), id="child's totals"),
        pytest.param(lambda value: root_message(value, 0)["info"].update(summary={"diffs": [1]}), id="late diffs"),
        pytest.param(lambda value: tool_state(value)["time"].update(compacted=9**14), id="output pruned"),
        pytest.param(lambda value: root_message(value, 0).update(seen=True), id="unknown key beside info and parts"),
        pytest.param(lambda value: value["sessions"].append(child(user(), name="ses_other")), id="unnamed session"),
    ],
)
def test_digest_stands_still_when_the_turn_does(change: Callable[[Fields], object]) -> None:
    before, after = digest_after(change)
    assert before == after


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda value: root_message(value, 0)["parts"][0].update(text="other"), id="text"),
        pytest.param(lambda value: root_message(value, 1)["info"].update(summary=True), id="a compaction's mark"),
        pytest.param(lambda value: root_message(value, 1)["info"].update(whatever=1), id="unknown field of a message"),
        pytest.param(lambda value: tool_state(value).update(output="other"), id="tool output"),
        pytest.param(lambda value: value["sessions"][1]["info"].update(title="other"), id="child's title"),
        pytest.param(lambda value: value["sessions"][1]["messages"][0]["parts"][0].update(text="x"), id="child's text"),
        pytest.param(lambda value: value["sessions"].pop(), id="child gone"),
    ],
)
def test_digest_moves_with_the_turn(change: Callable[[Fields], object]) -> None:
    before, after = digest_after(change)
    assert before != after


def test_turns_of_a_suffix_have_the_digests_of_the_whole() -> None:
    whole = recorded.export("i_long_session")
    suffix = copy.deepcopy(whole)
    suffix["sessions"][0]["messages"] = messages = suffix["sessions"][0]["messages"][190:]
    transcript = parse(whole)
    excerpt = Excerpt(tuple(range(190, 190 + len(messages))), None, transcript.session.origin)
    assert parse(suffix, excerpt).turns == transcript.turns[95:]


@pytest.mark.parametrize("name", recorded.exported())
def test_events_build_up_what_the_export_says(name: str) -> None:
    exported = parse(recorded.export(name))
    replayed = parse(recorded.replayed(name)[exported.session.id])
    assert [turn.digest for turn in replayed.turns] == [turn.digest for turn in exported.turns]
    assert session_digest(replayed.session) == session_digest(exported.session)
    assert replayed == exported


def test_facts_ms_is_the_latest_time_of_the_turn_and_its_subagents() -> None:
    late = tool(time={"start": 2_000_000, "end": 6_000_000, "compacted": 9_000_000})
    messages = [user(), assistant("msg_2", 2_000_000, task("ses_child"))]
    assert only_turn(*messages).last_event_ms == 2_000_100
    assert only_turn(*messages, others=(child(user(), assistant("msg_2", 2_000_000, late)),)).last_event_ms == 6_000_000


# Surrogates, and what is written as two of them.
TEXT = st.text(st.characters() | st.sampled_from('\ud83d\ude00\U0001f600"\\\n\x00\x7fé'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda items: st.lists(items, max_size=4) | st.dictionaries(TEXT, items, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_digest_is_of_json_also_where_a_long_string_is_written_in_pieces(value: Any) -> None:
    with patch.multiple(fields, LONG_CHARACTERS_MIN=3, PIECE_CHARACTERS=2):
        digest = sha256(canonical(value, ""))
    whole = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    assert digest == hashlib.sha256(whole.encode("ascii")).hexdigest()


def test_a_long_string_is_not_copied_to_be_hashed() -> None:
    long = "\U0001f600 said\n" * 2**16
    told = canonical({"id": "part", "state": {"output": long}}, "")
    assert [piece.text is long for piece in told if isinstance(piece, fields.Long)] == [True]
    assert sum(len(piece) for piece in told if isinstance(piece, str)) < 100


def test_session_digest_is_of_the_record_alone() -> None:
    session = parse(recorded.export("a_simple")).session
    assert session_digest(replace(session, updated_ms=1)) == session_digest(session)
    assert session_digest(replace(session, title="renamed")) != session_digest(session)
    assert session_digest(replace(session, archived_ms=1)) != session_digest(session)


def test_keys_are_the_same_in_every_version() -> None:
    """Another key for what was sent would send it again: written out, so that no change goes unseen."""
    asked, answered = (
        user("msg_1", 1_000_010, text("Grüße\n")),
        assistant("msg_2", 1_000_020, text("yes"), parent="msg_1"),
    )
    transcript = parse(snapshot(entry(asked, answered)))
    (turn,) = transcript.turns
    policy = Policy("full", ("b", "a"), redact_secrets=True, prefix="/opencode").digest("")
    assert turn.digest == "8b7e4f32795c22629800aa9dcd1ce44b29db0db48d643a4a4f849bb9a3d34446"
    assert session_digest(transcript.session) == "16e34be7db369ecc4fdbab88fb889d812f09038c8f7fbf16fbc19ed4b8ec530b"
    assert policy == "84a293113fb04f1b8a04e2477ae3201bf4070c58d817e85f3df8f7e321b02323"
    assert key(turn.digest, policy) == "0c890e42b6b03aad67692b560b077a4a9a0b166982597c8bbfb759c9be352f32"


@pytest.mark.parametrize(
    "sign",
    [{"finish": "stop"}, {"failure": Failure("UnknownError", None, None)}, {"tokens": Tokens(1, 1, 0, 0, 0)}, {}],
    ids=["finish", "failure", "tokens", "none of them"],
)
def test_tools_alone_are_a_call_by_any_one_sign_of_one(sign: dict[str, Any]) -> None:
    message = only_turn(user(), assistant("msg_2", 1_000_020, tool())).messages[1]
    assert isinstance(message, Assistant)
    bare = replace(message, finish=None, failure=None, tokens=None)
    assert is_llm_call(replace(bare, **sign)) is bool(sign)
    assert is_llm_call(replace(bare, parts=()))


def test_key_depends_on_turn_and_policy() -> None:
    assert key("a", "b") == key("a", "b")
    assert len({key("a", "b"), key("a", "c"), key("c", "b"), key("b", "a")}) == 4


# What is odd, unreadable or refused

SECRET = "CANARY"


def broken(path: tuple[str | int, ...], value: Any) -> Fields:
    """A small snapshot with `value` at `path`; `...` takes what stands there away. Another turn follows."""
    whole = snapshot(
        entry(
            user("msg_1", 2_000_000, text(SECRET)),
            assistant("msg_2", 3_000_000, tool(output=SECRET)),
            user("msg_3", 4_000_000, text(SECRET)),
        )
    )
    target: Any = whole
    for step in path[:-1]:
        target = target[step]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return whole


ROOT = ("sessions", 0)
USER = (*ROOT, "messages", 0)
CALL = (*ROOT, "messages", 1)
PART = (*CALL, "parts", 0)
STATE = (*PART, "state")


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        pytest.param(("root",), ..., "root", id="no root"),
        pytest.param(("root",), "ses_other", "root", id="root not among the sessions"),
        pytest.param(("sessions",), {}, "sessions", id="sessions not a list"),
        pytest.param((*ROOT, "messages"), {"a": 1}, "sessions[0].messages", id="messages not a list"),
        pytest.param((*ROOT, "messages"), ..., "sessions[0].messages", id="no messages"),
    ],
)
def test_only_a_session_without_id_or_messages_is_refused(path: tuple[str | int, ...], value: Any, place: str) -> None:
    with pytest.raises(TranscriptError) as refusal:
        parse(broken(path, value))
    assert place in str(refusal.value).split(": ")[0]
    assert SECRET not in str(refusal.value)


def other_turns(transcript: Transcript) -> list[Turn]:
    """All but the one that is broken, as they are otherwise, too."""
    expected = parse(broken((*ROOT, "seen"), "")).turns
    kept = [turn for turn in transcript.turns if turn.id == "msg_3"]
    assert [replace(turn, session=expected[1].session) for turn in kept] == [expected[1]]
    return [turn for turn in transcript.turns if turn.id != "msg_3"]


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        pytest.param(USER, SECRET, "messages[0].info", id="message not an object"),
        pytest.param((*USER, "info", "id"), ..., "messages[0].info.id", id="no id"),
        pytest.param((*USER, "info", "id"), "x" * 600, "messages[0].info.id", id="huge id"),
        pytest.param((*USER, "info", "id"), "a\ud800b", "messages[0].info.id", id="id with half a character"),
        # Names of the program's own: two records would share one request id, or two jobs one turn.
        pytest.param((*USER, "info", "id"), "session", "messages[0].info.id", id="turn named as the session's job"),
        pytest.param((*CALL, "info", "id"), "msg_2/prt", "messages[1].info.id", id="message with a slash"),
        pytest.param((*USER, "info", "role"), ..., "messages[0].info.role", id="no role"),
        pytest.param((*USER, "info", "role"), SECRET, "messages[0].info.role", id="unknown role"),
        pytest.param((*USER, "info", "role"), 5, "messages[0].info.role", id="role a number"),
        pytest.param((*CALL, "info", "cost"), math.nan, "messages[1].info", id="a number that JSON does not have"),
    ],
)
def test_an_unreadable_message_costs_its_turn(path: tuple[str | int, ...], value: Any, place: str) -> None:
    transcript = parse(broken(path, value))
    (lost,) = transcript.unreadable
    assert place in lost.why.split(": ")[0]
    assert SECRET not in lost.why
    assert "msg_1" not in {turn.id for turn in other_turns(transcript)} or lost.turn is None


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        pytest.param((*ROOT, "info", "time"), ..., "sessions[0].info.time.created", id="session without time"),
        pytest.param((*ROOT, "info", "title"), 5, "sessions[0].info.title", id="title a number"),
    ],
)
def test_what_is_odd_of_a_session_is_told_with_it(path: tuple[str | int, ...], value: Any, place: str) -> None:
    transcript = parse(broken(path, value))
    assert other_turns(transcript)
    (fault,) = transcript.faults
    assert fault.startswith(f"{place}: ")


@pytest.mark.parametrize(
    ("path", "value", "place", "is_unreadable"),
    [
        pytest.param((*PART, "id"), "assistant", "messages[1].parts[0].id", False, id="part named as a kind"),
        pytest.param((*PART, "id"), "prt/2", "messages[1].parts[0].id", False, id="part with a slash"),
        pytest.param((*PART, "id"), ..., "messages[1].parts[0].id", False, id="part without id"),
        pytest.param((*USER, "info", "time"), SECRET, "messages[0].info.time", False, id="time a string"),
        pytest.param((*USER, "info", "time", "created"), ..., "messages[0].info.time.created", False, id="no time"),
        pytest.param((*USER, "parts"), None, "messages[0].parts", False, id="parts null"),
        pytest.param((*USER, "parts", 0, "text"), [SECRET], "messages[0].parts[0].text", False, id="text a list"),
        pytest.param((*PART, "type"), ..., "messages[1].parts[0].type", True, id="part without type"),
        pytest.param(PART, SECRET, "messages[1].parts[0]", True, id="part not an object"),
        pytest.param(STATE, None, "messages[1].parts[0].state", True, id="tool without state"),
        pytest.param((*STATE, "status"), ..., "messages[1].parts[0].state.status", True, id="tool without status"),
        pytest.param((*STATE, "input"), {"n": math.inf}, "messages[1].parts[0]", True, id="infinity inside an input"),
        pytest.param(
            (*STATE, "output"), {SECRET: 1}, "messages[1].parts[0].state.output", False, id="output an object"
        ),
        pytest.param((*STATE, "time", "end"), SECRET, "messages[1].parts[0].state.time.end", False, id="end a string"),
        pytest.param((*CALL, "info", "error"), SECRET, "messages[1].info.error", False, id="error a string"),
        pytest.param(
            (*CALL, "info", "tokens", "input"), True, "messages[1].info.tokens.input", False, id="tokens true"
        ),
        pytest.param((*CALL, "info", "summary"), "yes", "messages[1].info.summary", False, id="flag a string"),
    ],
)
def test_an_odd_value_costs_itself_and_an_unreadable_part_itself(
    path: tuple[str | int, ...],
    value: Any,
    place: str,
    is_unreadable: bool,  # noqa: FBT001 - a case's own
) -> None:
    transcript = parse(broken(path, value))
    (turn,) = other_turns(transcript)
    assert turn.id == "msg_1"
    assert place in turn.faults[0].split(": ")[0]
    assert SECRET not in str(turn.faults)
    others = [part.type for message in turn.messages for part in message.parts if isinstance(part, Other)]
    assert others == [UNREADABLE] * is_unreadable


@pytest.mark.parametrize("value", ["session", "msg/1", 5, ["msg_1"]], ids=repr)
def test_an_answer_whose_parent_is_no_id_is_a_turn_of_its_own(value: Any) -> None:
    asked, answered = other_turns(parse(broken((*CALL, "info", "parentID"), value)))
    assert (asked.id, answered.id) == ("msg_1", "msg_2")
    assert "messages[1].info.parentID: " in answered.faults[0]


@pytest.mark.parametrize("value", [None, [], "x", 3, True], ids=repr)
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(TranscriptError):
        parse(value)


@pytest.mark.parametrize("value", [True, -1, 2**53, "12", [], {}, 0, None], ids=repr)
def test_a_message_without_a_time_has_that_of_the_one_before(value: Any) -> None:
    (turn,) = other_turns(parse(broken((*CALL, "info", "time", "created"), value)))
    assert [(message.index, message.created_ms) for message in turn.messages] == [(0, 2_000_000), (1, 2_000_000)]


def test_a_time_with_a_fraction_is_rounded() -> None:
    turn = parse(broken((*USER, "info", "time", "created"), 2_000_000.75)).turns[0]
    assert turn.messages[0].created_ms == 2_000_001
    assert isinstance(turn.messages[0].created_ms, int)


def test_integral_floats_are_times() -> None:
    turn = parse(broken((*USER, "info", "time", "created"), 2_000_000.0)).turns[0]
    assert (turn.messages[0].created_ms, turn.faults) == (2_000_000, ())


@pytest.mark.parametrize(
    "doubled",
    [
        pytest.param(snapshot(entry(user()), entry(user())), id="session"),
        pytest.param(snapshot(entry(user(), user())), id="message"),
        pytest.param(snapshot(entry(user("msg_1", 2_000_000, text(), text()))), id="part"),
    ],
)
def test_what_stands_there_twice_counts_once_and_is_told(doubled: Fields) -> None:
    transcript = parse(doubled)
    (turn,) = transcript.turns
    assert len(turn.messages) == 1
    (fault,) = (*transcript.faults, *turn.faults)
    assert "twice" in fault


def test_two_parts_of_one_id_are_two_parts() -> None:
    turn = only_turn(user(), assistant("msg_2", 3_000_000, tool(), tool(output="b.txt")))
    first, second = turn.messages[1].parts
    assert isinstance(second, Tool)
    assert (first.id, second.id, second.output) == ("prt_tool", "part-0001", "b.txt")


@pytest.mark.parametrize("depth", [DEPTH_MAX, 5_000, 200_000])
def test_deep_nesting_is_unreadable(depth: int) -> None:
    nested: Any = {}
    for _ in range(depth):
        nested = [nested]
    (turn,) = other_turns(parse(broken((*STATE, "input"), nested)))
    assert turn.faults == (f"sessions[0].messages[1].parts[0]: nested deeper than {DEPTH_MAX} levels",)


# Robustness

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(SECRET),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
SMALL = [json.dumps(recorded.export(name)) for name in ("b_tools", "f_subagent", "g_admin", "k_attachment")]


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    steps: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    return [inner for step, item in steps for inner in [(*path, step), *places(item, (*path, step))]]


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_mutation_gives_anything_but_a_transcript_or_a_refusal(data: st.DataObject) -> None:
    value = json.loads(data.draw(st.sampled_from(SMALL)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(value)))
        target = value
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = data.draw(JSON)
    try:
        transcript = parse(value)
    except TranscriptError as refusal:
        assert SECRET not in str(refusal)  # noqa: PT017 - both ways are fine
    else:
        assert parse(value) == transcript
