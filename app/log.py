"""The spool's logs: dated lines that many processes append to, bounded in size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from app.db import PRIVATE_FILE, private_directory

BYTES_MAX = 1_000_000
"""Of one file; the one before it is kept as `.1`, so a log takes twice this at the most."""
LINE_MAX = 1_000


def append(path: Path, message: str, now_ms: int) -> None:
    """Add one dated line. Whoever passes a message vouches that it holds no transcript text and no key.

    One `write` in append mode, so that lines of several processes do not mix. A log that cannot be written is given
    up without a word: there is nobody else to tell, and the work must go on.
    """
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds")
    line = f"{stamp} {message[:LINE_MAX]}".replace("\r", " ").replace("\n", " ") + "\n"
    with suppress(OSError, ValueError), opened(path) as descriptor:
        os.write(descriptor, line.encode("utf-8", "replace"))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """The log's descriptor, for appending; a full log is put aside first. Raises OSError."""
    private_directory(path.parent)
    if path.exists() and path.stat().st_size > BYTES_MAX:
        path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
