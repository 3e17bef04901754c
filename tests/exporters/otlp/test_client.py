"""The client against servers whose every byte is scripted: what goes out, what is found there, what is deleted."""

from __future__ import annotations

import gzip
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from app.exporters.client import ClientError, Deleting, OverlongError, ReadBackError
from app.exporters.otlp import client as module
from app.exporters.otlp.client import Client
from app.exporters.otlp.traits import Preset, traits
from tests.support.servers import answer, nobody, reset, scripted
from tests.support.spans import records, transcript

NOW_MS = 1_790_000_000_000
SECRET = "Bearer " + "q" * 20
ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def body() -> bytes:
    return records(transcript("a_simple").turns[0])[0].body


@pytest.fixture
def phoenix() -> Iterator[Client]:
    with closing(Client({"Authorization": SECRET}, preset="phoenix", project="my project")) as made:
        yield made


@pytest.fixture
def mlflow() -> Iterator[Client]:
    with closing(Client({}, preset="mlflow", project="7")) as made:
        yield made


def test_a_client_deletes() -> None:
    made: Deleting = Client({}, preset="none")
    made.close()


# --- what goes out ---------------------------------------------------------------------------------------------------


def test_a_record_goes_out_compressed_under_the_one_content_type_that_phoenix_takes(
    phoenix: Client, body: bytes
) -> None:
    with scripted(answer(200)) as server:
        (url,) = traits("phoenix", "my project").routes(server.url)
        assert phoenix.post(url, body, "", NOW_MS).kind == "accepted"
    (heard,) = server.requests
    assert heard.line == "POST /v1/traces HTTP/1.1"
    assert {name: heard.headers[name] for name in ("content-type", "content-encoding", "authorization")} == {
        "content-type": "application/x-protobuf",
        "content-encoding": "gzip",
        "authorization": SECRET,
    }
    assert heard.headers["x-project-name"] == "my project"
    assert gzip.decompress(heard.body) == body


def test_what_goes_out_is_the_same_bytes_each_time(phoenix: Client, body: bytes) -> None:
    with scripted(answer(200)) as server:
        for _ in range(2):
            phoenix.post(server.url + "/v1/traces", body, "", NOW_MS)
    assert server.requests[0].body == server.requests[1].body
    assert server.requests[0].body[4:8] == bytes(4), "gzip would note when"


@pytest.mark.parametrize(("project", "sent"), [("7", "7"), ("", "0")])
def test_mlflow_is_told_the_experiment(project: str, sent: str, body: bytes) -> None:
    with closing(Client({}, preset="mlflow", project=project)) as made, scripted(answer(200)) as server:
        made.post(server.url + "/v1/traces", body, "", NOW_MS)
    assert server.requests[0].headers["x-mlflow-experiment-id"] == sent


def test_headers_of_a_person_go_before_those_of_the_preset(body: bytes) -> None:
    with (
        closing(Client({"X-Project-Name": "theirs"}, preset="phoenix", project="ours")) as made,
        scripted(answer(200)) as server,
    ):
        made.post(server.url + "/v1/traces", body, "", NOW_MS)
    (heard,) = server.requests
    assert [name.lower() for name in heard.header_names].count("x-project-name") == 1
    assert heard.headers["x-project-name"] == "theirs"


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"X-Key": "a\nb"}, "x-key"),
        ({"X-Key": ""}, "x-key"),
        ({"X-Key": "schlüssel"}, "x-key"),
        ({"X Key": "secret-value"}, "name"),
        ({"Content-Type": "text/plain"}, "content-type"),
    ],
)
def test_a_header_that_cannot_be_is_refused_without_its_value(headers: dict[str, str], named: str) -> None:
    with pytest.raises(ClientError, match=named) as raised:
        Client(headers, preset="none")
    assert not any(value and value in str(raised.value) for value in headers.values())


def test_a_projects_name_that_no_header_takes_is_refused() -> None:
    with pytest.raises(ClientError, match="x-project-name"):
        Client({}, preset="phoenix", project="Прожект")


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body_said", [SECRET, SECRET.removeprefix("Bearer ")])
def test_no_header_is_repeated_in_what_is_kept_of_an_answer(body_said: str, body: bytes) -> None:
    said = json.dumps({"error": f"who is {body_said}?"}).encode()
    with (
        closing(Client({"Authorization": SECRET}, preset="none", redact=str)) as made,
        scripted(answer(400, said)) as server,
    ):
        outcome = made.post(server.url + "/v1/traces", body, "", NOW_MS)
    assert "q" * 20 not in repr(outcome)
    assert "[header]" in outcome.reason
    assert "[header]" in outcome.answer


