"""A machine behind its company's intake, by real processes: what leaves, under which policy, and what waits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.ledger import destinations
from app.settings.heard import SILENT
from app.settings.intake import MODE_HEADER, TURN_HEADER
from tests.support.processes import Station, hook, worker
from tests.support.said import StandIn, answer, stand_in, token
from tests.support.servers import request_id_of
from tests.support.snapshots import CREATED_MS, assistant, entry, snapshot, text, tool, user
from tests.support.typed_commands import typed
from tests.support.waiting import wait_until

CANARY = "swordfish-4711"


@contextmanager
def machine(tmp_path: Path, intake: StandIn, **variables: str) -> Iterator[Station]:
    """Its settings say `on` to reading back, which no intake does."""
    own = {"OPENCODE_HELICONE_CONFIRM": "on", **variables}
    yield Station(tmp_path, f"{intake.url}/custom/v1/log", token(), own)


def talk(turns: int = 1) -> dict[str, Any]:
    """So many turns; of each the canary is said."""
    messages = []
    for turn in range(turns):
        at_ms = CREATED_MS + 1_000 * turn
        asked = f"msg_{turn}a"
        messages.append(user(asked, at_ms, text(f"{CANARY} {turn}?", f"prt_{asked}")))
        answered = assistant(f"msg_{turn}b", at_ms + 10, text(f"{CANARY}!", f"prt_{turn}b"), tool(), parent=asked)
        messages.append(answered)
    return snapshot(entry(*messages))


def say(station: Station, turns: int = 1) -> None:
    """So many turns, of which the last is new; and the session's own record with the first."""
    with hook(station) as process:
        process.show(talk(turns))
        process.wait_for_ack()
        process.end()


def status(station: Station) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(typed(station, "status", "--json").stdout)
    return said


def charged(station: Station) -> list[tuple[str, int]]:
    """(state, failures that count) of all jobs that are current."""
    with station.ledger() as db:
        rows = db.execute("select state, failures from job where state <> 'superseded' order by id")
        return [tuple(row) for row in rows]


def of_modes(intake: StandIn) -> list[str]:
    return [one.headers[MODE_HEADER.lower()] for one in intake.logs]


@pytest.mark.slow
def test_nothing_leaves_before_the_intake_has_said_what_may(tmp_path: Path) -> None:
    with stand_in() as intake, machine(tmp_path, intake) as station:
        say(station)
        assert station.counts().pending == 2
        with worker(station):
            wait_until(lambda: f"waiting: 2 jobs wait: {SILENT} (503)" in typed(station, "status").stdout)
            assert [one["reason"] for one in status(station)["destinations"][0]["held"]] == [SILENT]
            assert intake.logs == []
            intake.says = answer("full", CANARY)
            intake.mode = "full"
            wait_until(lambda: [state for state, _ in charged(station)] == ["dropped"] * 2)
            assert intake.logs == [], "what it does not take is not sent"
            say(station)  # an OpenCode redacts the text anew
            wait_until(lambda: station.delivered(2))
        assert of_modes(intake) == ["full"] * len(intake.logs)
        assert all(one.headers[TURN_HEADER.lower()].isdigit() for one in intake.logs)
        assert CANARY not in b"".join(one.body for one in intake.logs).decode()
        assert status(station)["destinations"][0]["confirmation"]["notes"] == ["off: the centre does it"]


@pytest.mark.slow
def test_a_mode_that_was_changed_pauses_and_charges_nobody_and_what_waits_is_made_again(tmp_path: Path) -> None:
    slow = {"OPENCODE_HELICONE_RETRY_BASE_DELAY": "1800000"}  # what was learned ends the pause, not its time
    with stand_in(answer("full")) as intake, machine(tmp_path, intake, **slow) as station, worker(station):
        say(station)
        wait_until(lambda: station.delivered(2))
        before = len(intake.logs)
        intake.mode = "metadata_only"
        intake.says = answer("metadata_only")
        say(station, 2)
        wait_until(lambda: station.delivered(3))
        refused, *taken = of_modes(intake)[before:]
        assert (refused, set(taken)) == ("full", {"metadata_only"})
        assert CANARY not in b"".join(one.body for one in intake.logs[before + 1 :]).decode()
        assert [failures for _, failures in charged(station)] == [0] * 3
        wait_until(lambda: status(station)["verdict"]["level"] == "ok")


