"""Sessions as the web view shows them: what really OpenCode wrote, really exported to a receiver."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.operations.sessions import OpenedSession, SessionRow, list_sessions, open_session
from app.runtime import clock
from app.sources.opencode.store import Store
from tests.support import stores
from tests.support.processes import Station
from tests.support.recorded import SECRETS, export
from tests.support.servers import Receiver, receiving
from tests.support.typed_commands import typed

pytestmark = pytest.mark.slow
SUBAGENT = "f_subagent"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver" / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, receiver.url, variables={"OPENCODE_DB": str(tmp_path / "opencode.db")})


def store_of(station: Station) -> Path:
    return Path(station.variables["OPENCODE_DB"])


def captured(station: Station, *recordings: str) -> str:
    """The last one's session."""
    for name in recordings:
        stores.put(store_of(station), export(name))
    done = typed(station, "backfill", "--since", "2000-01-01")
    assert done.returncode == 0, done.stdout + done.stderr
    return str(export(recordings[-1])["root"])


def opened(station: Station, session: str, limit: int = 10) -> OpenedSession:
    with station.ledger() as db:
        return open_session(db, Store(store_of(station)), session, "/opencode", clock.now_ms(), limit)


def row(station: Station, session: str, text: str = "") -> SessionRow:
    with station.ledger() as db:
        found = list_sessions(db, Store(store_of(station)), text, 25)
    (one,) = (each for each in found.rows if each.id == session)
    return one


def test_a_subagent_counts_with_its_root_and_stands_inside_it(station: Station, receiver: Receiver) -> None:
    root = captured(station, SUBAGENT)
    with station.ledger() as db:
        listed = list_sessions(db, Store(store_of(station)), "", 25)
    assert [one.id for one in listed.rows] == [root]
    assert (listed.rows[0].state, listed.rows[0].calls > 2) == ("pending", True)
    waits = opened(station, root)
    assert {span.state for turn in waits.turns for span in turn.spans} == {"not yet"}
    assert station.run("flush").returncode == 0
    done = opened(station, root)
    shown = [(span.label, span.depth, span.state) for turn in done.turns for span in turn.spans]
    paths = [record.path for record in receiver.rows()]
    assert sorted(label for label, _, _ in shown) == sorted(path.rpartition("/")[2] for path in paths)
    assert {state for _, _, state in shown} == {"taken"}
    below = next(depth for label, depth, _ in shown if label.startswith("ses_") and label != root)
    assert below == 2  # a message, its call, the subagent
    assert row(station, root).state == "delivered"


def test_of_a_turn_that_waits_what_arrived_is_told_from_what_did_not(station: Station, receiver: Receiver) -> None:
    session = captured(station, "b_tools")
    receiver.fault({}, {"status": 503, "times": 1_000})
    station.run("flush", "--timeout", "5")
    assert row(station, session).state == "pending"
    states = [span.state for turn in opened(station, session).turns for span in turn.spans]
    assert (states.count("taken"), {*states}) == (1, {"taken", "not yet"})


def test_bars_are_as_long_as_the_calls_at_the_receiver(station: Station, receiver: Receiver) -> None:
    session = captured(station, "b_tools")
    assert station.run("flush").returncode == 0
    there = sorted((one.log.created_ms, one.log.latency_ms) for one in receiver.rows())
    spans = [span for turn in opened(station, session).turns for span in turn.spans if span.kind != "session"]
    ours = sorted((span.start_ms, span.length_ms) for span in spans)
    assert [one for one in there if one in ours] == ours


def test_what_the_queue_alone_knows_is_shown_when_the_store_is_gone(station: Station, receiver: Receiver) -> None:
    session = captured(station, "b_tools")
    assert station.run("flush").returncode == 0
    whole = opened(station, session)
    store_of(station).unlink()
    left = opened(station, session)
    assert "is not there" in left.problem
    labels = [sorted(span.label for turn in one.turns for span in turn.spans) for one in (whole, left)]
    assert labels[0] == labels[1]
    assert {span.end_ms for turn in left.turns for span in turn.spans} == {None}
    assert {span.state for turn in left.turns for span in turn.spans} == {"taken"}
    assert len(receiver.rows()) == len(labels[0])


def test_no_text_and_no_secret_of_a_transcript_is_in_it(station: Station) -> None:
    session = captured(station, "j_unicode_secrets")
    told = repr(opened(station, session))
    assert not [name for name, secret in SECRETS.items() if secret in told]
    said = [
        part["text"]
        for entry in export("j_unicode_secrets")["sessions"]
        for message in entry["messages"]
        for part in message["parts"]
        if part.get("text")
    ]
    assert said
    assert not [text for text in said if text in told]
    assert "redactions=0" not in told.partition("turn='msg_")[2][:400]


def test_a_session_that_nobody_queued_is_listed_as_such(station: Station) -> None:
    session = captured(station, "a_simple")
    other = str(export("b_tools")["root"])
    stores.put(store_of(station), export("b_tools"))
    assert (row(station, session).state, row(station, other).state) == ("pending", "not queued")
    assert opened(station, other).turns == ()


def test_the_latest_turns_come_first_and_the_others_on_demand(station: Station) -> None:
    session = captured(station, "i_long_session")
    some, every = opened(station, session, 3), opened(station, session, 500)
    assert (some.is_all, every.is_all, len(some.turns)) == (False, True, 3)
    begun = [turn.began_ms for turn in every.turns if not turn.is_own_record]
    assert begun == sorted(begun, reverse=True)


def test_a_filter_finds_title_folder_and_id(station: Station) -> None:
    session = captured(station, "a_simple")
    with closing(sqlite3.connect(store_of(station))) as db, db:
        db.execute("update session set title = 'Éclair for ALL', directory = '/home/dev/bakery'")
    for text in ("éclair", "for all", "bakery", session[4:12]):
        assert row(station, session, text).title == "Éclair for ALL"
    with station.ledger() as db:
        assert list_sessions(db, Store(store_of(station)), "bread", 25).rows == ()


def test_a_turn_at_two_destinations_has_two_jobs(station: Station) -> None:
    session = captured(station, "a_simple")
    elsewhere = replace(station, endpoint="https://helicone.example.invalid")
    captured(elsewhere, "a_simple")
    jobs = {turn.name: len(turn.jobs) for turn in opened(station, session).turns}
    assert set(jobs.values()) == {2}
