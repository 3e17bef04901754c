"""`doctor` beside the real OpenCode, with a session in its store: nothing is wrong there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operations.test_faults import names
from tests.support.opencode import OpenCode
from tests.support.processes import Station
from tests.support.typed_commands import typed

pytest_plugins = ["tests.support.opencode"]
pytestmark = [pytest.mark.opencode, pytest.mark.slow]


def test_beside_the_real_opencode_there_is_no_fault(opencode: OpenCode, tmp_path: Path) -> None:
    assert opencode.run(opencode.project(tmp_path / "project"), "[[script:hello]] Say hello").exit_code == 0
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "opencode").symlink_to(opencode.binary)
    variables = {
        "PATH": f"{home}/bin:/usr/bin:/bin",
        "XDG_DATA_HOME": str(opencode.data.parent),
        "OPENCODE_HELICONE_MAX_SPOOL_SIZE": "1000000",
    }
    station = Station(home, "http://127.0.0.1:9", variables=variables)
    assert typed(station, "install-plugin").returncode == 0
    assert names(station) == []
    assert "OpenCode 1." in typed(station, "doctor", "-v").stdout
