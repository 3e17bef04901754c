"""The intake by a real server: what it answers, and what is committed then."""

from __future__ import annotations

import inspect
import signal
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.database.postgres import PostgresLedger
from app.exporters.helicone.client import Client
from app.exporters.helicone.routes import routes
from app.fleet import tenants
from app.fleet.queue import CentralQueue
from app.intake import server as module
from app.pages import loopback
from app.receiver import handler
from app.runtime.failpoint import VARIABLE
from tests.support.intake import envelope, intake, send, start_intake
from tests.support.postgres import NEWEST, Server
from tests.support.servers import api_key
from tests.support.waiting import wait_until

pytestmark = pytest.mark.postgres

ONE = "0f1ed2fd-0000-4000-8000-000000000001"
TWO = "0f1ed2fd-0000-4000-8000-000000000002"
ENDPOINT = "http://127.0.0.1:9"


def prepared(server: Server) -> PostgresLedger:
    db = server.emptied()
    with closing(CentralQueue(server.url)) as queue:
        queue.make_tables(db)
    return db


@dataclass(frozen=True, slots=True)
class Centre:
    url: str
    database_url: str
    db: PostgresLedger
    token: str
    """Of a machine of the tenant `alpha`."""

    def jobs(self) -> list[tuple[str, str, int]]:
        """(tenant, state, attempts so far)."""
        rows = self.db.execute(
            "select t.name, j.state, j.attempt from job j join tenant t on t.destination_id = j.destination_id"
            " order by t.name, j.id"
        )
        return [(row["name"], row["state"], row["attempt"]) for row in rows]

    def tenant(self, name: str, bytes_max: int | None = None) -> str:
        """A token of a machine of one more tenant."""
        tenants.add_tenant(self.db, name, endpoint=ENDPOINT, key=api_key(name[0]), bytes_max=bytes_max)
        return tenants.add_token(self.db, name, "laptop")


@pytest.fixture
def centre(postgres_server: Server) -> Iterator[Centre]:
    with closing(prepared(postgres_server)) as db:
        tenants.add_tenant(db, "alpha", endpoint=ENDPOINT, key=api_key("a"))
        with intake(postgres_server.url) as url:
            yield Centre(url, postgres_server.url, db, tenants.add_token(db, "alpha", "laptop"))


# --- 200


def test_what_is_answered_with_200_is_committed_and_wakes_a_worker(centre: Centre) -> None:
    status, headers, body = send(centre.url, centre.token, envelope(ONE))
    assert (status, headers["helicone-id"], body) == (200, ONE, b"ok")
    assert centre.jobs() == [("alpha", "pending", 0)]
    wait_until(lambda: centre.db.execute("select count(*) from huey_task").fetchone()[0] == 1)


def test_the_same_record_again_is_no_new_job_and_wakes_nobody(centre: Centre) -> None:
    def woken() -> list[str]:
        """Of all jobs, those for which somebody was woken, in order."""
        return [
            row["key"]
            for row in centre.db.execute(
                "select key from huey_task w join job j on position(convert_to(j.key, 'UTF8') in w.data) > 0"
                " order by w.id"
            )
        ]

    for record in (ONE, ONE, TWO):
        assert send(centre.url, centre.token, envelope(record))[0] == 200
    first, second = (row["key"] for row in centre.db.execute("select key from job order by id"))
    # In the order of arrival: whoever was woken for the record that came again, was so before.
    wait_until(lambda: second in woken())
    assert woken() == [first, second]


def test_a_changed_record_takes_the_place_of_the_one_before_and_may_change_back(centre: Centre) -> None:
    for text in ("first", "second"):
        assert send(centre.url, centre.token, envelope(ONE, text))[0] == 200
    assert [state for _, state, _ in centre.jobs()] == ["superseded", "pending"]
    assert send(centre.url, centre.token, envelope(ONE, "first"))[0] == 200
    assert [state for _, state, _ in centre.jobs()] == ["pending", "superseded"]


def test_a_changed_record_that_seems_older_is_not_said_to_be_taken(centre: Centre) -> None:
    """After a failover the server's clock may go back."""
    send(centre.url, centre.token, envelope(ONE, "first"))
    centre.db.execute("update job set facts_ms = facts_ms + 60000")
    assert send(centre.url, centre.token, envelope(ONE, "second"))[0] == 503
    assert centre.jobs()[0] == ("alpha", "pending", 0)
    centre.db.execute("update job set facts_ms = facts_ms - 60000")
    assert send(centre.url, centre.token, envelope(ONE, "second"))[0] == 200


def test_tenants_have_the_same_record_each_for_itself(centre: Centre) -> None:
    other = centre.tenant("beta")
    assert send(centre.url, centre.token, envelope(ONE))[0] == 200
    assert send(centre.url, other, envelope(ONE, "changed"))[0] == 200
    assert centre.jobs() == [("alpha", "pending", 0), ("beta", "pending", 0)]


def test_what_only_the_requests_own_headers_say_is_not_taken_for_said(centre: Centre) -> None:
    """The body alone is sent on."""
    body = envelope(ONE, providerRequest={"url": "u", "json": {}, "meta": {}})
    headers = send(centre.url, centre.token, body, {"helicone-request-id": ONE})[1]
    assert headers["helicone-id"] != ONE


def test_a_machine_finds_the_intake_by_its_address_alone(centre: Centre) -> None:
    jawn, worker = routes(centre.url)
    with Client(centre.token) as client:
        assert client.post(jawn, envelope(ONE), ONE, 0).status == 404
        outcome = client.post(worker, envelope(ONE), ONE, 0)
        assert (outcome.kind, outcome.reason) == ("accepted", "200: ok")


