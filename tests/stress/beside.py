"""Our plugin beside others that many people have, in the real OpenCode: `make beside`.

A run with tools must end as with the other plugin alone, and arrive whole, once.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from app.sources.opencode.install import Global, install
from tests.support.opencode import CONFIG, install_package, installed_opencode
from tests.support.processes import Station, worker
from tests.support.servers import receiving
from tests.system.test_end_to_end import expect_delivered
from tests.system.test_opencode_versions import PROMPT

OTHERS = {
    ("oh-my-opencode", "4.19.4"): "Sisyphus",
    ("oh-my-opencode-slim", "2.2.24"): "orchestrator",
    ("@tarquinen/opencode-dcp", "3.1.14"): "dcp.jsonc",
}
"""By name and version what shows that it was loaded: its agent, or a file that it writes beside the configuration."""
QUIET = {"OMO_DISABLE_POSTHOG": "1", "OMO_SEND_ANONYMOUS_TELEMETRY": "0"}
"""What oh-my-opencode would tell its makers is no part of this."""


def check(other: Path, sign: str, base: Path) -> None:
    """Raises AssertionError."""
    (base / "station").mkdir()
    with receiving(base / "receiver.db") as receiver:
        station = Station(base / "station", receiver.url)
        environ = {name: value for name, value in station.environ.items() if "HELICONE" in name} | QUIET
        with installed_opencode(base / "without") as opencode:
            project = opencode.project(base / "project", plugin=[other.as_uri()])
            without = opencode.run(project, PROMPT, environ=environ)
            assert sign in [*without.errors.split(), *(path.name for path in (opencode.home / CONFIG).iterdir())]
        with installed_opencode(base / "with") as opencode, worker(station):
            install(Global(opencode.home / CONFIG), python=sys.executable)
            assert opencode.run(project, PROMPT, environ=environ) == without
            expect_delivered(opencode, project, station, receiver)


def main() -> None:
    for (name, version), sign in OTHERS.items():
        with tempfile.TemporaryDirectory() as folder:
            check(install_package(name, version), sign, Path(folder))
        print(f"beside {name} {version}: as with that one alone, all arrived", flush=True)


if __name__ == "__main__":
    main()