@pytest.mark.slow
def test_the_last_policy_counts_while_the_intake_is_away(tmp_path: Path) -> None:
    with stand_in(answer("metadata_only"), "metadata_only") as intake, machine(tmp_path, intake) as station:
        with worker(station):
            wait_until(lambda: list(station.spool.glob("intake-*.json")))  # replaced as a whole: it holds an answer
        intake.says = None
        say(station)
        with worker(station):
            wait_until(lambda: "asked in vain" in station.text("worker.log"))
            wait_until(lambda: intake.logs)
            assert station.counts().pending == 2
            intake.says = answer("metadata_only")
            wait_until(lambda: station.delivered(2))
        assert set(of_modes(intake)) == {"metadata_only"}
        assert CANARY not in b"".join(one.body for one in intake.logs).decode()


@pytest.mark.slow
def test_a_revoked_token_stops_this_machine_with_one_post(tmp_path: Path) -> None:
    with stand_in(answer("full")) as intake, machine(tmp_path, intake) as station, worker(station):
        say(station)
        wait_until(lambda: station.delivered(2))
        intake.is_revoked = True
        before = len(intake.logs)
        say(station, 6)
        wait_until(lambda: status(station)["verdict"]["level"] == "problem")
        assert len(intake.logs) == before + 1
        assert charged(station)[2:] == [("pending", 0)] * 5
        wait_until(lambda: "401: the token is revoked" in typed(station, "status").stdout)
        told = typed(station, "status").stdout
        assert "problem: the intake refuses what is sent: 401" in told
        assert "5 jobs wait" in told
        assert token() not in told + station.text("worker.log")
        with station.ledger() as db:
            (ours,) = destinations.destinations(db)
        assert (ours.health, ours.probe_ms is not None) == ("refused", True)


@pytest.mark.slow
def test_flush_asks_and_ends_where_nothing_is_said(tmp_path: Path) -> None:
    with stand_in() as intake, machine(tmp_path, intake) as station:
        say(station)
        done = station.run("flush")
        assert done.returncode == 1
        assert done.stdout.startswith("not done: delivered 0 now to the centre, 2 jobs left")
        assert SILENT in done.stdout
        assert intake.logs == []
        intake.says = answer("full")
        done = station.run("flush")
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "delivered 2 now to the centre")


@pytest.mark.slow
def test_a_recall_reaches_the_centre_and_says_what_it_cannot_see(tmp_path: Path) -> None:
    with stand_in(answer("full")) as intake, machine(tmp_path, intake) as station:
        say(station)
        assert station.run("flush").returncode == 0
        before = len(intake.logs)
        done = station.run("recall", "ses_root", "--blank", "--yes")
        assert done.returncode == 0, done.stderr
        assert "it cannot be read back: the centre has it; what Helicone shows then cannot be asked" in done.stdout
        first, again = intake.logs[:before], intake.logs[before:]
        assert {request_id_of(one.body) for one in again} <= {request_id_of(one.body) for one in first}
        assert CANARY not in b"".join(one.body for one in again).decode()
        # Of one time, so that the later one wins there.
        times = {one.headers[TURN_HEADER.lower()] for one in again}
        assert times <= {one.headers[TURN_HEADER.lower()] for one in first}


@pytest.mark.slow
def test_jobs_of_a_stricter_machine_say_so(tmp_path: Path) -> None:
    """What leaves under the machine's own stricter mode is taken by every intake."""
    own = {"OPENCODE_HELICONE_EXPORT_MODE": "metadata_only"}
    with stand_in(answer("metadata_only"), "metadata_only") as intake, machine(tmp_path, intake, **own) as station:
        say(station)
        assert station.run("flush").returncode == 0
        assert set(of_modes(intake)) == {"metadata_only"}
        assert charged(station) == [("delivered", 0)] * 2


@pytest.mark.slow
def test_an_opencode_that_runs_keeps_to_what_the_intake_says_from_then_on(tmp_path: Path) -> None:
    """Text is for its hook to redact."""
    with stand_in(answer("full")) as intake, machine(tmp_path, intake) as station, hook(station) as process:
        process.show(talk())
        process.wait_for_ack()
        with worker(station):
            wait_until(lambda: station.delivered(2))
        before = len(intake.logs)
        assert CANARY in b"".join(one.body for one in intake.logs).decode()
        intake.says = answer("full", CANARY)
        with worker(station):
            wait_until(lambda: "1 redaction pattern" in station.text("worker.log"))
            process.show(talk(2))
            wait_until(lambda: station.delivered(3))
        assert len(intake.logs) > before
        assert CANARY not in b"".join(one.body for one in intake.logs[before:]).decode()
        process.end()
