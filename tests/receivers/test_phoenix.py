"""The real Phoenix: what it shows of every recording, what it loses, and what is left of what was taken back."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings

from app.exporters.encoder import Record
from app.privacy.metadata_only import withhold_turn
from app.transcript.model import Turn
from tests.exporters.otlp.test_messages import lists
from tests.support import recorded
from tests.support.generated_turns import turns
from tests.support.receivers import Receiver, environment, phoenix
from tests.support.spans import Seen, asking, fresh, records, seen, spans, transcript, with_tools
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with phoenix(tmp_path_factory.mktemp("phoenix")) as running:
        yield running


def held(receiver: Receiver, trace: str) -> list[dict[str, Any]]:
    path = f"/v1/projects/{quote(receiver.project)}/spans?limit=1000&trace_id={trace}"
    found: list[dict[str, Any]] = receiver.json(path)["data"]
    return found


def trace_of(record: Record) -> str:
    return uuid.UUID(record.request_id).hex


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_every_recording_is_shown_as_it_was(receiver: Receiver) -> None:
    sent = {name: [record for turn in transcript(name).turns for record in records(turn)] for name in recorded.names()}
    everything = [record for records in sent.values() for record in records]
    receiver.send(*everything)
    receiver.await_stored(*everything)
    for record in everything:
        there = held(receiver, trace_of(record))
        compare(seen(record.body), there)
    traces = Counter(seen(record.body)[0].attributes["session.id"] for record in everything)
    sessions = receiver.json(f"/v1/projects/{quote(receiver.project)}/sessions?limit=1000")["data"]
    assert {one["session_id"]: len(one["traces"]) for one in sessions} == traces


def compare(sent: list[Seen], there: list[dict[str, Any]]) -> None:
    by_id = {one["context"]["span_id"]: one for one in there}
    assert set(by_id) == {span.id for span in sent}
    for span in sent:
        shown = by_id[span.id]
        assert (shown["name"], shown["parent_id"] or "") == (span.name, span.parent)
        assert (shown["status_code"], shown["status_message"]) == (span.status, span.status_message)
        assert (_ms(shown["start_time"]), _ms(shown["end_time"])) == (span.start_ns // 10**6, span.end_ns // 10**6)
        told = shown["attributes"]
        kinds = {"invoke_agent": "AGENT", "chat": "LLM", "execute_tool": "TOOL"}
        assert shown["span_kind"] == kinds[span.attributes["gen_ai.operation.name"]]
        assert told["session.id"] == span.attributes["session.id"]
        for ours, theirs in (("input", "prompt"), ("output", "completion")):
            assert told.get(f"llm.token_count.{theirs}") == span.attributes.get(f"gen_ai.usage.{ours}_tokens")
        for side in ("input", "output"):
            messages = json.loads(span.attributes.get(f"gen_ai.{side}.messages", "[]"))
            kept = {key.split(".")[2] for key in told if key.startswith(f"llm.{side}_messages.")}
            assert len(kept) == len(messages), "a list was dropped"
        assert told.get("input.value") == span.attributes.get("input.value")
        assert [event["name"] for event in shown["events"]] == [name for name, _ in span.events]


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def test_phoenixs_own_models_take_every_list(tmp_path: Path) -> None:
    """Those of the conventions 1.41.1, by which it reads the lists: one odd message, and it drops the list silently."""
    found = [one for name in recorded.names() for turn in transcript(name).turns for one in lists(spans(turn))]

    @settings(max_examples=200)
    @given(turns())
    def generate(turn: Turn) -> None:
        found.extend(lists(spans(turn)))

    generate()
    path = tmp_path / "lists.json"
    path.write_text(json.dumps(found))
    judge = (
        "import json, sys\n"
        "from phoenix.trace.gen_ai.__generated__.models import InputMessages, OutputMessages\n"
        "found = json.load(open(sys.argv[1]))\n"
        "for is_output, one in found:\n"
        "    (OutputMessages if is_output else InputMessages).model_validate(one)\n"
        "print(len(found))\n"
    )
    python = environment("arize-phoenix") / "python"
    done = subprocess.run([python, "-c", judge, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == len(found) > 500


def test_a_turn_of_many_megabytes_is_stored_whole(receiver: Receiver) -> None:
    sent = records(with_tools(fresh("b_tools"), 12, "many words " * 100_000))
    assert len(sent) > 1
    receiver.send(*sent)
    receiver.await_stored(sent[-1])


# --- sent again, changed, lost ---------------------------------------------------------------------------------------


def test_what_is_sent_again_is_there_once(receiver: Receiver) -> None:
    (record,) = records(fresh("f_subagent"))
    receiver.send(record, record)
    receiver.await_stored(record)
    receiver.send(record)
    assert len(held(receiver, trace_of(record))) == len(seen(record.body))


def test_a_changed_turn_is_ignored_unless_the_one_before_is_deleted(receiver: Receiver) -> None:
    turn = fresh("a_simple")
    (before,) = records(asking(turn, "as it was"))
    (after,) = records(asking(turn, "as it is"))
    assert before.request_id == after.request_id
    receiver.send(before)
    receiver.await_stored(before)
    receiver.send(after)

    def asked() -> set[str]:
        return {one["attributes"]["input.value"] for one in held(receiver, trace_of(after)) if not one["parent_id"]}

    (marker,) = records(fresh("a_simple"))
    receiver.send(marker)
    receiver.await_stored(marker)  # whatever was sent before it has been dealt with
    assert asked() == {"as it was"}
    receiver.delete(after)
    assert receiver.stored(after.request_id) == set()
    receiver.send(after)
    receiver.await_stored(after)
    assert asked() == {"as it is"}


def test_what_phoenix_lost_when_it_was_killed_is_found_missing_and_comes_again(receiver: Receiver) -> None:
    sent = [record for _ in range(6) for record in records(fresh("a_simple"))]
    with receiver.locked():  # so that it has stored nothing by then
        receiver.send(*sent)
        receiver.kill()
    receiver.start()
    assert receiver.stored(*(record.request_id for record in sent)) == set()
    receiver.send(*sent)
    receiver.await_stored(*sent)


def test_what_phoenix_dropped_while_its_database_was_locked_is_found_missing_and_comes_again(
    receiver: Receiver,
) -> None:
    (record,) = records(fresh("f_subagent"))
    with receiver.locked():
        receiver.send(record)
        wait_until(
            lambda: all(
                f"failed after savepoint rollback: span_id={span.id}" in receiver.log.read_text()
                for span in seen(record.body)
            )
        )
    assert receiver.stored(record.request_id) == set()
    receiver.send(record)
    receiver.await_stored(record)


# --- taken back ------------------------------------------------------------------------------------------------------


def test_a_turn_that_is_deleted_leaves_no_word_in_any_row(receiver: Receiver) -> None:
    """The file keeps them until SQLite needs the room or somebody says VACUUM: no API of Phoenix does."""
    word = f"word{uuid.uuid4().hex}"
    (record,) = records(asking(fresh("a_simple"), word))
    receiver.send(record)
    receiver.await_stored(record)
    assert receiver.holds(word)
    receiver.delete(record)
    assert receiver.stored(record.request_id) == set()
    assert held(receiver, trace_of(record)) == []
    assert not receiver.holds(word)


def test_deleting_what_is_not_there_is_no_failure(receiver: Receiver) -> None:
    receiver.delete(*records(fresh("a_simple")))


def test_under_metadata_only_no_word_arrives(receiver: Receiver) -> None:
    word = f"word{uuid.uuid4().hex}"
    turn = asking(fresh("a_simple"), word)
    (record,) = records(withhold_turn(turn))
    receiver.send(record)
    receiver.await_stored(record)
    assert not receiver.file_holds(word)
    kinds = Counter(one["span_kind"] for one in held(receiver, trace_of(record)))
    assert kinds == {"AGENT": 1, "LLM": 1}
