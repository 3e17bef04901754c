"""A folder that was held by its files, and whose files are right again: no OpenCode is needed to see that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from app.ledger import folders
from app.operations.flush import _Flushing
from tests.support.opencode import OpenCode
from tests.support.processes import Station, hook, repository
from tests.support.servers import Receiver, receiving
from tests.support.typed_commands import typed
from tests.system.test_cli import said
from tests.system.test_held import RIGHT, WRONG, asked, configure, show

pytest_plugins = ["tests.support.opencode"]

LINE = "opencode.json line 2"
LOOKS_MAX = 3_000
"""Of a flush: five minutes, at least."""


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Station:
    (tmp_path / "home").mkdir()
    return Station(tmp_path / "home", receiver.url)


@pytest.fixture
def project(station: Station) -> Path:
    made = station.home / "shop"
    repository(made)
    return made


def held_at_end_of_opencode(station: Station, project: Path, session: str = "ses_root", **options: object) -> None:
    with hook(station) as process:
        process.show(asked(project, session), directory=str(project), options=options)
        assert process.end() == 0
    with station.ledger() as db:
        assert [one.hash for one in folders.held_folders(db)]


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_flush_reads_the_files_again_and_sends_what_waited_for_them(
    station: Station, project: Path, receiver: Receiver, wrong: str
) -> None:
    configure(project, wrong)
    held_at_end_of_opencode(station, project)
    assert LINE in typed(station, "status").stdout
    assert json.loads(typed(station, "flush", "--json").stdout)["jobs"]["delivered"] == 0
    configure(project, RIGHT)
    told = typed(station, "status").stdout
    assert told.startswith("waiting: 1 folder held back until now, whose files are right again")
    assert LINE not in told + typed(station, "status", "-v").stdout + typed(station, "doctor").stdout
    assert said(typed(station, "flush", "--json"))["jobs"]["delivered"] == 2
    assert typed(station, "status").stdout.startswith("ok: all that was captured is delivered")
    assert receiver.wire()
    assert b"swordfish-4711" not in receiver.wire()
    with station.ledger() as db:
        (options,) = folders.all_folder_options(db).values()
    assert json.loads(options)["redactPatterns"] == [r"swordfish-\d+"]


def test_one_mistake_is_told_once_where_it_is_and_with_its_folder_elsewhere(station: Station, project: Path) -> None:
    configure(project, WRONG["a misspelt option"])
    held_at_end_of_opencode(station, project)
    assert typed(station, "status").stdout.startswith(f"problem: 1 folder held back ({project}): ")
    there = typed(station, "doctor", "--json", cwd=project)
    assert {"option-misspelt"} == names(there.stdout) & {"option-misspelt", "folder-held"}
    elsewhere = typed(station, "doctor", "--json").stdout
    assert {"folder-held"} == names(elsewhere) & {"option-misspelt", "folder-held"}
    assert str(project) in elsewhere


def names(doctor: str) -> set[str]:
    return {one["name"] for one in json.loads(doctor)["findings"]}


def test_what_was_captured_before_the_mistake_is_sent_as_well_and_not_waited_for(
    station: Station, project: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(project, RIGHT)
    with hook(station) as process:
        show(process, project, asked(project, "ses_before"))
        assert process.end() == 0
    configure(project, WRONG["a misspelt option"])
    held_at_end_of_opencode(station, project)
    looks = count()

    def is_late(_: object) -> bool:
        assert next(looks) < LOOKS_MAX, "it waits for what cannot go"
        return False

    monkeypatch.setattr(_Flushing, "is_late", property(is_late))
    assert said(typed(station, "flush", "--json"), 1)["jobs"]["pending"] == 2
    assert LINE in typed(station, "status").stdout
    configure(project, RIGHT)
    assert LINE not in typed(station, "status").stdout + typed(station, "status", "-v").stdout
    assert said(typed(station, "flush", "--json"))["jobs"]["delivered"] == 4
    assert b"swordfish-4711" not in receiver.wire()


@pytest.mark.parametrize("named", ["OPENCODE_CONFIG", "the options that OpenCode handed over"])
def test_what_only_opencode_sees_is_mended_by_opencode_alone(station: Station, project: Path, named: str) -> None:
    other = station.home / "other.json"
    other.write_text(WRONG["a misspelt option"], "utf-8")
    if named == "OPENCODE_CONFIG":
        held_at_end_of_opencode(replace(station, variables={named: str(other)}), project)
    else:
        held_at_end_of_opencode(station, project, redactPattern=["swordfish"])
    assert typed(station, "status").stdout.startswith("problem: 1 folder held back")
    assert json.loads(typed(station, "flush", "--json").stdout)["jobs"]["delivered"] == 0
    assert typed(station, "status").stdout.startswith("problem: 1 folder held back")


def test_a_folder_is_not_said_to_be_right_where_only_the_shell_cannot_see_its_files(
    station: Station, project: Path
) -> None:
    configure(project, WRONG["a misspelt option"])
    held_at_end_of_opencode(station, project)
    blind = replace(station, variables={"OPENCODE_DISABLE_PROJECT_CONFIG": "true"})
    assert said(typed(blind, "status", "--json"))["mended_folders"] == 0
    assert json.loads(typed(blind, "flush", "--json").stdout)["jobs"]["delivered"] == 0
    assert LINE in typed(blind, "status").stdout


def test_a_mistake_that_no_hook_has_seen_yet_is_the_first_line_of_status(station: Station) -> None:
    configure(station.home, WRONG["a misspelt option"])
    told = typed(station, "status", "--check")
    assert told.returncode == 1
    assert told.stdout.startswith(f'problem: nothing of this folder is captured or sent: "redactPattern" from {LINE}: ')


def test_a_value_that_does_not_count_is_no_good_news(station: Station) -> None:
    configure(station.home, '{"plugin": [["./opencode-helicone.js",\n {"maxRetries": "many"}]]}')
    told = typed(station, "status", "--check")
    assert (told.returncode, told.stdout.splitlines()[0][:36]) == (1, "problem: a setting does not count: m")


@pytest.mark.opencode
def test_with_the_real_opencode_a_mended_option_needs_no_new_one(
    opencode: OpenCode, receiver: Receiver, tmp_path: Path
) -> None:
    # Everything lies where OpenCode looks for it by itself.
    station = Station(opencode.home, receiver.url, variables={"XDG_CONFIG_HOME": "", "XDG_DATA_HOME": ""})
    assert typed(station, "install-plugin").returncode == 0
    plugin = station.home / ".config" / "opencode" / "plugin" / "opencode-helicone.js"

    def options(name: str) -> list[object]:
        return [[plugin.as_uri(), {name: ["swordfish"]}]]

    project = opencode.project(tmp_path / "project", plugin=options("redactPattern"))
    assert opencode.run(project, "[[script:hello]] Say hello", environ=station.environ).exit_code == 0
    told = typed(station, "status").stdout
    assert told.startswith(f"problem: 1 folder held back ({project}): "), told
    assert "redactPattern" in told
    assert typed(station, "flush", "--timeout", "5").returncode == 1
    (project / "opencode.json").write_text(json.dumps({"plugin": options("redactPatterns")}))
    assert typed(station, "status").stdout.startswith("waiting: 1 folder held back until now")
    assert said(typed(station, "flush", "--json"))["jobs"]["delivered"] == 2
    assert typed(station, "status", "--check").returncode == 0
    assert b"Say hello" in receiver.wire()
