"""Finds the installed versions of OpenCode, as the programs themselves say."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.sources.opencode.folders import home

ASK_S_MAX = 60.0
"""On a busy machine OpenCode took 20 s to say it."""
IN_HOME = (".opencode/bin", ".bun/bin", ".local/bin", ".local/share/mise/shims", ".npm-global/bin")
IN_SYSTEM = ("/usr/local/bin", "/opt/homebrew/bin")
"""Where OpenCode's own installer, Bun, npm, mise and Homebrew put it; the shell of a desktop may not know them all."""

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Program:
    path: Path
    version: Version | None
    """None when it did not say so in time, or said something else."""

    def __str__(self) -> str:
        """For a person."""
        return f"OpenCode {'.'.join(map(str, self.version)) if self.version else 'of unknown version'} ({self.path})"


def programs(
    environ: Mapping[str, str], *, in_system: Sequence[str] = IN_SYSTEM, ask_s_max: float = ASK_S_MAX
) -> list[Program]:
    """Programs on PATH and in the usual places, each file once. Runs each of them."""
    found: dict[Path, Path] = {}
    for folder in _folders(environ, in_system):
        path = folder / "opencode"
        if os.access(path, os.X_OK) and path.is_file():
            found.setdefault(path.resolve(), path)
    return [Program(path, _version(path, environ, ask_s_max)) for path in found.values()]


def _folders(environ: Mapping[str, str], in_system: Sequence[str]) -> Iterator[Path]:
    named = environ.get("PATH", os.defpath).split(os.pathsep)
    below = [str(home(environ) / folder) for folder in IN_HOME]
    # A relative folder would be the project's, whose programs are not ours to run.
    return (Path(folder) for folder in (*named, *below, *in_system) if folder.startswith("/"))


def _version(path: Path, environ: Mapping[str, str], ask_s_max: float) -> Version | None:
    try:
        done = subprocess.run(
            [path, "--version"],
            cwd="/",
            env={**environ, "PWD": "/", "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ask_s_max,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.fullmatch(rb"\s*v?(\d{1,6})\.(\d{1,6})\.(\d{1,6})(-.*)?\s*", done.stdout)
    version = (int(found[1]), int(found[2]), int(found[3])) if found else None
    return version if version and any(version) else None  # a build of one's own calls itself 0.0.0
