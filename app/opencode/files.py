"""The files of `opencode export`.

    {"info": {session}, "messages": [{"info": {…}, "parts": [{…}, …]}, …]}

One file is one session. A subagent's file belongs under the session whose task call names it, if that one's file is
in the same set: together they are a family, and a family is one snapshot. Only one family is held in memory at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.parse import parse
from app.shape import place
from app.transcript import Json

PIPE_BYTES = 64 * 1024
"""`opencode export` may cut its output at a multiple of this when it goes to a pipe (OpenCode 1.18.33)."""


FILE_BYTES_MAX = 512 << 20
"""Of one export; the longest sessions have a few. A wrong name (a device, a disk image) must not take all memory."""
TOO_LARGE = f"it is larger than {FILE_BYTES_MAX >> 20} MiB"


class ExportError(ValueError):
    """A file that is no export. The message says why, without any of its text."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a set."""

    name: str
    """As it was given."""
    data: bytes | None = None
    """What standard input held; None for a file, which is read when it is needed."""


@dataclass(frozen=True, slots=True)
class Export:
    """What a file holds, as far as finding families needs it."""

    file: File
    session: str
    parent: str | None
    directory: str | None
    updated_ms: int
    subagents: frozenset[str]
    """The sessions that its task calls name."""


def examine(file: File) -> Export:
    """Read a file and check all of it. Raises OSError, ExportError, TranscriptError."""
    entry = _entry(file)
    session = parse(_snapshot([entry])).session
    return Export(
        file=file,
        session=session.id,
        parent=session.parent_id,
        directory=session.directory,
        updated_ms=session.updated_ms,
        subagents=frozenset(_subagents(entry)),
    )


def families(exports: Iterable[Export]) -> list[tuple[Export, ...]]:
    """The root first, then those that belong under it. Each session must be there once."""
    by_session = {export.session: export for export in exports}
    called = {
        child.session
        for export in by_session.values()
        for child in _children(export, by_session)
        if child is not export
    }
    # Those that nobody calls come first, so that what is left for the others can only be a ring.
    found = []
    for root in sorted(by_session.values(), key=lambda export: export.session in called):
        family = _taken(root, by_session)
        if family:
            found.append(tuple(family))
    return found


def snapshot(family: Iterable[Export]) -> Json:
    """The whole family as the plugin would have sent it. Raises OSError, ExportError."""
    return _snapshot([_entry(export.file) for export in family])


def _children(export: Export, by_session: dict[str, Export]) -> list[Export]:
    named = (by_session[name] for name in sorted(export.subagents) if name in by_session)
    # A fork names its origin's subagents; they stay with the origin.
    return [child for child in named if child.parent in (None, export.session)]


def _taken(root: Export, left: dict[str, Export]) -> list[Export]:
    """The root and all under it, which are no longer left then."""
    taken = []
    ahead = [root]
    while ahead:
        export = ahead.pop()
        if left.pop(export.session, None) is not None:
            taken.append(export)
            ahead += _children(export, left)
    return taken


def _entry(file: File) -> dict[str, Json]:
    data = _read(file.name) if file.data is None else file.data
    if len(data) > FILE_BYTES_MAX:
        raise ExportError(TOO_LARGE)
    if not data:
        raise ExportError("it is empty")
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        hint = "; opencode export cuts its output when it goes to a pipe: write it to a file"
        cut = hint if len(data) % PIPE_BYTES == 0 else ""
        raise ExportError(f"it is not JSON at line {error.lineno}, column {error.colno}{cut}") from None
    except (ValueError, RecursionError):
        raise ExportError("it is not JSON") from None
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list) or "info" not in value:
        raise ExportError("it is JSON, but not of opencode export: an object with info and messages")
    return {"info": value["info"], "messages": value["messages"]}


def _read(name: str) -> bytes:
    with Path(name).open("rb") as opened:
        if os.fstat(opened.fileno()).st_size > FILE_BYTES_MAX:
            raise ExportError(TOO_LARGE)
        return opened.read(FILE_BYTES_MAX + 1)  # a device has no size


def _snapshot(entries: list[dict[str, Json]]) -> dict[str, Json]:
    root = place(entries[0]["info"], "info").identity("id")
    sessions: list[Json] = [*entries]
    return {"root": root, "sessions": sessions}


def _subagents(entry: dict[str, Json]) -> Iterable[str]:
    """Of an entry that was parsed already."""
    for _, message in place(entry, "").items("messages"):
        parts = message.get("parts") if isinstance(message, dict) else None
        for part in parts if isinstance(parts, list) else ():
            state = part.get("state") if isinstance(part, dict) and part.get("type") == "tool" else None
            metadata = state.get("metadata") if isinstance(state, dict) else None
            name = metadata.get("sessionId") if isinstance(metadata, dict) else None
            if isinstance(name, str):
                yield name
