"""Verify: goes through OpenCode's sessions, and compares each with the ledger.

    Store.transcript ─ turns ▶ turn_status.weigh ◀ versions ─ history.exported

The store is read before the ledger: what comes to both in between is in the ledger then. Nothing is changed, and no
text is kept: one session is in memory at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from app.capture.enqueue import own_turns
from app.capture.export import children
from app.capture.folders import Folders
from app.capture.reconcile import is_quiet
from app.capture.targets import find_target, folder
from app.database.open import open_if_made
from app.errors import AppError, ExportError
from app.exporters.encoding import encoder_of
from app.ledger.folders import captured_since_ms
from app.ledger.history import exported, exported_elsewhere, exported_sessions
from app.ledger.job import SESSION_RECORD
from app.ledger.notices import unread_sessions
from app.ledger.versions import any_sealed, session_identity
from app.runtime import clock
from app.runtime.liveness import open_sessions, present
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.sources.opencode.access import StoreError
from app.sources.opencode.rows import Head
from app.sources.opencode.store import Store
from app.transcript.model import TranscriptError
from app.verify.turn_status import Circumstances, SessionStatus, deleted_session_status, session_status, stored_turns

SETTLE_S = 2.0
"""A hook that is alive needs a moment for a turn that has just ended: then it is looked at once more."""


class UnknownSessionError(AppError):
    """A session was named that neither OpenCode nor the ledger has."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which sessions are looked at: all, or those that are named; of them those that changed since."""

    since_ms: int = 0
    sessions: tuple[str, ...] = ()


class Verification:
    """One look at a store and the ledger. All methods raise StoreError, sqlite3.Error, SettingsError, PatternError."""

    def __init__(self, db: sqlite3.Connection, sources: Sources, store: Store) -> None:
        self._db = db
        self._store = store
        self._folders = Folders(db, sources)
        settings = sources.load()
        self._changes = store.changes()
        self._hooks = Spool(settings.spool_directory).hooks
        ours = find_target(db, settings)
        self.destination_id = -1 if ours is None else ours.id
        self._begun_ms = 0 if ours is None else ours.begun_ms
        self._kind = settings.kind

    def chosen(self, choice: Choice) -> list[Head | str]:
        """OpenCode's sessions, then the ids of those that only the ledger knows. Raises UnknownSessionError."""
        roots = self._store.roots()
        stored = {one.id for one in roots}
        found: list[Head | str] = list(roots)
        # What has become a subagent meanwhile is no root, and yet there.
        found += [
            name
            for name in exported_sessions(self._db, self.destination_id)
            if name not in stored and name not in self._changes
        ]
        if choice.sessions:
            by_name = {one if isinstance(one, str) else one.id: one for one in found}
            for name in choice.sessions:
                if name not in by_name:
                    raise UnknownSessionError(
                        f"neither OpenCode's store nor the ledger has a session {name} of its own"
                    )
            found = [by_name[name] for name in dict.fromkeys(choice.sessions)]
        return [one for one in found if not choice.since_ms or self.changed_ms(one) >= choice.since_ms]

    def changed_ms(self, session: Head | str) -> int:
        if isinstance(session, str):
            known = exported(self._db, self.destination_id, session)
            return max((one.last_event_ms for one in known), default=0)
        return self._changes.get(session.id) or session.updated_ms

    def look(self, session: Head | str) -> SessionStatus:
        if isinstance(session, str):
            return deleted_session_status(session, exported(self._db, self.destination_id, session))
        changed_ms = self.changed_ms(session)
        first = SessionStatus(session.id, Path(session.directory).name, changed_ms, is_deleted=False, failure="")
        try:
            transcript = self._store.transcript(session.id)
        except StoreError:
            raise
        except (ExportError, TranscriptError) as error:
            return replace(first, failure=str(error))
        if transcript is None:  # deleted since it was listed
            return deleted_session_status(session.id, exported(self._db, self.destination_id, session.id))
        whole, transcript = transcript, own_turns(self._db, transcript, self.destination_id)
        first = replace(
            first,
            copied=len(whole.turns) - len(transcript.turns),
            odd=len(transcript.faults) + sum(len(turn.faults) for turn in transcript.turns),
        )
        has_record = encoder_of(self._kind).count(transcript.session) > 0
        turns = [one for one in stored_turns(transcript) if has_record or one.name != SESSION_RECORD]
        sealed = frozenset(
            turn.id
            for turn in transcript.turns
            if (inside := [*children(turn)]) and any_sealed(self._db, self.destination_id, inside)
        )
        if not all(turn.is_final for turn in turns):  # it may be written to meanwhile
            changed_ms = self._store.changed_ms(session.id) or changed_ms
        at = replace(self._circumstances(session, changed_ms), sealed=sealed)
        known = exported(self._db, self.destination_id, session.id, with_identities=False)
        return session_status(first, turns, known, at, transcript.unreadable)

    def is_anybody_alive(self) -> bool:
        """Whether a hook may be about to bring something."""
        return bool(present(self._hooks))

    def _circumstances(self, session: Head, changed_ms: int) -> Circumstances:
        settings, capturing = self._folders.find(session.directory, to_redact=False)
        known = session_identity(self._db, self.destination_id, session.id)
        since_ms = captured_since_ms(self._db, folder(self._db, session.directory))
        return Circumstances(
            capture=capturing,
            is_held=settings.enable and bool(settings.held),
            user_id=known[1].user_id if known is not None else capturing.user_id if capturing is not None else "",
            is_live=session.id in open_sessions(self._hooks),
            is_inside=known is not None and known[0] != session.id,
            captured_since_ms=None if since_ms is None else max(since_ms, self._begun_ms),
            is_unread=session.id in unread_sessions(self._db),
            is_recent=not is_quiet(changed_ms, clock.now_ms()),
            elsewhere=frozenset(exported_elsewhere(self._db, self.destination_id, session.id)),
        )


def verify(
    sources: Sources,
    store: Store,
    choice: Choice,
    *,
    pause: Callable[[float], object],
    progress: Callable[[int, int], object] = lambda _done, _all: None,
) -> list[SessionStatus]:
    """A verdict on each chosen session, OpenCode's first, the oldest first. `progress` is told (done, all).

    `pause` is called once, with seconds, where live hooks may be about to bring what looks unexplained. Raises
    StoreError, UnknownSessionError, SettingsError, PatternError, OSError, sqlite3.Error, SchemaError.
    """
    with closing(open_if_made(sources.load().spool_directory)) as db:
        verification = Verification(db, sources, store)
        sessions = verification.chosen(choice)
        statuses = []
        for done, session in enumerate(sessions):
            progress(done, len(sessions))
            statuses.append(verification.look(session))
        progress(len(sessions), len(sessions))
        if any(one.unexplained for one in statuses) and verification.is_anybody_alive():
            pause(SETTLE_S)
            statuses = [
                verification.look(session) if one.unexplained else one
                for session, one in zip(sessions, statuses, strict=True)
            ]
        return statuses
