"""What a person sees of the centre on a machine behind an intake: `status`, `dead list`, and the page in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from app.runtime import clock
from app.settings import heard
from app.settings.heard import Kept
from app.settings.intake import DeadRecord, IntakeAnswer
from app.settings.lookup import typed as typed_settings
from app.sources.opencode.store import store_file
from app.web.site import Site
from tests.cli.test_status import bench_of, pause
from tests.support.ledger_bench import version
from tests.support.processes import Station
from tests.support.recorded import export_files
from tests.support.said import answer, token
from tests.support.typed_commands import typed
from tests.support.web import showing

DEAD = DeadRecord("ses_1", "0f1ed2fd-0000-4000-8000-000000000001", "413: too large", 1_000)


@pytest.fixture
def station(tmp_path: Path) -> Station:
    made = Station(tmp_path, "http://127.0.0.1:9", token())
    assert typed(made, "migrate").returncode == 0
    return made


def says(station: Station, said: IntakeAnswer | None, failure: str = "") -> None:
    now_ms = clock.now_ms()
    known = Kept(now_ms, failure, None if said is None else now_ms, said)
    heard.keep(heard.place(typed_settings(station.environ, station.home).load()), known)


def lines(station: Station) -> list[str]:
    return typed(station, "status").stdout.splitlines()


def test_status_says_what_the_centre_has_and_of_when_that_is(station: Station) -> None:
    says(station, answer(waiting=3))
    first, *others = lines(station)
    assert first.startswith("ok: nothing was captured yet")
    assert [one.rpartition("): ")[2] for one in others if one.startswith("at the centre (as of ")] == ["3 wait, 0 dead"]
    said = json.loads(typed(station, "status", "--json").stdout)["centre"]
    assert (said["intake"], said["export_mode"], said["waiting"]) == (station.endpoint, "full", 3)
    says(station, answer(waiting=1), "503")
    assert "1 waits, 0 dead; the last question failed: 503" in "\n".join(lines(station))


def test_before_the_first_answer_it_says_that(station: Station) -> None:
    assert "at the centre: it has said nothing yet" in lines(station)
    says(station, None, "401: revoked")
    assert lines(station)[0] == "problem: the intake refuses this machine: 401: revoked"


def test_logs_that_are_dead_there_are_a_problem_here_and_named(station: Station) -> None:
    says(station, answer(dead=2, records=(DEAD,)))
    assert lines(station)[:2] == [
        "problem: 2 logs of this machine are dead at the centre",
        "  opencode-helicone dead list",
    ]
    told = typed(station, "dead", "list").stdout
    assert "2 logs dead; who runs it tries them again" in told
    assert f"{DEAD.session} {DEAD.request_id}: {DEAD.reason}" in told
    assert "and 1 more" in told
    found = json.loads(typed(station, "dead", "list", "--json").stdout)
    assert (found["jobs"], found["centre"]["dead"], found["centre"]["dead_records"][0]["reason"]) == (0, 2, DEAD.reason)
    assert json.loads(typed(station, "dead", "list", "--dropped", "--json").stdout)["centre"] is None


@pytest.mark.parametrize(("waits", "level"), [(False, "ok"), (True, "problem")])
def test_a_mode_that_was_refused_is_no_problem_once_nothing_is_left_of_it(
    station: Station,
    waits: bool,  # noqa: FBT001 - pytest names it
    level: str,
) -> None:
    says(station, answer())
    with bench_of(station) as bench:
        bench.put(version("t1"))
        bench.deliver(version("t1"))
        if waits:
            bench.put(version("t2"))
        pause(bench, "refused", "403: only metadata_only is taken")
    assert lines(station)[0].startswith(f"{level}: ")
    doctor = typed(station, "doctor", "--json").stdout
    assert ("destination-refused" in doctor) == waits


def test_without_a_token_nothing_is_said_of_a_centre(tmp_path: Path) -> None:
    station = Station(tmp_path, "http://127.0.0.1:9")
    assert "centre" not in typed(station, "status").stdout + typed(station, "status", "-v").stdout
    assert json.loads(typed(station, "status", "--json").stdout)["centre"] is None


def test_the_page_says_who_has_it(station: Station) -> None:
    says(station, answer(waiting=4, dead=1))
    assert typed(station, "import", *map(str, export_files("a_simple"))).returncode == 0
    site = Site(typed_settings(station.environ, station.home), station.home, store_file(station.environ))
    with showing(site) as web, httpx.Client(trust_env=False) as client:
        page = client.get(web.url, headers=web.cookie).text
    assert "The centre has" in page
    assert "4 to be delivered, 1 dead there" in page
