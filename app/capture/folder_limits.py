"""Folder limits: reads maxRetries, maxSpoolAge and maxSpoolSize of a project's files, which bind its own jobs alone.

    maxSpoolSize   beside the user's own, which bounds the whole spool
    maxSpoolAge    in place of the user's own: shorter or longer
    maxRetries     in place of the user's own: fewer or more

As every option of the plugin, they are overruled by `.env`, the environment and the command line.
"""

from __future__ import annotations

import sqlite3

from app.ledger import folders
from app.settings.model import Settings
from app.settings.names import LIMITS, NAMES, Limit

_OVERRULING = ("command line", "environment", ".env")


def of_folders(db: sqlite3.Connection, own: Settings, limit: Limit) -> dict[str, int]:
    """Limits of jobs by folder; only of folders that have one. `own` are the user's settings."""
    if limit in own.origins and own.origins[limit].source in _OVERRULING:
        return {}
    return folders.folder_limits(db, NAMES[limit].option)


def folders_by_option(db: sqlite3.Connection, own: Settings) -> dict[str, int]:
    """How many folders have a limit of their own, by the option's name; only where some have."""
    counted = {NAMES[limit].option: len(of_folders(db, own, limit)) for limit in LIMITS}
    return {option: folders for option, folders in counted.items() if folders}
