"""Reads the plugin's pipe in a thread of its own, and splits what comes into lines of bounded length."""

from __future__ import annotations

import json
import os
import select
import threading
from collections import deque
from contextlib import suppress

from app.capture.messages import PROTOCOL, LineError

LINE_BYTES_MAX = 64 << 20
QUEUE_BYTES_MAX = 64 << 20
LINE_COST_BYTES = 1 << 10
"""What a line counts for at the least: a million empty ones must not wait unbounded either."""
CHUNK_BYTES = 1 << 20
TOO_LONG = "too long"
CUT_OFF = "cut off"


class PipeReader:
    """Lines of a pipe, read by a thread of its own so that the pipe is empty even while a line is worked on.

    Of several descriptors, each is read to its end before the next one, as if they were one pipe.
    """

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = deque(descriptors)
        self._lines: deque[bytes | LineError] = deque()
        self._bytes = 0
        self._ended = False
        self._leaving = False
        self._held = bytearray()
        self._changed = threading.Condition()
        self._waker = os.pipe()
        self._thread = threading.Thread(target=self._read, name="pipe", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def ended(self) -> bool:
        """The other end is gone: what is here is all that will come."""
        return self._ended

    def next(self, timeout_s: float) -> bytes | LineError | None:
        """The next line; None when none came in time. Raises EOFError after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended, timeout_s)
            if not self._lines:
                if self._ended:
                    raise EOFError
                return None
            line = self._lines.popleft()
            self._bytes -= _cost_bytes(line)
            self._changed.notify_all()
            return line

    def leave(self) -> list[bytes]:
        """Stop reading; what was read and not taken: whoever reads these bytes, then the pipe, misses nothing."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
        os.write(self._waker[1], b"!")
        self._thread.join()
        for descriptor in self._waker:
            os.close(descriptor)
        return [*(_as_bytes(line) for line in self._lines), bytes(self._held)]

    def _read(self) -> None:
        try:
            self._read_lines()
        finally:
            # Also when the descriptor is no pipe any more: a terminal that was closed.
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read_lines(self) -> None:
        held = self._held
        too_long = False
        while chunk := self._chunk():
            *ended, rest = chunk.split(b"\n")
            for piece in ended:
                too_long = too_long or len(held) + len(piece) > LINE_BYTES_MAX
                self._put(LineError(TOO_LONG) if too_long else bytes(held) + piece)
                held.clear()
                too_long = False
            if too_long or len(held) + len(rest) > LINE_BYTES_MAX:
                too_long = True
                held.clear()
            else:
                held += rest
        if (held or too_long) and not self._descriptors:
            # OpenCode was killed while it wrote; what it meant to say is in its own store.
            held.clear()
            self._put(LineError(CUT_OFF))

    def _chunk(self) -> bytes:
        """b'' after the last descriptor's end, and when somebody leaves."""
        while self._descriptors:
            with suppress(OSError):
                readable, _, _ = select.select([self._descriptors[0], self._waker[0]], [], [])
                # The last one is left to whoever comes; the others end by themselves.
                if self._waker[0] in readable and len(self._descriptors) == 1:
                    return b""
                if self._descriptors[0] not in readable:
                    continue
                if chunk := os.read(self._descriptors[0], CHUNK_BYTES):
                    return chunk
            self._descriptors.popleft()
        return b""

    def _put(self, line: bytes | LineError) -> None:
        size = _cost_bytes(line)
        with self._changed:
            self._changed.wait_for(lambda: self._leaving or self._bytes == 0 or self._bytes + size <= QUEUE_BYTES_MAX)
            self._lines.append(line)
            self._bytes += size
            self._changed.notify_all()


def _cost_bytes(line: bytes | LineError) -> int:
    return max(len(line) if isinstance(line, bytes) else 0, LINE_COST_BYTES)


def _as_bytes(line: bytes | LineError) -> bytes:
    """A line for another process; a refused one is told as such."""
    if isinstance(line, LineError):
        line = json.dumps({"v": PROTOCOL, "type": "refused", "session": "", "reason": str(line)}).encode()
    return line + b"\n"
