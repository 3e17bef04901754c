from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import pytest

from app.exporters.encoder import Frame, Record
from app.exporters.helicone.naming import session_name
from app.exporters.helicone.records import encode_session, encode_turn, kind_of
from app.transcript.model import (
    Assistant,
    File,
    Message,
    Part,
    Reasoning,
    Session,
    Text,
    Tool,
    Transcript,
    Turn,
    User,
    project_name,
)
from app.transcript.parse import parse
from tests.support import recorded
from tests.support.snapshots import (
    CREATED_MS,
    SESSION,
    Fields,
    assistant,
    entry,
    snapshot,
    step_start,
    task,
    text,
    tool,
    unfinished,
    user,
)

FRAME = Frame(SESSION, "opencode: project", "/opencode", "", interrupted=False, encoding=2)
# What Helicone takes as an id (shared/utils/getValidUUID.ts); anything else it replaces by a random one.
VALID_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def transcript(*messages: Fields, others: tuple[Fields, ...] = (), **info: Any) -> Transcript:
    return parse(snapshot(entry(*messages, **info), *others))


def records(*messages: Fields, frame: Frame = FRAME, others: tuple[Fields, ...] = (), **info: Any) -> list[Record]:
    turns = transcript(*messages, others=others, **info).turns
    return [record for turn in turns for record in encode_turn(turn, frame)]


def body(record: Record) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(record.body)
    return loaded


def asked(record: Record) -> dict[str, Any]:
    request: dict[str, Any] = body(record)["providerRequest"]["json"]
    return request


def answered(record: Record) -> dict[str, Any]:
    response: dict[str, Any] = body(record)["providerResponse"]["json"]
    return response


def status(record: Record) -> int:
    code: int = body(record)["providerResponse"]["status"]
    return code


def meta(record: Record) -> dict[str, str]:
    headers: dict[str, str] = body(record)["providerRequest"]["meta"]
    return headers


def recorded_records(name: str) -> tuple[Session, list[Record]]:
    value = parse(recorded.export(name))
    frame = Frame(
        value.session.id,
        session_name(value.session.directory, 2),
        "/opencode",
        "dev@example.com",
        interrupted=True,
        encoding=2,
    )
    turns = [record for turn in value.turns for record in encode_turn(turn, frame)]
    return value.session, [encode_session(value.session, frame), *turns]


# The envelope of every record


@pytest.mark.parametrize("name", recorded.exported())
def test_body_is_helicones_union_body(name: str) -> None:
    _, made = recorded_records(name)
    for record in made:
        whole = body(record)
        request = whole["providerRequest"]["json"]
        assert {name: whole[name] for name in request} == request
        assert set(whole) - set(request) == {"providerRequest", "providerResponse", "timing", "provider"}
        assert whole["provider"] == record.provider == "CUSTOM"
        assert whole["providerRequest"]["url"] == "custom-model-nopath"
        assert (whole["providerResponse"]["headers"], type(whole["providerResponse"]["status"])) == ({}, int)
        assert "stream" not in request
        start, end = whole["timing"]["startTime"], whole["timing"]["endTime"]
        assert start["seconds"] * 1000 + start["milliseconds"] == record.start_ms
        assert (start["seconds"], start["milliseconds"]) <= (end["seconds"], end["milliseconds"])


@pytest.mark.parametrize("name", recorded.exported())
def test_meta_says_who_the_record_is(name: str) -> None:
    session, made = recorded_records(name)
    assert len({record.request_id for record in made}) == len(made)
    for record in made:
        headers = meta(record)
        assert VALID_ID.fullmatch(record.request_id)
        assert headers["Helicone-Request-Id"] == record.request_id
        assert headers["Helicone-Session-Id"] == session.id
        assert headers["Helicone-Session-Name"] == "opencode: project"
        assert headers["Helicone-Session-Path"] == record.path
        assert headers["Helicone-User-Id"] == record.user_id == "dev@example.com"
        assert all(re.fullmatch("[ -~\u00a0-\u00ff]{1,1024}", header) for header in headers.values())
        properties = [name for name in headers if name.startswith("Helicone-Property-")]
        assert all(re.fullmatch("Helicone-Property-[a-z_]+", name) for name in properties)


