"""One session, four ways in: a notice of each change, and what a hook misses, a backfill and an import find later.

All must come to the same jobs, the same keys, the same request ids, the same bytes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.capture.enqueue import Place, enqueue
from app.ledger import destinations, job
from app.privacy.policy import Policy
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.sources.opencode.store import store_file
from app.transcript.model import Excerpt, Turn
from app.transcript.parse import parse
from tests.support import recorded
from tests.support.processes import Station, hook
from tests.support.recorded import Snapshot
from tests.support.stores import put
from tests.support.typed_commands import typed

FULL = Capture(Policy("full", (), redact_secrets=True, prefix="/opencode"), Redaction.compile(()), user_id="")
RECORDS = 297
"""Of all exports."""
POLICIES: dict[str, dict[str, str]] = {
    "full": {},
    "metadata_only": {"OPENCODE_HELICONE_EXPORT_MODE": "metadata_only"},
    "patterns, prefix and user": {
        "OPENCODE_HELICONE_REDACT_PATTERNS": json.dumps([r"[\w.]+@example\.com", "hello"]),
        "OPENCODE_HELICONE_SESSION_PATH_PREFIX": "/team/work",
        "OPENCODE_HELICONE_USER_ID": "ada",
    },
}


@dataclass(frozen=True, slots=True)
class Job:
    state: str
    last_event_ms: int
    bodies: tuple[job.Body, ...]


Jobs = dict[tuple[str, str], tuple[str, Job]]
"""(session, turn) -> key and job, of the version that counts."""


def machine(home: Path, **variables: str) -> Station:
    home.mkdir()
    return Station(home, "http://127.0.0.1:9", variables=variables)


def jobs(station: Station) -> Jobs:
    with station.ledger() as db:
        rows = db.execute(
            "select j.id, s.name as session, t.name as turn, j.key, j.state, j.facts_ms from job j"
            " join turn t on t.id = j.turn_id join session s on s.id = t.session_id where j.state <> 'superseded'"
        ).fetchall()
        return {
            (row["session"], row["turn"]): (
                row["key"],
                Job(row["state"], row["facts_ms"], tuple(job.bodies(db, row["id"], row["key"]))),
            )
            for row in rows
        }


def from_events() -> list[Snapshot]:
    """Of each recording that has an export, the session that was exported."""
    return [recorded.replayed(name)[recorded.export(name)["root"]] for name in recorded.exported()]


def of_long_ago(path: Path) -> Path:
    """A store with all exports, which nobody writes to any more."""
    for one in map(recorded.export, recorded.exported()):
        put(path, one, at_ms=one["sessions"][0]["info"]["time"]["updated"])
    return path


def noticed(station: Station, snapshots: list[Snapshot]) -> Jobs:
    """Written to the store one after the other, each read before the next comes."""
    with hook(station) as process:
        for snapshot in snapshots:
            process.show(snapshot)
            process.wait_for_ack()
        assert process.end() == 0
    assert station.text("hook.log") == ""
    return jobs(station)


def reconciled(station: Station) -> Jobs:
    """No notice ever came, since the folder is captured."""
    with hook(station) as process:
        process.notice("", "busy")
        assert process.end() == 0
    with station.ledger() as db:
        db.execute("update folder set since_ms = 0")
    of_long_ago(store_file(station.environ))
    with hook(station) as process:
        process.notice("", "busy")
        assert process.end() == 0
    return jobs(station)


def imported(station: Station) -> Jobs:
    files = []
    for path in sorted(recorded.FOLDER.glob("*.export.json")):
        files.append(station.home / path.name)
        files[-1].write_text(recorded.filled(path.read_text("utf-8")), "utf-8")
    done = station.run("import", *map(str, files))
    assert done.returncode == 0, done.stderr
    return jobs(station)


def backfilled(station: Station) -> Jobs:
    store = of_long_ago(station.home / "opencode.db")
    done = typed(station, "backfill", "--db", str(store), "--since", "2000-01-01", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["logs"] == RECORDS
    return jobs(station)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Jobs]:
    """What a hook made of all recordings under a policy; each policy's is made once."""

    @cache
    def made(policy: str) -> Jobs:
        return noticed(machine(tmp_path_factory.mktemp("live") / "home", **POLICIES[policy]), from_events())

    return made


def assert_same(found: Jobs, expected: Jobs) -> None:
    """One by one, so that a failure names the turn and prints no megabytes."""
    assert found.keys() == expected.keys()
    for turn, told in expected.items():
        assert found[turn] == told


@pytest.mark.parametrize("policy", POLICIES)
def test_events_through_a_hook_and_exports_through_import_give_the_same_bytes(
    tmp_path: Path, live: Callable[[str], Jobs], policy: str
) -> None:
    later = imported(machine(tmp_path / "home", **POLICIES[policy]))
    assert len({session for session, _ in later}) == len(recorded.exported())
    assert sum(len(job.bodies) for _, job in later.values()) == RECORDS
    assert_same(live(policy), later)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_backfill_from_opencodes_store_gives_the_same_bytes(
    tmp_path: Path, live: Callable[[str], Jobs], policy: str
) -> None:
    assert_same(live(policy), backfilled(machine(tmp_path / "home", **POLICIES[policy])))


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_hook_finds_without_a_notice_gives_the_same_bytes(
    tmp_path: Path, live: Callable[[str], Jobs], policy: str
) -> None:
    assert_same(reconciled(machine(tmp_path / "home", **POLICIES[policy])), live(policy))


