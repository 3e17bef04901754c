"""Encoding 1: what sessions that were exported before there was another go on with, to the byte."""

from __future__ import annotations

import json
from dataclasses import replace

from app.exporters.helicone.records import encode_session, encode_turn
from tests.exporters.helicone.test_records import FRAME, answered, asked, records, transcript
from tests.support.snapshots import CREATED_MS, assistant, text, user

FIRST = replace(FRAME, encoding=1)


def test_session_is_data() -> None:
    session = transcript(user(), parentID="ses_0", time={"created": CREATED_MS, "archived": 88}).session
    record = encode_session(session, FIRST)
    assert record.model == "data:opencode.session"
    assert list(asked(record).items()) == [
        ("_type", "data"),
        ("name", "opencode.session"),
        ("title", "a title"),
        ("project", "project"),
        ("opencode_version", "1.18.33"),
        ("parent", "ses_0"),
        ("archived_ms", 88),
    ]
    assert answered(record) == {"_type": "data", "name": "opencode.session", "status": "success"}


def test_user_message_is_data() -> None:
    image = {
        "id": "prt_1",
        "type": "file",
        "mime": "image/png",
        "filename": "a.png",
        "url": "data:image/png;base64,QUJD",
    }
    parts = (image, text("added", "prt_3", synthetic=True), text("written", "prt_4"))
    record, *_ = records(user("msg_1", 2_000_000, *parts, system="be brief"), frame=FIRST)
    assert record.model == "data:opencode.user"
    assert list(asked(record).items()) == [
        ("_type", "data"),
        ("name", "opencode.user"),
        ("text", [{"text": "added", "synthetic": True}, {"text": "written"}]),
        ("files", [{"name": "a.png", "type": "image/png", "bytes": 3}]),
        ("agent", "build"),
        ("system", "be brief"),
        ("parts", {"file": 1, "text": 2}),
    ]


def test_a_call_keeps_its_model_and_its_error() -> None:
    failed = assistant("msg_2", 2_000_000, error={"name": "Bad", "data": {"message": "x"}}, providerID="claude-code")
    (call,) = records(failed, frame=FIRST)
    assert call.model == "claude-code/claude-x"
    assert answered(call)["error"] == {"message": "x", "type": "Bad"}


def test_the_project_is_where_the_session_is_now() -> None:
    (turn,) = transcript(user(), assistant(), directory="/home/dev/moved").turns
    told = [json.loads(record.body)["providerRequest"]["meta"] for record in encode_turn(turn, FIRST)]
    assert {meta["Helicone-Property-project"] for meta in told} == {"moved"}