def test_an_answer_that_repeats_the_record_is_withheld(phoenix: Client) -> None:
    (record,) = records(transcript("b_tools").turns[0])
    said = next(part for part in record.body.decode("utf-8", "replace").split('"content":"')[1:] if len(part) > 40)[:60]
    with scripted(answer(500, json.dumps({"error": said}).encode())) as server:
        outcome = phoenix.post(server.url + "/v1/traces", record.body, "", NOW_MS)
    assert outcome.reason == "500: the answer's text repeats the record and is withheld"


def test_a_server_that_is_not_there_is_waited_for(phoenix: Client, body: bytes) -> None:
    with nobody() as url:
        assert phoenix.post(url + "/v1/traces", body, "", NOW_MS).kind == "wait"
        assert phoenix.delete(url + "/v1/traces", [ONE], NOW_MS).kind == "wait"
        with pytest.raises(ReadBackError):
            phoenix.stored(url + "/v1/projects/x/spans", start_ms=0, request_ids=[ONE])
    with scripted(reset()) as server:
        assert phoenix.post(server.url + "/v1/traces", body, "", NOW_MS).kind == "wait"


# --- whether it is there ---------------------------------------------------------------------------------------------


def span(trace: uuid.UUID, number: int, count: int | None = None) -> dict[str, Any]:
    return {
        "context": {"trace_id": trace.hex, "span_id": f"{number:016x}"},
        "parent_id": None if count else "1" * 16,
        "attributes": {"opencode.span.count": count} if count else {},
    }


def page(*spans: dict[str, Any], cursor: str | None = None) -> bytes:
    return json.dumps({"data": spans, "next_cursor": cursor}).encode()


def found(client: Client, url: str, preset: Preset = "phoenix") -> dict[uuid.UUID, bool]:
    plan = traits(preset, "my project").read_back("on", url, "", None)
    assert plan.url is not None
    return client.stored(plan.url, start_ms=0, request_ids=[ONE, TWO])


def test_a_trace_is_stored_at_phoenix_when_all_of_its_spans_are(phoenix: Client) -> None:
    with scripted(answer(200, page(span(ONE, 1, 2), span(ONE, 2), span(TWO, 3, 2)))) as server:
        assert found(phoenix, server.url) == {ONE: True}
    assert server.requests[0].line.startswith("GET /v1/projects/my%20project/spans?limit=200&trace_id=")


def test_a_trace_without_its_root_is_not_there_yet(phoenix: Client) -> None:
    with scripted(answer(200, page(span(ONE, 1), span(ONE, 2)))) as server:
        assert found(phoenix, server.url) == {}


def test_phoenix_is_asked_page_by_page(phoenix: Client) -> None:
    with scripted(answer(200, page(span(ONE, 1), cursor="next")), answer(200, page(span(ONE, 2, 2)))) as server:
        assert found(phoenix, server.url) == {ONE: True}
    assert "cursor=next" in server.requests[1].line