def test_a_log_whose_answer_is_lost_with_the_intake_is_stored_once(centre: Centre, tmp_path: Path) -> None:
    with loopback.listening("127.0.0.1", 0) as bound, (tmp_path / "log").open("wb") as output:
        url = routes(loopback.address(bound))[1]
        with Client(centre.token) as client:
            with start_intake(centre.database_url, bound, {VARIABLE: "intake.committed"}, output) as process:
                lost = client.post(url, envelope(ONE), ONE, 0)
                assert process.wait(60) == -signal.SIGKILL
            assert (lost.kind, lost.status) == ("wait", None)
            assert centre.jobs() == [("alpha", "pending", 0)]
            with start_intake(centre.database_url, bound, {}, output) as process:
                try:
                    assert client.post(url, envelope(ONE), ONE, 0).kind == "accepted"
                finally:
                    process.kill()
    assert centre.jobs() == [("alpha", "pending", 0)]


# --- refusals


def test_401_for_who_has_no_token(centre: Centre) -> None:
    revoked = tenants.add_token(centre.db, "alpha", "another")
    assert send(centre.url, revoked, envelope(ONE))[0] == 200
    tenants.revoke(centre.db, "alpha", "another")
    for token in (revoked, tenants.new_token(), api_key("a"), "x", None):
        status, _, body = send(centre.url, token, envelope(TWO))
        assert (status, body) == (401, b"Unauthorized")
    assert send(centre.url, centre.token, envelope(TWO))[0] == 200


def test_a_new_token_of_a_machine_is_the_end_of_its_old_one(centre: Centre) -> None:
    new = tenants.add_token(centre.db, "alpha", "laptop")
    assert send(centre.url, centre.token, envelope(ONE))[0] == 401
    assert send(centre.url, new, envelope(ONE))[0] == 200


def test_a_machine_hears_that_it_is_refused_however_long_its_log_is(centre: Centre) -> None:
    with Client(api_key("a")) as client:
        outcome = client.post(routes(centre.url)[1], envelope(ONE, "x" * 9_000_000), ONE, 0)
    assert (outcome.kind, outcome.status) == ("refused", 401)


REFUSED = {
    "no JSON": b"{",
    "no object": b"[]",
    "nothing": b"",
    "a half": b'{"providerRequest": {}}',
    "no times": envelope(ONE, timing={"startTime": 1}),
    "too large": envelope(ONE, "x" * (handler.BODY_MAX + 1)),
    "a header that is none": envelope(ONE, providerRequest={"url": "u", "json": {}, "meta": {"a b": "c"}}),
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_what_helicone_refuses_is_refused_in_its_words(centre: Centre, body: bytes) -> None:
    expected = handler.worker_reply({"authorization": f"Bearer {api_key('a')}"}, body, None, 0, "")
    assert expected.log is None
    status, _, said = send(centre.url, centre.token, body)
    assert (status, said) == (expected.status, expected.body)
    assert centre.jobs() == []


def test_what_is_longer_than_anybodys_log_is_refused_for_good(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_BYTES_MAX", 1_000)
    with Client(centre.token) as client:
        outcome = client.post(routes(centre.url)[1], envelope(ONE, "x" * 9_000_000), ONE, 0)
    assert (outcome.kind, outcome.status) == ("permanent", 400)


def test_who_is_full_waits_and_others_do_not(centre: Centre) -> None:
    full = centre.tenant("full", bytes_max=10)
    assert send(centre.url, full, envelope(ONE))[0] == 200
    with Client(full) as client:
        outcome = client.post(routes(centre.url)[1], envelope(TWO), TWO, 0)
    assert (outcome.kind, outcome.status, outcome.retry_after_ms) == ("wait", 429, module.FULL_S * 1000)
    assert send(centre.url, centre.token, envelope(TWO))[0] == 200
    assert centre.jobs() == [("alpha", "pending", 0), ("full", "pending", 0)]


def test_without_the_database_a_machine_waits_and_with_it_nothing_more_is_refused() -> None:
    with Server() as server, closing(prepared(server)) as db:
        tenants.add_tenant(db, "alpha", endpoint=ENDPOINT, key=api_key("a"))
        token = tenants.add_token(db, "alpha", "laptop")
        with intake(server.url) as url:
            assert send(url, token, envelope(str(uuid.uuid4())))[0] == 200
            server.stop("immediate")
            status, headers, _ = send(url, token, envelope(str(uuid.uuid4())))
            assert (status, headers["retry-after"]) == (503, str(module.AWAY_S))
            server.start()
            assert send(url, token, envelope(str(uuid.uuid4())))[0] == 200
            # A connection that was open meanwhile is of no use any more; no machine hears of it.
            server.stop("immediate")
            server.start()
            assert send(url, token, envelope(str(uuid.uuid4())))[0] == 200


def test_a_schema_of_a_newer_program_is_no_machines_fault(centre: Centre) -> None:
    centre.db.execute("update meta set value = '99999' where name = 'schema'")
    try:
        assert send(centre.url, centre.token, envelope(ONE))[0] == 503
    finally:
        centre.db.execute("update meta set value = ? where name = 'schema'", (str(NEWEST),))


def test_a_slow_line_has_as_long_as_a_machine_waits_for_its_post() -> None:
    assert inspect.signature(Client).parameters["deadline_s"].default < module.REQUEST_S_MAX


def test_a_machines_use_is_noted_once_a_minute(centre: Centre) -> None:
    send(centre.url, centre.token, envelope(ONE))
    (machine,) = tenants.machines(centre.db)
    assert machine.seen_ms is not None
    send(centre.url, centre.token, envelope(TWO))
    assert tenants.machines(centre.db) == [machine]
