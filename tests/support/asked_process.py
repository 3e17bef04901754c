"""A receiver in a process of its own, whose interpreter the sending, killing and counting does not slow down.

with asked_process("tests.support.lean_receiver", "1", "0.2", "0", "0") as asked:
asked.url
asked.ask("under_way")
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.checkout import ROOT


@dataclass(frozen=True, slots=True)
class AskedProcess:
    """It answers each line with one of JSON."""

    process: subprocess.Popen[str]
    url: str

    def ask(self, question: str = "") -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextmanager
def asked_process(module: str, *arguments: str) -> Iterator[AskedProcess]:
    """It says its URL first, and then a line of JSON for each line that it reads."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        try:
            yield AskedProcess(process, process.stdout.readline().strip())
        finally:
            process.kill()
