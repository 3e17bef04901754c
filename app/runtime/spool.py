"""Spool directory: the path of each file in it.

    <spool>/ledger.db            the truth
            ledger.db.damaged-*  what was set aside after a recovery; ledger.db.before-* the copy before a migration
            recover.lock         shared by those who open the ledger, exclusive while it is recovered
            queue.db             Huey's, may be deleted at any time
            hooks/*.lock         one for each live hook, held by it
            workers/*.lock       one for each live worker
            worker-<n>.lock      the automatic worker of destination n
            intake-<hash>.json   what an intake has said to this machine, one for each address and token
            logs/                plugin.log, hook.log, worker.log

Directories have mode 0700, files 0600.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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

    def intake(self, name: str) -> Path:
        """What an intake has said; `name` tells it from others."""
        return self.path / f"intake-{name}.json"

    def automatic_worker(self, destination_id: int) -> Path:
        """The lock that the one automatic worker of a destination holds."""
        return self.path / f"worker-{destination_id}.lock"
