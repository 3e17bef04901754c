"""Lifetime: decides when a worker process ends by itself, because it is replaced or nobody needs it any more.

another version was installed                        restart, as that version
a newer version has changed the ledger               wait for such an installation, doing nothing, then restart
automatic: another version or settings are wanted    end
automatic: no hook and nothing to send for IDLE_MS   end
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from app import __version__
from app.database.connection import Ledger
from app.database.schema import is_newer
from app.ledger import counts, destinations
from app.runtime import clock
from app.runtime.liveness import ExclusiveLock, present
from app.runtime.spool import Spool
from app.runtime.upgrade import Upgrade, is_replaced

MAKE_WAY_S_MAX = 60.0
"""How long a worker whose ledger has become too new waits, doing nothing, for its own program to be installed anew."""
IDLE_MS = 3 * 60_000
"""An automatic worker ends when no hook was alive and nothing could be sent for so long."""

Step: TypeAlias = Literal["work", "wait", "end", "restart"]


class Lifetime:
    """Lifetime of one worker; `lock` is held by the one automatic worker of a destination."""

    def __init__(
        self, spool: Spool, destination_id: int, signature: str, upgrade: Upgrade, log: Callable[[str], None]
    ) -> None:
        self.lock = ExclusiveLock(spool.automatic_worker(destination_id))
        self.is_short = False
        """Its caller ends it as soon as that has seen enough: no other version is waited for."""
        self._hooks = spool.hooks
        self._destination_id = destination_id
        self._signature = signature
        self._upgrade = upgrade
        self._log = log
        self._outdated_s: float | None = None
        self._useful_ms: int | None = None

    def next_step(self, db: Ledger, now: clock.Reading, *, is_automatic: bool) -> Step:
        """What the worker is to do now. Raises sqlite3.Error."""
        next_step = self._make_way(db, now.steady_ms / 1000)
        return self._need(db, now.wall_ms) if next_step == "work" and is_automatic else next_step

    def _make_way(self, db: Ledger, now_s: float) -> Step:
        """Whether another program is installed, or has made the ledger newer."""
        new = None if self.is_short else self._upgrade.new_version(now_s, self._log)
        if new is not None:
            self._log(f"ends: version {new.version} was installed over version {__version__} and takes over")
            return "restart"
        if not is_newer(db):
            return "work"
        if self._outdated_s is None:
            self._outdated_s = now_s
            self._log(f"delivers nothing: the ledger is newer than version {__version__}, which waits to be replaced")
        if now_s - self._outdated_s < MAKE_WAY_S_MAX:
            return "wait"
        self._log("ends: the ledger belongs to a newer version than the one that is installed here")
        return "restart"  # it will refuse the ledger, and say so to whoever looks after its processes

    def _need(self, db: Ledger, now_ms: int) -> Step:
        """Whether this worker is wanted, and anybody needs one."""
        if is_replaced(self._signature, destinations.by_id(db, self._destination_id).worker_wanted):
            self._log("ends: a worker of another version or with other settings is wanted")
            return "end"
        if self._useful_ms is None or self._is_useful(db, now_ms):
            self._useful_ms = now_ms
            return "work"
        self._useful_ms = min(self._useful_ms, now_ms)  # the clock was set back
        if now_ms - self._useful_ms < IDLE_MS:
            return "work"
        self.lock.release()
        # Whoever came after the last look found the lock taken and started nobody: look once more without it.
        if counts.sendable(db, self._destination_id, now_ms) and self.lock.take():
            self._useful_ms = now_ms
            return "work"
        self._log("ends: no OpenCode is running and nothing can be sent")
        return "end"

    def _is_useful(self, db: Ledger, now_ms: int) -> bool:
        return bool(present(self._hooks)) or counts.sendable(db, self._destination_id, now_ms)
