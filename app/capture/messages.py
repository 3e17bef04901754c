"""Parses one line of the plugin: a notice, or the reason why it is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import AppError

PROTOCOL = 2
WHYS = ("busy", "idle", "error", "late", "renamed", "reverted", "deleted")
"""What has happened to the session of a notice; late: a message was finished after its session was idle."""
FIRST_PROTOCOL = {"open": "busy", "snapshot": "idle", "deleted": "deleted"}
"""What a plugin that was loaded before the last installation says, and which notice that is."""


class LineError(AppError):
    """A line that cannot be used. The message is a reason without any of its text."""


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
