"""The plugin's lines, as they come out of the pipe: split, bounded, and read as messages."""

from __future__ import annotations

import json
import os
import select
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from app.errors import AppError

PROTOCOL = 2
WHYS = ("busy", "idle", "error", "late", "renamed", "reverted", "deleted")
"""What has happened to the session of a notice; late: a message was finished after its session was idle."""
FIRST_PROTOCOL = {"open": "busy", "snapshot": "idle", "deleted": "deleted"}
"""What a plugin that was loaded before the last installation says, and which notice that is."""
LINE_BYTES_MAX = 64 << 20
QUEUE_BYTES_MAX = 64 << 20
LINE_COST_BYTES = 1 << 10
"""What a line counts for at the least: a million empty ones must not wait unbounded either."""
CHUNK_BYTES = 1 << 20
TOO_LONG = "too long"
CUT_OFF = "cut off"


class LineError(AppError):
    """A line that cannot be used. The message is a reason without any of its text."""


class Inbox:
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
        self._thread = threading.Thread(target=self._read, name="inbox", daemon=True)
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
    """A line for another inbox; a refused one is told as such."""
    if isinstance(line, LineError):
        line = json.dumps({"v": PROTOCOL, "type": "refused", "session": "", "reason": str(line)}).encode()
    return line + b"\n"


@dataclass(frozen=True, slots=True)
class Line:
    """One message of the plugin."""

    type: str
    """notice: something of the session has changed; trouble; refused."""
    directory: str
    options: Mapping[str, object]
    session: str
    why: str = ""
    """Of a notice: one of WHYS."""
    number: int | None = None
    """By which it is acknowledged; a plugin of the first protocol counts nothing."""
    reason: object = None
    """Of trouble, and of what was refused; it may be anything."""
    held_since_ms: int | None = None
    """Of a line that one hook leaves to the next: since when the settings of its folder could not be used."""

    def as_bytes(self) -> bytes:
        """The line that says the same to the next hook."""
        facts = {"session": self.session, "directory": self.directory, "options": self.options}
        said = {"n": self.number, "why": self.why, "reason": self.reason, "heldSince": self.held_since_ms}
        told = {name: value for name, value in said.items() if value not in (None, "")}
        return json.dumps({"v": PROTOCOL, "type": self.type, **facts, **told}).encode()


def read_line(data: bytes) -> Line:
    """Raises LineError. Python's own parser: it takes lone surrogates, which real transcripts hold.

    What a plugin of the first protocol says is a notice, too: the transcript in it is not looked at.
    """
    try:
        message = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise LineError("not JSON") from None
    if not isinstance(message, dict):
        raise LineError("not an object")
    version, said = message.get("v"), message.get("type")
    if version not in (1, PROTOCOL):
        raise LineError("unknown version")
    why = message.get("why") if version == PROTOCOL else FIRST_PROTOCOL.get(str(said))
    fields = {
        "type": "notice" if version == 1 and why else said,
        "directory": message.get("directory", ""),
        "session": message.get("root") if version == 1 and said == "snapshot" else message.get("session"),
    }
    for name, value in fields.items():
        if not isinstance(value, str):
            raise LineError(f"no {name}")
        if name != "directory" and has_half_a_character(value):
            raise LineError(f"{name} holds half a character")
        if name != "directory" and "\0" in value:
            raise LineError(f"{name} holds a NUL")  # where SQLite's JSON functions end a text
    if fields["type"] not in {"notice", "trouble", "refused"} or (fields["type"] == "notice" and why not in WHYS):
        raise LineError("unknown type")
    options = message.get("options") or {}
    if not isinstance(options, dict):
        raise LineError("options are no object")
    number, held_since_ms = (
        value if type(value) is int else None for value in (message.get("n"), message.get("heldSince"))
    )
    return Line(
        **fields,
        options=options,
        why=str(why) if fields["type"] == "notice" else "",
        number=number,
        reason=message.get("reason"),
        held_since_ms=held_since_ms,
    )


def has_half_a_character(text: str) -> bool:
    """Lone surrogates, which JSON can carry and no file name or database can."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _no_constant(_: str) -> None:
    raise ValueError
