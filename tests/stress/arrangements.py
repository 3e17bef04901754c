"""Each of the nine options, wherever people write them, on several versions of the real OpenCode: what happens.

    python -m tests.stress.arrangements [VERSION...]

Each arrangement has a home of its own, in which OpenCode answers five prompts: one that is delivered, one that the
server fails, two that have to wait, and one after `enable` became false. What is looked at is what arrives at the
receiver, what lies in the spool, and, of the two options whose effect takes hours (`flushInterval` and `maxSpoolAge`),
what `config show` and the ledger say. Exits with 1 where an option had no effect. `tests/system/test_arrangements.py`
plays the most telling ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.capture.targets import folder
from app.database.open import open_ledger
from app.ledger import counts as ledger_counts
from app.ledger import destinations, folders
from app.ledger.counts import Counts
from app.runtime import clock
from app.runtime.liveness import present
from app.runtime.spool import Spool
from app.sources.opencode import install
from tests.support.opencode import CONFIG, VERSION, OpenCode, installed_opencode
from tests.support.servers import Receiver, api_key, receiving
from tests.support.waiting import wait_until

VERSIONS = ("1.14.41", VERSION, "1.18.34")
WAIT_S = 120
MARK = "MARK-1234567"
PAUSE_MS = 600_000
LONG_MS = 60_000
"""Longer than any pause by default, and shorter than what `retryBaseDelay` makes of it."""
JOBS = 8
"""Four prompts, each in a session of its own: its turn, and the session."""
PROMPT = f"[[script:hello]] {MARK} " + " ".join(map(str, range(2_000)))


@dataclass(frozen=True, slots=True)
class Ground:
    """A home with a project in it, in which OpenCode runs with our plugin, and where its turns go."""

    opencode: OpenCode
    receiver: Receiver
    base: Path
    key: str

    @property
    def project(self) -> Path:
        return self.base / "project"

    @property
    def spool(self) -> Spool:
        return Spool(self.base / "chosen-spool")

    @property
    def environ(self) -> dict[str, str]:
        """What a person exports before starting OpenCode."""
        return {
            **self.opencode.environ,
            "HELICONE_ENDPOINT": self.receiver.url,
            "HELICONE_API_KEY": self.key,
            "OPENCODE_HELICONE_CONFIRM": "off",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), self.opencode.environ["PATH"]]),
        }

    def install(self, scope: install.Global | install.Project) -> Path:
        return install.install(scope, python=sys.executable).path

    def globally(self) -> Path:
        return self.install(install.Global(self.opencode.home / CONFIG))

    def in_project(self) -> Path:
        path = self.install(install.Project(self.project))
        if not (self.project / ".opencode" / "node_modules").exists():
            self.opencode.spare_installation(self.project / ".opencode")
        return path

    @property
    def options(self) -> dict[str, Any]:
        """All but `enable`, with other values than by default."""
        return {
            "redactPatterns": ["MARK-[0-9]+"],
            "sessionPathPrefix": "/arranged",
            "spoolDirectory": str(self.spool.path),
            "maxSpoolSize": 1_000,
            "maxSpoolAge": 3_600_001,
            "maxRetries": 0,
            "flushInterval": 5_001,
            "retryBaseDelay": PAUSE_MS,
        }


Arrange = Callable[[Ground, Mapping[str, Any]], dict[str, str]]
"""Writes the options where they are to stand; may do so again with others. The variables that OpenCode is to have."""


def write(path: Path, configuration: Mapping[str, Any], *, before: str = "", after: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(path.read_text()) if path.exists() and not before else {}
    path.write_text(before + json.dumps({**held, "$schema": "x", **configuration}, indent=2) + after)


def readme(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    ground.in_project()
    write(ground.project / "opencode.json", {"plugin": [["./.opencode/plugin/opencode-helicone.js", options]]})
    return {}


def absolute_path_with_comments(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    path = ground.in_project()
    file = ground.project / ".opencode" / "opencode.jsonc"
    write(file, {"plugin": [[str(path), options]]}, before="// {file:nothing}\n/* two\n */ ", after=" // end\n")
    file.write_text(file.read_text().replace("\n  ]\n}", ",\n  ],\n}"))
    return {}


def file_url_from_a_subdirectory(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    path = ground.in_project()
    write(ground.project / "opencode.json", {"plugin": [[path.as_uri(), options]]})
    (ground.project / "sub").mkdir(exist_ok=True)
    return {"PWD": str(ground.project / "sub")}


def global_file(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    path = ground.globally()
    write(ground.opencode.home / CONFIG / "opencode.json", {"plugin": [[str(path), options]]})
    return {}


def package_in_plugins(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    ground.globally()
    write(ground.project / "opencode.json", {"plugins": [{"package": "opencode-helicone", "options": options}]})
    return {}


def block_of_the_plugin_before(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    ground.globally()
    write(ground.project / "opencode.json", {"plugins": {"opencode-helicone-async-telemetry": options}})
    return {}


def block_in_the_global_file(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    ground.in_project()
    write(ground.opencode.home / CONFIG / "opencode.json", {"plugins": {"opencode-helicone": options}})
    return {}


def two_copies(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    ground.globally()
    return readme(ground, options)


def file_of_a_variable(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    path = ground.globally()
    write(ground.base / "elsewhere.json", {"plugin": [[str(path), options]]})
    return {"OPENCODE_CONFIG": str(ground.base / "elsewhere.json")}


def folder_of_a_variable(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    base = ground.base / "elsewhere"
    (base / "plugin").mkdir(parents=True, exist_ok=True)
    if not (base / "node_modules").exists():
        ground.opencode.spare_installation(base)
    ground.install(install.Global(base))
    write(base / "opencode.json", {"plugin": [["./plugin/opencode-helicone.js", options]]})
    return {"OPENCODE_CONFIG_DIR": str(base)}


def text_of_a_variable(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    path = ground.in_project()
    return {"OPENCODE_CONFIG_CONTENT": json.dumps({"plugin": [[str(path), options]]})}


def by_hand(ground: Ground, options: Mapping[str, Any]) -> dict[str, str]:
    """Outside of the folders that OpenCode looks through: then it does hand the options over."""
    path = ground.project / "tools" / "opencode-helicone.js"
    path.parent.mkdir(exist_ok=True)
    path.write_text(install.render(install.SOURCE.read_text(), install.COMMAND_BY_PATH))
    write(ground.project / "opencode.json", {"plugin": [["./tools/opencode-helicone.js", options]]})
    return {}


ARRANGEMENTS: tuple[Arrange, ...] = (
    readme,
    absolute_path_with_comments,
    file_url_from_a_subdirectory,
    global_file,
    package_in_plugins,
    block_of_the_plugin_before,
    block_in_the_global_file,
    two_copies,
    file_of_a_variable,
    folder_of_a_variable,
    text_of_a_variable,
    by_hand,
)


REFUSED = {package_in_plugins, block_of_the_plugin_before, block_in_the_global_file}
"""OpenCode below 1.18 does not start where `plugins` stands in its configuration; 1.14.41 to 1.17.11 were tried."""


@contextmanager
def ground(base: Path, version: str) -> Iterator[Ground]:
    with receiving(base / "receiver.db") as receiver, installed_opencode(base, version) as opencode:
        opencode.project(base / "project")
        place = Ground(opencode, receiver, base, api_key())
        try:
            yield place
        finally:
            end_workers(place)


def end_workers(place: Ground) -> None:
    if (place.spool.path / "ledger.db").exists():
        with closing(open_ledger(place.spool.path)) as db:
            for one in destinations.destinations(db):
                destinations.want_worker(db, one.id, "none")
        wait_until(lambda: not present(place.spool.workers), WAIT_S)


def is_refused(place: Ground, arrange: Arrange) -> bool:
    arrange(place, place.options)
    finished = place.opencode.run(place.project, "[[script:hello]] refused", environ=place.environ)
    return finished.exit_code != 0 and "Unrecognized key: plugins" in finished.errors


def missing(place: Ground, arrange: Arrange) -> list[str]:
    """The options that had no effect."""
    variables = arrange(place, place.options)
    directory = Path(variables.get("PWD", place.project))
    environ = {**place.environ, **variables}
    effects: dict[str, bool] = {}
    with place.opencode.serve(directory, environ=environ) as server:
        delivered = server.new_session()
        server.prompt(delivered, PROMPT)
        wait_until((place.spool.path / "ledger.db").exists, WAIT_S)
        wait_until(lambda: counts(place).delivered == 2, WAIT_S)  # the turn, and the session's own
        effects |= after_delivery(place)
        effects |= as_shown(place, directory, environ)
        place.receiver.fault({"status": 500, "times": 1}, {"status": 429, "times": 1_000})
        server.prompt(server.new_session(), "[[script:hello]] refused once")
        wait_until(lambda: counts(place).dead or counts(place).retrying, WAIT_S)
        effects["maxRetries"] = counts(place).dead == 1
        server.prompt(server.new_session(), PROMPT)
        wait_until(lambda: pause(place) is not None, WAIT_S)
        effects["retryBaseDelay"] = (pause(place) or 0) > LONG_MS
        server.prompt(server.new_session(), PROMPT)  # nothing of it is sent: it can only lie there
        wait_until(lambda: jobs(place) == JOBS, WAIT_S)
        effects["maxSpoolSize"] = happens(lambda: counts(place).body_bytes <= place.options["maxSpoolSize"])
    wait_until(lambda: not present(place.spool.hooks), WAIT_S)
    before = (len(place.receiver.sends()), jobs(place))
    environ |= arrange(place, {**place.options, "enable": False})
    finished = place.opencode.run(directory, f"[[script:hello]] disabled {MARK}", environ=environ)
    assert finished.exit_code == 0, finished.errors
    wait_until(lambda: is_stopped(place, directory), WAIT_S)
    wait_until(lambda: not present(place.spool.hooks), WAIT_S)
    effects["enable"] = (len(place.receiver.sends()), jobs(place)) == before
    return [option for option in (*place.options, "enable") if not effects.get(option)]


def counts(place: Ground) -> Counts:
    with closing(open_ledger(place.spool.path)) as db:
        return ledger_counts.counts(db)


def jobs(place: Ground) -> int:
    found = counts(place)
    return found.pending + found.delivered + found.dead + found.superseded + found.dropped


def happens(predicate: Callable[[], object]) -> bool:
    try:
        wait_until(predicate, WAIT_S)
    except AssertionError:
        return False
    return True


def pause(place: Ground) -> int | None:
    """For how many milliseconds the destination is left alone."""
    with closing(open_ledger(place.spool.path)) as db:
        (one,) = destinations.destinations(db)
    return None if one.probe_ms is None else one.probe_ms - clock.now_ms()


def is_stopped(place: Ground, directory: Path) -> bool:
    with closing(open_ledger(place.spool.path)) as db:
        return folders.captured_since_ms(db, folder(db, str(directory))) == folders.NEVER_MS


def after_delivery(place: Ground) -> dict[str, bool]:
    wire = place.receiver.wire()
    files = [path for path in place.spool.path.rglob("*") if path.is_file()]
    return {
        "redactPatterns": b"[REDACTED] 0 1 2" in wire
        and not any(MARK.encode() in text for text in (wire, *(path.read_bytes() for path in files))),
        "sessionPathPrefix": all(row.path.startswith("/arranged/ses_") for row in place.receiver.rows()),
        "spoolDirectory": not (place.opencode.home / ".local" / "share" / "opencode-helicone").exists(),
    }


def as_shown(place: Ground, directory: Path, environ: Mapping[str, str]) -> dict[str, bool]:
    """A person's look at the settings in the folder, and which worker is wanted."""
    command = [sys.executable, "-m", "app", "config", "show", "--json"]
    env = {**environ, "PWD": str(directory)}
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    shown = {one["name"]: one["value"] for one in json.loads(done.stdout)["settings"]}
    with closing(open_ledger(place.spool.path)) as db:
        (one,) = destinations.destinations(db)
    wanted = f"('flushInterval', {place.options['flushInterval']})"
    return {
        "flushInterval": shown["flushInterval"] == place.options["flushInterval"] and wanted in one.worker_wanted,
        "maxSpoolAge": shown["maxSpoolAge"] == place.options["maxSpoolAge"],
    }


def told(place: Ground, arrange: Arrange, version: str) -> tuple[bool, str]:
    """Whether it is as it should be, and in words."""
    if arrange in REFUSED and tuple(map(int, version.split("."))) < (1, 18):
        right = is_refused(place, arrange)
        return right, f"OpenCode {'refuses' if right else 'takes'} this configuration itself"
    without = missing(place, arrange)
    return not without, f"without effect: {', '.join(without)}" if without else "all nine options count"


def main(versions: list[str]) -> int:
    failures = 0
    for version in versions:
        for arrange in ARRANGEMENTS:
            with tempfile.TemporaryDirectory() as base:
                try:
                    with ground(Path(base), version) as place:
                        right, words = told(place, arrange, version)
                except Exception:  # noqa: BLE001 - the others are to be seen, too
                    right, words = False, traceback.format_exc()
            failures += not right
            print(f"{version} {arrange.__name__}: {words}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(VERSIONS)))