def test_user_id_is_absent_unless_set() -> None:
    assert all("Helicone-User-Id" not in meta(record) for record in records(user(), assistant()))


def test_properties_tell_agent_mode_finish_project_and_message() -> None:
    _, call, used = records(user(), assistant("msg_2", 2_000_000, tool(), agent="build", mode="plan", finish="stop"))
    prefix = "Helicone-Property-"
    told = {name.removeprefix(prefix): value for name, value in meta(call).items() if name.startswith(prefix)}
    assert told == {"agent": "build", "mode": "plan", "finish": "stop", "project": "project", "message_id": "msg_2"}
    assert {name for name in meta(used) if name.startswith(prefix)} == {
        f"{prefix}{name}" for name in ("agent", "mode", "project", "message_id")
    }


def test_model_and_start_are_the_ones_that_helicone_replaces_by() -> None:
    made = [encode_session(transcript(user()).session, FRAME), *records(user(), assistant("msg_2", 2_000_000, tool()))]
    assert [(record.kind, record.model, record.start_ms) for record in made] == [
        ("session", "opencode/session", CREATED_MS),
        ("user", "opencode/user", CREATED_MS + 10),
        ("assistant", "anthropic/claude-x", 2_000_000),
        ("tool", "tool:bash", CREATED_MS + 30),
    ]


def test_what_helicone_replaces_by_stands_still_while_a_turn_goes_on() -> None:
    running = tool(status="running", output=None, time={"start": CREATED_MS + 30})
    early = unfinished("msg_2", 2_000_000, step_start(), running)
    late = assistant("msg_2", 2_000_000, tool(output="other", title="x"), cost=1, finish="length", agent="plan")
    one, other = records(user(), early), records(user("msg_1", CREATED_MS + 10, text()), late)
    assert [(r.request_id, r.model, r.provider, r.user_id, r.start_ms) for r in one] == [
        (r.request_id, r.model, r.provider, r.user_id, r.start_ms) for r in other
    ]


def test_request_ids_of_earlier_versions_are_kept() -> None:
    """Another namespace or another spelling would double every log that Helicone holds."""
    made = [encode_session(transcript(user()).session, FRAME), *records(user(), assistant("msg_2", 2_000_000, tool()))]
    assert [record.request_id for record in made] == [
        "bd0a3612-57fb-5f8c-a69b-91aea630e0e6",
        "12afe299-a99e-5212-b00c-6ba0d5d38faf",
        "aee87472-9355-555a-b3eb-01a55f5ddb84",
        "33b38101-c763-5429-9d10-62150b398f6e",
    ]


def test_same_turn_gives_same_bytes() -> None:
    assert records(user(), assistant()) == records(user(), assistant())


def test_lone_surrogates_leave_as_replacement_characters() -> None:
    first, *_ = records(user("msg_1", 2_000_000, text("a\ud800b\x00c")))
    assert first.body.decode("utf-8")
    assert answered(first)["choices"][0]["message"]["content"] == "a\ufffdb\x00c"


# Paths and names


def test_records_stand_in_order_each_subagent_after_its_call() -> None:
    made = records(
        user(),
        assistant("msg_2", 2_000_000, tool("prt_1"), task("ses_child", "prt_2"), tool("prt_3", "read")),
        assistant("msg_3", 3_000_000),
        others=(entry(user(), assistant("msg_2", 2_000_000, tool()), name="ses_child", parentID=SESSION),),
    )
    below_task = "/opencode/ses_root/msg-1/tool-task/ses_child"
    assert [(record.kind, record.path) for record in made] == [
        ("user", "/opencode/ses_root/msg-0"),
        ("assistant", "/opencode/ses_root/msg-1"),
        ("tool", "/opencode/ses_root/msg-1/tool-bash"),
        ("tool", "/opencode/ses_root/msg-1/tool-task"),
        ("session", below_task),
        ("user", f"{below_task}/msg-0"),
        ("assistant", f"{below_task}/msg-1"),
        ("tool", f"{below_task}/msg-1/tool-bash"),
        ("tool", "/opencode/ses_root/msg-1/tool-read"),
        ("assistant", "/opencode/ses_root/msg-2"),
    ]
    assert {meta(record)["Helicone-Session-Id"] for record in made} == {SESSION}


