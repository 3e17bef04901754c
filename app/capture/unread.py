"""Unread sessions: a command reads what OpenCode has written and no live hook is about to read."""

from __future__ import annotations

import time
from contextlib import suppress

from app.capture.folders import Folders
from app.capture.mended import mended, release
from app.capture.owed import Owed
from app.capture.reconcile import Reconciler
from app.capture.session_reader import Reader
from app.capture.targets import folder
from app.database.connection import Ledger
from app.errors import ExportError
from app.ledger.destinations import HELICONE, Destination, fingerprint
from app.ledger.folders import is_captured
from app.privacy.redact import PatternError
from app.privacy.terms import Capture
from app.runtime import clock
from app.runtime.liveness import open_sessions
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import SettingsError
from app.sources.opencode.store import Store, store_file


def read_unread(db: Ledger, sources: Sources, spool: Spool, ours: Destination) -> int:
    """The number of new jobs. What is unfinished stays so: whoever owns it may be about to go on.

    A folder that was held by its files is so no longer where they are right. Raises sqlite3.Error.
    """
    destination_id = ours.id
    store = Store(store_file(sources.environ))
    release(db, sources, mended(db, sources, store))
    folders = Folders(db, sources)
    directories: dict[str, str] = {}
    found: list[str] = []

    def capture_of(place: str) -> Capture | None:
        with suppress(SettingsError, PatternError):  # its hook says so
            capturing = folders.find(directories[place])[1]
            return None if capturing is None or capturing.policy.mode == "off" else capturing
        return None

    def elsewhere() -> set[object]:
        return open_sessions(spool.hooks)

    reader = Reader(
        db,
        store,
        destination_id,
        wake=lambda _: None,
        elsewhere=elsewhere,
        after=lambda _, done: found.extend(done.keys),
        begun_ms=ours.begun_ms,
    )
    owed = Owed(db, fingerprint(db, str(store.path)))
    reconciling = Reconciler(db, store, destination_id, owed, reader, elsewhere=elsewhere)
    with suppress(ExportError), store.kept_open():  # `doctor` says what is wrong with the store
        for directory in store.directories():
            place = folder(db, directory)
            if is_captured(db, place, ours.id if ours.kind == HELICONE else None):
                directories[place] = directory
                reconciling.begin(directory, place)
        now_s = time.monotonic()
        while reconciling.is_due(now_s):
            reconciling.step(capture_of, (), now_s=now_s, now_ms=clock.now_ms())
    return len(found)
