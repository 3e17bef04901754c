"""Send what waits, now: let the hooks finish what they have read, and deliver here when nobody else does."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass

from app import clock, destination, ledger
from app.db import open_whole
from app.sources import Sources
from app.spool import Spool, target
from app.status import Failing, Jobs, read_destinations, read_hooks, read_workers, waiting
from app.worker import Worker

LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Flushed:
    """What is left at the present destination."""

    jobs: Jobs
    backlog: int
    """Lines that live hooks have not worked off."""
    waiting: tuple[str, ...]
    """Why jobs wait, for a person."""
    errors: tuple[Failing, ...]
    """Why jobs are dead, or failed and are tried again."""
    was_stopped: bool
    """Somebody interrupted it."""

    @property
    def is_done(self) -> bool:
        return not self.jobs.pending and not self.backlog


def flush(sources: Sources, timeout_s: float) -> Flushed:
    """Return as soon as nothing is pending, or when the time is up; what is being posted then is waited for.

    Must be called in the main thread. Raises SettingsError, OSError, sqlite3.Error, SchemaError.
    """
    settings = sources.load()
    spool = Spool(settings.spool_directory)
    with closing(open_whole(spool.path)) as db:
        ours = target(db, settings, clock.now_ms())
        destination.probe_now(db, ours.id, clock.now_ms())
        if settings.takes_over:
            ledger.take_over(db, ours, clock.now_ms())
        end_s = time.monotonic() + timeout_s

        def is_over() -> bool:
            return time.monotonic() >= end_s or not (ledger.is_pending(db, ours.id) or _backlog(spool, ours.id))

        was_stopped = False
        while not is_over() and not was_stopped:
            if not ours.key_fingerprint and not _backlog(spool, ours.id):
                break  # nothing is sent without a key, however long one waits
            if ours.key_fingerprint and ledger.is_pending(db, ours.id) and not _is_served(spool, ours.id):
                was_stopped = not Worker(sources).run_until(is_over)
            else:
                time.sleep(LOOK_S)
        current = read_destinations(db, settings, clock.now_ms())[0]
        workers = read_workers(spool)
        return Flushed(
            jobs=current.jobs,
            backlog=_backlog(spool, ours.id),
            waiting=waiting([current], workers, clock.now_ms()),
            errors=current.errors,
            was_stopped=was_stopped,
        )


def _is_served(spool: Spool, destination_id: int) -> bool:
    return any(worker.destination == destination_id for worker in read_workers(spool))


def _backlog(spool: Spool, destination_id: int) -> int:
    """Lines that hooks have read and not worked off. One that has not said yet where it delivers has at least one."""
    hooks = read_hooks(spool)
    return sum(
        1 if hook.destination is None else hook.backlog for hook in hooks if hook.destination in (None, destination_id)
    )
