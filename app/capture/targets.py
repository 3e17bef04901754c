"""Targets: finds the destination and the folder, as rows of the ledger, that settings and a directory mean."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from app.database.connection import Database
from app.database.open import open_ledger
from app.ledger import destinations, folders
from app.ledger.destinations import Destination
from app.runtime.url import normalise
from app.settings.model import HELICONE, Settings
from app.settings.views import folder_record


def target(db: Database, settings: Settings, now_ms: int) -> Destination:
    """The destination that these settings mean; made when it is new.

    Without a key and without a chosen endpoint it is the one destination that any first key may take over.
    """
    found = destinations.destination(db, *meant(db, settings), now_ms, settings.kind)
    if settings.kind != HELICONE:
        destinations.note_name(db, found.id, settings.destination)
        found = destinations.by_id(db, found.id)
    return found


def meant(db: Database, settings: Settings) -> tuple[str, str]:
    """(endpoint, key fingerprint): what tells that destination from others."""
    chosen = settings.credential or "endpoint" in settings.origins
    return (normalise(settings.endpoint) if chosen else ""), destinations.fingerprint(db, settings.credential)


def find_target(db: Database, settings: Settings) -> Destination | None:
    """Find the destination as `target` does, for those who only look: None when there is no such one yet."""
    ours = meant(db, settings)
    return next((one for one in destinations.destinations(db) if (one.endpoint, one.key_fingerprint) == ours), None)


def folder(db: sqlite3.Connection, directory: str | None) -> str:
    """What the ledger knows a project folder by: a salted hash, '' for none."""
    return destinations.fingerprint(db, directory or "")


def note_disabled(settings: Settings, directory: str, now_ms: int) -> None:
    """`enable` is false: a worker that still runs must see it. Where nothing ever ran, nothing is made."""
    if not (settings.spool_directory / "ledger.db").exists():
        return
    with closing(open_ledger(settings.spool_directory)) as db:
        place = folder(db, directory)
        ours = target(db, settings, now_ms)
        folders.remember_folder(db, place, ours.id, folder_record(settings), now_ms)
        folders.stop_capture(db, place)
