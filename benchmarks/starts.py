"""What a command's start costs, in processor time: beside a bare interpreter that imports what any command needs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from app.database.open import open_ledger
from benchmarks.table import Row

BARE = "import typer, pydantic_settings, sqlite3"
GOALS = {"--version": 1.0, "status": 1.3, "hook": 1.2}


def cpu_s(arguments: Sequence[str], environ: Mapping[str, str], *, stdin: bytes = b"") -> float:
    """User and system time of one process, from its start to its end."""
    reading, writing = os.pipe()
    os.write(writing, stdin)
    os.close(writing)
    with subprocess.Popen(arguments, env=environ, stdin=reading, stdout=subprocess.DEVNULL) as process:
        os.close(reading)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{arguments} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as benchmarks/table.py says
    with tempfile.TemporaryDirectory() as folder:
        environ = environment(Path(folder))
        with closing(open_ledger(Path(environ["OPENCODE_HELICONE_SPOOL_DIRECTORY"]))):
            pass
        bare = partial(cpu_s, [sys.executable, "-c", BARE], environ)
        for name, goal in GOALS.items():
            ours = partial(cpu_s, [sys.executable, "-m", "app", name], environ)
            yield _row(name, goal, ours, bare, 2 if short else 15)


def environment(home: Path) -> dict[str, str]:
    """Of a user who has nothing: neither settings nor an OpenCode."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "PYTHONPATH")}
    return {**kept, "HOME": str(home), "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(home / "spool")}


def _row(name: str, goal: float, ours: Callable[[], float], bare: Callable[[], float], times: int) -> Row:
    ours(), bare()  # the first of each fills Python's and the system's caches
    pairs = [(ours(), bare()) for _ in range(times)]
    ratios = [mine / floor for mine, floor in pairs]
    mine, floor = (min(column) * 1000 for column in zip(*pairs, strict=True))
    return Row(f"start: {name}", f"python -c '{BARE}'", ratios, goal, note=f"{mine:.0f} ms, bare {floor:.0f} ms, CPU")
