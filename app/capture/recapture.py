"""Recapture: makes the bodies of evicted or dropped jobs again from OpenCode's store.

    dropped (policy) ─ stored ▶ parse ▶ enqueue ─▶ pending, under the policy in force
    pending, without its bodies ─ claimed ▶ rebuild ─▶ posted, if they are what they were, or stricter and none of them
                                │                  was posted before; held otherwise
                                └ held ▶ refill (its project's hook) ─▶ pending, under the same key

Where the store no longer has what a stricter policy took, it stays dropped, until its session is captured or imported
again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from app.capture.enqueue import Place, Request, body_of, enqueue, marks
from app.capture.export import Export, split
from app.errors import ExportError
from app.ledger import destinations, eviction, limits, policy_enforcement, versions
from app.ledger.decision import REFILL
from app.ledger.eviction import Evicted, Recaptured
from app.ledger.job import SESSION_RECORD, Claim
from app.ledger.policy_enforcement import Missing
from app.privacy.policy import Hold
from app.privacy.terms import Capture
from app.runtime.liveness import open_sessions
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store
from app.transcript import parse as parse  # noqa: PLC0414 - loaded with this, as an installer may exchange it later
from app.transcript.identity import Identity
from app.transcript.model import Transcript, TranscriptError, key


class Recapturer:
    """Captures one session at a time, and none twice for as long as nothing changes.

    A `Store` is made for each time: threads of a worker call `rebuild` beside each other, and what a store remembers is
    one thread's.
    """

    def __init__(self, store: Path, destination_id: int, hooks: Path, room: int | None = None) -> None:
        """`room`: of which destinations; see `app.ledger.destinations.IN_ROOM`."""
        self._room = room
        self._store = store
        self._destination_id = destination_id
        self._hooks = hooks
        self._tried: set[tuple[Missing | Evicted, str]] = set()

    def step(
        self,
        db: sqlite3.Connection,
        capture_of: Callable[[str], Capture | None],
        *,
        folders: Sequence[str] | None = None,
        now_ms: int,
        wake: Callable[[str], None],
    ) -> bool:
        """Try the next session, if there is one; `capture_of` a folder is None where it is not ours to do so.

        Raises sqlite3.Error when the ledger cannot be written.
        """
        for wanted in policy_enforcement.missing(db, self._destination_id, folders):
            capturing = capture_of(wanted.folder)
            if capturing is None or capturing.policy.mode == "off":
                continue
            attempt = (wanted, capturing.policy.facts(capturing.user_id))
            if attempt in self._tried:
                continue
            self._tried.add(attempt)
            self._capture_again(db, wanted, capturing, now_ms, wake)
            return True
        return False

    def refill(
        self,
        db: sqlite3.Connection,
        capture_of: Callable[[str], Capture | None],
        *,
        folders: Sequence[str],
        bytes_max: int,
        bytes_max_of: limits.Limits = limits.NO_LIMITS,
        now_ms: int,
        wake: Callable[[str], None],
    ) -> bool:
        """Try to fill the held jobs of the next session again, if there is one and less than `bytes_max` is held.

        Nothing is filled in a folder that holds more than `bytes_max_of` it.
        For a hook: it may redact text. A turn that has changed since comes as its new version; one that would come out
        with bytes that its job may not have (`eviction.may_refill`) stays held. Each is tried once, so that in an
        outage nothing is filled and given up by turns. Raises sqlite3.Error.
        """
        full = eviction.excess_of_folders(db, bytes_max_of, self._room)
        for wanted in eviction.evicted(db, self._destination_id, folders):
            capturing = as_made(capture_of(wanted.folder), wanted.policy)
            if capturing is None or wanted.folder in full or (wanted, wanted.policy) in self._tried:
                continue
            if eviction.held_bytes(db, self._room) >= bytes_max:
                return False
            self._tried.add((wanted, wanted.policy))
            self._capture_again(db, wanted, capturing, now_ms, wake)
            return True
        return False

    def _capture_again(
        self,
        db: sqlite3.Connection,
        wanted: Missing | Evicted,
        capturing: Capture,
        now_ms: int,
        wake: Callable[[str], None],
    ) -> None:
        """Out of OpenCode's store, with its subagents; not where it is not there, or cannot be read."""
        try:
            transcript = Store(self._store).transcript(wanted.session)
        except (ExportError, TranscriptError):
            return
        if transcript is None:
            return
        request = Request(abandoned=wanted.session not in open_sessions(self._hooks), only=wanted.turns)
        if isinstance(wanted, Evicted):
            only = self._fitting(db, transcript, capturing, wanted, abandoned=request.abandoned)
            request = replace(request, reopen=REFILL, only=only)
        place = Place(self._destination_id, wanted.folder)
        enqueue(db, transcript, capturing, place, now_ms=now_ms, wake=wake, request=request)

    def _fitting(
        self, db: sqlite3.Connection, transcript: Transcript, capturing: Capture, wanted: Evicted, *, abandoned: bool
    ) -> set[str]:
        """Of the wanted turns those that come out as they were, or stricter where they may, or have changed.

        The key says nothing of the secrets that were redacted: one that is not known here would be text again.
        """
        known = versions.session_identity(db, self._destination_id, wanted.session)
        identity = known[1] if known is not None else Identity(capturing.user_id)
        digest = capturing.policy.digest(identity.user_id)
        ready, _ = split(transcript, capturing, identity, abandoned=abandoned)
        return {
            export.turn
            for export in ready
            if export.turn in wanted.turns
            and eviction.may_refill(db, self._destination_id, _recaptured(db, export, digest))
        }

    def rebuild(self, db: sqlite3.Connection, claim: Claim, capturing: Capture) -> Recaptured | Hold | None:
        """All bodies of a claimed job as this process makes them, in memory; None when nobody has its turn any more.

        Whether the job may have them is for the caller to ask.
        """
        made_under = as_made(capturing, claim.policy)
        known = versions.session_identity(db, self._destination_id, claim.session)
        if made_under is None or known is None:
            return Hold(
                "its text was made under settings that are no longer known; import of its session queues it anew"
            )
        try:
            name = None if claim.turn == SESSION_RECORD else claim.turn
            transcript = Store(self._store).turn(claim.session, name)
        except (StoreError, TranscriptError):
            return Hold("its text is in OpenCode's store, which cannot be read here")
        if transcript is None:
            is_the_one = eviction.relies_on(db, destinations.fingerprint(db, str(self._store)))
            return (
                None if is_the_one else Hold("its text is in another store of OpenCode than the one that is read here")
            )
        # It was exported once, in the form that it had: whole, or interrupted for ever.
        ready, _ = split(transcript, made_under, known[1], abandoned=True)
        for export in ready:
            if export.turn == claim.turn:
                return _recaptured(db, export, made_under.policy.digest(known[1].user_id))
        return None


def _recaptured(db: sqlite3.Connection, export: Export, policy_digest: str) -> Recaptured:
    bodies = tuple(body_of(record) for record in export.encode())
    return Recaptured(key(export.digest, policy_digest), bodies, marks(db, export))


def as_made(capturing: Capture | None, made_under: str) -> Capture | None:
    """The capture of a folder, as it was when something was made under a policy (`Policy.facts`).

    None where that is not known any more, and where text would have to be redacted in another way than now.
    """
    policy = capturing and capturing.policy.as_made(made_under)
    return replace(capturing, policy=policy) if capturing and policy else None
