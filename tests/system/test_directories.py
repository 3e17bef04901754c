"""One hook process for all folders of an OpenCode, whatever their settings say: which spool, nothing, or nonsense."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.capture.daemon import NOTHING_WANTED
from app.database.open import open_ledger
from app.ledger import counts, destinations, folders, incidents
from tests.support.processes import Station, hook
from tests.support.recorded import export
from tests.support.waiting import wait_until
from tests.system.test_held import asked

JOBS = 2


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9")


def test_directories_with_spools_of_their_own_are_served_by_one_process(station: Station, tmp_path: Path) -> None:
    usual = replace(station, variables={"OPENCODE_HELICONE_SPOOL_DIRECTORY": ""})
    with hook(usual) as process:
        for name, recording in (("one", "a_simple"), ("two", "b_tools"), ("one", "c_second_prompt")):
            directory = tmp_path / name
            directory.mkdir(exist_ok=True)
            # Relative: it lies in the project.
            process.show(export(recording), directory=str(directory), options={"spoolDirectory": "spool"})
        assert process.end() == 0
    found = {}
    for name in ("one", "two"):
        with closing(open_ledger(tmp_path / name / "spool")) as db:
            found[name] = {row["name"] for row in db.execute("select name from session")}
    assert found == {
        "one": {export("a_simple")["root"], export("c_second_prompt")["root"]},
        "two": {export("b_tools")["root"]},
    }


def test_a_relative_spool_of_the_environment_lies_in_the_project(station: Station, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    relative = replace(station, variables={"OPENCODE_HELICONE_SPOOL_DIRECTORY": "../beside"})
    with hook(relative, cwd="/") as process:
        process.show(export("a_simple"), directory=str(project))
        assert process.end() == 0
    with closing(open_ledger(tmp_path / "beside")) as db:
        assert counts.counts(db).pending == JOBS


def test_a_folder_that_wants_nothing_keeps_no_process_and_one_that_does_goes_on(station: Station) -> None:
    off = {"enable": False}
    with hook(station) as process:
        process.notice("ses_1", "busy", options=off, directory="/home/dev/off")
        process.show(export("a_simple"))
        process.show(export("b_tools"), options=off, directory="/home/dev/off")
        assert process.end() == 0
    assert station.counts().pending == JOBS
    with hook(station) as process:
        process.notice("ses_1", "busy", options=off, directory="/home/dev/off")
        assert process.process.wait(60) == NOTHING_WANTED
    with station.ledger() as db:
        recorded = folders.folder_options(db, destinations.fingerprint(db, "/home/dev/off"))
    assert recorded is not None
    assert recorded["enable"] is False, "a worker that still runs must see it"


def test_a_deletion_makes_no_spool(station: Station) -> None:
    with hook(station) as process:
        process.notice("ses_1", "deleted")
        assert process.end() == 0
    assert not station.spool.exists()


def test_trouble_of_an_earlier_hook_is_in_the_plugins_log(station: Station) -> None:
    with hook(station) as process:
        for reason in ("hook ended: SIGKILL", "a prompt: <hello>\n"):
            process.notice("", type="trouble", reason=reason)
        assert process.end() == 0
    told = [line.partition(" ")[2] for line in station.text("plugin.log").splitlines()]
    assert told == ["hook ended: SIGKILL", "trouble that cannot be told"]


UNUSABLE = {"no TOML": "maxRetries = \n", "a pattern that does not compile": 'redactPatterns = ["("]\n'}


@pytest.mark.parametrize("unusable", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize(
    ("is_known", "is_last"),
    [(False, False), (True, False), (False, True)],
    ids=["from the start", "later", "until OpenCode ends"],
)
def test_a_folder_whose_settings_cannot_be_used_is_taken_from_the_store_when_they_can(
    station: Station, unusable: str, *, is_known: bool, is_last: bool
) -> None:
    config = station.home / "config" / "opencode-helicone" / "config.toml"
    config.parent.mkdir(parents=True)
    project = station.home / "shop"
    wanted = asked(project)
    with hook(station) as process:
        if is_known:
            process.show(export("a_simple"), directory=str(project))
            wait_until(lambda: station.counts().pending == JOBS)
        before = JOBS if is_known else 0
        config.write_text(unusable)
        # Noticed before it is there: whoever compares the folder does not meet it under the settings from before.
        process.notice(wanted["root"], directory=str(project))
        wait_until(lambda: sum(refusals(station).values()) == 1)
        process.store.put(wanted)
        assert station.counts().pending == before
        config.write_text("")
        if not is_last:
            wait_until(lambda: station.counts().pending == before + JOBS)
        process.end()
        assert station.counts().pending == before + JOBS


def refusals(station: Station) -> dict[str, int]:
    with station.ledger() as db:
        return {reason: count for reason, count, _ in incidents.refusals(db)}
