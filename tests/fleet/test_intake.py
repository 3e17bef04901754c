"""The intake by a real server: what it answers, and what is committed then."""

from __future__ import annotations

import inspect
import json
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.database.postgres import PostgresLedger
from app.exporters.helicone.client import Client, classify
from app.exporters.helicone.routes import routes
from app.fleet import presence, tenants
from app.fleet.presence import server_ms
from app.fleet.queue import CentralQueue
from app.fleet.tenants import TenantPolicy
from app.intake import answers
from app.intake import server as module
from app.intake.logs import Posted
from app.ledger import claims, confirmations, dead_letters, versions
from app.ledger.dead_letters import Choice
from app.ledger.job import Accepted, Claim, FailedAttempt, bodies
from app.pages import loopback
from app.receiver import handler
from app.runtime.failpoint import VARIABLE
from app.settings.intake import (
    DEAD_MAX,
    IDS_MAX,
    LOG_PATH,
    MACHINE_PATH,
    MODE_HEADER,
    STATES_PATH,
    TURN_HEADER,
    DeadRecord,
    IntakeAnswer,
    RecordState,
    question,
    read_answer,
    read_states,
)
from tests.support.intake import ask, envelope, intake, send, start_intake
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


@pytest.mark.parametrize("told", [{}, {TURN_HEADER: "9999999999999"}, {TURN_HEADER: "soon"}])
def test_a_changed_record_that_seems_older_is_not_said_to_be_taken(centre: Centre, told: dict[str, str]) -> None:
    """After a failover the server's clock may go back."""
    send(centre.url, centre.token, envelope(ONE, "first"))
    centre.db.execute("update job set facts_ms = facts_ms + 60000")
    for _ in range(2):
        assert send(centre.url, centre.token, envelope(ONE, "second"), told)[0] == 503
    assert send(centre.url, centre.token, envelope(ONE, "first"), told)[0] == 200
    assert centre.jobs()[0] == ("alpha", "pending", 0)
    centre.db.execute("update job set facts_ms = facts_ms - 60000 where state <> 'superseded'")
    assert send(centre.url, centre.token, envelope(ONE, "second"), told)[0] == 200
    assert [state for _, state, _ in centre.jobs()] == ["superseded", "pending"]


def test_a_version_that_comes_late_is_known_as_the_older_one(centre: Centre) -> None:
    """Something on the way has held it back; its machine has sent the newer one since."""
    for _ in range(2):
        assert send(centre.url, centre.token, envelope(ONE, "newer"), {TURN_HEADER: "2000"})[0] == 200
        status, headers, body = send(centre.url, centre.token, envelope(ONE, "older"), {TURN_HEADER: "1000"})
        assert (status, headers["helicone-id"], body) == (200, ONE, b"ok")
        assert centre.jobs() == [("alpha", "pending", 0), ("alpha", "superseded", 0)]


def test_of_two_versions_of_one_time_the_later_arrival_counts(centre: Centre) -> None:
    """As a recall, and what it overwrites."""
    for text in ("said", "recalled"):
        assert send(centre.url, centre.token, envelope(ONE, text), {TURN_HEADER: "1000"})[0] == 200
    assert [state for _, state, _ in centre.jobs()] == ["superseded", "pending"]


def test_a_request_id_in_capital_letters_is_the_same_record(centre: Centre) -> None:
    for request_id in (ONE.upper(), ONE):
        assert send(centre.url, centre.token, envelope(request_id))[1]["helicone-id"] == request_id
    assert [state for _, state, _ in centre.jobs()] == ["superseded", "pending"]


def test_tenants_have_the_same_record_each_for_itself(centre: Centre) -> None:
    other = centre.tenant("beta")
    assert send(centre.url, centre.token, envelope(ONE))[0] == 200
    assert send(centre.url, other, envelope(ONE, "changed"))[0] == 200
    assert centre.jobs() == [("alpha", "pending", 0), ("beta", "pending", 0)]


