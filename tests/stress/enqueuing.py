"""Turns that are played on a machine: a process that enqueues them, which may be killed at any time."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.checkout import ROOT
from tests.support.processes import Station


class Enqueuer:
    """A process that stores snapshots, and the thread that hands them to it, again after each of its deaths."""

    def __init__(
        self,
        station: Station,
        steps: Sequence[tuple[int, int]],
        output: Path,
        may_enqueue: Callable[[], bool],
        over: threading.Event,
    ) -> None:
        self._station = station
        self._steps = steps
        self._output = output
        self._may_enqueue = may_enqueue
        self._over = over
        self.stored = 0
        self.process = self._start()
        self.thread = threading.Thread(target=self._work, name="enqueuer")

    def _start(self) -> subprocess.Popen[str]:
        with self._output.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.support.enqueuer"],
                env=self._station.environ,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def _work(self) -> None:
        for session, turns in self._steps:
            while not self._may_enqueue() and not self._over.is_set():
                time.sleep(0.02)
            while not self._store(json.dumps({"session": session, "turns": turns})):
                if self._over.is_set():
                    return
                self.end()
                self.process = self._start()
            self.stored += 1
        self.end()

    def _store(self, line: str) -> bool:
        """Whether the process said that it is stored; if it died, it may be all the same."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            return self.process.stdout.readline().strip() == line
        return False

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):  # what it was told last, and did not read
                if pipe is not None:
                    pipe.close()
