"""What OpenCode has written and no live hook is about to read, read by a command: in folders that are captured."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress

from app.capture.enqueue import Enqueued, Place, Request, enqueue
from app.capture.folders import Folders
from app.capture.reconcile import Reconciling
from app.capture.session_reader import Reader
from app.capture.targets import folder
from app.database.connection import Ledger, flushed_together
from app.ledger import destinations
from app.ledger.folders import is_captured
from app.privacy.redact import PatternError
from app.privacy.terms import Capture
from app.runtime import clock
from app.runtime.liveness import open_sessions
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import SettingsError
from app.sources.opencode.export_files import ExportError
from app.sources.opencode.store import Store, store_file
from app.transcript.model import Transcript


def read_unread(db: Ledger, sources: Sources, spool: Spool, destination_id: int) -> int:
    """The number of new jobs. What is unfinished stays so: whoever owns it may be about to go on.

    Raises sqlite3.Error.
    """
    store = Store(store_file(sources.environ))
    folders = Folders(db, sources)
    directories: dict[str, str] = {}
    found: list[str] = []

    def take(
        transcript: Transcript, capture: Capture, place: Place, *, only: Collection[str], abandoned: bool
    ) -> Enqueued:
        with flushed_together(db):
            request = Request(only=only, abandoned=abandoned)
            done = enqueue(db, transcript, capture, place, now_ms=clock.now_ms(), ring=lambda _: None, request=request)
        found.extend(done.keys)
        return done

    def capture_of(place: str) -> Capture | None:
        with suppress(SettingsError, PatternError):  # its hook says so
            capturing = folders.find(directories[place])[1]
            return None if capturing is None or capturing.policy.mode == "off" else capturing
        return None

    reconciling = Reconciling(
        store,
        destinations.fingerprint(db, str(store.path)),
        Reader(store, destination_id, take),
        destination_id,
        elsewhere=lambda: open_sessions(spool.hooks),
        tell=lambda _: None,
    )
    with suppress(ExportError), store.kept_open():  # `doctor` says what is wrong with the store
        for directory in store.directories():
            place = folder(db, directory)
            if is_captured(db, place, destination_id):
                directories[place] = directory
                reconciling.begin(directory, place)
        now_s = time.monotonic()
        while reconciling.is_due(now_s):
            reconciling.step(db, capture_of, (), now_s=now_s, now_ms=clock.now_ms())
    return len(found)
