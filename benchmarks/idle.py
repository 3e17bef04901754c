"""What hook and worker cost while nothing happens: processor time in percent of one core, and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.table import Row

CPU_PERCENT = {"hook": 0.1, "worker": 0.35}
MEGABYTES = {"hook": 42.0, "worker": 55.0}
SETTLE_S, SAMPLE_S, SAMPLES = 8.0, 20.0, 3
"""The first is for what a start does; each sample is of so many seconds."""
NOTICE = {"v": 2, "n": 1, "type": "notice", "session": "ses_1", "why": "idle", "options": {"worker": "external"}}


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as benchmarks/table.py says
    settle_s, sample_s, samples = (2.0, 3.0, 1) if short else (SETTLE_S, SAMPLE_S, SAMPLES)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environ = {name: text for name, text in os.environ.items() if name in ("PATH", "LANG", "PYTHONPATH")}
        environ |= {
            "HOME": str(home),
            "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(home / "spool"),
            "HELICONE_API_KEY": "placeholder",
            "HELICONE_ENDPOINT": "http://127.0.0.1:9",
        }
        processes = {name: _started(name, environ) for name in ("hook", "worker")}
        try:
            line = {**NOTICE, "directory": str(home)}
            hook = processes["hook"]
            assert hook.stdin is not None
            hook.stdin.write(json.dumps(line).encode() + b"\n")
            hook.stdin.flush()
            time.sleep(settle_s)
            percents: dict[str, list[float]] = {name: [] for name in processes}
            for _ in range(samples):
                before = {name: _cpu_s(process.pid) for name, process in processes.items()}
                began_s = time.monotonic()
                time.sleep(sample_s)
                took_s = time.monotonic() - began_s
                for name, process in processes.items():
                    percents[name].append(100 * (_cpu_s(process.pid) - before[name]) / took_s)
            for name, process in processes.items():
                yield from _rows(name, percents[name], _megabytes(process.pid))
        finally:
            for process in processes.values():
                with process:
                    process.kill()


def _started(name: str, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "app", name],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _cpu_s(pid: int) -> float:
    """Of all its threads, in nanoseconds' precision: a clock tick is more than an idle process uses in a second."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (resident,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(resident.split()[1]) / 1000


def _rows(name: str, percents: Sequence[float], megabytes: float) -> Iterator[Row]:
    yield Row(f"idle {name}: processor time", "in % of one core", percents, CPU_PERCENT[name])
    yield Row(f"idle {name}: resident memory", "in MB", [megabytes], MEGABYTES[name])