def test_child_has_the_same_ids_alone_and_under_its_root() -> None:
    child = entry(user(), assistant(), name="ses_child", parentID=SESSION)
    under = records(user(), assistant("msg_2", 2_000_000, task("ses_child")), others=(child,))[3:]
    alone = parse(snapshot(child))
    frame = replace(FRAME, root_session_id="ses_child")
    own = [encode_session(alone.session, frame), *encode_turn(alone.turns[0], frame)]
    assert [record.request_id for record in own] == [record.request_id for record in under]
    assert own[0].path == "/opencode/ses_child"


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        pytest.param("/opencode", "/opencode/ses_root/msg-0", id="as it should be"),
        pytest.param("opencode/", "/opencode/ses_root/msg-0", id="slash at the wrong end"),
        pytest.param("//team//a b/", "/team/a b/ses_root/msg-0", id="several steps"),
        pytest.param("/", "/ses_root/msg-0", id="none"),
        pytest.param("/überprüft/日", "/überprüft/%E6%97%A5/ses_root/msg-0", id="beyond Latin-1"),
    ],
)
def test_prefix_begins_every_path(prefix: str, path: str) -> None:
    assert records(user(), frame=replace(FRAME, prefix=prefix))[0].path == path


def test_tool_name_stays_one_step_of_the_path() -> None:
    name = "mcp/server\r\n50% 日\x7f"
    *_, record = records(user(), assistant("msg_2", 2_000_000, tool(tool_name=name)))
    step = record.path.removeprefix("/opencode/ses_root/msg-1/tool-")
    assert step == "mcp%2Fserver%0D%0A50%25 %E6%97%A5%7F"
    assert unquote(step) == name
    assert asked(record)["toolName"] == name


@pytest.mark.parametrize(
    ("directory", "project", "name"),
    [
        pytest.param("/home/dev/project", "project", "opencode: project", id="directory"),
        pytest.param("/home/dev/project/", "project", "opencode: project", id="slash at the end"),
        pytest.param("C:\\code\\thing", "thing", "opencode: thing", id="Windows"),
        pytest.param("/", None, "opencode", id="root of the disk"),
        pytest.param(None, None, "opencode", id="withheld"),
    ],
)
def test_session_is_named_after_its_project(directory: str | None, project: str | None, name: str) -> None:
    assert (project_name(directory), session_name(directory, 1), session_name(directory, 2)) == (project, name, name)


@pytest.mark.parametrize(
    ("project", "shown"),
    [
        ("проект-данных", "proekt-dannykh"),
        ("项目", "XiangMu"),
        ("한국어", "HanGugEo"),
        ("café", "café"),
        ("cafe\u0301", "café"),
        ("100%25", "100_25"),
        ("100\uff05", "100_"),
        ("🚀", ":rocket:"),
        ("a\nb\x7f", "a b"),
    ],
)
def test_a_session_is_named_in_letters_that_helicone_takes_and_shows_as_they_are(project: str, shown: str) -> None:
    named = replace(FRAME, session_name=session_name(f"/home/dev/{project}", 2))
    for record in (encode_session(transcript(user()).session, named), *records(user(), assistant(), frame=named)):
        assert meta(record)["Helicone-Session-Name"] == f"opencode: {shown}"
        assert meta(record)["Helicone-Property-project"] == shown


