"""What the real `opencode run` costs with our plugin, and with the hooks of TruLens, beside none: all in turn.

Processor time is OpenCode's own, and that of all that it starts besides: its tools, our hook, TruLens' hooks. The
worker of either is left out: it goes on when OpenCode has ended, and serves any number of them. TruLens comes from
PyPI, into an environment of its own; where that fails, its rows are missing. OpenCode comes from npm, into the tests'
cache.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.sources.opencode import install
from benchmarks.table import Row
from tests.support.opencode import OpenCode, installed_opencode
from tests.support.processes import Station

PROMPT = "[[script:parallel]] work"
"""Two answers, the first with two tool calls."""
PAIRS = 20
PAIRS_OF_TRULENS = 5
"""Each takes several times as long."""
GOAL = 1.01
NONE, OURS, TRULENS = "without a plugin", "our plugin", "TruLens' hooks"
PACKAGE = "trulens-apps-opencode"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LEFT_S = 5.0
"""What is still there so long after the first run is a worker, and stays."""
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Taken:
    own_s: float
    """Processor time of OpenCode itself."""
    all_s: float
    """With what it has started."""
    wall_s: float


@dataclass(slots=True)
class Runner:
    """One OpenCode with a home and a project of its own."""

    opencode: OpenCode
    project: Path
    environ: Mapping[str, str]
    lasting: set[int] = field(default_factory=set)

    def run(self) -> Taken:
        began_s = time.perf_counter()
        process = self.opencode.start(self.project, "run", PROMPT, environ=self.environ)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall_s = time.perf_counter() - began_s
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
        own, below = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return Taken(own / TICKS_PER_S, (own + below) / TICKS_PER_S + self._orphans_s(), wall_s)

    def _orphans_s(self) -> float:
        """Of those that outlived it, until they end."""
        used_s, until_s = 0.0, time.monotonic() + LEFT_S
        while left := children() - self.lasting:
            for pid in left:
                ended, _, used = os.wait4(pid, os.WNOHANG)
                used_s += used.ru_utime + used.ru_stime if ended else 0
            if time.monotonic() > until_s:
                self.lasting |= left
            time.sleep(0.02)
        return used_s


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as benchmarks/table.py says
    taken: dict[str, list[tuple[Taken, Taken]]] = {}
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-run-") as name, ExitStack() as stack:
        runners = {NONE: plain(stack, Path(name) / "none"), OURS: with_ours(stack, Path(name) / "ours")}
        theirs = None if short else with_trulens(stack, Path(name) / "trulens")
        if theirs is not None:
            runners[TRULENS] = theirs
        stack.enter_context(reaping())
        for number in range(2 if short else PAIRS + 1):
            once: dict[str, Taken] = {}
            for who in list(runners) if number % 2 else list(runners)[::-1]:
                if who != TRULENS or number <= PAIRS_OF_TRULENS:
                    once[who] = runners[who].run()
            if number:  # the first of each makes a store and what OpenCode installs
                pairs = {who: (took, once[NONE]) for who, took in once.items() if who != NONE}
                for who, pair in pairs.items():
                    taken.setdefault(who, []).append(pair)
    for who, of_it in taken.items():
        yield from _rows(who, of_it)


def _rows(who: str, taken: list[tuple[Taken, Taken]]) -> Iterator[Row]:
    goal = GOAL if who == OURS else None
    for name, told, bound in (
        ("own_s", "processor time of OpenCode itself", goal),
        ("all_s", "the same with all that it starts", None),
        ("wall_s", "wall time", None),
    ):
        pairs = [(getattr(one, name), getattr(other, name)) for one, other in taken]
        mine, least = (sorted(column)[len(column) // 2] for column in zip(*pairs, strict=True))
        ratios = [one / other for one, other in pairs]
        yield Row(f"opencode run with {who}: {told}", NONE, ratios, bound, note=f"{mine:.2f} s, beside {least:.2f} s")


def plain(stack: ExitStack, base: Path) -> Runner:
    opencode = stack.enter_context(installed_opencode(base))
    return Runner(opencode, opencode.project(base / "project"), {})


def with_ours(stack: ExitStack, base: Path) -> Runner:
    """Its worker is one that somebody runs, as in `plain` and TruLens' case there is none to be measured."""
    runner = plain(stack, base)
    install.install(install.Project(runner.project), python=sys.executable)
    runner.opencode.spare_installation(runner.project / ".opencode")
    station = Station(base, "http://127.0.0.1:9")
    ours = {name: value for name, value in station.environ.items() if "HELICONE" in name}
    runner.environ = {**ours, "PATH": f"{Path(sys.executable).parent}:{runner.opencode.environ['PATH']}"}
    return runner


def with_trulens(stack: ExitStack, base: Path) -> Runner | None:
    """Its hooks note each event in a journal; where that goes by its own default, no server is asked."""
    runner = plain(stack, base)
    scratch = base / "environment"
    for command in ([sys.executable, "-m", "venv", str(scratch)], [f"{scratch}/bin/pip", "install", "-q", PACKAGE]):
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return None
    runner.environ = {
        "PATH": f"{scratch / 'bin'}:{runner.opencode.binary.parent}:{runner.opencode.environ['PATH']}",
        "TRULENS_JOURNAL_DIR": str(base / "journal"),
    }
    subprocess.run(
        [f"{scratch}/bin/trulens-client-hooks", "install", "opencode", "--project"],
        cwd=runner.project,
        env={**runner.opencode.environ, **runner.environ},
        capture_output=True,
        check=True,
    )
    runner.opencode.spare_installation(runner.project / ".opencode")
    return runner


@contextmanager
def reaping() -> Iterator[None]:
    """Whoever outlives the process that started it becomes a child of this one; those that are left are ended."""
    before = children()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        for pid in children() - before:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found
