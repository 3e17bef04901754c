"""Over the first version: nothing that it sent is sent again, nothing that waited stays behind."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app.ledger import record_identity
from app.sources.opencode.store import store_file
from tests.support.first_ledger import CALLED, CREATED_MS, DEAD, DELIVERED, EMPTIED, WAITING, conversation, restore
from tests.support.processes import Station, hook, worker
from tests.support.servers import Receiver, receiving
from tests.support.stores import put
from tests.support.waiting import wait_until

SESSIONS = (DELIVERED, CALLED, DEAD, EMPTIED, WAITING)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver" / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Station:
    """A person's machine on the day of the upgrade."""
    home = tmp_path / "home"
    home.mkdir()
    station = Station(home, receiver.url, variables={"OPENCODE_HELICONE_RETRY_BASE_DELAY": "20"})
    restore(station.spool, receiver.url)
    keep(station, turns=2)
    return station


def keep(station: Station, turns: int) -> None:
    """Have OpenCode's own store hold the sessions with so many turns."""
    put(store_file(station.environ), *[conversation(name, turns) for name in SESSIONS], at_ms=CREATED_MS)


def known(spool: Path) -> dict[str, tuple[str, str, str]]:
    """By request id what the old version had made of each record: its session, its turn, and its model."""
    with closing(sqlite3.connect(spool / "ledger.db")) as db:
        db.row_factory = sqlite3.Row
        rows = db.execute(
            "select j.id, s.name as session, t.name as turn from job j join session s on s.id = j.session_id"
            " join turn t on t.id = j.turn_id"
        ).fetchall()
        identities = record_identity.read(db, [row["id"] for row in rows])
        return {
            str(one.request_id): (row["session"], row["turn"], one.identity_fields.model)
            for row in rows
            for one in identities[row["id"]]
        }


def posts(receiver: Receiver) -> list[dict[str, Any]]:
    """The bodies of all POSTs, in order."""
    return [json.loads(line) for line in receiver.wire().split(b"\n") if line]


def request_id(body: dict[str, Any]) -> str:
    return str(body["providerRequest"]["meta"]["Helicone-Request-Id"])


def session_of(body: dict[str, Any]) -> str:
    return str(body["providerRequest"]["meta"]["Helicone-Session-Id"])


def model_of(body: dict[str, Any]) -> str:
    request = body["providerRequest"]["json"]
    if "_type" in request:
        return f"{request['_type']}:{request.get('name') or request['toolName']}"
    return str(request["model"])


def test_a_session_that_goes_on_sends_what_waited_and_what_is_new_each_once(
    station: Station, receiver: Receiver
) -> None:
    old = known(station.spool)
    keep(station, turns=3)
    fresh = "ses_fresh"
    with hook(station) as process, worker(station):
        for name in (*SESSIONS, fresh):
            process.show(conversation(name, 3))
        wait_until(lambda: station.counts().pending == 0 and station.counts().delivered >= 19)
        process.end()
    sent = posts(receiver)
    assert max(Counter(map(request_id, sent)).values()) == 1
    # Of what the first version had delivered or given up as dead, nothing; of what waited, everything.
    waited = {one for one, (session, _, _) in old.items() if session in {EMPTIED, WAITING}}
    again = {request_id(body) for body in sent} & set(old)
    assert again == waited
    # A session goes on as it began, and a new one is written in the new way.
    models = {name: {model_of(body) for body in sent if session_of(body) == name} for name in (*SESSIONS, fresh)}
    first = {"data:opencode.user", "anthropic/claude-x", "tool:bash"}
    assert models[DELIVERED] == models[DEAD] == first
    assert models[EMPTIED] == models[WAITING] == first | {"data:opencode.session"}
    assert models[CALLED] == first | {"data:opencode.session", "claude-code/claude-x", "tool:task"}
    assert models[fresh] == {"opencode/session", "opencode/user", "anthropic/claude-x", "tool:bash"}
    assert all(model_of(body) == old[request_id(body)][2] for body in sent if request_id(body) in old)
    assert {body["providerRequest"]["meta"]["Helicone-Session-Name"] for body in sent} == {"opencode: project"}
    counts = station.counts()
    assert (counts.pending, counts.dead) == (0, 3)


def test_dead_letters_of_the_first_version_come_back_as_they_were(station: Station, receiver: Receiver) -> None:
    old = known(station.spool)
    with worker(station):
        wait_until(lambda: station.counts().pending == 0)
        assert station.run("dead", "retry", "--all", "--yes").returncode == 0
        wait_until(lambda: station.counts().dead == 0 and station.counts().pending == 0)
    sent = posts(receiver)
    assert Counter(map(request_id, sent)) == Counter(
        one for one, (session, _, _) in old.items() if session in {DEAD, EMPTIED, WAITING}
    )


def test_an_old_session_is_what_it_was_to_audit_and_verify(station: Station) -> None:
    audited = station.run("audit", "--json")
    assert audited.returncode == 0, audited.stderr
    found = json.loads(audited.stdout)
    assert {one["session"]: one["turns"] for one in found["sessions"]} == {DELIVERED: 3, CALLED: 3, DEAD: 3}
    assert (found["totals"]["changed"], found["totals"]["unprinted"], found["totals"]["gone"]) == (0, 0, 0)
    assert station.run("verify").returncode == 0


# The name of the project stands in every record.
@pytest.mark.parametrize("how", [["--blank"], ["--match", "project"]], ids=["blank", "redacted"])
def test_a_recall_overwrites_what_the_first_version_sent(station: Station, receiver: Receiver, how: list[str]) -> None:
    old = known(station.spool)
    with worker(station):
        wait_until(lambda: station.counts().pending == 0)
        before = len(receiver.sends())
        done = station.run("recall", CALLED, DELIVERED, *how, "--yes", "--timeout", "30", timeout_s=90)
        assert done.returncode == 0, done.stdout + done.stderr
    sent = posts(receiver)[before:]
    expected = {one for one, (session, _, _) in old.items() if session in {CALLED, DELIVERED}}
    assert {request_id(body) for body in sent} == expected
    assert all(model_of(body) == old[request_id(body)][2] for body in sent)
    if how == ["--blank"]:
        assert not [body for body in sent if "question" in str(body)]
    else:
        assert not [body for body in sent if "opencode: project" in str(body)]
