"""Environment: fingerprints of the variables that a hook sees, for `doctor` to compare with the shell's.

OpenCode need not run in the environment of the shell: its service has that of whoever started it first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from app.ledger import destinations
from app.settings.names import VARIABLES
from app.sources.opencode.folders import home

STANDARD = {"HOME": "", "XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share"}
"""Below the home folder: said or not, it is the same."""
SETTINGS = [variable for variable, _, _ in VARIABLES]
_CHARACTERS = 8


def fingerprints(db: sqlite3.Connection, environ: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints by the name of each variable that is set and matters here."""
    texts = {name: environ.get(name, "").strip() for name in (*SETTINGS, "OPENCODE_DB")}
    texts |= {name: environ.get(name) or str(home(environ) / below) for name, below in STANDARD.items()}
    return {name: destinations.fingerprint(db, text)[:_CHARACTERS] for name, text in texts.items() if text}
