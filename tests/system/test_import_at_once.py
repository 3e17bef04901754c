"""The same files imported again and again, and by many processes at once: one job each, and nothing posted twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import Station, worker
from tests.support.recorded import export_files
from tests.support.servers import Receiver, receiving
from tests.support.waiting import wait_until

NAMES = ("b_tools", "c_second_prompt", "f_subagent")
JOBS = 7
"""Of these: one for each turn, and one for each session that is nobody's subagent."""
RECORDS = 25
PROCESSES = 8

IMPORT = """
import json, os, sys
environ, *files = sys.argv[1:]
os.environ.clear()
os.environ.update(json.loads(environ))
from app.cli.main import main
print("ready", flush=True)
sys.stdin.readline()
sys.argv = ["opencode-helicone", "import", *files]
main()
"""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver" / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, receiver.url)


def files() -> list[str]:
    return [str(path) for name in NAMES for path in export_files(name)]


def imported(station: Station, *paths: str) -> dict[str, int]:
    done = station.run("import", "--json", *paths)
    jobs: dict[str, int] = json.loads(done.stdout)["jobs"]
    return {name: number for name, number in jobs.items() if number}


def test_a_second_import_finds_everything_known_before_and_after_delivery(station: Station, receiver: Receiver) -> None:
    assert imported(station, *files()) == {"new": JOBS}
    assert imported(station, *files()) == {"known": JOBS}
    with worker(station):
        wait_until(lambda: station.delivered(JOBS))
        assert imported(station, *files()) == {"known": JOBS}
        # Were a worker woken for that, it would come before this one.
        assert imported(station, str(*export_files("a_simple"))) == {"new": 2}
        wait_until(lambda: station.delivered(JOBS + 2))
    assert [row.sends for row in receiver.rows()] == [1] * (RECORDS + 3)


def test_eight_imports_at_once_make_one_job_of_each_turn_and_a_worker_posts_it_once(
    station: Station, receiver: Receiver, at_once: Callable[[str, int, list[str]], None]
) -> None:
    with worker(station):
        at_once(IMPORT, PROCESSES, [json.dumps(station.environ), *files()])
        wait_until(lambda: station.delivered(JOBS))
    with station.ledger() as db:
        assert [tuple(row) for row in db.execute("select state, count(*) from job group by 1")] == [("delivered", JOBS)]
    sends = [send.request_id for send in receiver.sends()]
    assert len(sends) == len(set(sends)) == RECORDS
    assert [row.sends for row in receiver.rows()] == [1] * RECORDS