@pytest.mark.parametrize(
    ("provider", "model", "sent"),
    [
        ("claude-code", "opus", "custom/claude-code/opus"),
        ("Claude", "x", "custom/Claude/x"),
        ("data:x", "y", "custom/data:x/y"),
        ("opencode", "user", "custom/opencode/user"),
        ("opencode", "user-2", "opencode/user-2"),
        ("anthropic", "claude-opus-4", "anthropic/claude-opus-4"),
        ("amazon-bedrock", "anthropic.claude-3", "amazon-bedrock/anthropic.claude-3"),
    ],
)
def test_a_call_is_never_taken_for_another_kind_of_log_by_its_model(provider: str, model: str, sent: str) -> None:
    (call,) = records(assistant("msg_2", 2_000_000, providerID=provider, modelID=model))
    assert (call.model, asked(call)["model"], answered(call)["model"]) == (sent, sent, sent)
    assert kind_of(call.model) == "assistant"


# Sessions and user messages


def test_session_record_has_no_totals_and_no_update_time() -> None:
    time = {"created": CREATED_MS, "updated": 77, "archived": 88}
    session = transcript(user(), cost=3, tokens={"input": 4}, parentID="ses_0", time=time).session
    record = encode_session(session, FRAME)
    assert asked(record) == {
        "model": "opencode/session",
        "messages": [],
        "project": "project",
        "opencode_version": "1.18.33",
        "parent": "ses_0",
        "archived_ms": 88,
    }
    assert answered(record) == {
        "id": SESSION,
        "object": "chat.completion",
        "model": "opencode/session",
        "choices": [{"index": 0, "message": {"role": "user", "content": "a title"}}],
    }
    assert record.body == encode_session(replace(session, updated_ms=99), FRAME).body


def test_user_record_tells_texts_files_and_system() -> None:
    image = {
        "id": "prt_1",
        "type": "file",
        "mime": "image/png",
        "filename": "a.png",
        "url": "data:image/png;base64,QUJD",
    }
    reference = {"id": "prt_2", "type": "file", "mime": "text/plain", "filename": "b.txt", "url": "file:///b.txt"}
    parts = (image, reference, text("added", "prt_3", synthetic=True), text("written", "prt_4"))
    record, *_ = records(user("msg_1", 2_000_000, *parts, system="be brief"))
    assert asked(record) == {
        "model": "opencode/user",
        "messages": [{"role": "system", "content": "be brief"}],
        "files": [{"name": "a.png", "type": "image/png", "bytes": 3}, {"name": "b.txt", "type": "text/plain"}],
        "agent": "build",
        "parts": {"file": 2, "text": 2},
    }
    assert [choice["message"] for choice in answered(record)["choices"]] == [
        # Helicone's list shows the first one: what somebody wrote.
        {"role": "user", "content": "[image/png, 3 bytes]\n[text/plain]\nwritten"},
        {"role": "user", "content": "added", "synthetic": True},
    ]


@pytest.mark.parametrize(
    ("message", "flag"),
    [
        pytest.param(user("msg_1", 2_000_000, {"id": "prt_1", "type": "compaction"}), "compaction", id="compaction"),
        pytest.param(user("msg_1", 2_000_000, text(synthetic=True)), "synthetic", id="nobody wrote it"),
        pytest.param(user("msg_1", 2_000_000, text(synthetic=True), text(name="prt_z")), None, id="somebody wrote"),
        pytest.param(user("msg_1", 2_000_000), None, id="empty"),
        pytest.param(assistant(summary=True), "compaction", id="summary"),
        pytest.param(assistant(), None, id="answer"),
    ],
)
def test_compactions_and_synthetic_messages_are_flagged(message: Fields, flag: str | None) -> None:
    (record,) = records(message)
    assert meta(record).get("Helicone-Property-flag") == flag


# LLM calls


def test_each_call_is_sent_what_is_new_since_the_one_before() -> None:
    failed = tool("prt_2", status="error", output=None, error="denied")
    running = tool("prt_3", status="running", output=None)
    _, first, *_, second, third = records(
        user("msg_1", 2_000_000, text("do it"), text("context", "prt_a", synthetic=True)),
        assistant("msg_2", 3_000_000, tool("prt_1"), failed, running),
        assistant("msg_3", 4_000_000),
        assistant("msg_4", 5_000_000),
    )
    assert asked(first)["messages"] == [
        {"role": "user", "content": "context", "synthetic": True},
        {"role": "user", "content": "do it"},
    ]
    assert asked(second)["messages"] == [
        {"role": "tool", "tool_call_id": "call_prt_1", "name": "bash", "content": "a.txt"},
        {"role": "tool", "tool_call_id": "call_prt_2", "name": "bash", "content": "denied"},
    ]
    assert asked(third)["messages"] == []


