"""The real OpenCode in the versions that people have: a run is as without the plugin, and arrives whole, once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.opencode import CONFIG, OpenCode, installed_opencode
from tests.processes import Station, worker
from tests.servers import Receiver, receiving
from tests.test_end_to_end import expect_delivered

pytestmark = pytest.mark.opencode

WITHOUT_STORE = ("1.0.185", "1.1.65")
"""They keep JSON files, and `opencode run` ends at idle: what the plugin could not hand over by then is nowhere."""
WITH_STORE = ("1.2.27", "1.3.2", "1.14.41", "1.18.33")
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


@pytest.mark.parametrize("version", [*WITHOUT_STORE, *WITH_STORE])
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
        if version in WITH_STORE:
            expect_delivered(opencode, project, station, receiver)
