"""The real MLflow: what it shows of every recording, what it says while it cannot store, what a deletion leaves."""

from __future__ import annotations

import base64
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from app.exporters.encoder import Record
from app.privacy.metadata_only import withhold_turn
from tests.support import recorded
from tests.support.receivers import Receiver, mlflow
from tests.support.spans import Seen, asking, fresh, records, seen, transcript, with_tools


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with mlflow(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


def held(receiver: Receiver, record: Record) -> dict[str, Any]:
    trace = uuid.UUID(record.request_id).hex
    told = receiver.json(f"/ajax-api/3.0/mlflow/traces/get?trace_id=tr-{trace}&allow_partial=true")
    found: dict[str, Any] = told["trace"]
    return found


def test_every_recording_is_shown_as_it_was(receiver: Receiver) -> None:
    sent = [record for name in recorded.names() for turn in transcript(name).turns for record in records(turn)]
    receiver.send(*sent)
    assert receiver.stored(*(record.request_id for record in sent)) == {record.request_id for record in sent}
    for record in sent:
        compare(seen(record.body), held(receiver, record))


def compare(sent: list[Seen], there: dict[str, Any]) -> None:
    by_id = {base64.b64decode(span["span_id"]).hex(): span for span in there["spans"]}
    assert set(by_id) == {span.id for span in sent}
    for span in sent:
        shown = by_id[span.id]
        assert base64.b64decode(shown.get("parent_span_id", "")).hex() == span.parent
        assert (shown["name"], shown["start_time_unix_nano"], shown["end_time_unix_nano"]) == (
            span.name,
            span.start_ns,
            span.end_ns,
        )
        assert shown["status"].get("code", "UNSET").removeprefix("STATUS_CODE_") == span.status
        assert [event["name"] for event in shown.get("events", [])] == [name for name, _ in span.events]
    root, info = sent[-1], there["trace_info"]
    assert info["state"] == ("ERROR" if root.status == "ERROR" else "OK")
    assert info["trace_metadata"]["mlflow.trace.session"] == root.attributes["session.id"]
    counted: Counter[str] = Counter()
    for span in sent:
        for side in ("input", "output"):
            counted[side] += span.attributes.get(f"gen_ai.usage.{side}_tokens", 0)
    usage = json.loads(info["trace_metadata"].get("mlflow.trace.tokenUsage", "{}"))
    assert (usage.get("input_tokens", 0), usage.get("output_tokens", 0)) == (counted["input"], counted["output"])


def test_a_turn_of_many_megabytes_is_stored_whole(receiver: Receiver) -> None:
    sent = records(with_tools(fresh("b_tools"), 12, "many words " * 100_000))
    assert len(sent) > 1
    receiver.send(*sent[:-1])
    assert receiver.stored(sent[-1].request_id) == set(), "its root is not there yet"
    receiver.send(sent[-1])
    assert receiver.stored(sent[-1].request_id) == {sent[-1].request_id}
    assert len(held(receiver, sent[-1])["spans"]) == len(seen(*(record.body for record in sent)))


def test_what_is_sent_again_is_there_once(receiver: Receiver) -> None:
    (record,) = records(fresh("f_subagent"))
    receiver.send(record, record)
    assert len(held(receiver, record)["spans"]) == len(seen(record.body))


def test_a_changed_turn_keeps_a_word_of_the_one_before_unless_that_is_deleted(receiver: Receiver) -> None:
    turn = fresh("a_simple")
    (before,) = records(asking(turn, "as it was"))
    (after,) = records(asking(turn, "as it is"))
    receiver.send(before, after)
    assert "as it was" in held(receiver, after)["trace_info"]["request_preview"], "then no deletion is needed"
    receiver.delete(after)
    assert receiver.stored(after.request_id) == set()
    receiver.send(after)
    assert "as it is" in held(receiver, after)["trace_info"]["request_preview"]
    assert not receiver.holds("as it was")


def test_while_its_database_is_locked_nothing_is_acknowledged(receiver: Receiver) -> None:
    (record,) = records(fresh("f_subagent"))
    with receiver.locked(), closing(receiver.client()) as client:
        outcome = client.post(receiver.route, record.body, record.request_id, 0)
    assert outcome.kind == "wait"
    receiver.send(record)
    assert receiver.stored(record.request_id) == {record.request_id}


def test_what_was_answered_survives_a_kill(receiver: Receiver) -> None:
    sent = [record for _ in range(6) for record in records(fresh("a_simple"))]
    receiver.send(*sent)
    receiver.kill()
    receiver.start()
    assert receiver.stored(*(record.request_id for record in sent)) == {record.request_id for record in sent}


def test_without_an_experiment_that_exists_it_is_refused(receiver: Receiver) -> None:
    (record,) = records(fresh("a_simple"))
    with closing(type(receiver.client())({}, preset="mlflow", project="99999")) as client:
        assert client.post(receiver.route, record.body, record.request_id, 0).kind == "refused"
    with closing(type(receiver.client())({}, preset="none")) as client:
        outcome = client.post(receiver.route, record.body, record.request_id, 0)
    assert (outcome.status, outcome.kind, outcome.is_doubtful) == (422, "retry", True)


def test_a_turn_that_is_deleted_leaves_no_word_in_any_row(receiver: Receiver) -> None:
    word = f"word{uuid.uuid4().hex}"
    (record,) = records(asking(fresh("a_simple"), word))
    receiver.send(record)
    assert receiver.holds(word)
    receiver.delete(record)
    assert receiver.stored(record.request_id) == set()
    assert not receiver.holds(word)
    receiver.delete(record)  # once more: nothing is there


def test_under_metadata_only_no_word_arrives(receiver: Receiver) -> None:
    word = f"word{uuid.uuid4().hex}"
    (record,) = records(withhold_turn(asking(fresh("a_simple"), word)))
    receiver.send(record)
    assert receiver.stored(record.request_id) == {record.request_id}
    assert not receiver.file_holds(word)