def test_attachments_are_described_to_the_call() -> None:
    image = {"id": "prt_1", "type": "file", "mime": "image/png", "url": "data:image/png;base64,QUJD"}
    _, call = records(user("msg_1", 2_000_000, image, text("what is it?")), assistant("msg_2", 3_000_000))
    assert asked(call)["messages"] == [{"role": "user", "content": "[image/png, 3 bytes]\nwhat is it?"}]


def test_reasoning_and_text_are_one_choice_and_tool_calls_another() -> None:
    thought = {"id": "prt_1", "type": "reasoning", "text": "think"}
    _, call, _ = records(
        user(), assistant("msg_2", 2_000_000, thought, text("I look", "prt_2"), tool("prt_3"), finish="tool-calls")
    )
    assert answered(call)["choices"] == [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": "I look", "reasoning": "think"},
        },
        {
            "index": 1,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_prt_3",
                        "type": "function",
                        "function": {"name": "bash", "arguments": '{"command":"ls"}'},
                    }
                ],
            },
        },
    ]


def test_usage_counts_as_helicone_does() -> None:
    tokens = {"total": 1, "input": 400, "output": 40, "reasoning": 10, "cache": {"read": 600, "write": 7}}
    (call,) = records(assistant(tokens=tokens, cost=0.00213))
    assert answered(call)["usage"] == {
        "prompt_tokens": 1000,
        "completion_tokens": 50,
        "total_tokens": 1050,
        "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 7},
        "cost": 0.00213,
    }


def test_no_usage_and_no_cost_leave_no_usage() -> None:
    (call,) = records(assistant())
    assert "usage" not in answered(call)
    assert answered(call)["model"] == asked(call)["model"] == "anthropic/claude-x"


def test_dropped_streams_leave_no_trace_in_the_answer() -> None:
    parts = [
        step_start("prt_0"),
        text("", "prt_1", time={"start": CREATED_MS + 60}),
        step_start("prt_2"),
        text("", "prt_3", time={"start": CREATED_MS + 70}),
        text("at last", "prt_4", time={"start": CREATED_MS + 80}),
    ]
    (call,) = records(assistant("msg_2", CREATED_MS + 20, *parts))
    assert [choice["message"]["content"] for choice in answered(call)["choices"]] == ["at last"]
    assert answered(call)["parts"] == {"step-start": 2, "text": 3}
    assert body(call)["timing"]["timeToFirstToken"] == 40


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        pytest.param(
            {"name": "APIError", "data": {"message": "slow down", "statusCode": 429}},
            429,
            {"message": "slow down", "type": "APIError"},
            id="provider's status",
        ),
        pytest.param(
            {"name": "APIError", "data": {"message": "broken stream", "statusCode": 200}},
            500,
            {"message": "broken stream", "type": "APIError"},
            id="a 200 is no error",
        ),
        pytest.param(
            {"name": "MessageAbortedError", "data": {"message": "Aborted"}},
            500,
            {"message": "Aborted", "type": "MessageAbortedError"},
            id="aborted",
        ),
        pytest.param(
            {"name": "MessageOutputLengthError", "data": {}},
            500,
            {"message": "MessageOutputLengthError", "type": "MessageOutputLengthError"},
            id="without a message",
        ),
    ],
)
def test_failed_call_has_status_and_message(error: Fields, code: int, shown: Fields) -> None:
    (call,) = records(assistant("msg_2", 2_000_000, text("so far"), error=error, finish=None))
    assert status(call) == code
    assert answered(call)["error"] == {**shown, "heliconeMessage": shown["message"]}
    assert answered(call)["model"] == "anthropic/claude-x"
    assert answered(call)["choices"][0]["message"]["content"] == "so far"