def test_what_only_the_requests_own_headers_say_is_not_taken_for_said(centre: Centre) -> None:
    """The body alone is sent on."""
    body = envelope(ONE, providerRequest={"url": "u", "json": {}, "meta": {}})
    assert send(centre.url, centre.token, body, {"helicone-request-id": ONE})[0] == 400


def test_a_machine_finds_the_intake_by_its_address_alone(centre: Centre) -> None:
    jawn, worker = routes(centre.url)
    with closing(Client(centre.token)) as client:
        assert client.post(jawn, envelope(ONE), ONE, 0).status == 404
        outcome = client.post(worker, envelope(ONE), ONE, 0)
        assert (outcome.kind, outcome.reason) == ("accepted", "200: ok")


def test_a_log_whose_answer_is_lost_with_the_intake_is_stored_once(centre: Centre, tmp_path: Path) -> None:
    with loopback.listening("127.0.0.1", 0) as bound, (tmp_path / "log").open("wb") as output:
        url = routes(loopback.address(bound))[1]
        with closing(Client(centre.token)) as client:
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


# --- what its tenant lets leave

SECRET = "acme-4711"


def with_policy(centre: Centre, **policy: Any) -> str:
    """A token of a machine of one more tenant."""
    tenants.add_tenant(centre.db, "strict", endpoint=ENDPOINT, key=api_key("s"), policy=TenantPolicy(**policy))
    return tenants.add_token(centre.db, "strict", "laptop")


def test_a_log_with_content_is_refused_and_pauses_its_machine(centre: Centre) -> None:
    strict = with_policy(centre, export_mode="metadata_only")
    for said in ({}, {MODE_HEADER: "full"}, {MODE_HEADER: "off"}):
        status, headers, body = send(centre.url, strict, envelope(ONE, SECRET), said)
        outcome = classify("worker", status, {name.lower(): value for name, value in headers.items()}, body, ONE, 0)
        assert (status, outcome.kind) == (403, "refused")
        assert "metadata_only" in outcome.reason
        assert SECRET.encode() not in body
    assert centre.jobs() == []
    assert send(centre.url, strict, envelope(ONE), {MODE_HEADER: "metadata_only"})[0] == 200
    for told in ({}, {MODE_HEADER: "full"}, {MODE_HEADER: "metadata_only"}):
        assert send(centre.url, centre.token, envelope(ONE), told)[0] == 200


def kept(db: PostgresLedger) -> list[bytes]:
    rows = db.execute("select id, key from job order by id").fetchall()
    return [body.body for row in rows for body in bodies(db, row["id"], row["key"])]


def test_what_a_tenants_pattern_matches_is_not_kept(centre: Centre) -> None:
    strict = with_policy(centre, redact_patterns=("acme-[0-9]+", "unused"))
    assert send(centre.url, strict, envelope(ONE, f"the {SECRET.upper()} project"))[1]["helicone-id"] == ONE
    assert send(centre.url, strict, envelope(TWO))[0] == 200
    assert send(centre.url, centre.token, envelope(ONE, SECRET))[0] == 200
    first, second, other = kept(centre.db)
    said = json.loads(first)["providerRequest"]["json"]["messages"][0]["content"]
    assert (said, second) == ("the [REDACTED] project", envelope(TWO))
    assert other == envelope(ONE, SECRET)
    tables = [row[0] for row in centre.db.execute("select tablename from pg_tables where schemaname = 'public'")]
    for table in tables:
        rows = centre.db.execute(f"select t::text from {table} t where t::text ilike ?", (f"%{SECRET}%",)).fetchall()  # noqa: S608 - names of our own schema
        assert rows == []


def test_under_a_pattern_that_cannot_be_used_nothing_is_taken(centre: Centre, caplog: pytest.LogCaptureFixture) -> None:
    strict = with_policy(centre, redact_patterns=(f"({SECRET}",))
    status, headers, body = send(centre.url, strict, envelope(ONE))
    assert (status, headers["retry-after"]) == (503, str(answers.FULL_S))
    assert centre.jobs() == []
    assert "redaction pattern 1 cannot be used" in caplog.text
    assert SECRET not in caplog.text + body.decode()


# --- what a machine is told


