"""The samples in `deploy/` for systemd and launchd: a worker that they start, with their own command line."""

from __future__ import annotations

import plistlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.runtime.liveness import present
from tests.support.checkout import ROOT
from tests.support.processes import Station, catches
from tests.support.waiting import wait_until

UNIT = ROOT / "deploy" / "opencode-helicone.service"
AGENT = ROOT / "deploy" / "opencode-helicone.plist"
PROGRAM = Path(sys.executable).parent / "opencode-helicone"


def arguments_of(command: str) -> list[str]:
    program, *arguments = shlex.split(command)
    assert Path(program).name == PROGRAM.name
    return arguments


def unit_command() -> list[str]:
    (command,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)
    return arguments_of(command)


def agent_command() -> list[str]:
    return arguments_of(shlex.join(plistlib.loads(AGENT.read_bytes())["ProgramArguments"]))


def is_ready(station: Station, process: subprocess.Popen[bytes]) -> bool:
    return bool(present(station.spool / "workers")) and catches(process, signal.SIGTERM)


@pytest.mark.parametrize("arguments", [unit_command(), agent_command()], ids=["systemd", "launchd"])
def test_its_command_is_a_worker_that_ends_in_good_order_when_it_is_told(tmp_path: Path, arguments: list[str]) -> None:
    station = Station(tmp_path, "http://127.0.0.1:9")
    process = subprocess.Popen([PROGRAM, *arguments], env=station.environ, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_ready(station, process) or process.poll() is not None)
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text("utf-8").replace("%h/.local/bin/opencode-helicone", str(PROGRAM)), "utf-8")
    run = subprocess.run(
        [verify, "verify", "--user", str(unit)],
        env={"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, [line for line in run.stderr.splitlines() if UNIT.name in line]) == (0, []), run.stderr


def test_both_give_what_is_being_posted_the_time_to_end_and_start_it_again() -> None:
    agent = plistlib.loads(AGENT.read_bytes())
    unit = UNIT.read_text("utf-8")
    assert agent["KeepAlive"] is True
    assert "\nRestart=always\n" in unit
    assert f"\nTimeoutStopSec={agent['ExitTimeOut']}\n" in unit
    assert agent["Umask"] == 0o077
