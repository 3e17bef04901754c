"""What was delivered, as today's rules see it: which records would be redacted differently if they were made now.

    footprints ─ OpenCode's store ▶ encoded under today's rules ─▶ equal digest: nothing
                                  ▶ under what its policy was    ─▶ equal digest: what today's rules find beyond that
                                                                 ─▶ neither: all that today's rules find

No value and no text is ever told: paths, rules and numbers.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from app.capture.enqueue import body_of
from app.capture.export import Export, split
from app.capture.folders import Folders
from app.exporters.helicone.naming import project_name
from app.exporters.helicone.records import Kind, Record
from app.ledger import history
from app.ledger.history import Exported
from app.ledger.record_identity import DIGEST_BYTES, Print
from app.ledger.versions import frozen
from app.privacy.policy import Policy, retold
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.sources.opencode.store import Store
from app.transcript.identity import Identity
from app.transcript.model import Transcript, TranscriptError

GONE = "no longer in OpenCode's store"
EXPORT_MODE = "export mode"
"""Named like a rule where today's mode would not let the record's text leave at all."""
_NOT_WRITTEN = frozenset({"id", "object", "model", "usage", "parts", "_type", "toolName"})
"""Of a request or response: what nobody wrote, and the redaction leaves as it is."""


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


def sent_turns(
    db: sqlite3.Connection, destination_id: int, session: str, since_ms: int = 0
) -> dict[str, list[Exported]]:
    """The versions of each turn of which anything may be at Helicone, the current one last.

    Those of which OpenCode wrote nothing since `since_ms` are left out.
    """
    turns: dict[str, list[Exported]] = {}
    for version in history.exported(db, destination_id, session):
        turns.setdefault(version.turn, []).append(version)
    return {
        turn: sorted(versions, key=lambda one: one.state != "superseded")
        for turn, versions in turns.items()
        if any(one.was_attempted for one in versions) and max(one.facts_ms for one in versions) >= since_ms
    }


def audit(
    db: sqlite3.Connection,
    destination_id: int,
    store: Store,
    folders: Folders,
    sessions: Collection[str],
    *,
    since_ms: int = 0,
) -> Iterator[Audited | None]:
    """One result for each of the sessions; None for one of which nothing was sent.

    Raises StoreError, SettingsError, PatternError, sqlite3.Error.
    """
    for session in sessions:
        turns = sent_turns(db, destination_id, session, since_ms)
        yield _session(db, destination_id, store, folders, session, turns) if turns else None


def _session(
    db: sqlite3.Connection,
    destination_id: int,
    store: Store,
    folders: Folders,
    session: str,
    turns: Mapping[str, Sequence[Exported]],
) -> Audited:
    try:
        transcript = store.transcript(session)
    except TranscriptError as error:
        return Audited(session, None, None, problem=str(error))
    if transcript is None:
        return Audited(session, None, None, problem=GONE)
    known = frozen(db, destination_id, session)
    comparison = _Comparison(
        transcript, folders.find(transcript.session.directory)[1], known[1] if known else Identity("")
    )
    for versions in turns.values():
        comparison.turn(versions)
    return Audited(
        session=session,
        project=project_name(transcript.session.directory),
        created_ms=transcript.session.created_ms,
        records=tuple(comparison.records),
        turns=comparison.turns,
        changed=comparison.changed,
        unprinted=comparison.unprinted,
        gone=comparison.gone,
        sealed=comparison.sealed,
    )


class _Comparison:
    """One session's turns, each encoded under today's rules and under those that it was made under."""

    def __init__(self, transcript: Transcript, today: Capture | None, identity: Identity) -> None:
        self._transcript = transcript
        self._today = today
        self._identity = identity
        self._exports: dict[str, Mapping[str, Export]] = {}
        self._bare = encoded(transcript, bare(today), identity)
        self.records: list[Differing] = []
        self.turns = self.changed = self.unprinted = self.gone = self.sealed = 0

    def turn(self, versions: Sequence[Exported]) -> None:
        turn, current = versions[-1].turn, versions[-1]
        if current.is_sealed:
            self.sealed += 1
            return
        if turn not in self._bare:
            self.gone += 1
            return
        self.turns += 1
        made = last_prints(versions)
        made_bare = {record.request_id: record for record in self._bare[turn].encode()}
        if not made:
            self.unprinted += 1
            last = next(one for one in reversed(versions) if one.was_attempted)
            made = dict.fromkeys(made_bare, (None, last.policy))
        by_policy: dict[str, dict[str, tuple[Record, Record]]] = {}
        for request_id, (one, policy) in made.items():
            record = made_bare.get(request_id)
            if record is None or _is_withheld(policy):
                continue
            if self._today is None or self._today.policy.mode != "full":
                self.records.append(Differing(turn, record.path, record.kind, {EXPORT_MODE: 1}))
                continue
            if policy not in by_policy:
                by_policy[policy] = self._pairs(turn, policy, self._today)
            self._record(turn, record, one, policy, by_policy[policy][request_id])

    def _record(self, turn: str, record: Record, one: Print | None, policy: str, pair: tuple[Record, Record]) -> None:
        assert self._today is not None  # noqa: S101 - its caller has looked
        now, then = pair
        if one is not None and one.digest == digest_of(now):
            return
        found = hits(record, self._today.redaction)
        if one is None or one.digest == digest_of(then):
            found -= hits(record, as_made(self._today, policy).redaction)
        if found:
            self.records.append(Differing(turn, record.path, record.kind, dict(found)))
        else:
            self.changed += 1

    def _pairs(self, turn: str, policy: str, today: Capture) -> dict[str, tuple[Record, Record]]:
        """By request id the record as it would be made now, and as it was made under the policy."""
        then = as_made(today, policy)
        now = replace(today, policy=replace(today.policy, prefix=then.policy.prefix))
        pairs = zip(self._of(now)[turn].encode(), self._of(then)[turn].encode(), strict=True)
        return {one.request_id: (one, other) for one, other in pairs}

    def _of(self, capture: Capture) -> Mapping[str, Export]:
        name = f"{capture.policy.facts('')} {capture.redaction.secrets}"
        if name not in self._exports:
            self._exports[name] = encoded(self._transcript, capture, self._identity)
        return self._exports[name]


def encoded(transcript: Transcript, capture: Capture, identity: Identity) -> dict[str, Export]:
    """What each turn becomes under a capture; nothing is encoded before it is asked for."""
    ready, _ = split(transcript, capture, identity, abandoned=True)
    return {one.turn: one for one in ready}


def bare(today: Capture | None) -> Capture:
    """A capture that leaves all texts as they are: to look into, never to be kept."""
    prefix = today.policy.prefix if today else ""
    return Capture(
        Policy("full", (), redact_secrets=False, prefix=prefix), Redaction((), secrets=False, known=None), ""
    )


def last_prints(versions: Sequence[Exported]) -> dict[str, tuple[Print | None, str]]:
    """By request id what was last made of the record, and under which policy."""
    found: dict[str, tuple[Print | None, str]] = {}
    for version in versions:
        if version.was_attempted:
            found |= {str(one.request_id): (one, version.policy) for one in version.prints}
    return found


def hits(record: Record, redaction: Redaction) -> Counter[str]:
    """How often each rule finds something in the texts of a record that were left as they are."""
    told = json.loads(record.body)
    found: Counter[str] = Counter()
    for side in (told["providerRequest"]["json"], told["providerResponse"]["json"]):
        redaction.json({name: value for name, value in side.items() if name not in _NOT_WRITTEN}, found)
    redaction.text(told["providerRequest"]["meta"].get("Helicone-Session-Name", ""), found)
    return found


def digest_of(record: Record) -> bytes:
    return body_of(record).digest[:DIGEST_BYTES]


def as_made(today: Capture, policy: str) -> Capture:
    """How it was captured under the policy (its facts), with those of its patterns that are in force today."""
    made = retold(today.policy, policy)
    kept = zip(today.policy.patterns, today.redaction.patterns, strict=True)
    compiled = tuple(one for pattern, one in kept if pattern in made.patterns)
    redaction = replace(today.redaction, patterns=compiled, secrets=made.redact_secrets)
    return replace(today, policy=made, redaction=redaction)


def _is_withheld(policy: str) -> bool:
    """Whether no text left under it."""
    return bool(policy) and json.loads(policy)["mode"] != "full"
