"""`destination …`: what waits for another key or address is listed, moved here or given up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.ledger import counts, destinations
from tests.ledger.test_dead_letters import die
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import Station
from tests.support.typed_commands import typed
from tests.system.test_cli import complaint, example, said, shape

HERE = "http://127.0.0.1:9"


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, HERE)


@pytest.fixture
def elsewhere(station: Station) -> Iterator[LedgerBench]:
    """Two jobs wait and one is dead at another address."""
    with station.ledger() as db:
        bench = LedgerBench(db)
        die(bench, version("t3"), "401: no")
        bench.put(version("t1"))
        bench.put(version("t2", session="ses_2"))
        yield bench


def numbers(bench: LedgerBench, destination_id: int) -> tuple[int, int, int]:
    found = counts.counts(bench.db, destination_id)
    return found.pending, found.dead, sum(found.dropped_by_reason.values())


def test_the_one_that_is_meant_is_first_and_each_other_says_what_to_type(
    station: Station, elsewhere: LedgerBench
) -> None:
    told = said(typed(station, "destination", "list", "--json"))
    assert shape(told) == shape(example("destination list"))
    assert [(one["id"], one["current"], one["pending"], one["dead"]) for one in told["destinations"]] == [
        (None, True, 0, 0),
        (elsewhere.destination, False, 2, 1),
    ]
    lines = typed(station, "destination", "list").stdout.splitlines()
    assert lines[0].startswith("* -  http://127.0.0.1:9 (key ")
    assert any(line.endswith(f"destination adopt {elsewhere.destination}") for line in lines)
    assert all(len(line) <= 72 for line in lines)


def test_what_waits_there_is_moved_here(station: Station, elsewhere: LedgerBench) -> None:
    number = str(elsewhere.destination)
    assert "say --yes" in complaint(typed(station, "destination", "adopt", number), 2)
    assert numbers(elsewhere, elsewhere.destination)[0] == 2
    told = said(typed(station, "destination", "adopt", number, "--yes", "--json"))
    assert shape(told) == shape(example("destination adopt"))
    assert told["jobs"] == 2, "the dead one of a session moves with it, and did not wait"
    ours = next(one.id for one in destinations.destinations(elsewhere.db) if one.endpoint == HERE)
    assert numbers(elsewhere, elsewhere.destination)[0] == 0
    assert numbers(elsewhere, ours)[0] == 2
    again = typed(station, "destination", "adopt", number)
    assert (again.returncode, again.stdout) == (0, f"0 jobs moved to {HERE}\n")
    assert "is the one that the settings mean" in complaint(typed(station, "destination", "adopt", str(ours)), 1)


def test_flush_names_what_it_does_not_deliver(station: Station, elsewhere: LedgerBench) -> None:
    del elsewhere
    done = typed(station, "flush")
    assert done.returncode == 0
    assert "waiting: 2 jobs for https://example.invalid" in done.stdout
    assert "another destination than that of the present settings" in done.stdout


def test_what_waits_there_is_given_up(station: Station, elsewhere: LedgerBench) -> None:
    number = str(elsewhere.destination)
    assert "give up 3 jobs" in complaint(typed(station, "destination", "forget", number), 2)
    told = typed(station, "destination", "forget", number, "--yes", "--json")
    assert shape(said(told)) == shape(example("destination forget"))
    assert said(told)["jobs"] == 3
    assert numbers(elsewhere, elsewhere.destination) == (0, 0, 3)
    assert elsewhere.db.execute("select count(*) from bundle").fetchone()[0] == 0
    assert typed(station, "destination", "forget", number).stdout == "0 jobs given up\n"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("command", ["adopt", "forget"])
def test_a_number_that_is_none_is_told(station: Station, command: str) -> None:
    assert "destination list" in complaint(typed(station, "destination", command, "99", "--yes"), 1)
    assert typed(station, "destination", command, "x").returncode == 2
    assert typed(station, "destination", command).returncode == 2


def test_without_a_key_there_is_nowhere_to_move_to(station: Station, elsewhere: LedgerBench) -> None:
    bare = replace(station, variables={"HELICONE_API_KEY": ""})
    told = complaint(typed(bare, "destination", "adopt", str(elsewhere.destination), "--yes"), 1)
    assert "opencode-helicone setup" in told
    assert numbers(elsewhere, elsewhere.destination)[0] == 2
