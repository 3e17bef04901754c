"""The real OpenCode in the versions that people have: a run is as without the plugin, and arrives whole, once."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.sources.opencode.install import Global, Project
from app.sources.opencode.install import install as install_plugin
from tests.support.checkout import DATA
from tests.support.opencode import CONFIG, VERSION, OpenCode, installed_opencode
from tests.support.processes import Station, worker
from tests.support.servers import Receiver, receiving
from tests.system.test_end_to_end import expect_delivered

pytest_plugins = ["tests.support.opencode"]
pytestmark = pytest.mark.opencode

VERSIONS = ("1.0.185", "1.1.65", "1.2.27", "1.3.2", "1.14.41", "1.15.4", "1.17.11", VERSION, "1.18.34")
"""Up to 1.1 they keep JSON files, and `opencode run` ends at idle: what is read then is what the files hold."""
PROMPT = "[[script:tools]] do it"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver.db") as running:
        yield running


def install(station: Station, opencode: OpenCode) -> str:
    """As a person does it: `install-plugin` for the OpenCode that is on PATH. What it says."""
    path = os.pathsep.join([str(opencode.binary.parent), os.environ["PATH"]])
    config = str(opencode.home / CONFIG.parent)
    here = replace(station, variables={"PATH": path, "XDG_CONFIG_HOME": config})
    done = here.run("install-plugin", "--global")
    assert done.returncode == 0, done.stderr
    return done.stdout


OTHERS = [pytest.param(version, marks=pytest.mark.matrix) for version in VERSIONS if version != VERSION]


@pytest.mark.parametrize("version", [VERSION, *OTHERS])
def test_a_run_is_as_without_the_plugin_and_arrives_once(tmp_path: Path, receiver: Receiver, version: str) -> None:
    (tmp_path / "station").mkdir()
    station = Station(tmp_path / "station", receiver.url)
    ours = {name: value for name, value in station.environ.items() if "HELICONE" in name}
    # Two homes and one project, so that nothing in the output differs by itself.
    with installed_opencode(tmp_path / "without", version) as opencode:
        project = opencode.project(tmp_path / "project")
        without = opencode.run(project, PROMPT, environ=ours)
    assert without.exit_code == 0
    with installed_opencode(tmp_path / "with", version) as opencode, worker(station):
        assert f"for OpenCode {version} " in install(station, opencode)
        assert opencode.run(project, PROMPT, environ=ours) == without
        expect_delivered(opencode, project, station, receiver)


# --- two copies at once


def command_of(file: Path) -> str:
    """The command that an installed plugin starts, as it stands there."""
    found = re.search(r'"command": (\[.*?\])', file.read_text("utf-8"))
    assert found is not None
    return found[1]


FIRST, SECOND = (DATA / "plugins" / name for name in ("first.js", "second.js"))
"""The plugin as it was while it still chose the spool itself and asked the options whether it is enabled, and as it was
while it still read the sessions and sent snapshots of them."""
COPIES = {
    "both new": {},
    "a first one of the project": {"project": FIRST},
    "a first one of the user": {"user": FIRST},
    "a second one of the project": {"project": SECOND},
    "a second one of the user": {"user": SECOND},
    "both second": {"user": SECOND, "project": SECOND},
}
QUICK_COPIES = ("both new", "a second one of the project")
"""Two of a kind, and two that differ."""


@pytest.mark.parametrize(
    "old",
    [
        pytest.param(old, id=name, marks=[] if name in QUICK_COPIES else pytest.mark.matrix)
        for name, old in COPIES.items()
    ],
)
def test_two_copies_bring_everything_once_and_the_options_of_both_count(
    opencode: OpenCode, receiver: Receiver, tmp_path: Path, old: dict[str, Path]
) -> None:
    (tmp_path / "station").mkdir()
    station = Station(tmp_path / "station", receiver.url)
    project, config = opencode.project(tmp_path / "project"), tmp_path / "config"
    for name, scope, pattern in (
        ("user", Global(config), r"swordfish-\d+"),
        ("project", Project(project), r"marlin-\d+"),
    ):
        file = install_plugin(scope, python=sys.executable).path
        if name in old:
            file.write_text(old[name].read_text("utf-8").replace('["opencode-helicone", "hook"]', command_of(file)))
        opencode.spare_installation(file.parent.parent)
        listed = {"plugin": [[file.as_uri(), {"redactPatterns": [pattern]}]]}
        (file.parent.parent / "opencode.json").write_text(json.dumps(listed))
    ours = {name: value for name, value in station.environ.items() if "HELICONE" in name}
    path = os.pathsep.join([str(Path(sys.executable).parent), opencode.environ["PATH"]])
    environ = {**ours, "PATH": path, "OPENCODE_CONFIG_DIR": str(config)}
    with worker(station):
        done = opencode.run(project, "[[script:hello]] of swordfish-1 and marlin-2", environ=environ)
        assert done == opencode.plain
        expect_delivered(opencode, project, station, receiver)
    assert b"swordfish-1" not in receiver.wire()
    assert b"marlin-2" not in receiver.wire()
    assert b"[REDACTED] and [REDACTED]" in receiver.wire()
