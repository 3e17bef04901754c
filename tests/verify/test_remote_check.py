"""Single records are found again at Helicone: the query, its answer, and since when to ask."""

from __future__ import annotations

import json
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from app.exporters.client import ReadBackError
from app.exporters.helicone.body import Log, encode
from app.exporters.helicone.client import SINCE_MARGIN_MS, Client
from tests.support.servers import answer, api_key, receiving, scripted

READ_BACK = "/v1/request/query-clickhouse"
LOG_ROUTE = "/v1/trace/custom/log"
START_MS = 1_795_000_000_123
IDS = [uuid.uuid5(uuid.NAMESPACE_URL, str(n)) for n in range(25)]


def log(request_id: uuid.UUID, session: str = "ses_1", text: str = "hello", start_ms: int = START_MS) -> bytes:
    meta = {"Helicone-Request-Id": str(request_id), "Helicone-Session-Id": session}
    message = {"model": "acme/one", "content": text}
    return encode(Log(dict(message), dict(message), 200, meta, start_ms, start_ms + 1, None))


def test_of_the_wanted_requests_those_that_are_stored_are_found_and_whether_with_their_bodies(tmp_path: Path) -> None:
    with receiving(tmp_path / "store.db") as receiver, closing(Client(api_key())) as client:
        receiver.fault({"over_quota": True}, {"unstored": True})
        for request_id in IDS[:6]:
            outcome = client.post(receiver.url + LOG_ROUTE, log(request_id), str(request_id), 0)
            assert outcome.kind == "accepted"
        client.post(receiver.url + LOG_ROUTE, log(IDS[6], session="ses_2"), str(IDS[6]), 0)

        def stored(start_ms: int, wanted: list[uuid.UUID]) -> dict[uuid.UUID, bool]:
            url = receiver.url + READ_BACK
            return client.stored(url, start_ms=start_ms, request_ids=wanted)

        unwanted = IDS[5]
        wanted = [request_id for request_id in IDS if request_id not in (unwanted, IDS[6])]
        found = {IDS[0]: False, IDS[2]: True, IDS[3]: True, IDS[4]: True}
        assert stored(0, wanted) == found
        assert stored(START_MS, wanted) == found
        assert stored(START_MS + SINCE_MARGIN_MS, wanted) == {}  # nobody asks for what starts earlier
        assert stored(0, IDS[4:5]) == {IDS[4]: True}
        assert stored(0, IDS[1:2]) == {}


@pytest.mark.parametrize("rows", [[1, None, "x"], [{"request_id": 7}], [{}]], ids=["no rows", "no id", "nothing"])
def test_rows_that_are_none_find_nothing(rows: list[object]) -> None:
    with scripted(answer(201, json.dumps({"data": rows}).encode())) as server, closing(Client(api_key())) as client:
        assert client.stored(server.url, start_ms=0, request_ids=IDS) == {}


def test_a_failure_says_why() -> None:
    with (
        scripted(answer(404, b"<html>")) as server,
        closing(Client(api_key())) as client,
        pytest.raises(ReadBackError) as caught,
    ):
        client.stored(server.url, start_ms=0, request_ids=IDS)
    assert "404" in str(caught.value)
