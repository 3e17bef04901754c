"""Audit: finds the delivered records that today's rules would redact differently if they were made now.

    identities ─ OpenCode's store ▶ encoded under today's rules ─▶ equal digest: nothing
                                  ▶ under what its policy was    ─▶ equal digest: what today's rules find beyond that
                                                                 ─▶ neither: all that today's rules find

No value and no text is ever told: paths, rules and numbers.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from app.capture.export import Export
from app.capture.folders import Folders
from app.exporters.encoder import Kind, Record
from app.exporters.encoding import encoder_of
from app.ledger.destinations import by_id
from app.ledger.history import Exported, exported
from app.ledger.record_identity import RecordIdentity
from app.ledger.versions import session_identity
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.recall.delivered_policy import Encodings, as_made, digest_of, identities
from app.sources.opencode.store import Store
from app.transcript.identity import Identity
from app.transcript.model import TranscriptError, project_name

GONE = "no longer in OpenCode's store"
EXPORT_MODE = "export mode"
"""Named like a rule where today's mode would not let the record's text leave at all."""


@dataclass(frozen=True, slots=True)
class Differing:
    """One record at Helicone that today's rules would redact differently."""

    turn: str
    path: str
    kind: Kind
    hits: Mapping[str, int]
    """How often, by rule."""


@dataclass(frozen=True, slots=True)
class Audited:
    """One root session that was delivered, or begun to be."""

    session: str
    project: str | None
    """The folder's name; None where OpenCode does not have the session."""
    created_ms: int | None
    records: tuple[Differing, ...] = ()
    turns: int = 0
    """That were compared."""
    changed: int = 0
    """Records that would be made differently today, and not redacted differently."""
    unprinted: int = 0
    """Turns from before digests were kept: all that today's rules find in them counts."""
    gone: int = 0
    """Turns that OpenCode does not have any more."""
    sealed: int = 0
    """Turns overwritten by a recall that the settings do not tell of: not compared."""
    problem: str = ""
    """Why nothing was compared."""


def delivered_turns(
    db: sqlite3.Connection,
    destination_id: int,
    session: str,
    since_ms: int = 0,
    *,
    or_waiting: bool = False,
    with_identities: bool = True,
) -> dict[str, list[Exported]]:
    """The versions of each turn of which anything may be at Helicone, the current one last.

    Those of which OpenCode wrote nothing since `since_ms` are left out. With `or_waiting` those count, too, of which
    something may get there yet.
    """
    turns: dict[str, list[Exported]] = {}
    for version in exported(db, destination_id, session, with_identities=with_identities):
        turns.setdefault(version.turn, []).append(version)
    counted = {"pending", "dead"} if or_waiting else set()
    return {
        turn: sorted(versions, key=lambda one: one.state != "superseded")
        for turn, versions in turns.items()
        if any(one.was_attempted or one.state in counted for one in versions)
        and max(one.last_event_ms for one in versions) >= since_ms
    }


def audit(
    db: sqlite3.Connection, destination_id: int, store: Store, folders: Folders, session: str, since_ms: int = 0
) -> Audited | None:
    """One session compared; None where nothing of it was sent.

    Raises StoreError, SettingsError, PatternError, sqlite3.Error.
    """
    turns = delivered_turns(db, destination_id, session, since_ms)
    if not turns:
        return None
    try:
        transcript = store.transcript(session)
    except TranscriptError as error:
        return Audited(session, None, None, problem=str(error))
    if transcript is None:
        return Audited(session, None, None, problem=GONE)
    known = session_identity(db, destination_id, session)
    kind = by_id(db, destination_id).kind
    encodings = Encodings(transcript, known[1] if known else Identity(""), kind)
    comparison = _Comparison(encodings, folders.find(transcript.session.directory)[1], kind)
    for turn, versions in turns.items():
        comparison.turn(turn, versions)
    return Audited(
        session=session,
        project=project_name(transcript.session.directory),
        created_ms=transcript.session.created_ms,
        records=tuple(comparison.records),
        turns=comparison.counts["turns"],
        changed=comparison.counts["changed"],
        unprinted=comparison.counts["unprinted"],
        gone=comparison.counts["gone"],
        sealed=comparison.counts["sealed"],
    )


class _Comparison:
    """One session's turns, each encoded under today's rules and under those that it was made under."""

    def __init__(self, encodings: Encodings, today: Capture | None, kind: str) -> None:
        self._kind = kind
        self._encodings = encodings
        self._today = today
        self._bare = encodings.bare(today)
        self.records: list[Differing] = []
        self.counts: Counter[str] = Counter()

    def turn(self, turn: str, versions: Sequence[Exported]) -> None:
        if versions[-1].is_sealed or turn not in self._bare:
            self.counts["sealed" if versions[-1].is_sealed else "gone"] += 1
            return
        self.counts["turns"] += 1
        bare = _Encoded(self._bare[turn])
        attempted = [one for one in versions if one.was_attempted]
        made: Mapping[str, tuple[RecordIdentity | None, str]] = identities(attempted)
        if not made:
            self.counts["unprinted"] += 1
            made = dict.fromkeys(bare.records, (None, attempted[-1].policy))
        if self._today is None or self._today.policy.mode != "full":
            self._withhold(turn, bare, made)
            return
        under: dict[str, tuple[Capture, _Encoded, _Encoded]] = {}
        for request_id, (one, policy) in made.items():
            if _is_withheld(policy):
                continue
            if policy not in under:
                then = as_made(self._today, policy)
                under[policy] = (then, *self._under(turn, self._today, then))
            then, now_made, then_made = under[policy]
            record = now_made.records.get(request_id)
            if record is None or (one is not None and one.digest == digest_of(record)):
                continue
            record = bare.records[request_id]
            found = hits(record, self._today.redaction, self._kind)
            if one is None or one.digest == digest_of(then_made.records[request_id]):
                found -= hits(record, then.redaction, self._kind)
            if found:
                self.records.append(Differing(turn, record.path, record.kind, dict(found)))
            else:
                self.counts["changed"] += 1

    def _withhold(self, turn: str, bare: _Encoded, made: Mapping[str, tuple[RecordIdentity | None, str]]) -> None:
        """Today no text of the turn would leave."""
        for request_id, (_, policy) in made.items():
            record = bare.records.get(request_id)
            if record is not None and not _is_withheld(policy):
                self.records.append(Differing(turn, record.path, record.kind, {EXPORT_MODE: 1}))

    def _under(self, turn: str, today: Capture, then: Capture) -> tuple[_Encoded, _Encoded]:
        """As the turn would be made now, and as it was made then."""
        now = replace(today, policy=replace(today.policy, prefix=then.policy.prefix))
        return _Encoded(self._encodings.under(now)[turn]), _Encoded(self._encodings.under(then)[turn])


class _Encoded:
    """One turn's records by request id. Nothing is encoded before it is asked for: mostly equal digests say it all."""

    def __init__(self, export: Export) -> None:
        self._export = export

    @cached_property
    def records(self) -> Mapping[str, Record]:
        return {record.request_id: record for record in self._export.encode()}


def hits(record: Record, redaction: Redaction, kind: str) -> Counter[str]:
    """How often each rule finds something in the texts of a record that were left as they are."""
    found: Counter[str] = Counter()
    for text in encoder_of(kind).texts_of(record.body):
        redaction.json(text, found)
    return found


def _is_withheld(policy: str) -> bool:
    """Whether no text left under it."""
    return bool(policy) and json.loads(policy)["mode"] != "full"