def test_a_page_that_is_too_long_is_asked_for_in_parts(phoenix: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_BACK_BYTES_MAX", 1000)
    with scripted(answer(200, b" " * 1000), answer(200, page(span(ONE, 1, 1)))) as server:
        assert found(phoenix, server.url) == {ONE: True}
    assert "limit=20&" in server.requests[1].line
    with scripted(answer(200, b" " * 1000)) as server, pytest.raises(OverlongError):
        found(phoenix, server.url)


def test_a_project_that_phoenix_has_not_made_yet_holds_nothing(phoenix: Client) -> None:
    with scripted(answer(404, b"Project with name my project not found")) as server:
        assert found(phoenix, server.url) == {}


@pytest.mark.parametrize(
    "act",
    [
        answer(404, b"not found"),
        answer(401, b"Invalid token"),
        answer(200, b"<html>"),
        answer(200, b"[]"),
        answer(200, b"{}"),
        answer(200, b'{"data": [{}], "next_cursor": null}'),
        answer(200, b'{"data": 5, "next_cursor": null}'),
        answer(500, b""),
    ],
)
def test_what_tells_nothing_is_no_proof_that_something_is_missing(phoenix: Client, act: Any) -> None:
    with scripted(act) as server, pytest.raises(ReadBackError):
        found(phoenix, server.url)


def told(state: str) -> bytes:
    return json.dumps({"trace": {"trace_info": {"state": state}}}).encode()


MISSING = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Trace with ID not found."}'


@pytest.mark.parametrize(("state", "is_there"), [("OK", True), ("ERROR", True), ("IN_PROGRESS", False)])
def test_a_trace_is_stored_at_mlflow_when_its_root_is(mlflow: Client, state: str, is_there: bool) -> None:  # noqa: FBT001
    with scripted(answer(200, told(state)), answer(404, MISSING)) as server:
        assert found(mlflow, server.url, "mlflow") == ({ONE: True} if is_there else {})
    assert server.requests[0].line == f"GET /api/3.0/mlflow/traces/tr-{ONE.hex} HTTP/1.1"


@pytest.mark.parametrize("act", [answer(404, b"Not Found"), answer(200, b"{}"), answer(503, b"")])
def test_mlflows_other_answers_prove_nothing(mlflow: Client, act: Any) -> None:
    with scripted(act) as server, pytest.raises(ReadBackError):
        found(mlflow, server.url, "mlflow")


# --- taken back ------------------------------------------------------------------------------------------------------


def test_phoenix_deletes_one_after_the_other(phoenix: Client) -> None:
    with scripted(answer(204), answer(404, b"Trace with trace_id 'x' not found")) as server:
        url = traits("phoenix", "").deletion_url(server.url)
        assert url is not None
        assert phoenix.delete(url, [ONE, TWO], NOW_MS).kind == "accepted"
    assert [heard.line for heard in server.requests] == [f"DELETE /v1/traces/{one.hex} HTTP/1.1" for one in (ONE, TWO)]


def test_mlflow_deletes_all_at_once(mlflow: Client) -> None:
    with scripted(answer(200, b'{"traces_deleted": 1}')) as server:
        url = traits("mlflow", "7").deletion_url(server.url)
        assert url is not None
        assert mlflow.delete(url, [ONE, TWO], NOW_MS).kind == "accepted"
    (heard,) = server.requests
    assert heard.line == "POST /api/2.0/mlflow/traces/delete-traces HTTP/1.1"
    assert json.loads(heard.body) == {"experiment_id": "7", "request_ids": [f"tr-{one.hex}" for one in (ONE, TWO)]}


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (answer(401, b"Invalid token"), "refused"),
        (answer(404, b"Not Found"), "refused"),
        (answer(405), "refused"),
        (answer(200), "refused"),
        (answer(503), "wait"),
        (answer(500), "retry"),
    ],
)
def test_a_deletion_that_is_not_known_to_have_worked_has_not(
    phoenix: Client, mlflow: Client, act: Any, kind: str
) -> None:
    with scripted(act) as server:
        assert phoenix.delete(server.url + "/v1/traces", [ONE], NOW_MS).kind == kind
        assert mlflow.delete(server.url + "/delete", [ONE], NOW_MS).kind == kind


# --- traits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "route"),
    [
        ("http://127.0.0.1:6006", "http://127.0.0.1:6006/v1/traces"),
        ("https://Host.example.com/api/public/otel/", "https://host.example.com/api/public/otel/v1/traces"),
        ("https://host.example.com/otlp/v1/traces", "https://host.example.com/otlp/v1/traces"),
    ],
)
def test_an_endpoint_leads_to_one_url(endpoint: str, route: str) -> None:
    assert traits("none", "").routes(endpoint) == (route,)


def test_plain_otlp_can_neither_be_asked_nor_told() -> None:
    plain = traits("none", "")
    plan = plain.read_back("on", "http://127.0.0.1:4318", "", None)
    assert (plan.url, plan.off_reason) == (None, "plain OTLP cannot be asked: accepted, unverified")
    assert plain.deletion_url("http://127.0.0.1:4318") is None
    assert (plain.RESENT, plain.CHANGED, plain.RECALLED) == ("unknown", "not sent", "impossible")


def test_confirm_can_be_switched_off() -> None:
    plan = traits("phoenix", "").read_back("off", "http://127.0.0.1:6006", "", None)
    assert (plan.url, plan.off_reason) == (None, "confirm is off")


def test_a_session_is_found_at_phoenix_by_its_own_id() -> None:
    phoenix = traits("phoenix", "")
    url = "http://127.0.0.1:6006/redirects/sessions/ses_1"
    assert phoenix.session_url("http://127.0.0.1:6006/v1/traces", "", None, "ses_1", "") == url
    assert traits("mlflow", "").session_url("http://127.0.0.1:5000", "", None, "ses_1", "") is None
