"""Reads the files of `opencode export`.

    {"info": {session}, "messages": [{"info": {…}, "parts": [{…}, …]}, …]}

Those of OpenCode 2's `opencode session export` are taken as well: `translated` says what is made of them.

Lines around that (a status line, a log line, what `2>&1` brought along) are skipped. One file is one session. A
subagent's file belongs under the session whose task call names it, if that one's file is in the same set: together they
are a family, which `parse` reads as one. Only one family is held in memory at a time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import ExportError
from app.sources.opencode.rows import subagents
from app.sources.opencode.translated import exported
from app.transcript.fields import place
from app.transcript.model import Excerpt, Json, Transcript

PIPE_BYTES = 64 * 1024
"""`opencode export` may cut its output at a multiple of this when it goes to a pipe (OpenCode 1.18.33)."""


HEAD_CHARACTERS = 64 * 1024
"""As far as the JSON is looked for behind other lines."""
STARTS_MAX = 100
"""So many braces there are tried."""
_MARK = re.compile(r"\[redacted:[a-z-]+:[^\]]*\]")
"""What `opencode export --sanitize` writes in place of a text: what it was, and of which session, message or part."""

FILE_BYTES_MAX = 512 << 20
"""Of one export; the longest sessions have a few. A wrong name (a device, a disk image) must not take all memory."""
TOO_LARGE = f"it is larger than {FILE_BYTES_MAX >> 20} MiB"


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
    created_ms: int
    updated_ms: int
    subagents: frozenset[str]
    """The sessions that its task calls name."""
    is_sanitized: bool
    """Its texts are placeholders."""
    skipped: int
    """Characters around its JSON."""
    size_bytes: int = 0
    transcript: Transcript | None = field(default=None, repr=False)
    """Of this file alone, as long as that is kept."""


def parsed(told: Json, excerpt: Excerpt | None = None) -> Transcript:
    """As `parse` has it."""
    from app.transcript.parse import parse  # noqa: PLC0415 - whoever asks for titles or outlines alone does without

    return parse(told, excerpt)


def examine(file: File) -> Export:
    """Read a file and check all of it. Raises OSError, ExportError, TranscriptError."""
    entry, skipped, size_bytes = _entry(file)
    transcript = parsed(_snapshot([entry]))
    session = transcript.session
    return Export(
        file=file,
        session=session.id,
        parent=session.parent_id,
        directory=session.directory,
        created_ms=session.created_ms,
        updated_ms=session.updated_ms,
        subagents=frozenset(subagents(entry)),
        is_sanitized=any(_MARK.fullmatch(text) for text in (session.title or "", session.directory or "")),
        skipped=skipped,
        size_bytes=size_bytes,
        transcript=transcript,
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
    # Those that nobody calls come first, so that what is left for the others can only be a ring; of these the oldest:
    # what a fork has copied is known then.
    found = []
    for root in sorted(by_session.values(), key=lambda export: (export.session in called, export.created_ms)):
        family = _taken(root, by_session)
        if family:
            found.append(tuple(family))
    return found


def transcript_of(family: Sequence[Export]) -> Transcript:
    """The whole family's. Raises OSError, ExportError, TranscriptError."""
    kept = family[0].transcript
    return kept if kept is not None and len(family) == 1 else parsed(snapshot(family))


def snapshot(family: Iterable[Export]) -> Json:
    """The whole family, for `parse`. Raises OSError, ExportError."""
    return _snapshot([_entry(export.file)[0] for export in family])


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


def _entry(file: File) -> tuple[dict[str, Json], int, int]:
    """The session, how many characters around it were skipped, and the file's size in bytes."""
    data = _read(file.name) if file.data is None else file.data
    if len(data) > FILE_BYTES_MAX:
        raise ExportError(TOO_LARGE)
    if not data:
        raise ExportError("it is empty")
    value, skipped = _json(data)
    if not _is_export(value):
        raise ExportError("it is JSON, but not of opencode export: an object with info and messages")
    if _is_of_opencode_2(value):
        value = exported(value)
    return {"info": value["info"], "messages": value["messages"]}, skipped, len(data)


def _json(data: bytes) -> tuple[Any, int]:
    """The JSON in a file, and how many characters around it were skipped."""
    try:
        text = data.decode(json.detect_encoding(data), "surrogatepass")
    except ValueError:
        raise ExportError("it is not JSON") from None
    try:
        return json.loads(text), 0
    except json.JSONDecodeError as error:
        found = _among_lines(text)
        if found is not None:
            return found
        hint = "; opencode export cuts its output when it goes to a pipe: write it to a file"
        cut = hint if len(data) % PIPE_BYTES == 0 else ""
        raise ExportError(f"it is not JSON at line {error.lineno}, column {error.colno}{cut}") from None
    except (ValueError, RecursionError):
        raise ExportError("it is not JSON") from None


def _among_lines(text: str) -> tuple[Any, int] | None:
    """The first export that begins at a brace near the beginning."""
    decoder = json.JSONDecoder()
    at = -1
    for _ in range(STARTS_MAX):
        at = text.find("{", at + 1, HEAD_CHARACTERS)
        if at < 0:
            return None
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if _is_export(value):
            return value, len(text[:at].strip()) + len(text[end:].strip())
    return None


def _is_export(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("messages"), list) and "info" in value


def _is_of_opencode_2(value: Any) -> bool:
    """There a session has a location, and messages have a type and no info of their own."""
    has_location = isinstance(value["info"], dict) and "location" in value["info"]
    return has_location or any(
        isinstance(one, dict) and "type" in one and "info" not in one for one in value["messages"]
    )


def _read(name: str) -> bytes:
    with Path(name).open("rb") as opened:
        if os.fstat(opened.fileno()).st_size > FILE_BYTES_MAX:
            raise ExportError(TOO_LARGE)
        return opened.read(FILE_BYTES_MAX + 1)  # a device has no size


def _snapshot(entries: list[dict[str, Json]]) -> dict[str, Json]:
    root = place(entries[0]["info"], "info").identity("id")
    sessions: list[Json] = [*entries]
    return {"root": root, "sessions": sessions}