@pytest.mark.parametrize("parts", [(), (step_start(),)], ids=["no part", "a step that began"])
def test_call_that_ended_without_an_answer_has_failed(parts: tuple[Fields, ...]) -> None:
    """The context was too long: OpenCode completes the message with neither error nor finish."""
    (call,) = records(assistant("msg_2", 2_000_000, *parts, finish=None))
    assert status(call) == 500
    assert answered(call)["error"] == {
        "message": "ended without an answer",
        "type": "NoAnswer",
        "heliconeMessage": "ended without an answer",
    }
    assert "choices" not in answered(call)


def test_shell_command_is_a_tool_record_only() -> None:
    asked_for = user("msg_1", 2_000_000, text("The following tool was executed by the user", synthetic=True))
    made = records(asked_for, assistant("msg_2", 3_000_000, tool(metadata={"output": "x"}), finish=None))
    assert [record.kind for record in made] == ["user", "tool"]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(assistant("msg_2", 2_000_000, step_start(), tool(), finish=None), id="step-start"),
        pytest.param(assistant("msg_2", 2_000_000, tool()), id="finish"),
        pytest.param(assistant("msg_2", 2_000_000, tool(), finish=None, error={"name": "APIError"}), id="error"),
        pytest.param(assistant("msg_2", 2_000_000, tool(), finish=None, tokens={"output": 1}), id="tokens"),
    ],
)
def test_tool_call_of_a_model_is_no_shell_command(call: Fields) -> None:
    assert [record.kind for record in records(call)] == ["assistant", "tool"]


def test_time_of_a_call_is_from_creation_to_completion() -> None:
    parts = (text(time={"start": 2_000_300, "end": 2_000_400}),)
    (call,) = records(assistant("msg_2", 2_000_000, *parts, time={"created": 2_000_000, "completed": 2_001_234}))
    assert body(call)["timing"] == {
        "startTime": {"seconds": 2000, "milliseconds": 0},
        "endTime": {"seconds": 2001, "milliseconds": 234},
        "timeToFirstToken": 300,
    }


@pytest.mark.parametrize(
    ("call", "end_ms"),
    [
        pytest.param(
            unfinished("msg_2", 2_000_000, text(time={"start": 2_000_300})), 2_000_300, id="last time in parts"
        ),
        pytest.param(unfinished("msg_2", 2_000_000), 2_000_000, id="no time at all"),
        pytest.param(assistant("msg_2", 2_000_000, time={"created": 2_000_000, "completed": 5}), 2_000_000, id="clock"),
    ],
)
def test_call_never_ends_before_it_starts(call: Fields, end_ms: int) -> None:
    (record,) = records(call)
    end = body(record)["timing"]["endTime"]
    assert end["seconds"] * 1000 + end["milliseconds"] == end_ms


def test_first_token_before_the_start_is_unknown() -> None:
    (call,) = records(assistant("msg_2", 2_000_000, text(time={"start": 1_999_999})))
    assert "timeToFirstToken" not in body(call)["timing"]


# Tools


@pytest.mark.parametrize(
    ("part", "code", "response"),
    [
        pytest.param(
            tool(metadata={"exit": 3, "truncated": True}),
            200,
            {
                "status": "success",
                "message": "a.txt",
                "metadata": {
                    "call_id": "call_prt_tool",
                    "title": "ls",
                    "exit": 3,
                    "truncated": True,
                    "duration_ms": 10,
                },
            },
            id="exit 3",
        ),
        pytest.param(
            tool(status="error", output=None, error="denied", title=None, metadata=None),
            500,
            {
                "status": "error",
                "message": "denied",
                "error": {"message": "denied"},
                "metadata": {"call_id": "call_prt_tool", "truncated": False, "duration_ms": 10},
            },
            id="error",
        ),
    ],
)
def test_tool_record_tells_how_it_ended(part: Fields, code: int, response: Fields) -> None:
    *_, record = records(assistant("msg_2", 2_000_000, part))
    assert status(record) == code
    assert asked(record) == {"_type": "tool", "toolName": "bash", "input": {"command": "ls"}}
    assert answered(record) == {"_type": "tool", "toolName": "bash", **response}


