"""Autostart: has one automatic worker run for a destination; whoever takes the lock starts it, with growing pauses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping

from app import __version__
from app.runtime import log
from app.runtime.liveness import ExclusiveLock, is_taken, present
from app.runtime.spool import Spool
from app.settings.model import HELICONE, Settings
from app.settings.views import delivery_options

STARTING_S = 30.0
"""How long a worker that was started may take until it holds its lock."""
PAUSE_S_MIN = 2.0
PAUSE_S_MAX = 300.0
"""Between two starts of a worker that ends again and again; the pause doubles up to this."""


class Autostart:
    """What one hook knows of the worker of its destination."""

    def __init__(
        self, spool: Spool, destination_id: int, name: str, environ: Mapping[str, str], tell: Callable[[str], None]
    ) -> None:
        """`name`: of the destination, as settings have it."""
        self._name = name
        self._spool = spool
        self._destination_id = destination_id
        self._environ = environ
        self._tell = tell
        self._lock = ExclusiveLock(spool.automatic_worker(destination_id).with_suffix(".starting"))
        self._worker: subprocess.Popen[bytes] | None = None
        self._start_s = 0.0
        self._pause_s = PAUSE_S_MIN

    @property
    def pid(self) -> int | None:
        """Process id of the worker that it started, as far as it has not ended."""
        return None if self._worker is None else self._worker.pid

    def reap(self) -> None:
        """Take note of a worker that has ended."""
        if self._worker is not None and self._worker.poll() is not None:
            if self._worker.returncode != 0:
                self._tell(f"the worker ended with exit code {self._worker.returncode}, see worker.log")
            self._worker = None

    def look(self, now_s: float) -> None:
        """Start one, if nobody has and the last start is long enough ago. `now_s` is monotonic."""
        if is_taken(self._spool.automatic_worker(self._destination_id)) or self._is_served():
            self._lock.release()
            self._pause_s = PAUSE_S_MIN
        elif now_s >= self._start_s + (STARTING_S if self._worker else 0):
            # Whoever holds this lock is starting one already.
            self._lock.release()
            if self._lock.take():
                self._start(now_s)

    def _is_served(self) -> bool:
        return any(worker.says.get("destination") == self._destination_id for worker in present(self._spool.workers))

    def _start(self, now_s: float) -> None:
        self._start_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        # Isolated (-I) and outside of the project: its own `app`, `.env` and PYTHONPATH are not ours to run.
        with log.opened(self._spool.worker_log) as output:
            self._worker = subprocess.Popen(
                [sys.executable, "-I", "-m", "app", "worker", "--automatic", *self._towards()],
                cwd=self._spool.path,
                env={**self._environ, "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(self._spool.path)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _towards(self) -> list[str]:
        return [] if self._name == HELICONE else ["--destination", self._name]

    def release(self) -> None:
        self._lock.release()


def worker_signature(settings: Settings) -> str:
    """Which automatic worker should run: one with another version or other delivery settings is replaced."""
    options = delivery_options(settings) | {"readbackUrl": settings.readback_url, "caFile": settings.ca_file}
    return f"{__version__} {sorted(options.items())}"
