"""Commands as a person types them, in this very process: for tests of many commands, where starting takes the time."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

import pytest

from app.cli import main
from tests.support.processes import Station


def typed(
    station: Station, *arguments: str, stdin: TextIO | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What `station.run` does, without a process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code: object = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        Path(os.devnull).open() as nothing,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        for name in set(os.environ) - set(station.environ) - {"PYTEST_CURRENT_TEST"}:
            patch.delenv(name)
        for name, value in station.environ.items():
            patch.setenv(name, value)
        patch.chdir(cwd or station.home)
        patch.setattr(sys, "argv", ["opencode-helicone", *arguments])
        patch.setattr(sys, "stdin", stdin or nothing)
        try:
            main.main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    texts = [stream.buffer.getvalue().decode("utf-8") for stream in (out, err)]
    return subprocess.CompletedProcess(arguments, code, *texts)


class Interrupted(io.StringIO):
    """A terminal at which somebody presses Ctrl-C."""

    def isatty(self) -> bool:
        return True

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]  # as in the stubs of what it derives from
        assert size
        raise KeyboardInterrupt
