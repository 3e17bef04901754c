"""Liveness: tells who is alive; each process holds a locked file for as long as it lives.

The lock is the truth and ends with its process, however that ends. Process ids are not asked: they recycle, and in
a container they mean something else.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.runtime.filesystem import PRIVATE_FILE, private_directory
from app.runtime.spool import Spool

SUFFIX = ".lock"
DRAFT = ".draft"
DRAFT_S_MAX = 3_600.0
"""A draft becomes a lock file within an instant; one as old as this belongs to a process killed in between."""
READ_AGAIN = 1_000
TAKE_AGAIN_S = (0.001, 0.002, 0.004, 0.008, 0.016)
"""Pauses between tries to take a lock: whoever only looks at it (`is_taken`) holds it for an instant."""


@dataclass(frozen=True, slots=True)
class Presence:
    """A process that is alive now: the name of its file and what it says about itself."""

    name: str
    says: Mapping[str, object]


class Announced:
    """The file of this very process; `say` replaces what it tells the others."""

    def __init__(self, folder: Path) -> None:
        private_directory(folder)
        self.name = uuid.uuid4().hex
        self._path = folder / f"{self.name}{SUFFIX}"
        # Locked before it gets its name: a file under its final name that is not locked belongs to a dead process.
        draft = self._path.with_suffix(DRAFT)
        self._descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            draft.rename(self._path)
        except OSError:  # who tries again every second must leave nothing behind
            os.close(self._descriptor)
            draft.unlink(missing_ok=True)
            raise
        for path in folder.glob(f"*{DRAFT}"):
            _remove_old(path)

    def say(self, facts: Mapping[str, object]) -> None:
        data = json.dumps(facts, sort_keys=True).encode() + b"\n"
        # The first line counts; what is left of a longer one before it goes only afterwards.
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))

    def is_there(self) -> bool:
        """Whether others can still see it: not when its folder was removed."""
        return self._path.exists()

    def withdraw(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _remove_old(draft: Path) -> None:
    with suppress(FileNotFoundError):  # it has become a lock file, or somebody else was faster
        if time.time() - draft.stat().st_mtime > DRAFT_S_MAX:
            draft.unlink()


def present(folder: Path) -> list[Presence]:
    """Everybody alive in `folder`; files of the dead are removed on the way."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []:
        says = _ask(path)
        if says is not None:
            found.append(Presence(path.stem, says))
    return found


def open_sessions(hooks: Path, *, but: str = "") -> set[object]:
    """The OpenCode sessions that live hooks have open, and may complete; `but` is the name of one that is not asked."""
    says = [hook.says.get("sessions") for hook in present(hooks) if hook.name != but]
    return {session for sessions in says if isinstance(sessions, list) for session in sessions}


def _ask(path: Path) -> Mapping[str, object] | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _hear(descriptor)
        path.unlink(missing_ok=True)
        return None
    finally:
        os.close(descriptor)


def _hear(descriptor: int) -> Mapping[str, object]:
    """What the other one says; nothing before its first `say`."""
    for _ in range(READ_AGAIN):
        line, end, _rest = os.pread(descriptor, 1 << 20, 0).partition(b"\n")
        if not line:
            break
        with suppress(ValueError):
            says = json.loads(line) if end else None
            if isinstance(says, dict):
                return says
        # In the middle of a `say`, which ends within microseconds.
    return {}


class ExclusiveLock:
    """A lock that one process at a time can hold: `take` and `release` as often as wanted."""

    def __init__(self, path: Path) -> None:
        private_directory(path.parent)
        self._path = path
        self._descriptor: int | None = None

    def take(self, sleep: Callable[[float], object] = time.sleep) -> bool:
        """False when somebody else has it."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE)
        for pause_s in TAKE_AGAIN_S:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sleep(pause_s)
            else:
                self._descriptor = descriptor
                return True
        os.close(descriptor)
        return False

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_taken(path: Path) -> bool:
    """Whether somebody holds the `Only` lock of this path. Those who look do not take each other for a holder."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class LiveHook:
    destination: int | None
    """None until it has said so."""
    sessions: int
    """OpenCode sessions that it owns."""
    backlog: int
    """Lines and sessions that it has not worked off."""


@dataclass(frozen=True, slots=True)
class LiveWorker:
    destination: int | None
    automatic: bool
    """Started by a hook."""


def read_hooks(spool: Spool) -> tuple[LiveHook, ...]:
    return tuple(
        LiveHook(
            _number(hook.says.get("destination")),
            len(sessions) if isinstance(sessions := hook.says.get("sessions"), list) else 0,
            _number(hook.says.get("backlog")) or 0,
        )
        for hook in present(spool.hooks)
    )


def read_workers(spool: Spool) -> tuple[LiveWorker, ...]:
    return tuple(
        LiveWorker(_number(worker.says.get("destination")), worker.says.get("automatic") is True)
        for worker in present(spool.workers)
    )


def _number(said: object) -> int | None:
    """With care: a process of another version may say something else."""
    return said if isinstance(said, int) else None
