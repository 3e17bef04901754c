"""Preview: makes exactly what would leave of the sessions in some files, and counts what is redacted."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from typing import Literal

from app.backfill.import_files import Imported, examined, why
from app.capture.config import why_nothing
from app.capture.enqueue import Place, identity_of, own_turns
from app.capture.export import split
from app.capture.folders import Folders
from app.capture.targets import find_target, folder
from app.database.open import open_ledger
from app.exporters.encoder import Record
from app.exporters.encoding import legible
from app.ledger.job import SESSION_RECORD
from app.ledger.versions import session_identity
from app.privacy.redact import HitCounts, identity_hits
from app.settings.lookup import Sources
from app.settings.model import HELICONE
from app.sources.opencode.export_files import Export, ExportError, File, families, transcript_of
from app.transcript.model import TranscriptError


@dataclass(frozen=True, slots=True)
class Previewed:
    """One root session with its subagents."""

    file: str
    session: str
    outcome: Literal["previewed"]
    mode: str
    records: tuple[Record, ...]
    hits: Mapping[str, int]
    """How often each rule or pattern matched, by its name; nothing under metadata_only, where no text leaves."""
    identity_hits: Mapping[str, int]
    """User patterns that match an id, a provider, a model or a tool name: these leave as they are."""


def preview(files: Sequence[File], sources: Sources) -> Iterator[Previewed | Imported]:
    """One result for each family of files that would leave, and one for each that would not, with the reason.

    Raises SettingsError, PatternError, OSError, sqlite3.Error, SchemaError.
    """
    settings = sources.load()
    with closing(open_ledger(settings.spool_directory)) as db:
        folders = Folders(db, sources)
        ours = find_target(db, settings)
        exports = []
        for result in examined(files):
            if isinstance(result, Export):
                exports.append(result)
            else:
                yield result
        for family in families(exports):
            yield _family(db, family, folders, -1 if ours is None else ours.id)


def as_json(result: Previewed | Imported) -> dict[str, object]:
    """The result's fields, with each body as JSON; of what would not leave the reason only."""
    if isinstance(result, Imported):
        return {name: getattr(result, name) for name in ("file", "session", "outcome", "reason")}
    records = [
        {
            "request_id": record.request_id,
            "kind": record.kind,
            "path": record.path,
            "bytes": len(record.body),
            "body": legible("otlp" if record.kind == "turn" else HELICONE, record.body),
        }
        for record in result.records
    ]
    return {**{field.name: getattr(result, field.name) for field in fields(result)}, "records": records}


def _family(
    db: sqlite3.Connection, family: tuple[Export, ...], folders: Folders, destination_id: int
) -> Previewed | Imported:
    root = family[0]
    settings, capturing = folders.find(root.directory)
    reason = why_nothing(settings)
    known = session_identity(db, destination_id, root.session)
    if known is not None and known[0] != root.session:
        reason = f"a subagent of {known[0]}: it leaves with that session"
    if capturing is None or reason:
        return Imported(root.file.name, root.session, "disabled", reason)
    try:
        transcript = transcript_of(family)
    except (OSError, ExportError, TranscriptError) as error:
        return Imported(root.file.name, root.session, "failed", why(error))
    transcript = own_turns(db, transcript, destination_id)
    place = Place(destination_id, folder(db, root.directory))
    identity = identity_of(db, transcript, capturing, place)
    made, _ = split(transcript, capturing, identity, abandoned=True)
    records = tuple(record for one in made for record in one.encode())
    of_session = next((one.hits for one in made if one.turn == SESSION_RECORD), HitCounts())
    of_turns = [one.hits for one in made if one.turn != SESSION_RECORD]
    return Previewed(
        file=root.file.name,
        session=root.session,
        outcome="previewed",
        mode=capturing.policy.mode,
        records=records,
        # Every turn carries its session.
        hits=dict(sum((one - of_session for one in of_turns), Counter(of_session))),
        identity_hits=dict(
            sum((identity_hits(turn, capturing.redaction) for turn in transcript.turns), Counter[str]())
        ),
    )
