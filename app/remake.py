"""Turns that lost their bodies to a stricter policy are captured again, from OpenCode's own store.

    dropped (policy) ─ stored ▶ parse ▶ enqueue ─▶ pending, under the policy in force

Where the store no longer has them they stay dropped, until their session is captured or imported again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from app import ledger
from app.enqueue import Capture, Place, enqueue
from app.ledger import Missing
from app.opencode import ExportError, Store
from app.presence import present
from app.transcript import Transcript, TranscriptError


class Remaking:
    """Captures one session at a time, and none twice for as long as nothing changes."""

    def __init__(self, store: Path, destination_id: int, hooks: Path) -> None:
        self._store = store
        self._destination_id = destination_id
        self._hooks = hooks
        self._tried: set[tuple[Missing, str]] = set()

    def step(
        self,
        db: sqlite3.Connection,
        capture_of: Callable[[str], Capture | None],
        *,
        folders: Sequence[str] | None = None,
        now_ms: int,
        ring: Callable[[str], None],
    ) -> bool:
        """Capture the next session, if there is one; `capture_of` a folder is None where it is not ours to do so.

        Raises sqlite3.Error when the ledger cannot be written.
        """
        for wanted in ledger.missing(db, self._destination_id, folders):
            capturing = capture_of(wanted.folder)
            if capturing is None or capturing.policy.mode == "off":
                continue
            attempt = (wanted, capturing.policy.facts(capturing.user_id))
            if attempt in self._tried:
                continue
            self._tried.add(attempt)
            transcript = found(self._store, wanted.session)
            if transcript is None:
                continue
            enqueue(
                db,
                transcript,
                capturing,
                Place(self._destination_id, wanted.folder),
                now_ms=now_ms,
                ring=ring,
                abandoned=not is_live(self._hooks, wanted.session),
                only=wanted.turns,
            )
            return True
        return False


def is_live(hooks: Path, session: str) -> bool:
    """Whether an OpenCode has it open, and may complete what is not final. `hooks` is where the hooks' locks are."""
    says = [hook.says.get("sessions") for hook in present(hooks)]
    return any(session in sessions for sessions in says if isinstance(sessions, list))


def found(store: Path, session: str) -> Transcript | None:
    """The session as OpenCode holds it, with its subagents; None where it is not there or cannot be read."""
    try:
        return Store(store).transcript(session)
    except (ExportError, TranscriptError):
        return None
