"""Doctor: runs one check after the other, and says of each what it found and what to do.

    settings ─▶ checks around the ledger ─▶ the ledger opens ─▶ checks inside it

An older ledger is migrated and a damaged one recovered, as by every command; nothing else is made or mended here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from app import __version__
from app.database.open import open_if_made, read_ledger
from app.database.schema import SchemaError
from app.operations import ledger_check, surroundings_check
from app.operations.finding import Finding
from app.operations.site import Site
from app.settings.lookup import Sources
from app.settings.model import SettingsError

THOROUGH = surroundings_check.THOROUGH | ledger_check.THOROUGH
"""Checks that read all of ledger or store, start programs, or ask the server."""


def examine(sources: Sources, directory: Path, now_ms: int, *, is_quick: bool = False) -> Iterator[Finding]:
    """Findings as they come; they end early where the settings or the ledger cannot be used.

    `is_quick`: without what is `THOROUGH`, and nothing is made, migrated or recovered.
    """
    try:
        site = Site(sources.load(), sources, directory, now_ms)
    except SettingsError as error:
        yield from (Finding("settings", "problem", one, "correct it", _setting(one)) for one in error.problems)
        return
    yield Finding("settings", "ok", f"version {__version__}")
    for look in surroundings_check.CHECKS:
        if not (is_quick and look in surroundings_check.THOROUGH):
            yield from look(site)
    try:
        db = read_ledger(site.spool.path) if is_quick else open_if_made(site.spool.path)
    except FileNotFoundError:
        yield Finding("ledger", "warning", "there is no queue yet", "start OpenCode, or type opencode-helicone migrate")
        return
    except (OSError, sqlite3.Error, SchemaError) as error:
        yield _unopened(error)
        return
    with closing(db):
        for inspect in ledger_check.CHECKS:
            if not (is_quick and inspect in ledger_check.THOROUGH):
                yield from inspect(site, db)


def _setting(problem: str) -> str:
    return "variable-misspelt" if "there is no such" in problem else "setting-wrong"


def _unopened(error: Exception) -> Finding:
    found = f"ledger.db cannot be opened: {error}"
    match error:
        case SchemaError():
            return Finding(
                "ledger", "problem", found, "use the newer version again, or update this one", "ledger-newer"
            )
        case OSError():
            return Finding("ledger", "problem", found, "the queue needs it", "spool-unusable")
        case _:
            return Finding("ledger", "problem", found, "see logs/ in the spool directory", "ledger-unusable")
