"""What the README has a reader type, typed: on a machine where a session was delivered and another is dead."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.processes import Station, hook
from tests.support.recorded import export
from tests.support.servers import Receiver, receiving
from tests.support.typed_commands import typed

README = (ROOT / "README.md").read_text("utf-8")
ASKING = {"uninstall", "dead retry"}
"""They ask at a terminal; elsewhere they must be told `--yes`."""


def asked() -> list[str]:
    """The commands of the table of questions, and that of what leaves."""
    table = README.split("## Did it arrive?")[1].split("\n## ")[0]
    return [*re.findall(r"`([a-z][^`]*)`", table), *re.findall(r"`(opencode-helicone preview[^`]*)`", README)]


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    home = tmp_path_factory.mktemp("readme")
    with receiving(home / "receiver.db") as receiver:
        here = Station(home, receiver.url)
        _deliver(here, "a_simple")
        receiver.fault({"status": 413, "body": {"error": "request entity too large"}, "times": 1000})
        _deliver(here, "b_tools")
        receiver.fault()
        yield here


def _deliver(station: Station, recording: str) -> None:
    with hook(station) as process:
        process.show(export(recording), directory=str(station.home))
        assert process.end() == 0
    flushed = station.run("flush", "--timeout", "30")
    assert flushed.returncode == 0, flushed.stdout + flushed.stderr


def filled(line: str, station: Station) -> list[str]:
    """The words of a command of ours, with what the reader would put in the place of KEY, ID and SESSION."""
    listed = json.loads(station.run("dead", "list", "--json").stdout)
    (group, *_), (letter, *_) = listed["groups"], listed["letters"]
    meant = {"KEY": letter["key"][:12], "ID": group["fingerprint"], "SESSION": letter["session"]}
    words = [meant.get(word, word) for word in shlex.split(line.removeprefix("opencode-helicone "))]
    return [*words, "--yes"] if any(" ".join(words).startswith(one) for one in ASKING) else words


def test_each_question_has_its_answer(station: Station) -> None:
    lines = asked()
    assert len(lines) > 10
    # What changes comes last, as in the table; what stands in it without our name is short for it.
    for line in sorted(lines, key=lambda one: ("retry" in one, "recall" in one, "uninstall" in one)):
        words = filled(line, station) if "uninstall" not in line else ["uninstall", "--yes"]
        if words[0] in {"recall", "--json"}:  # needs to be told what, and has its own tests
            continue
        if "-f" in words or words == ["web"]:
            _watch(station, [*words, *(["--port", "0"] if words == ["web"] else [])])
            continue
        done = typed(station, *words)
        allowed = {0, 1} if words[0] in {"doctor", "audit"} else {0}  # no OpenCode is here; the dead were not delivered
        assert done.returncode in allowed, (line, done.returncode, done.stdout, done.stderr)
        assert done.stdout.strip(), line
        assert "Traceback" not in done.stderr, line


def _watch(station: Station, words: list[str]) -> None:
    """A command that goes on until somebody interrupts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *words],
        env={**station.environ, "PYTHONUNBUFFERED": "1"},
        cwd=station.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert first.strip()
    # That is how the pages end.
    assert process.returncode == (0 if words[0] == "web" else 130), (words, first, complaint)
    assert "Traceback" not in complaint


def test_install_to_status_is_three_lines_and_set_up_needs_no_question(tmp_path: Path) -> None:
    """Where nobody can be asked, each question is an option; the installation itself is `make minutes`."""
    block = re.findall(r"```console\n(.*?)```", README, re.DOTALL)[0]
    assert [line.split()[1:3] for line in block.splitlines()] == [
        ["uv", "tool"],
        ["opencode-helicone", "setup"],
        ["opencode-helicone", "status"],
    ]
    home = tmp_path / "home"
    home.mkdir()
    with receiving(tmp_path / "receiver.db") as receiver:
        station = Station(home, "", key="")
        key = home / "key"
        key.write_text(_key())
        done = typed(station, "setup", "--endpoint", receiver.url, "--key-file", str(key), "--mode", "full")
        assert done.returncode == 0, done.stdout + done.stderr
        assert _tiny_logs(receiver) == 1
        assert typed(station, "status").returncode == 0


def _key() -> str:
    return Station(Path("/"), "").key


def _tiny_logs(receiver: Receiver) -> int:
    return sum("doctor" in row.log.properties.get("Helicone-Session-Name", "") for row in receiver.rows())
