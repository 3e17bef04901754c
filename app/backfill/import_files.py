"""Import: enqueues the sessions that stand in files of `opencode export`.

    files ─ examine ─▶ families ─ each ─▶ settings of its folder ▶ parse ▶ enqueue ─▶ one `Imported` per file

A file that cannot be used costs itself and, where its session is the root of others, those.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

from app.capture.config import why_nothing
from app.capture.enqueue import Enqueued, Place, Request, enqueue
from app.capture.folders import Folders
from app.capture.targets import folder, target
from app.database.connection import Ledger, flushed_together
from app.database.open import open_whole
from app.errors import ExportError
from app.ledger import versions
from app.ledger.decision import IMPORT
from app.ledger.destinations import Destination
from app.queue import Queue
from app.runtime import clock
from app.settings.lookup import Sources
from app.settings.model import Settings
from app.sources.opencode.export_files import Export, File, examine, families, transcript_of
from app.transcript.model import TranscriptError

NUMBERS = ("new", "known", "superseded", "off", "shut", "copied", "odd", "unreadable")
"""What of an `Enqueued` is told."""
KEPT_BYTES_MAX = 64 << 20
"""Of files that are not read again when their turn comes: what was understood of them is kept until then."""
SANITIZED = (
    "a sanitized export of a session that is known: its placeholders would replace the texts at Helicone (--sanitized"
    " imports it all the same)"
)


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one file: the turns of its session and the session's own record, in numbers of jobs."""

    file: str
    session: str | None
    """None when the file could not be read."""
    outcome: Literal["imported", "inside", "doubled", "disabled", "failed"]
    reason: str = ""
    """For a person: of every outcome but `imported`, and what was special about one that is."""
    new: int = 0
    known: int = 0
    superseded: int = 0
    """Older than what the ledger has."""
    off: int = 0
    """Noted without content, because the export mode is off."""
    shut: int = 0
    """Not taken: captured earlier while export was off, or deleted in OpenCode."""
    copied: int = 0
    """Turns that a fork has brought along from a session that is known: they are exported with that one."""
    odd: int = 0
    """Values in what is new that were rounded, cut or left out."""
    unreadable: int = 0
    """Turns that could not be read, and are not taken."""


def import_files(
    files: Sequence[File],
    sources: Sources,
    *,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
    takes_sanitized: bool = False,
) -> Iterator[Imported]:
    """One result for each file, as they come. `on_step` is told (done, all): each file is examined, and then taken.

    With `takes_sanitized` the placeholders of a sanitized export replace the texts of a session that is known.

    Raises SettingsError, PatternError, OSError, sqlite3.Error when nothing more can be imported.
    """
    settings = sources.load()
    with closing(open_whole(settings.spool_directory)) as db:
        ours = target(db, settings, clock.now_ms())
        with closing(Queue(settings.spool_directory, ours.id)) as queue:
            exports: list[Export] = []
            for done, result in enumerate(examined(files), 1):
                on_step(done, 2 * len(files))
                if isinstance(result, Export):
                    exports.append(result)
                else:
                    yield result
            folders = Folders(db, sources)
            taken = 0
            for family in families(exports):
                yield from _imported(db, family, folders, ours, queue.wake, takes_sanitized=takes_sanitized)
                taken += len(family)
                on_step(len(files) + taken, 2 * len(files))


def examined(files: Sequence[File]) -> Iterator[Export | Imported]:
    """Each session once, from the file that is newest, as they are known; what cannot be used as a result."""
    newest: dict[str, Export] = {}
    left_bytes = KEPT_BYTES_MAX
    for file in files:
        try:
            export = examine(file)
            left_bytes -= export.size_bytes
            if left_bytes < 0:
                export = replace(export, transcript=None)
        except (OSError, ExportError, TranscriptError) as error:
            yield Imported(file.name, None, "failed", why(error))
            continue
        other = newest.get(export.session)
        if other is None:
            newest[export.session] = export
            continue
        older, newer = sorted((other, export), key=lambda one: one.updated_ms)
        newest[export.session] = newer
        yield Imported(older.file.name, older.session, "doubled", f"{newer.file.name} holds the same session")
    yield from newest.values()


def why(error: OSError | ExportError | TranscriptError) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


def _imported(
    db: Ledger,
    family: tuple[Export, ...],
    folders: Folders,
    ours: Destination,
    wake: Callable[[str], None],
    *,
    takes_sanitized: bool,
) -> Iterator[Imported]:
    root, *others = family
    if not takes_sanitized and _would_lose_text(db, family, ours):
        result = Imported(root.file.name, root.session, "failed", SANITIZED)
    else:
        result = _root(db, family, folders, ours, wake)
    yield result
    for export in others:
        if result.outcome == "imported":
            yield Imported(export.file.name, export.session, "inside", f"a subagent of {root.session}")
        else:
            yield replace(result, file=export.file.name, session=export.session)


def _would_lose_text(db: sqlite3.Connection, family: tuple[Export, ...], ours: Destination) -> bool:
    """Whether placeholders would replace the texts of a session that was exported with them."""
    return any(one.is_sanitized for one in family) and any(
        versions.session_identity(db, ours.id, one.session) is not None for one in family
    )


def _root(
    db: Ledger, family: tuple[Export, ...], folders: Folders, ours: Destination, wake: Callable[[str], None]
) -> Imported:
    root = family[0]
    settings, capturing = folders.find(root.directory)
    if capturing is None:
        return Imported(root.file.name, root.session, "disabled", why_nothing(settings))
    try:
        transcript = transcript_of(family)
    except (OSError, ExportError, TranscriptError) as error:
        return Imported(root.file.name, root.session, "failed", why(error))
    with flushed_together(db):
        done = enqueue(
            db,
            transcript,
            capturing,
            Place(ours.id, folder(db, root.directory)),
            now_ms=clock.now_ms(),
            wake=wake,
            request=Request(abandoned=True, reopen=IMPORT),
        )
    return _told(root, done, settings)


def _told(root: Export, done: Enqueued, settings: Settings) -> Imported:
    if done.under is not None:
        reason = f"a subagent of {done.under}: import that session's file to export it again"
        return Imported(root.file.name, root.session, "inside", reason)
    return Imported(
        file=root.file.name,
        session=root.session,
        outcome="imported",
        reason="; ".join(_remarks(root, done, settings)),
        **{name: getattr(done, name) for name in NUMBERS},
    )


def _remarks(root: Export, done: Enqueued, settings: Settings) -> Iterator[str]:
    if done.off:
        yield why_nothing(settings)
    if root.skipped:
        yield f"{root.skipped} characters around its JSON were skipped"
    if done.faults:
        yield done.remark
