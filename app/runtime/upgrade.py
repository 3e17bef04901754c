"""Upgrade in place: a running process notices a new installation and replaces itself by execv.

    files on disk change ─▶ and are at rest ─▶ and start (`app ready`) ─▶ after the present item: execv

The process keeps its id, its pipe and its place under whoever started it; nobody relays for anybody. Files that change
under a running process do not concern it: it has loaded what it needs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from app import __version__

PACKAGE = Path(__file__).parent.parent
SUFFIXES = {".py", ".sql", ".js"}
LOOK_S = 1.0
"""Between two looks at the files. Equal in two of them: whoever installs has finished."""
WHOLE_LOOK_S = 30.0
"""A look at the folders alone costs a twentieth, and sees files come and go, which is how installers write. What is
written over in place is seen by the next whole look."""
AT_REST_S = 2.0
"""A folder that was changed a moment ago may be changed again with the same time."""
READY_S_MAX = 30.0
PAUSE_S_MAX = 300.0
"""Between two tries of a program that does not start; the pause doubles up to this."""

Stamp: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""(name, inode, modification time, size) of each file: installers write new files, or link older ones."""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """The program on disk, as it told about itself."""

    version: str
    schema: int
    """The newest one that it knows. One that knows less than we do cannot go on with our ledger."""


class Upgrade:
    """Whether it is time for this process to make way; `schema` is the newest one that it knows."""

    def __init__(
        self, schema: int, package: Path = PACKAGE, ask: Callable[[], NewVersion | None] | None = None
    ) -> None:
        self._schema = schema
        self._package = package
        self._ask = installed if ask is None else ask
        self._seen = stamp(package)
        # A process that was started in the middle of an installation may not be what lies there now.
        self._began = self._seen if version_on_disk(package) == __version__ else None
        self._look_s = self._whole_look_s = float("-inf")
        self._places = _places_of(package, self._seen)
        self._places_seen: tuple[object, ...] | None = None
        self._ask_s = float("-inf")
        self._pause_s = LOOK_S

    @property
    def is_untouched(self) -> bool:
        """Whether what lies on disk is still what this process was started from."""
        return self._began is not None and stamp(self._package) == self._began

    def new_version(self, now_s: float, tell: Callable[[str], None]) -> NewVersion | None:
        """The program to make way for; None when there is none, or none that can go on, which is told once.

        `now_s` is of a clock that never goes back. Cheap: it looks every LOOK_S at the most.
        """
        if now_s - self._look_s < LOOK_S:
            return None
        self._look_s = now_s
        before = self._seen
        if not self._are_folders_as_before(now_s):
            self._seen = stamp(self._package)
            self._places = _places_of(self._package, self._seen)
        if self._seen != before:
            self._ask_s, self._pause_s = now_s, LOOK_S
            return None
        if self._seen is None or self._seen == self._began or now_s < self._ask_s:
            return None
        new = self._ask()
        if new is not None and new.schema >= self._schema and stamp(self._package) == self._seen:
            return new
        if self._pause_s == LOOK_S:
            why = "does not start" if new is None else f"is {new.version}, which does not know this ledger"
            tell(f"what was installed {why}: version {__version__} goes on")
        self._ask_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        return None

    def _are_folders_as_before(self, now_s: float) -> bool:
        """Whether no file can have come, gone or been replaced since the last look; False for a whole look in time."""
        try:
            found = [place.stat() for place in self._places]
        except OSError:
            found = []
        seen = tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)
        is_at_rest = all(abs(time.time() - one.st_mtime) > AT_REST_S for one in found)
        if found and is_at_rest and seen == self._places_seen and now_s - self._whole_look_s < WHOLE_LOOK_S:
            return True
        self._places_seen, self._whole_look_s = seen, now_s
        return False


def _places_of(package: Path, stamp: Stamp | None) -> list[Path]:
    """The folders of these files, and the file that tells the version."""
    return [package / "__init__.py", *{Path(name).parent for name, *_ in stamp or ()}]


def stamp(package: Path) -> Stamp | None:
    """Changes whenever the program is installed anew. None while it is not there."""
    try:
        files = sorted(path for path in package.rglob("*") if path.suffix in SUFFIXES)
        facts = [(str(path), path.stat()) for path in files]
    except OSError:
        return None
    return tuple((name, one.st_ino, one.st_mtime_ns, one.st_size) for name, one in facts) or None


def version_on_disk(package: Path) -> str:
    """'' when it cannot be told."""
    try:
        found = re.search(r'^__version__ = "(.+)"$', (package / "__init__.py").read_text("utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return ""
    return found[1] if found else ""


def installed() -> NewVersion | None:
    """Ask the program on disk, in a process of its own; None when it does not start."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "app", "ready"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=READY_S_MAX,
            check=True,
        )
        version, schema = done.stdout.decode().split()
        return NewVersion(version, int(schema))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def pipe_of(messages: Sequence[bytes]) -> tuple[int, int]:
    """(descriptor, process id): a pipe's end from which these can be read, then EOF, and the child that feeds it.

    So it is in memory only, also while nobody reads; a pipe alone holds 64 KiB. The child ends with the last byte, or
    with its reader. The caller must have no other thread.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            for piece in messages:
                left = memoryview(piece)
                while left:
                    left = left[os.write(writer, left) :]
        finally:
            os._exit(0)
    os.close(writer)
    return reader, child


def become_hook(inbox: int, children: Iterable[int]) -> None:
    """Become the installed program's hook, which reads the descriptor `inbox` and then standard input.

    `children` are process ids that it is to wait for.

    This call and `ready` are what versions know of each other: both stay as they are. Raises OSError.
    """
    os.set_inheritable(inbox, True)  # noqa: FBT003 - positional only
    arguments = [sys.executable, "-I", "-m", "app", "hook", "--inbox", str(inbox), *map(str, children)]
    os.execv(sys.executable, arguments)  # noqa: S606 - no shell is wanted


def become_anew() -> None:
    """Become the installed program, started as this process was. Raises OSError."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted


def is_replaced(mine: str, wanted: str) -> bool:
    """Whether a worker ends because another is wanted; both are signatures: a version, a blank, settings.

    What an older program wants does not concern it: else the two would end each other's workers by turns.
    """
    if wanted in {"", mine}:
        return False
    numbers = [[int(digits) for digits in re.findall(r"\d+", one.split(" ", 1)[0])] for one in (mine, wanted)]
    return not numbers[1] or numbers[1] >= numbers[0]
