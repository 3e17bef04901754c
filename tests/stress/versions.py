"""Both forms of the plugin in more versions of the real OpenCode than the suite has time for: `make versions`.

Of each version one run with tools must end as without the plugin, and arrive whole, once.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import get_args

from app.sources.opencode.install import Flavour, Global, fits, install
from tests.support.opencode import CONFIG, installed_opencode
from tests.support.processes import Station, worker
from tests.support.servers import receiving
from tests.system.test_end_to_end import expect_delivered
from tests.system.test_opencode_versions import PROMPT, VERSIONS

MORE = ("1.2.4", "1.14.34", *VERSIONS)


def check(version: str, flavour: Flavour, base: Path) -> None:
    """Raises AssertionError."""
    (base / "station").mkdir()
    with receiving(base / "receiver.db") as receiver:
        station = Station(base / "station", receiver.url)
        ours = {name: value for name, value in station.environ.items() if "HELICONE" in name}
        with installed_opencode(base / "without", version) as opencode:
            project = opencode.project(base / "project")
            without = opencode.run(project, PROMPT, environ=ours)
        with installed_opencode(base / "with", version) as opencode, worker(station):
            install(Global(opencode.home / CONFIG), python=sys.executable, flavour=flavour)
            assert opencode.run(project, PROMPT, environ=ours) == without
            expect_delivered(opencode, project, station, receiver)


def main() -> None:
    for version in MORE:
        major, minor, patch = map(int, version.split("."))
        for flavour in get_args(Flavour):
            if fits(flavour, (major, minor, patch)):
                with tempfile.TemporaryDirectory() as folder:
                    check(version, flavour, Path(folder))
                print(f"OpenCode {version}, {flavour}: as without the plugin, all arrived", flush=True)


if __name__ == "__main__":
    main()
