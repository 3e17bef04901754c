"""What Helicone's own pages make of each record: whether its list has a text for it, and whether it opens.

`shown.json` holds their answers, got by running Helicone's code, which is no part of this repository: its mapper
(`packages/llm-mapper`), the model that jawn derives (`valhalla/jawn/src/utils/modelMapper.ts`) and the component that
opens a row (`web/components/templates/requests/RenderHeliconeRequest.tsx`) of Helicone/helicone at 67df07b8d, each
record as jawn keeps it (the request's JSON) and as the cloud's worker does (the whole body for the request).

A record that is not in it was changed since, and nobody knows how it is shown. Then they have to be asked again: give
each of `records_shown()` to the mapper as a row of provider CUSTOM with the record's status, call that component with
what it gives, note its mapper, the kind of the text in the list, and the component that opens it, and put the answers
in place of those here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from app.exporters.encoder import Frame, Record
from app.exporters.helicone.naming import session_name
from app.exporters.helicone.records import encode_session, encode_turn
from app.privacy.metadata_only import withhold_session, withhold_turn
from app.transcript.identity import Encoding
from app.transcript.parse import parse
from tests.exporters.helicone.test_golden import records, snapshot
from tests.exporters.helicone.test_records import records as records_of
from tests.support import recorded
from tests.support.checkout import DATA
from tests.support.snapshots import assistant

ANSWERS = DATA / "shown.json"


def digest_of(record: Record) -> str:
    return hashlib.sha256(record.body).hexdigest()[:16]


def withheld(name: str, encoding: Encoding) -> list[Record]:
    """The recording's records under `metadata_only`."""
    transcript = parse(snapshot(name))
    session = withhold_session(transcript.session)
    frame = Frame(session.id, session_name(None, encoding), "/opencode", "", interrupted=True, encoding=encoding)
    turns = [record for turn in transcript.turns for record in encode_turn(withhold_turn(turn), frame)]
    return [encode_session(session, frame), *turns]


def records_shown(encoding: Encoding) -> Iterator[Record]:
    """All records of all recordings, as they leave in full and as they leave under `metadata_only`."""
    for name in recorded.names():
        yield from records(parse(snapshot(name)), encoding)
        yield from withheld(name, encoding)


@dataclass(frozen=True, slots=True)
class Shown:
    mapper: str
    cell: str
    """What the list shows of the answer."""
    drawer: str
    """The component that opens it; `Unable to render` is what Helicone says where it has none."""


def answers() -> dict[str, Shown]:
    told = json.loads(ANSWERS.read_text("utf-8"))["records"]
    return {one: Shown(row["mapper"], row["cell"], row["drawer"]) for row in told for one in row["digests"]}


def test_helicone_has_been_asked_about_every_record_and_about_no_others() -> None:
    assert {digest_of(record) for record in records_shown(2)} == set(answers())


def test_helicone_can_open_every_record() -> None:
    assert {shown.drawer for shown in answers().values()} == {"Chat", "Tool", "ErrorMessage"}


def test_helicones_list_shows_what_was_written_asked_and_answered() -> None:
    known = answers()
    for name in recorded.names():
        for record in records(parse(snapshot(name)), 2):
            shown = known[digest_of(record)]
            told = json.loads(record.body)["providerResponse"]["json"]
            assert shown.mapper == ("tool" if record.kind == "tool" else "openai-chat")
            if "error" in told:
                assert (shown.cell, shown.drawer) == ("its error", "ErrorMessage")
            elif record.kind == "tool":
                assert shown.cell == "its status"
            else:
                first = told["choices"][0]["message"] if told["choices"] else {}
                text, asked = first.get("content"), first.get("tool_calls")
                assert shown.cell == ("its text" if text else "its tool calls" if asked else "nothing")


def models() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(ANSWERS.read_text("utf-8"))["models"]
    return found


@pytest.mark.parametrize("name", [name for name in models() if not name.startswith("custom/")])
def test_every_model_of_a_call_is_read_as_a_chat(name: str) -> None:
    provider_id, _, model_id = name.partition("/")
    call = assistant("msg_2", 2_000_000, providerID=provider_id, modelID=model_id)
    (record,) = records_of(call)
    assert models()[record.model] == ["openai-chat", "Chat"]
    if models()[name] != ["openai-chat", "Chat"]:
        assert record.model == f"custom/{name}"
