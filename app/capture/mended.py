"""Mended folders: those that a hook has seen held, and whose files are right by now."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from app.capture.targets import folder
from app.ledger import folders
from app.settings.lookup import Sources
from app.settings.model import SettingsError
from app.settings.names import HELD, HELD_BY_FILES
from app.settings.views import folder_record
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store


def mended(db: sqlite3.Connection, sources: Sources, store: Store) -> dict[str, str]:
    """By folder, as the ledger knows it, the directory. Those that neither the store nor the person names stay held."""
    by_files = {one.hash for one in folders.held_folders(db) if one.is_by_files}
    if not by_files:
        return {}
    known = named(db, sources, store)
    return {place: one for place, one in known.items() if place in by_files and _is_right(sources, one)}


def named(db: sqlite3.Connection, sources: Sources, store: Store) -> dict[str, str]:
    """By folder, as the ledger knows it, the directory of each that is held, where store or person names it."""
    held = {one.hash for one in folders.held_folders(db)}
    if not held:
        return {}
    return {place: one for one in _directories(sources, store) if (place := folder(db, one)) in held}


def _directories(sources: Sources, store: Store) -> Iterable[str]:
    try:
        found = store.directories()
    except StoreError:
        found = set()
    return found | ({str(sources.cwd)} if sources.cwd is not None else set())


def _is_right(sources: Sources, directory: str) -> bool:
    try:
        return not sources.load(directory, recorded={HELD: "before", HELD_BY_FILES: True}).held
    except SettingsError:
        return False


def release(db: sqlite3.Connection, sources: Sources, found: dict[str, str]) -> None:
    """Note of each that it is held no longer, and what its files say now. Raises SettingsError."""
    for place, directory in found.items():
        before = folders.folder_options(db, place) or {}
        kept = {option: value for option, value in before.items() if option not in (HELD, HELD_BY_FILES)}
        folders.release(db, place, folder_record(sources.everywhere().load(directory, recorded=kept)))