def told(centre: Centre, token: str) -> IntakeAnswer:
    status, _, body = ask(centre.url + MACHINE_PATH, token)
    assert status == 200
    assert api_key("a").encode() not in body
    return read_answer(body)


def states(centre: Centre, token: str, *request_ids: str) -> dict[str, RecordState]:
    status, _, body = ask(centre.url + STATES_PATH, token, question([*request_ids]))
    assert status == 200
    return read_states(body)


def claim(centre: Centre, request_id: str) -> Claim:
    row = centre.db.execute(
        "select j.key, j.destination_id from job j join turn t on t.id = j.turn_id where t.name = ?", (request_id,)
    ).fetchone()
    now_ms = server_ms(centre.db)
    claimed = claims.claim(centre.db, row["destination_id"], row["key"], worker="w", now_ms=now_ms, lease_ms=60_000)
    assert claimed is not None
    return claimed


def die(centre: Centre, request_id: str, at_ms: int, error: str = "413: too large") -> None:
    assert claims.dead_letter(centre.db, claim(centre, request_id), FailedAttempt(at_ms, error, 413))


def test_a_machine_is_told_its_tenants_policy(centre: Centre) -> None:
    assert told(centre, centre.token) == IntakeAnswer("full", (), 0, 0, ())
    strict = with_policy(centre, export_mode="metadata_only", redact_patterns=("a+",))
    assert told(centre, strict) == IntakeAnswer("metadata_only", ("a+",), 0, 0, ())


def test_a_machine_is_told_of_its_own_logs_alone(centre: Centre) -> None:
    same_tenant = tenants.add_token(centre.db, "alpha", "desktop")
    same_name = centre.tenant("beta")
    for number in range(3):
        request_id = str(uuid.UUID(int=number, version=4))
        send(centre.url, centre.token, envelope(request_id, session=f"ses_{number}"))
    send(centre.url, same_tenant, envelope(TWO, session="ses_9"))
    dead = str(uuid.UUID(int=1, version=4))
    die(centre, dead, 17)
    answer = told(centre, centre.token)
    assert (answer.waiting, answer.dead) == (2, 1)
    assert answer.dead_records == (DeadRecord("ses_1", dead, "413: too large", 17),)
    assert told(centre, same_tenant) == IntakeAnswer("full", (), 1, 0, ())
    assert told(centre, same_name) == IntakeAnswer("full", (), 0, 0, ())
    # The token of one that has a new one counts no more; what it has sent is its own still.
    assert told(centre, tenants.add_token(centre.db, "alpha", "laptop")) == answer
    assert ask(centre.url + MACHINE_PATH, centre.token)[0] == 401


def test_of_many_dead_letters_the_latest_are_named(centre: Centre) -> None:
    for number in range(DEAD_MAX + 2):
        request_id = str(uuid.UUID(int=number, version=4))
        send(centre.url, centre.token, envelope(request_id, session=f"ses_{number}"))
        die(centre, request_id, number)
    answer = told(centre, centre.token)
    assert answer.dead == DEAD_MAX + 2
    assert [one.finished_ms for one in answer.dead_records] == [*range(DEAD_MAX + 1, 1, -1)]


