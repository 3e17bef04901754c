"""The spool directory: where each file lies, and whose jobs the present settings mean.

    <spool>/ledger.db            the truth
            ledger.db.damaged-*  what was set aside after a recovery; ledger.db.before-* the copy before a migration
            recover.lock         shared by those who open the ledger, exclusive while it is recovered
            queue.db             Huey's, may be deleted at any time
            hooks/*.lock         one for each live hook, held by it
            workers/*.lock       one for each live worker
            worker-<n>.lock      the automatic worker of destination n
            logs/                plugin.log, hook.log, worker.log

Directories have mode 0700, files 0600.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from app import __version__
from app.ledger import destinations
from app.ledger.destinations import Destination
from app.runtime.url import normalise
from app.settings import Settings, delivery_options


@dataclass(frozen=True, slots=True)
class Spool:
    path: Path

    @property
    def hooks(self) -> Path:
        return self.path / "hooks"

    @property
    def workers(self) -> Path:
        return self.path / "workers"

    @property
    def hook_log(self) -> Path:
        return self.path / "logs" / "hook.log"

    @property
    def plugin_log(self) -> Path:
        """What the plugin says went wrong with a hook that was before."""
        return self.path / "logs" / "plugin.log"

    @property
    def worker_log(self) -> Path:
        return self.path / "logs" / "worker.log"

    def automatic_worker(self, destination_id: int) -> Path:
        """The lock that the one automatic worker of a destination holds."""
        return self.path / f"worker-{destination_id}.lock"


def target(db: sqlite3.Connection, settings: Settings, now_ms: int) -> Destination:
    """The destination that these settings mean; made when it is new.

    Without a key and without a chosen endpoint it is the one destination that any first key may take over.
    """
    return destinations.destination(db, *meant(db, settings), now_ms)


def meant(db: sqlite3.Connection, settings: Settings) -> tuple[str, str]:
    """(endpoint, key fingerprint): what tells that destination from others."""
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    chosen = key or "endpoint" in settings.origins
    return (normalise(settings.endpoint) if chosen else ""), destinations.fingerprint(db, key)


def find_target(db: sqlite3.Connection, settings: Settings) -> Destination | None:
    """As `target`, for those who only look: None when there is no such destination yet."""
    ours = meant(db, settings)
    return next((one for one in destinations.destinations(db) if (one.endpoint, one.key_fingerprint) == ours), None)


def worker_signature(settings: Settings) -> str:
    """Which automatic worker should run: one with another version or other delivery settings is replaced."""
    options = delivery_options(settings) | {"readbackUrl": settings.readback_url}
    return f"{__version__} {sorted(options.items())}"


def folder(db: sqlite3.Connection, directory: str | None) -> str:
    """What the ledger knows a project folder by: a salted hash, '' for none."""
    return destinations.fingerprint(db, directory or "")
