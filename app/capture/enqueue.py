"""In: a session's transcript becomes export jobs.

The embedded API. A program that has a transcript and an open ledger exports it with

    from app.database.open import open_ledger
    from app.capture.enqueue import enqueue
    from app.transcript.parse import parse

    done = enqueue(open_ledger(spool), parse(snapshot), capture, place, now_ms=now_ms, ring=bell.ring)

Nothing unredacted is written: a turn is redacted and encoded first, and what is stored are the bytes to be posted.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from app.capture.export import Export, children, exports, session_to_leave
from app.exporters.helicone.naming import first_name
from app.exporters.helicone.records import Record
from app.ledger import destinations, history, incidents, job, versions
from app.ledger.job import Body, Frozen, Standing, Version
from app.privacy.policy import is_as_strict
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

    @property
    def remark(self) -> str:
        """Some of the faults, for a person: what cost most, and how many there are besides."""
        more = len(self.faults) - FAULTS_SHOWN
        return ", ".join(self.faults[-FAULTS_SHOWN:]) + (f" and {more} more" if more > 0 else "")


def enqueue(  # noqa: PLR0913 - the documented call; three of them have defaults
    db: sqlite3.Connection,
    transcript: Transcript,
    capture: Capture,
    place: Place,
    *,
    now_ms: int,
    ring: Callable[[str], None],
    abandoned: bool = False,
    reopen: Collection[str] = (),
    only: Collection[str] | None = None,
    is_history: bool = False,
    admit: Callable[[int], None] = lambda _: None,
) -> Enqueued:
    """Put every final turn, and the session's own record, into the ledger; ring once for what is new.

    Idempotent by (destination, key) under any number of processes. A turn that is not final is taken as interrupted
    when a later user message follows it, or when the session is `abandoned` (nobody will complete it); otherwise it
    waits. `reopen` names what the caller asks to have back, as for `versions.standing`, and `stricter`: what is
    there under a stricter policy, and has not changed since. `only` names the turns to be taken.
    What `is_history` goes after what is live. `admit` is told the size of each job's bodies in bytes before they are
    stored, and may wait, or raise to end it there. Raises sqlite3.Error when the ledger cannot be written.
    """
    done = Enqueued(under=_shown_under(db, transcript, place))
    if done.under is not None:
        return done
    whole, transcript = transcript, own_turns(db, transcript)
    done.copied = len(whole.turns) - len(transcript.turns)
    for export, version in _versions(db, transcript, capture, place, abandoned=abandoned, is_history=is_history):
        if isinstance(export, Turn):
            done.waiting.append(export)
            continue
        if only is not None and export.turn not in only:
            continue
        # Before its other subagents are placed: what they exported as sessions of their own would be superseded.
        if "sealed" not in reopen and holds_sealed(db, place.destination_id, export.children):
            done.shut += 1
            continue
        for child in export.children:
            versions.place_under(db, place.destination_id, child, version, now_ms, reopen=reopen)
        _insert(db, version, export, capture, place, done, now_ms=now_ms, reopen=reopen, admit=admit)
    _note(db, transcript, done, only, now_ms)
    if done.keys:
        failpoint.reach("enqueue.committed")
        ring(done.keys[0])
    return done


def outlook(
    db: sqlite3.Connection,
    transcript: Transcript,
    capture: Capture,
    place: Place,
    *,
    abandoned: bool = False,
    reopen: Collection[str] = (),
) -> Iterator[tuple[Export, Standing]]:
    """What `enqueue` would do with each final turn and with the session's record, told without doing it."""
    if _shown_under(db, transcript, place) is not None:
        return
    off = capture.policy.mode == "off"
    for export, version in _versions(db, own_turns(db, transcript), capture, place, abandoned=abandoned):
        if isinstance(export, Turn):
            continue
        yield export, _standing(db, version, export, capture, place, reopen, off=off)


def own_turns(db: sqlite3.Connection, transcript: Transcript) -> Transcript:
    """Without what a fork has brought along from a session whose turns are known: its origin exports these.

    Where the origin's turn is not known, nobody else has exported it, and the fork does.
    """
    copies = {turn.id: turn.facts_ms for turn in transcript.turns if turn.is_copy}
    brought = history.brought_along(db, transcript.session.id, copies) if copies else set()
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


def _standing(
    db: sqlite3.Connection,
    version: Version,
    export: Export,
    capture: Capture,
    place: Place,
    reopen: Collection[str],
    *,
    off: bool,
) -> Standing:
    """As the ledger says; but what is there under a stricter policy is known, though its key is another.

    And what holds a subagent that is sealed is shut.
    """
    if "sealed" not in reopen and holds_sealed(db, place.destination_id, export.children):
        return Standing.SHUT
    found = versions.standing(db, place.destination_id, version, reopen=reopen, off=off)
    if found not in {Standing.NEW, Standing.REOPENED} or "stricter" in reopen:
        return found
    there = versions.current_as(db, place.destination_id, version)
    if there is None or is_as_strict(version.policy, there.policy) or not is_as_strict(there.policy, version.policy):
        return found
    made = capture.policy.as_made(there.policy)
    if made is None:  # its patterns are not known any more; and OpenCode's update time moves on with every turn
        is_same = version.turn == job.SESSION_RECORD or version.facts_ms <= there.facts_ms
    else:
        is_same = key(export.digest, made.digest(version.user_id)) == there.key
    return Standing.KNOWN if is_same else found


