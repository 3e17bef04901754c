"""What OpenCode has written and no live hook is about to read, read by a command: in folders that are captured."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress

from app import clock, destination
from app.connection import Ledger, flushed_together
from app.enqueue import Enqueued, Place, Request, enqueue
from app.export import Capture
from app.folders import Folders
from app.opencode import ExportError, Store, store_file
from app.presence import open_sessions
from app.privacy.redact import PatternError
from app.reading import Reader
from app.reconcile import Reconciling
from app.settings import SettingsError
from app.sources import Sources
from app.spool import Spool, folder
from app.transcript import Transcript


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
        destination.fingerprint(db, str(store.path)),
        Reader(store, destination_id, take),
        destination_id,
        elsewhere=lambda: open_sessions(spool.hooks),
        tell=lambda _: None,
    )
    with suppress(ExportError), store.kept_open():  # `doctor` says what is wrong with the store
        for directory in store.directories():
            place = folder(db, directory)
            if destination.is_captured(db, place, destination_id):
                directories[place] = directory
                reconciling.begin(directory, place)
        now_s = time.monotonic()
        while reconciling.is_due(now_s):
            reconciling.step(db, capture_of, (), now_s=now_s, now_ms=clock.now_ms())
    return len(found)