def test_what_became_of_a_log_is_told_by_its_request_id(centre: Centre) -> None:
    ids = [str(uuid.UUID(int=number, version=4)) for number in range(6)]
    waits, dead, delivered, confirmed, dropped, paused = ids
    for number, request_id in enumerate(ids[:5]):
        send(centre.url, centre.token, envelope(request_id, session=f"ses_{number}"))
    die(centre, dead, 1)
    for request_id in (delivered, confirmed):
        claimed = claim(centre, request_id)
        (body,) = claims.unacknowledged(centre.db, claimed)
        taken = [Accepted(body.request_id, body.digest, 1, None)]
        claims.complete(centre.db, claimed, 1, accepted=taken, confirm_ms=1 if request_id == confirmed else None)
    (due,) = confirmations.due_for_confirmation(centre.db, claimed.destination_id, 1, 1)
    confirmations.confirmed(centre.db, due, 2, has_body=True)
    die(centre, dropped, 1)
    (purged,) = dead_letters.letters_of_session(centre.db, "ses_4", "dead")
    dead_letters.purge_dead(centre.db, Choice(keys=(purged.key,)), 1)
    assert states(centre, centre.token, *ids) == {
        waits: RecordState("pending", ""),
        dead: RecordState("dead", "413: too large"),
        delivered: RecordState("delivered", ""),
        confirmed: RecordState("confirmed", ""),
        dropped: RecordState("dropped", "purged"),
    }
    claims.pause(
        centre.db,
        claim(centre, waits),
        FailedAttempt(1, "401: error no", 401),
        health="refused",
        count=1,
        delay_ms=60_000,
        is_charged=False,
    )
    send(centre.url, centre.token, envelope(paused, session="ses_5"))
    assert states(centre, centre.token, paused.upper()) == {paused.upper(): RecordState("pending", "401: error no")}
    # Whoever is of the tenant may ask: its machines share what they have at Helicone. Nobody else may.
    assert states(centre, tenants.add_token(centre.db, "alpha", "desktop"), dead) != {}
    assert states(centre, centre.tenant("beta"), *ids) == {}


def test_of_a_log_that_came_in_two_sessions_the_later_counts(centre: Centre) -> None:
    send(centre.url, centre.token, envelope(ONE, session="ses_1"))
    die(centre, ONE, 1)
    send(centre.url, centre.token, envelope(ONE, session="ses_2"))
    assert states(centre, centre.token, ONE) == {ONE: RecordState("pending", "")}


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"requestIds": "a"}',
        b'{"requestIds": [1]}',
        question([ONE] * (IDS_MAX + 1)),
        b"[" * 100_000,
    ],
)
def test_a_question_that_is_none_is_refused(centre: Centre, asked: bytes) -> None:
    assert ask(centre.url + STATES_PATH, centre.token, asked)[0] == 400
    assert states(centre, centre.token, *[ONE] * IDS_MAX) == {}


@pytest.mark.parametrize(("path", "body"), [(MACHINE_PATH, None), (STATES_PATH, question([]))])
def test_only_who_has_a_token_is_told(centre: Centre, path: str, body: bytes | None) -> None:
    for token in (tenants.new_token(), api_key("a"), None):
        assert ask(centre.url + path, token, body)[0] == 401
    assert ask(centre.url + path, centre.token, body)[0] == 200