def holds_sealed(db: sqlite3.Connection, destination_id: int, subagents: Iterable[str]) -> bool:
    """Whether a turn's subagent was recalled as a session of its own: its text would come back with the turn."""
    return any(versions.is_sealed(db, destination_id, one) for one in subagents)


def _shown_under(db: sqlite3.Connection, transcript: Transcript, place: Place) -> str | None:
    """The session that this one is a subagent of, as far as the ledger knows."""
    known = versions.frozen(db, place.destination_id, transcript.session.id)
    return known[0] if known is not None and known[0] != transcript.session.id else None


def _versions(
    db: sqlite3.Connection,
    transcript: Transcript,
    capture: Capture,
    place: Place,
    *,
    abandoned: bool,
    is_history: bool = False,
) -> Iterator[tuple[Export | Turn, Version]]:
    """Each job to be as the ledger would know it; with a bare turn, one that waits, goes a version of nothing."""
    session = transcript.session
    identity = identity_of(db, transcript, capture, place)
    user_id = identity.user_id
    facts = capture.policy.facts(user_id)
    nothing = Version(
        session=session.id,
        root=session.id,
        turn="",
        key="",
        facts_ms=0,
        user_id=user_id,
        folder=place.folder,
        policy=facts,
        is_history=is_history,
        encoding=identity.encoding,
        session_name=identity.session_name,
    )
    digest = capture.policy.digest(user_id)
    for export in exports(transcript, capture, identity, abandoned=abandoned):
        if isinstance(export, Turn):
            yield export, nothing
        else:
            made = key(export.digest, digest)
            yield export, replace(nothing, turn=export.turn, key=made, facts_ms=export.facts_ms)


def _insert(  # noqa: PLR0913 - one step of `enqueue`, which holds all of these
    db: sqlite3.Connection,
    version: Version,
    export: Export,
    capture: Capture,
    place: Place,
    done: Enqueued,
    *,
    now_ms: int,
    reopen: Collection[str],
    admit: Callable[[int], None],
) -> None:
    off = capture.policy.mode == "off"

    def judge() -> Standing:
        return _standing(db, version, export, capture, place, reopen, off=off)

    standing = judge()
    if standing is Standing.KNOWN:
        versions.see_again(db, place.destination_id, version)
    elif standing is not Standing.SHUT:
        # Also for what looks superseded: asked again inside the transaction, where another process may have been
        # faster, it may turn out to be wanted after all.
        records = iter(()) if off else export.encode()
        version = replace(version, known_marks=None if off else marks(db, export))
        bodies = _admitted(records, admit)
        standing = versions.insert(db, place.destination_id, version, bodies, now_ms=now_ms, off=off, judge=judge)
    match standing:
        case Standing.NEW | Standing.REOPENED if off:
            done.off += 1
        case Standing.NEW | Standing.REOPENED:
            done.new += 1
            done.keys.append(version.key)
            done.faults += export.faults
        case Standing.KNOWN:
            done.known += 1
        case Standing.SUPERSEDED:
            done.superseded += 1
        case Standing.SHUT:
            done.shut += 1


def _admitted(records: Iterable[Record], admit: Callable[[int], None]) -> Iterator[Body]:
    """As the ledger takes them, one after the other, before it begins to write."""
    size_bytes = 0
    for record in records:
        size_bytes += len(record.body)
        yield body_of(record)
    admit(size_bytes)


def marks(db: sqlite3.Connection, export: Export) -> str:
    """Of the known values that its `encode` has taken out: enough to tell them apart, too little to guess them by."""
    return " ".join(sorted({destinations.fingerprint(db, one.hex())[:MARK_DIGITS] for one in export.hits.known}))


def body_of(record: Record) -> Body:
    """A record as the ledger keeps it."""
    frozen = Frozen(record.provider, record.model, record.start_ms, record.session_name, record.path)
    return Body(uuid.UUID(record.request_id), record.body, frozen)


def identity_of(db: sqlite3.Connection, transcript: Transcript, capture: Capture, place: Place) -> Identity:
    """What the session's records have in common for ever: as the ledger keeps it, or is to keep it from now on."""
    known = versions.frozen(db, place.destination_id, transcript.session.id)
    identity = known[1] if known is not None else _first_identity(db, transcript, capture, place)
    if identity.encoding == 1 or identity.session_name is not None or capture.policy.mode == "off":
        return identity
    shown = session_to_leave(transcript.session, capture)
    return replace(identity, session_name=first_name(shown, identity.encoding))


def _first_identity(db: sqlite3.Connection, transcript: Transcript, capture: Capture, place: Place) -> Identity:
    """A subagent exported before its root has one already; the root takes it over."""
    for turn in transcript.turns:
        for child in children(turn):
            known = versions.frozen(db, place.destination_id, child)
            if known is not None:
                return replace(known[1], session_name=None)
    return Identity(capture.user_id, versions.encoding_elsewhere(db, transcript.session.id) or NEWEST)
