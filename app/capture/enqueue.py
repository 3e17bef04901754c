"""Enqueue: puts the turns of a session's transcript into the ledger as export jobs, and wakes a worker.

Programs that embed this use `app.enqueue`.

Nothing unredacted is written: a turn is redacted and encoded first, and what is stored are the bytes to be posted.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from app.capture.export import Export, children, session_name, split
from app.exporters.encoder import Record
from app.ledger import destinations, history, incidents, versions
from app.ledger.decision import LIVE, Decision, Reopen
from app.ledger.job import Body, IdentityFields, Version
from app.privacy.terms import Capture
from app.runtime import failpoint
from app.transcript.identity import NEWEST, Identity
from app.transcript.model import Transcript, Turn, key

FAULTS_SHOWN = 3
MARK_DIGITS = 4
ODD = "odd values in what OpenCode stored, which were rounded, cut or left out"
"""As an incident."""
UNREADABLE = "turns that could not be read of session"
"""The same; the session's id follows."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where jobs go: which destination, and which project folder (a salted hash) they come from."""

    destination_id: int
    folder: str


@dataclass(slots=True)
class Enqueued:
    """What became of a transcript's turns and its session record, in numbers."""

    new: int = 0
    known: int = 0
    superseded: int = 0
    off: int = 0
    """Captured without a body, because export is switched off."""
    shut: int = 0
    """Not taken: the turn was captured while export was off, its session was deleted, or it, or a subagent in it, was
    recalled with something that the settings do not say."""
    waiting: list[Turn] = field(default_factory=list)
    """Not final yet, and not taken."""
    keys: list[str] = field(default_factory=list)
    """Of the new jobs, in order."""
    under: str | None = None
    """The session is a subagent of this one and is exported with it; nothing was taken."""
    copied: int = 0
    """Brought along by a fork from a session whose turn is known."""
    odd: int = 0
    """Values in the new jobs that were rounded, cut or left out."""
    unreadable: int = 0
    """Not taken: one of its messages has no shape that is known."""
    faults: list[str] = field(default_factory=list)
    """Both, as `place: rule`; what is unreadable last."""

    def count(self, decision: Decision, version: Version, export: Export) -> None:
        match decision:
            case Decision.NEW | Decision.REOPENED if version.is_off:
                self.off += 1
            case Decision.NEW | Decision.REOPENED:
                self.new += 1
                self.keys.append(version.key)
                self.faults += export.faults
            case Decision.KNOWN:
                self.known += 1
            case Decision.SUPERSEDED:
                self.superseded += 1
            case Decision.REFUSED:
                self.shut += 1

    @property
    def remark(self) -> str:
        """Some of the faults, for a person: what cost most, and how many there are besides."""
        more = len(self.faults) - FAULTS_SHOWN
        return ", ".join(self.faults[-FAULTS_SHOWN:]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for of a transcript."""

    abandoned: bool = False
    """Nobody will complete the session: what is not final is taken as interrupted."""
    reopen: Reopen = LIVE
    only: Collection[str] | None = None
    """The turns to be taken; None for all."""
    is_history: bool = False
    """It goes after what is live."""


EVERYTHING = Request()


def enqueue(  # noqa: PLR0913 - the documented call; two of them have defaults
    db: sqlite3.Connection,
    transcript: Transcript,
    capture: Capture,
    place: Place,
    *,
    now_ms: int,
    wake: Callable[[str], None],
    request: Request = EVERYTHING,
    admit: Callable[[int], None] = lambda _: None,
) -> Enqueued:
    """Put every final turn, and the session's own record, into the ledger; wake once for what is new.

    Idempotent by (destination, key) under any number of processes. A turn that is not final waits, unless a later user
    message follows it or the session is abandoned. `admit` is told the size of each job's bodies in bytes before they
    are stored, and may wait, or raise to end it there. Raises sqlite3.Error when the ledger cannot be written.
    """
    done = Enqueued(under=_shown_under(db, transcript, place))
    if done.under is not None:
        return done
    whole, transcript = transcript, own_turns(db, transcript, place.destination_id)
    done.copied = len(whole.turns) - len(transcript.turns)
    identity = identity_of(db, transcript, capture, place)
    ready, done.waiting = _versions(transcript, capture, identity, place, request)
    seen: list[Version] = []
    for export, version in ready:
        if request.only is None or export.turn in request.only:
            one = export, version
            decision = _insert(db, place.destination_id, one, request.reopen, now_ms=now_ms, admit=admit, seen=seen)
            done.count(decision, version, export)
    for version in seen:
        versions.see_again(db, place.destination_id, version)
    _note(db, transcript, done, request.only, now_ms)
    if done.keys:
        failpoint.reach("enqueue.committed")
        wake(done.keys[0])
    return done


def decisions_on(
    db: sqlite3.Connection, transcript: Transcript, capture: Capture, place: Place, request: Request = EVERYTHING
) -> Iterator[tuple[Export, Decision]]:
    """What `enqueue` would do with each final turn and with the session's record, told without doing it."""
    if _shown_under(db, transcript, place) is None:
        transcript = own_turns(db, transcript, place.destination_id)
        # Whether it is wanted has nothing to do with the session's name.
        ready, _ = _versions(transcript, capture, _kept_identity(db, transcript, capture, place), place, request)
        for export, version in ready:
            yield export, versions.decision_on(db, place.destination_id, version, request.reopen)


def own_turns(db: sqlite3.Connection, transcript: Transcript, destination_id: int) -> Transcript:
    """The transcript without what a fork copied from a session whose turns are known: its origin exports these.

    Where the origin's turn is not known, nobody else has exported it, and the fork does.
    """
    copies = {turn.id: turn.last_event_ms for turn in transcript.turns if turn.is_copy}
    brought = history.brought_along(db, destination_id, transcript.session.id, copies) if copies else set()
    return replace(transcript, turns=tuple(turn for turn in transcript.turns if turn.id not in brought))


def _note(
    db: sqlite3.Connection, transcript: Transcript, done: Enqueued, only: Collection[str] | None, now_ms: int
) -> None:
    """Tell `status` of what was odd in what is new, and of what cannot be read."""
    done.odd = len(done.faults)
    if done.odd:
        incidents.note(db, ODD, now_ms, done.odd)
    lost = [one for one in transcript.unreadable if only is None or one.turn is None or one.turn in only]
    if lost:
        done.unreadable = len({one.turn or one.why for one in lost})
        done.faults += [one.why for one in lost]
        incidents.note_at_most(db, f"{UNREADABLE} {transcript.session.id}", now_ms, done.unreadable)


def _shown_under(db: sqlite3.Connection, transcript: Transcript, place: Place) -> str | None:
    """The session that this one is a subagent of, as far as the ledger knows."""
    known = versions.session_identity(db, place.destination_id, transcript.session.id)
    return known[0] if known is not None and known[0] != transcript.session.id else None


def _versions(
    transcript: Transcript, capture: Capture, identity: Identity, place: Place, request: Request
) -> tuple[list[tuple[Export, Version]], list[Turn]]:
    """Each job to be, as the ledger would know it; and the turns that wait."""
    session = transcript.session
    policy, user_id = capture.policy, identity.user_id
    ready, waiting = split(transcript, capture, identity, abandoned=request.abandoned)

    def key_under(digest: str, facts: str) -> str | None:
        made = policy.as_made(facts)
        return None if made is None else key(digest, made.digest(user_id))

    versions = [
        Version(
            session=session.id,
            root=session.id,
            turn=export.turn,
            key=key(export.digest, policy.digest(user_id)),
            last_event_ms=export.last_event_ms,
            user_id=user_id,
            folder=place.folder,
            policy=policy.facts(user_id),
            is_history=request.is_history,
            encoding=identity.encoding,
            session_name=identity.session_name,
            is_off=policy.mode == "off",
            subagents=export.children,
            key_under=partial(key_under, export.digest),
        )
        for export in ready
    ]
    return list(zip(ready, versions, strict=True)), waiting


def _insert(
    db: sqlite3.Connection,
    destination_id: int,
    one: tuple[Export, Version],
    reopen: Reopen,
    *,
    now_ms: int,
    admit: Callable[[int], None],
    seen: list[Version],
) -> Decision:
    """`seen`: what is known already, and was not noted as seen again yet."""
    export, version = one
    decision = versions.decision_on(db, destination_id, version, reopen)
    if decision is Decision.REFUSED:
        return decision
    for child in version.subagents:
        versions.place_under(db, destination_id, child, version, now_ms, reopen=reopen)
    if decision is Decision.KNOWN:
        seen.append(version)
        return decision
    # Also for what looks superseded: it is decided again inside the transaction, where another process may have been
    # faster, and it may turn out to be wanted after all.
    bodies: Iterable[Body] = ()
    if not version.is_off:
        records = export.encode()
        found = Counter(export.hits)
        version = replace(version, known_marks=marks(db, export), redactions=found.total(), redacted=found)
        bodies = _admitted(records, admit)
    decided = versions.insert(db, destination_id, version, bodies, now_ms=now_ms, reopen=reopen, seen=seen)
    seen.clear()
    return decided


def _admitted(records: Iterable[Record], admit: Callable[[int], None]) -> Iterator[Body]:
    """As the ledger takes them, one after the other, before it begins to write."""
    size_bytes = 0
    for record in records:
        size_bytes += len(record.body)
        yield body_of(record)
    admit(size_bytes)


def marks(db: sqlite3.Connection, export: Export) -> str:
    """Marks of the known values that `encode` has taken out: enough to tell them apart, too little to guess them by."""
    return " ".join(sorted({destinations.fingerprint(db, one.hex())[:MARK_DIGITS] for one in export.hits.known}))


def body_of(record: Record) -> Body:
    """A record as the ledger keeps it."""
    identity_fields = IdentityFields(record.provider, record.model, record.start_ms, record.session_name, record.path)
    return Body(uuid.UUID(record.request_id), record.body, identity_fields)


def identity_of(db: sqlite3.Connection, transcript: Transcript, capture: Capture, place: Place) -> Identity:
    """What the session's records have in common for ever: as the ledger keeps it, or is to keep it from now on."""
    identity = _kept_identity(db, transcript, capture, place)
    if identity.encoding == 1 or identity.session_name is not None or capture.policy.mode == "off":
        return identity
    return replace(identity, session_name=session_name(transcript.session, capture, identity))


def _kept_identity(db: sqlite3.Connection, transcript: Transcript, capture: Capture, place: Place) -> Identity:
    """The same, without the name where none is kept."""
    known = versions.session_identity(db, place.destination_id, transcript.session.id)
    return known[1] if known is not None else _first_identity(db, transcript, capture, place)


def _first_identity(db: sqlite3.Connection, transcript: Transcript, capture: Capture, place: Place) -> Identity:
    """A subagent exported before its root has one already; the root takes it over."""
    for turn in transcript.turns:
        for child in children(turn):
            known = versions.session_identity(db, place.destination_id, child)
            if known is not None:
                return replace(known[1], session_name=None)
    return Identity(capture.user_id, versions.encoding_elsewhere(db, transcript.session.id) or NEWEST)
