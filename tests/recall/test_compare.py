"""What is read back of a recall: from a real server on loopback, one that fails included."""

from __future__ import annotations

import time
import uuid
from contextlib import closing

from app.exporters.helicone.client import Client
from app.operations.remote import Remote
from app.recall.compare import look
from app.recall.expected import ExpectedContent
from tests.support.servers import answer, api_key, scripted


def test_a_server_that_refuses_the_first_query_is_asked_no_more() -> None:
    wanted = [ExpectedContent(f"ses_{n}", uuid.uuid4(), "/path", 0, frozenset(), b"") for n in range(3)]
    with scripted(answer(401)) as server, closing(Client(api_key())) as client:
        seen = look(Remote(client, server.url, 60).shown, wanted, end_s=time.monotonic())
        assert len(server.requests) == 1
    assert [(one.request_id, one.outcome) for one in seen] == [(str(one.request_id), "not read back") for one in wanted]
    assert all(one.reason for one in seen)