def test_helicones_key_is_in_no_answer_and_in_no_log(centre: Centre, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is a machine's token, or what a log says."""
    caplog.set_level("DEBUG")
    strict = with_policy(centre, export_mode="metadata_only", redact_patterns=("(",))
    other = centre.tenant("full", bytes_max=1)
    text = "what was said"
    answers = [
        send(centre.url, token, body, headers)
        for token in (centre.token, strict, other, api_key("a"), None)
        for body in (envelope(ONE, text), envelope(TWO, text), text.encode())
        for headers in ({}, {MODE_HEADER: "metadata_only"}, {TURN_HEADER: "1"})
    ]
    die(centre, ONE, 1)
    for path, body in ((MACHINE_PATH, None), (STATES_PATH, question([ONE, TWO])), (STATES_PATH, text.encode())):
        answers += [ask(centre.url + path, token, body) for token in (centre.token, strict, other, None)]
    assert {status for status, _, _ in answers} == {200, 400, 401, 403, 429, 503}
    shown = caplog.text + "".join(f"{headers} {body.decode()}" for _, headers, body in answers)
    for secret in (text, centre.token, strict, other, *map(api_key, "asf")):
        assert secret not in shown


# --- it lives


def test_an_intake_says_that_it_lives_until_it_ends(postgres_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "BEAT_MS", 20)
    with closing(prepared(postgres_server)) as db:
        with intake(postgres_server.url):
            wait_until(lambda: presence.intakes(db))
            (one,) = presence.intakes(db)
            assert (one.process, one.is_silent) == (os.getpid(), False)
            wait_until(lambda: presence.intakes(db)[0].seen_ms > one.seen_ms)
        assert presence.intakes(db) == []


# --- refusals


def test_401_for_who_has_no_token(centre: Centre) -> None:
    revoked = tenants.add_token(centre.db, "alpha", "another")
    assert send(centre.url, revoked, envelope(ONE))[0] == 200
    tenants.revoke(centre.db, "alpha", "another")
    for token in (revoked, tenants.new_token(), api_key("a"), "x", None):
        status, _, body = send(centre.url, token, envelope(TWO))
        assert (status, json.loads(body)) == (401, {"error": "the token is revoked, or never was one"})
    assert send(centre.url, centre.token, envelope(TWO))[0] == 200


def test_a_new_token_of_a_machine_is_the_end_of_its_old_one(centre: Centre) -> None:
    new = tenants.add_token(centre.db, "alpha", "laptop")
    assert send(centre.url, centre.token, envelope(ONE))[0] == 401
    assert send(centre.url, new, envelope(ONE))[0] == 200


def test_a_machine_hears_that_it_is_refused_however_long_its_log_is(centre: Centre) -> None:
    with closing(Client(api_key("a"))) as client:
        outcome = client.post(routes(centre.url)[1], envelope(ONE, "x" * 9_000_000), ONE, 0)
    assert (outcome.kind, outcome.status) == ("refused", 401)


def test_a_long_log_of_nobody_is_not_kept(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    real = module.Intake.take

    def take(intake: module.Intake, token: str, posted: Posted) -> answers.Answer:
        taken.append(token)
        return real(intake, token, posted)

    monkeypatch.setattr(module.Intake, "take", take)
    long = envelope(ONE, "x" * (module.UNKNOWN_BYTES_MAX + 1))
    for token in (tenants.new_token(), api_key("a"), None):
        assert send(centre.url, token, long)[0] == 401
    assert taken == []
    assert send(centre.url, centre.token, long)[0] == 200
    assert taken == [centre.token]


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
    with closing(Client(centre.token)) as client:
        outcome = client.post(routes(centre.url)[1], envelope(ONE, "x" * 9_000_000), ONE, 0)
    assert (outcome.kind, outcome.status) == ("permanent", 400)


def test_who_is_full_waits_and_others_do_not(centre: Centre) -> None:
    full = centre.tenant("full", bytes_max=10)
    assert send(centre.url, full, envelope(ONE))[0] == 200
    with closing(Client(full)) as client:
        outcome = client.post(routes(centre.url)[1], envelope(TWO), TWO, 0)
    assert (outcome.kind, outcome.status, outcome.retry_after_ms) == ("wait", 429, answers.FULL_S * 1000)
    assert send(centre.url, centre.token, envelope(TWO))[0] == 200
    assert centre.jobs() == [("alpha", "pending", 0), ("full", "pending", 0)]
    # What is dead takes room as well.
    centre.db.execute("update job set state = 'dead', due_ms = null, finished_ms = 1")
    assert send(centre.url, full, envelope(TWO))[0] == 429


def test_without_the_database_a_machine_waits_and_with_it_nothing_more_is_refused() -> None:
    with Server() as server, closing(prepared(server)) as db:
        tenants.add_tenant(db, "alpha", endpoint=ENDPOINT, key=api_key("a"))
        token = tenants.add_token(db, "alpha", "laptop")
        with intake(server.url) as url:
            assert send(url, token, envelope(str(uuid.uuid4())))[0] == 200
            server.stop("immediate")
            status, headers, _ = send(url, token, envelope(str(uuid.uuid4())))
            assert (status, headers["retry-after"]) == (503, str(answers.AWAY_S))
            long = envelope(str(uuid.uuid4()), "x" * (module.UNKNOWN_BYTES_MAX + 1))
            assert send(url, token, long)[0] == 503
            assert ask(url + MACHINE_PATH, token)[0] == 503
            assert ask(url + STATES_PATH, token, question([]))[0] == 503
            server.start()
            assert send(url, token, envelope(str(uuid.uuid4())))[0] == 200
            # A connection that was open meanwhile is of no use any more; no machine hears of it.
            server.stop("immediate")
            server.start()
            assert send(url, token, envelope(str(uuid.uuid4())))[0] == 200


def test_a_schema_of_a_newer_program_is_no_machines_fault(centre: Centre) -> None:
    centre.db.execute("update meta set value = '99999' where name = 'schema'")
    try:
        wait_until(lambda: send(centre.url, centre.token, envelope(ONE))[0] == 503)
    finally:
        centre.db.execute("update meta set value = ? where name = 'schema'", (str(NEWEST),))
    wait_until(lambda: send(centre.url, centre.token, envelope(ONE))[0] == 200)


def test_a_schema_that_changes_under_a_connection_is_seen_at_the_next_beat(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "BEAT_MS", 50)
    with intake(centre.database_url) as url:
        assert send(url, centre.token, envelope(ONE))[0] == 200
        centre.db.execute("update meta set value = '99999' where name = 'schema'")
        try:
            wait_until(lambda: send(url, centre.token, envelope(TWO))[0] == 503)
        finally:
            centre.db.execute("update meta set value = ? where name = 'schema'", (str(NEWEST),))
        wait_until(lambda: send(url, centre.token, envelope(TWO))[0] == 200)


# --- what is not taken though it might be


def test_what_a_machine_gave_up_on_is_not_taken_any_more(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another intake it may have sent a stricter version of the same turn since."""
    parts = urlsplit(centre.url)
    connection = HTTPConnection(parts.hostname or "", parts.port)
    real = module.Intake._take
    answers: list[int] = []

    def take(self: module.Intake, db: PostgresLedger, admitted: Any, token: str, posted: Posted) -> Any:
        connection.close()
        wait_until(posted.is_given_up)
        answer = real(self, db, admitted, token, posted)
        answers.append(answer.status)
        return answer

    monkeypatch.setattr(module.Intake, "_take", take)
    connection.request("POST", LOG_PATH, envelope(ONE), {"authorization": f"Bearer {centre.token}"})
    wait_until(lambda: answers != [])
    assert (answers, centre.jobs()) == ([503], [])


def test_what_took_longer_than_a_machine_waits_is_not_taken(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GIVEN_UP_S", 0.0)
    assert send(centre.url, centre.token, envelope(ONE))[0] == 503
    assert centre.jobs() == []
    assert inspect.signature(Client).parameters["deadline_s"].default > 25.0


def test_a_tenant_that_is_removed_meanwhile_has_taken_nothing(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    real = versions.insert

    def insert(db: PostgresLedger, *given: Any, **named: Any) -> Any:
        tenants.revoke(centre.db, "alpha", "laptop")
        tenants.remove(centre.db, "alpha")
        return real(db, *given, **named)

    monkeypatch.setattr(versions, "insert", insert)
    assert send(centre.url, centre.token, envelope(ONE))[0] == 401
    states = [tuple(row) for row in centre.db.execute("select state, drop_reason from job")]
    assert states == [("dropped", "purged")]


ODD = {
    "no id": envelope(ONE, providerRequest={"url": "u", "json": {}, "meta": {}}),
    "an id that is none": envelope("request-1"),
    "a session's name of a page": envelope(ONE, session="s" * 513),
    "a time beyond all": envelope(
        ONE,
        timing={
            "startTime": {"seconds": 10**400, "milliseconds": 0},
            "endTime": {"seconds": 10**400, "milliseconds": 0.5},
        },
    ),
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD.keys())
def test_what_nobody_could_find_again_is_refused_for_good(centre: Centre, body: bytes) -> None:
    status, _, said = send(centre.url, centre.token, body)
    assert status == 400
    assert "error" in json.loads(said)
    assert centre.jobs() == []


def test_a_slow_line_has_as_long_as_a_machine_waits_for_its_post() -> None:
    assert inspect.signature(Client).parameters["deadline_s"].default < module.REQUEST_S_MAX


def test_a_machines_use_is_noted_once_a_minute(centre: Centre) -> None:
    send(centre.url, centre.token, envelope(ONE))
    (machine,) = tenants.machines(centre.db)
    assert machine.seen_ms is not None
    send(centre.url, centre.token, envelope(TWO))
    assert tenants.machines(centre.db) == [machine]
