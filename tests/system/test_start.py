"""Starts under bad conditions: Ctrl-C while it loads, no home folder, a file where the spool should be.

Each command says one line, without a traceback, and ends with the exit code that docs/commands.md has for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.processes import PROJECT, Station, hook
from tests.support.recorded import export, export_files

COMMANDS = [
    ["config", "show"],
    ["status"],
    ["flush", "--timeout", "0"],
    ["worker"],
    ["import", "session.json"],
    ["preview", "session.json"],
    ["doctor"],
    ["dead", "list"],
    ["dead", "show", "abc"],
    ["dead", "retry", "--all", "--yes"],
    ["dead", "purge", "--all", "--yes"],
    ["verify"],
    ["audit"],
    ["recall", "ses_x", "--dry-run"],
    ["migrate"],
]
"""Those that use the queue, or look for it."""
INTERRUPTED = """
import signal, sys
event, name = sys.argv[1:3]
del sys.argv[1:3]
def press(happening, arguments):
    if happening == event and (not name or arguments[0] == name):
        signal.raise_signal(signal.SIGINT)
sys.addaudithook(press)
from app.__main__ import main
main()
"""
"""Has Ctrl-C pressed whenever something happens, of which Python tells its audit hooks."""
HOMELESS = """
import pwd
def nobody(_): raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = nobody
from app.__main__ import main
main()
"""
"""As a container runs under a user id of which /etc/passwd knows nothing."""


@pytest.fixture
def station(tmp_path: Path) -> Station:
    (tmp_path / "home").mkdir()
    made = Station(tmp_path / "home", "http://127.0.0.1:9")
    (made.home / "session.json").write_bytes(export_files("a_simple")[0].read_bytes())
    return made


def started(station: Station, program: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=station.environ,
        cwd=station.home,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def named(arguments: list[str]) -> str:
    return "-".join(arguments[:2])


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["app.cli.main", "typer", "app.settings", "app.ledger"])
def test_ctrl_c_while_a_command_loads_ends_it_quietly(station: Station, module: str) -> None:
    done = started(station, INTERRUPTED, "import", module, "status")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("command", [one for one in COMMANDS if one[0] != "config"], ids=named)
def test_ctrl_c_while_the_ledger_is_opened_ends_it_without_a_traceback(station: Station, command: list[str]) -> None:
    done = started(station, INTERRUPTED, "sqlite3.connect", "", *command)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_not_meant_for_a_hook_that_still_loads(station: Station) -> None:
    line = {"v": 1, "type": "open", "directory": PROJECT, "options": {}, "session": "ses_1", "spool": None}
    done = started(station, INTERRUPTED, "import", "app.capture.daemon", "hook", stdin=json.dumps(line) + "\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (station.spool / "ledger.db").exists()


# --- no home folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*COMMANDS, ["hook"], ["receiver"], ["backfill"]], ids=named)
def test_without_a_home_folder_each_command_says_so(station: Station, command: list[str]) -> None:
    homeless = replace(station, variables={"HOME": "", "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": ""})
    done = started(homeless, HOMELESS, *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("opencode-helicone: HOME is not set")
    assert done.stderr.count("\n") == 1


def test_folders_that_are_named_need_no_home(station: Station) -> None:
    done = started(replace(station, variables={"HOME": ""}), HOMELESS, "import", "session.json")
    assert (done.returncode, done.stderr) == (0, "")
    doctor = started(replace(station, variables={"HOME": ""}), HOMELESS, "doctor", "-v")
    assert "HOME" not in doctor.stderr
    assert "dead letters" in doctor.stdout


# --- a file where the spool should be --------------------------------------------------------------------------------


@pytest.mark.parametrize("below", [".", "spool"])
@pytest.mark.parametrize("command", [one for one in COMMANDS if one[0] not in {"config", "doctor"}], ids=named)
def test_a_spool_that_is_a_file_is_named(station: Station, command: list[str], below: str) -> None:
    file = station.home / "file"
    file.write_text("mine")
    variables = {"OPENCODE_HELICONE_SPOOL_DIRECTORY": str(file / below)}
    done = replace(station, variables=variables).run(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"opencode-helicone: {file} is a file: name a folder, or move the file away\n"
    assert file.read_text() == "mine"


def test_doctor_finds_a_spool_that_is_a_file(station: Station) -> None:
    file = station.home / "file"
    file.write_text("mine")
    here = replace(station, variables={"OPENCODE_HELICONE_SPOOL_DIRECTORY": str(file)})
    done = here.run("doctor", "--json")
    found = {one["check"]: (one["level"], one["found"]) for one in json.loads(done.stdout)["findings"]}
    assert (done.returncode, done.stderr) == (1, "")
    assert found["spool"] == ("problem", f"{file} is a file: name a folder, or move the file away")
    assert found["ledger"][0] == "problem"


def test_a_hook_whose_spool_is_a_file_tells_of_it_in_the_usual_one(station: Station) -> None:
    file = station.home / "file"
    file.write_text("mine")
    usual = Station(station.home, station.endpoint, variables={"OPENCODE_HELICONE_SPOOL_DIRECTORY": ""})
    with hook(replace(station, variables={"OPENCODE_HELICONE_SPOOL_DIRECTORY": str(file)})) as process:
        process.show(export("a_simple"))
        assert process.end() == 0
    told = json.loads(usual.run("status", "--json").stdout)["refused"]
    assert [one["reason"] for one in told] == ["PlaceError"]
    logged = (station.home / "data" / "opencode-helicone" / "logs" / "hook.log").read_text("utf-8")
    assert f"{file} is a file" in logged
    assert file.read_text() == "mine"