def test_tool_that_never_started_starts_with_its_message() -> None:
    *_, record = records(unfinished("msg_2", 2_000_000, tool(status="pending", time=None)))
    assert record.start_ms == 2_000_000


# Unfinished turns


def test_interrupted_turn_says_so() -> None:
    parts = (text("half an ans"), tool("prt_z", status="running", output=None, time={"start": 2_000_100}))
    call, used = records(unfinished("msg_2", 2_000_000, *parts), frame=replace(FRAME, interrupted=True))
    assert (status(call), status(used)) == (500, 500)
    assert answered(call)["error"]["message"] == "interrupted: OpenCode ended before the answer was complete"
    assert answered(call)["choices"][0]["message"]["content"] == "half an ans"
    assert answered(used)["status"] == "interrupted"
    assert body(used)["timing"]["endTime"] == {"seconds": 2000, "milliseconds": 100}


def test_turn_that_may_go_on_is_not_called_interrupted() -> None:
    call, used = records(unfinished("msg_2", 2_000_000, step_start(), tool(status="running", output=None)))
    assert answered(call)["error"]["type"] == "Unfinished"
    assert answered(used)["status"] == "unfinished"


# Withheld content


def without_content(turn: Turn) -> Turn:
    session = replace(turn.session, title=None, directory=None)
    return replace(turn, session=session, messages=tuple(blank(message) for message in turn.messages))


def blank(message: Message) -> Message:
    parts = tuple(blank_part(part) for part in message.parts)
    if isinstance(message, User):
        return replace(message, system=None, parts=parts)
    failure = replace(message.failure, message=None) if message.failure else None
    return replace(message, failure=failure, parts=parts)


def blank_part(part: Part) -> Part:
    match part:
        case Text() | Reasoning():
            return replace(part, text=None)
        case File():
            return replace(part, mime=None, name=None)
        case Tool(child=child):
            below = None if child is None else blank_child(child)
            return replace(part, input=None, output=None, error=None, title=None, child=below)
        case _:
            return part


def blank_child(child: Transcript) -> Transcript:
    session = replace(child.session, title=None, directory=None)
    return Transcript(session, tuple(without_content(turn) for turn in child.turns))


@pytest.mark.parametrize("name", recorded.exported())
def test_withheld_content_leaves_the_records_and_no_field_of_content(name: str) -> None:
    value = parse(recorded.export(name))
    frame = Frame(value.session.id, "opencode", "/opencode", "", interrupted=True, encoding=2)
    for turn in value.turns:
        full, bare = [*encode_turn(turn, frame)], [*encode_turn(without_content(turn), frame)]
        assert [(r.request_id, r.model, r.start_ms, r.path) for r in bare] == [
            (r.request_id, r.model, r.start_ms, r.path) for r in full
        ]
        for one, other in zip(full, bare, strict=True):
            assert status(one) == status(other)
            assert body(one)["timing"] == body(other)["timing"]
            assert answered(one).get("usage") == answered(other).get("usage")
            request, response = asked(other), answered(other)
            if other.kind == "assistant":
                assert request["messages"] == []
                assert response.get("choices", []) == []
                assert response["parts"] == answered(one)["parts"]
            elif other.kind == "tool":
                assert request == {"_type": "tool", "toolName": request["toolName"], "input": {}}
                assert set(response) == {"_type", "toolName", "status", "metadata"}
            else:
                assert set(request) <= {"model", "messages", "agent", "flag", "parts", "opencode_version", "parent"}
                assert (request["messages"], response["choices"]) == ([], [])


def test_withheld_error_keeps_its_class() -> None:
    failed = assistant("msg_2", 2_000_000, error={"name": "APIError", "data": {"message": "x", "statusCode": 429}})
    (turn,) = transcript(failed).turns
    assert isinstance(turn.messages[0], Assistant)
    (call,) = encode_turn(without_content(turn), FRAME)
    assert status(call) == 429
    assert answered(call)["error"] == {"message": "APIError", "type": "APIError", "heliconeMessage": "APIError"}
