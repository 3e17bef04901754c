"""Logs of the spool: dated lines that many processes append to, bounded in size.

    hook.log, worker.log, plugin.log    BYTES_MAX, and as much in the one before it, `.1`

So all logs of a spool stay under the 10 MB that they may have in total.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.runtime import clock
from app.runtime.filesystem import PRIVATE_FILE, identity, private_directory
from app.runtime.terminal import visible

BYTES_MAX = 1_000_000
"""Of one file; the one before it is kept as `.1`, so a log takes twice this at the most, and a line of each writer."""
PATIENCE = 200
PAUSE_S = 0.01
"""How often, and how far apart, a writer looks whether another one is done with putting a full log aside."""
LINE_MAX = 1_000
REPEAT_MS = 600_000
"""The same message of the same process is written once in this time; then how often it came."""
MESSAGES_MAX = 100
"""That a process remembers, to tell which are repeats."""


@dataclass(slots=True)
class _Message:
    since_ms: int
    """When it was written last; before that, when it came first."""
    is_written: bool = False
    unsaid: int = 1
    """How often it came since it was written last."""


_messages: dict[tuple[Path, str], _Message] = {}
_lock = threading.RLock()
"""A worker writes from many threads; and a folder of logs that is found open is a warning while a line is written."""


def append(path: Path, message: str, now_ms: int) -> None:
    """Add one dated line. Whoever passes a message vouches that it holds no transcript text and no key.

    A message that this process has written in the last REPEAT_MS is only counted; the count is written with the first
    message after that time, or at the end of the process. A log that cannot be written is tried again with the next
    message, and is given up without a word: there is nobody else to tell, and the work must go on.
    """
    message = visible(message.replace("\r", " ").replace("\n", " "))[:LINE_MAX]
    with _lock:
        for key, one in list(_messages.items()):
            if 0 <= now_ms - one.since_ms < REPEAT_MS:
                continue
            if one.unsaid:
                _say(key, one, now_ms)
            else:
                del _messages[key]
        if (path, message) in _messages:
            _messages[path, message].unsaid += 1
        else:
            _forget_down_to(MESSAGES_MAX - 1, now_ms)
            _messages[path, message] = _Message(now_ms)
        for key, one in list(_messages.items()):
            if not one.is_written:
                _say(key, one, now_ms)


def _forget_down_to(size: int, now_ms: int) -> None:
    while len(_messages) > size:
        oldest = next(iter(_messages))
        _say(oldest, _messages.pop(oldest), now_ms)


def settle(now_ms: int) -> None:
    """Write what was only counted, where there still is a folder for it."""
    with _lock:
        for key, one in list(_messages.items()):
            if key[0].parent.is_dir():
                _say(key, one, now_ms)


@atexit.register
def _settle_at_exit() -> None:
    settle(clock.now_ms())


def _say(key: tuple[Path, str], one: _Message, now_ms: int) -> None:
    path, message = key
    if not one.unsaid:
        return
    times = "once" if one.unsaid == 1 else f"{one.unsaid} times"
    counted = "" if one.unsaid == 1 and not one.is_written else f" (repeated {times})"
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds")
    line = f"{stamp} {message}{counted}\n".encode("utf-8", "replace")
    with suppress(OSError, ValueError), opened(path) as descriptor:
        # One `write` in append mode, so that lines of several processes do not mix.
        if os.write(descriptor, line) == len(line):
            one.since_ms, one.is_written, one.unsaid = now_ms, True, 0


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The log's descriptor, for appending; a full log is put aside first. Raises OSError."""
    private_directory(path.parent)
    descriptor = _open(path)
    try:
        if os.fstat(descriptor).st_size > BYTES_MAX:
            _put_aside(path, descriptor)
            os.close(descriptor)
            descriptor = _open(path)
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, PRIVATE_FILE)


def _put_aside(path: Path, descriptor: int) -> None:
    """Rename the full log, unless another writer has done so: its new one must not replace what is kept as `.1`.

    Waits for a writer that is at it, which is three calls to the system: a writer that went on meanwhile would fill
    the full log as far as the other one is kept from running. But not for ever: it may have been stopped.
    """
    for _ in range(PATIENCE):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(PAUSE_S)
    else:
        return
    try:
        status = os.fstat(descriptor)
        if identity(path) == (status.st_dev, status.st_ino):
            path.replace(path.with_name(path.name + ".1"))
    finally:
        # A process that was forked in between has the descriptor as well, and would keep the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)


class _Lines(logging.Handler):
    """Warnings and errors of libraries, and of `app.runtime.filesystem`, as lines of a log."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        said = str(record.msg)  # without its arguments: the number of a task would make each line another one
        if record.exc_info and record.exc_info[1] is not None:
            said = f"{said}: {type(record.exc_info[1]).__name__} at {where(record.exc_info[1])}"
        append(self._path, f"{record.name}: {said}", int(record.created * 1000))


def where(error: BaseException) -> str:
    """The line that raised it, to be logged in place of its message, which may quote anything."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{Path(place[0].filename).name}:{place[0].lineno}" if place else "an unknown place"


def carry_warnings(path: Path) -> None:
    """Take over Python's own `logging`: standard error has no bound and collapses no repeats."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Lines) or type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.addHandler(_Lines(path))