# --- as it grows -----------------------------------------------------------------------------------------------------


def turn_of(message: dict[str, Any]) -> str:
    info = message["info"]
    return str(info["id"] if info["role"] == "user" else info.get("parentID", info["id"]))


def subagents_of(message: dict[str, Any]) -> list[str]:
    found = [part.get("state", {}).get("metadata", {}).get("sessionId") for part in message["parts"]]
    return [session for session in found if session]


def cuts(messages: list[dict[str, Any]]) -> list[int]:
    """Positions from which on no message belongs to a turn that begins before, as in an excerpt."""
    first: dict[str, int] = {}
    for index, message in enumerate(messages):
        first.setdefault(turn_of(message), index)
    reach = [first[turn_of(message)] for message in messages]
    return [index for index in range(len(messages)) if min(reach[index:]) >= index]


def ordered(snapshot: Snapshot) -> list[dict[str, Any]]:
    """The root's messages."""
    return sorted(
        snapshot["sessions"][0]["messages"], key=lambda one: (one["info"]["time"]["created"], one["info"]["id"])
    )


def piece(snapshot: Snapshot, start: int, end: int) -> Snapshot:
    """The messages from `start` to before `end`, and with them the subagents that they name."""
    root, *others = snapshot["sessions"]
    messages = ordered(snapshot)[start:end]
    named = {session for message in messages for session in subagents_of(message)}
    taken = [entry for entry in others if entry["info"]["id"] in named]
    return {"root": snapshot["root"], "sessions": [{"info": root["info"], "messages": messages}, *taken]}


def growing(snapshot: Snapshot) -> Iterator[Snapshot]:
    """What is written in the course of each turn. With the last one the session gets its title."""
    messages = ordered(snapshot)
    for start, end in pairwise([*cuts(messages), len(messages)]):
        part = piece(snapshot, start, end)
        info = part["sessions"][0]["info"]
        if end < len(messages):
            untold = {"title": "New session", "time": {**info["time"], "updated": info["time"]["created"]}}
            part["sessions"][0]["info"] = {**info, **untold}
        yield part


def test_sessions_that_grow_with_a_notice_of_each_turn_give_the_same_jobs_as_whole_ones(
    tmp_path: Path, live: Callable[[str], Jobs]
) -> None:
    snapshots = from_events()
    pieces = [part for snapshot in snapshots for part in growing(snapshot)]
    assert len(pieces) > len(snapshots) + 100
    assert_same(noticed(machine(tmp_path / "home"), pieces), live("full"))


def at_each_idle(name: str) -> Iterator[dict[str, Snapshot]]:
    """What stood there whenever OpenCode said that it was done; and at the end."""
    for index, event in enumerate(recorded.events(name), start=1):
        if event["type"] == "session.idle":
            yield recorded.replayed(name, index)
    yield recorded.replayed(name)


# Of the others one has no idle, because OpenCode was killed, and one a hundred that are like the first.
WITH_IDLES = [name for name in recorded.exported() if name not in {"e_sigint_run", "i_long_session"}]


@pytest.mark.parametrize("name", WITH_IDLES)
def test_what_was_captured_at_an_idle_is_not_captured_again(
    db: sqlite3.Connection, live: Callable[[str], Jobs], name: str
) -> None:
    root = recorded.export(name)["root"]
    place = Place(destinations.destination(db, "", "", 0).id, "")
    for now_ms, snapshots in enumerate(at_each_idle(name)):
        if root in snapshots:
            enqueue(db, parse(snapshots[root]), FULL, place, now_ms=now_ms, wake=lambda _: None)
    rows = db.execute("select t.name, j.key from job j join turn t on t.id = j.turn_id order by j.id").fetchall()
    final = {turn: key for (session, turn), (key, _) in live("full").items() if session == root}
    # The session of g_admin was renamed and archived, and a message was removed from it.
    assert len(rows) - len(final) == (3 if name == "g_admin" else 0)
    assert {row["name"]: row["key"] for row in rows} == final


SHAPES = {name: recorded.export(name) for name in recorded.exported()}


@settings(max_examples=50)
@given(name=st.sampled_from(sorted(SHAPES)), dice=st.randoms(use_true_random=False))
def test_a_turn_is_the_same_value_whatever_came_with_it(name: str, dice: Any) -> None:
    snapshot = SHAPES[name]
    messages = ordered(snapshot)
    start = dice.choice(cuts(messages))
    end = dice.choice([*(at for at in cuts(messages) if at > start), len(messages)])
    part = piece(snapshot, start, end)
    for entry in part["sessions"]:
        # OpenCode promises no order.
        entry["messages"] = dice.sample(entry["messages"], len(entry["messages"]))
    whole = parse(snapshot)
    turns: dict[str, Turn] = {turn.id: turn for turn in whole.turns}
    carried = parse(part, Excerpt(tuple(range(start, end)), None, whole.session.origin)).turns
    assert carried
    assert all(turns[turn.id] == turn for turn in carried)
