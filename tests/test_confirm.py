"""Stored, not just accepted, between processes: a real worker, and a receiver that lies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.confirm import RESENDS_MAX
from app.helicone import NOT_STORED_CAUSES
from tests.processes import Station, hook, worker
from tests.recorded import export, export_files
from tests.servers import Receiver, receiving
from tests.waiting import wait_until

SIMPLE = "a_simple"
RECORDS = 3
JOBS = 2


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver" / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Station:
    """As it is by default: a server that is not the cloud is read back."""
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, receiver.url, variables={"OPENCODE_HELICONE_CONFIRM": ""})


def captured(station: Station, name: str = SIMPLE) -> None:
    with hook(station) as process:
        process.show(export(name))
        assert process.end() == 0


def confirmation(station: Station) -> dict[str, Any]:
    done = station.run("status", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)["destinations"][0]["confirmation"]
    return told


def jobs(station: Station, condition: str) -> int:
    with station.ledger() as db:
        return int(db.execute(f"select count(*) from job where {condition}").fetchone()[0])


def pass_the_time(station: Station) -> None:
    """As if what is delivered had been so long ago that nothing will still turn up."""
    with station.ledger() as db:
        db.execute("update job set finished_ms = 1, confirm_ms = 1 where confirm_ms is not null")


def sends_of(receiver: Receiver) -> dict[str | None, int]:
    ids = [send.request_id for send in receiver.sends()]
    return {request_id: ids.count(request_id) for request_id in ids}


def test_what_is_stored_is_confirmed_and_its_bodies_go(station: Station, receiver: Receiver) -> None:
    captured(station)
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))
        assert jobs(station, "confirm_ms is not null and body_bytes > 0") > 0
        wait_until(lambda: jobs(station, "confirmed_ms is not null and body_bytes = 0") == JOBS)
    assert confirmation(station) == {
        "confirmed": JOBS,
        "waiting": 0,
        "body_not_stored": 0,
        "given_up": 0,
        "notes": [],
    }
    assert set(sends_of(receiver).values()) == {1}


def test_what_was_accepted_and_not_stored_is_sent_again_under_the_same_id_and_then_confirmed(
    station: Station, receiver: Receiver
) -> None:
    captured(station)
    receiver.fault({"unstored": True, "times": RECORDS})
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))
        assert receiver.rows() == []
        pass_the_time(station)
        wait_until(lambda: jobs(station, "confirmed_ms is not null and resends = 1") == JOBS)
    assert sorted(sends_of(receiver).values()) == [2] * RECORDS
    assert len({send.sha256 for send in receiver.sends()}) == RECORDS
    assert len(receiver.rows()) == RECORDS


def test_what_is_never_stored_is_dead_and_says_why_that_may_be(station: Station, receiver: Receiver) -> None:
    captured(station)
    receiver.fault({"unstored": True, "times": 1_000})
    with worker(station):
        for resends in range(RESENDS_MAX + 1):
            wait_until(lambda r=resends: jobs(station, f"confirm_ms > 1 and resends = {r}") == JOBS)  # type: ignore[misc]
            pass_the_time(station)
        wait_until(lambda: station.counts().dead == JOBS)
    assert set(sends_of(receiver).values()) == {RESENDS_MAX + 1}
    text = station.run("status").stdout
    assert f"{JOBS} dead: accepted but not stored: " in text
    assert all(cause in text for cause in NOT_STORED_CAUSES)
    assert len(NOT_STORED_CAUSES) == 4
    assert jobs(station, "state = 'dead' and body_bytes > 0") == JOBS


def test_beyond_the_quota_logs_go_on_and_turns_are_marked_and_can_be_sent_again(
    station: Station, receiver: Receiver
) -> None:
    captured(station)
    receiver.fault({"over_quota": True, "times": RECORDS})
    with worker(station):
        wait_until(lambda: jobs(station, "body_not_stored") == JOBS)
        told = confirmation(station)
        assert (told["body_not_stored"], told["confirmed"]) == (JOBS, 0)
        assert any("quota" in note for note in told["notes"])
        done = station.run("import", *map(str, export_files(SIMPLE)), "--json")
        assert json.loads(done.stdout)["jobs"]["new"] == JOBS, done.stdout
        wait_until(lambda: jobs(station, "confirmed_ms is not null and not body_not_stored") == JOBS)
    assert confirmation(station)["notes"] == []
    assert set(sends_of(receiver).values()) == {2}
    assert [row.log.request_body != "" for row in receiver.rows()] == [True] * RECORDS


def test_where_the_address_is_not_known_nothing_is_read_back_and_status_says_so_and_an_address_helps(
    station: Station, receiver: Receiver
) -> None:
    apart = replace(station, endpoint=f"{receiver.url}/custom/v1/log")
    captured(apart)
    with worker(apart):
        wait_until(lambda: apart.delivered(JOBS))
    assert jobs(apart, "confirm_ms is not null or body_bytes > 0") == 0
    (note,) = confirmation(apart)["notes"]
    assert note.startswith("off: ")
    assert "readbackUrl" in note
    told = replace(apart, variables={**apart.variables, "HELICONE_READBACK_URL": receiver.url})
    assert confirmation(told)["notes"] == []
    captured(told, "b_tools")
    with worker(told):
        wait_until(lambda: jobs(told, "confirm_ms is not null") == JOBS)
        pass_the_time(told)
        wait_until(lambda: jobs(told, "confirmed_ms is not null") == JOBS)


def test_a_refused_reading_back_delays_no_delivery_and_is_told(station: Station, receiver: Receiver) -> None:
    wrong = replace(station, variables={**station.variables, "HELICONE_READBACK_URL": f"{receiver.url}/nowhere"})
    captured(wrong)
    with worker(wrong):
        wait_until(lambda: confirmation(wrong)["notes"])
        captured(wrong, "b_tools")
        wait_until(lambda: wrong.delivered(2 * JOBS))
    told = confirmation(wrong)
    assert (told["waiting"], told["confirmed"]) == (2 * JOBS, 0)
    assert "404" in told["notes"][0]
    assert "404" in wrong.text("worker.log")
    # With the right address the next worker tries at once.
    with worker(station):
        pass_the_time(station)
        wait_until(lambda: jobs(station, "confirmed_ms is not null") == 2 * JOBS)
