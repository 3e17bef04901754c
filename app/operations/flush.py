"""Flush: lets hooks finish, reads what none of them will, and delivers here when nobody else does.

What waits is looked for at the destination of the present settings and at those that the settings of any captured
folder mean: these have keys that are not known here, and are waited for as long as they have a worker.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, field

from app.capture.targets import folder, target
from app.capture.unread import read_unread
from app.database.open import open_whole
from app.ledger import adoption, counts, flow, folders, notices, policy_enforcement, readback
from app.ledger.destinations import Destination
from app.ledger.notices import Unread
from app.operations.centre import centre
from app.operations.status import DestinationStatus, Failing, Jobs, read_destinations, waiting
from app.operations.verdict import deliver_it
from app.runtime import clock
from app.runtime.liveness import read_hooks, read_workers
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import HELICONE, Settings
from app.worker import Worker

LOOK_S = 0.1
TIMEOUT_S = 30.0
START_S_MAX = 30.0
"""A hook that OpenCode started a moment ago has said so by then, and that the folder is captured."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """What is left."""

    jobs: Jobs
    """Of the present destination."""
    elsewhere: int
    """Jobs pending at the other destinations that captured folders have."""
    captured_here: bool
    """The folder where it was typed ever had a job."""
    backlog: int
    """Lines and sessions that live hooks have not worked off."""
    unread: tuple[Unread, ...]
    """What OpenCode's plugin has told of and nobody has read yet."""
    waiting: tuple[str, ...]
    """Why jobs wait, at whatever destination, for a person."""
    errors: tuple[Failing, ...]
    """Why jobs are dead, or failed and are tried again."""
    was_stopped: bool
    """Somebody interrupted it."""
    delivered: int
    """Jobs of the present destination that were delivered meanwhile."""
    todo: str
    """What to do where the present destination cannot be reached, or refuses; '' otherwise."""

    @property
    def is_done(self) -> bool:
        cannot = any(one.reason is not None for one in self.unread)
        return not (self.jobs.pending or self.elsewhere or self.backlog or cannot)


def flush(
    sources: Sources,
    timeout_s: float | None,
    tell: Callable[[str], object],
    *,
    expect_some: bool = False,
    only_present: bool = False,
) -> Flushed:
    """Return as soon as nothing more can go, or when the time is up; what is being posted then is waited for.

    `timeout_s`: so long a destination that is away is tried again and again, and `tell` is told once that it is; None:
    it is tried once, and TIMEOUT_S is for what goes.
    `expect_some`: where the folder never had a job, its hook is waited for, START_S_MAX at most.
    `only_present`: no other destination than that of the present settings is looked at.

    Must be called in the main thread. Raises SettingsError, OSError, sqlite3.Error, SchemaError.
    """
    settings = sources.load()
    spool = Spool(settings.spool_directory)
    with closing(open_whole(spool.path)) as db:
        ours = target(db, settings, clock.now_ms())
        hooked = {ours.id} | (set() if only_present else folders.of_folders(db))
        seen = hooked if ours.kind == HELICONE else {ours.id}  # others are flushed by their names
        _begin(db, settings, ours, seen)
        before = counts.counts(db, ours.id).delivered
        here = folder(db, str(sources.cwd or sources.base))
        going = _Flushing(db, settings, ours, seen, hooked, timeout_s, tell, here if expect_some else None)
        try:
            read_unread(db, sources, spool, ours)
            was_stopped = _deliver(db, sources, going)
            # Once more when all is sent: a hook may have been late, and is gone by now.
            while not was_stopped and not going.is_late and read_unread(db, sources, spool, ours) > 0:
                was_stopped = _deliver(db, sources, going)
        except KeyboardInterrupt:  # while it waits; a worker of its own takes it for a signal
            was_stopped = True
        now_ms = clock.now_ms()
        found = read_destinations(db, settings, now_ms)
        current, *others = [one for one in found if one.current or one.id in seen]
        return Flushed(
            jobs=current.jobs,
            elsewhere=sum(one.jobs.pending for one in others),
            captured_here=folders.had_jobs(db, here),
            backlog=_backlog(spool, hooked),
            unread=tuple(notices.unread(db)),
            waiting=waiting(found, read_workers(spool), now_ms),
            errors=current.errors,
            was_stopped=was_stopped,
            delivered=max(0, current.jobs.delivered - before),
            todo=_todo(current),
        )


def _todo(one: DestinationStatus) -> str:
    if one.pause_reason is None or not one.jobs.pending:
        return ""
    if one.health == "refused":
        return "opencode-helicone doctor says what is wrong; setup changes the key or the address"
    return f"{deliver_it(one)}; with --timeout SECONDS it tries until then"


@dataclass(slots=True)
class _Flushing:
    """One flush, for as long as it goes on."""

    db: sqlite3.Connection
    settings: Settings
    ours: Destination
    seen: Collection[int]
    """The destinations that it looks at."""
    hooked: Collection[int]
    """Those whose hooks are let finish: of another kind than Helicone they read for that as well."""
    timeout_s: float | None
    tell: Callable[[str], object]
    awaited: str | None
    """The folder that is to have a job."""
    begin_s: float = field(default_factory=time.monotonic)
    begin_ms: int = field(default_factory=clock.now_ms)
    has_told: bool = False
    has_swept: Callable[[], bool] = lambda: False
    """Whether a worker of its own has seen what of ours the settings hold."""

    @property
    def is_late(self) -> bool:
        return time.monotonic() >= self.begin_s + (TIMEOUT_S if self.timeout_s is None else self.timeout_s)

    def is_over(self) -> bool:
        if self.is_late:
            return True
        is_early = time.monotonic() < self.begin_s + START_S_MAX
        if self.awaited is not None and is_early and not folders.had_jobs(self.db, self.awaited):
            return False
        spool = Spool(self.settings.spool_directory)
        if _backlog(spool, self.hooked):
            return False
        # Nothing is sent without a key, however long one waits.
        going = _served(spool) | ({self.ours.id} if self.ours.key_fingerprint else set())
        waits = [one for one in self.seen if one in going and counts.is_pending(self.db, one)]
        return not waits or self._is_away(waits)

    def _is_away(self, waits: Collection[int]) -> bool:
        """Whether nothing of what waits can go before a later probe, and nobody asked to wait for that."""
        now_ms = clock.now_ms()
        if not all(flow.is_idle(self.db, one, now_ms) or self._is_silent(one) or self._is_held(one) for one in waits):
            return False
        if self.timeout_s is not None and not self.has_told:
            self.has_told = True
            workers = read_workers(Spool(self.settings.spool_directory))
            there = [one for one in read_destinations(self.db, self.settings, now_ms) if one.id in waits]
            why = "; ".join(waiting(there, workers, now_ms))
            self.tell(f"{why}; it is tried again until {self.timeout_s:g} s are over (Ctrl-C ends that)")
        return self.timeout_s is None

    def _is_held(self, destination_id: int) -> bool:
        """Whether settings alone hold what waits for ours; what an intake is asked for, its answer may let go."""
        return (
            destination_id == self.ours.id
            and not self.settings.silence
            and self.has_swept()
            and policy_enforcement.is_all_held(self.db, destination_id)
        )

    def _is_silent(self, destination_id: int) -> bool:
        """Whether the intake that ours leads to was asked meanwhile what may leave, and has never said anything."""
        there = centre(self.settings) if destination_id == self.ours.id else None
        if there is None or there.heard_ms is not None or not there.failure:
            return False
        return there.asked_ms is not None and there.asked_ms >= self.begin_ms


def _deliver(db: sqlite3.Connection, sources: Sources, going: _Flushing) -> bool:
    """Deliver what no worker delivers, and wait for the others; whether somebody interrupted it."""
    spool = Spool(sources.load().spool_directory)
    ours = going.ours
    while not going.is_over():
        if ours.key_fingerprint and counts.is_pending(db, ours.id) and ours.id not in _served(spool):
            worker = Worker(sources)
            going.has_swept = lambda sweep=worker.poller.sweep: sweep.has_swept  # type: ignore[misc]
            if not worker.run_until(going.is_over):
                return True
        else:
            time.sleep(LOOK_S)
    return False


def _begin(db: sqlite3.Connection, settings: Settings, ours: Destination, destination_ids: Collection[int]) -> None:
    """What waits for these destinations is tried now, and what can only be meant for ours goes there."""
    for one in destination_ids:
        flow.probe_now(db, one, clock.now_ms())
        readback.end_read_back_pause(db, one, clock.now_ms())
    if settings.takes_over:
        adoption.take_over(db, ours, clock.now_ms())


def _served(spool: Spool) -> set[int | None]:
    """The destinations that live workers deliver to."""
    return {worker.destination for worker in read_workers(spool)}


def _backlog(spool: Spool, destination_ids: Collection[int | None]) -> int:
    """What hooks have not worked off; one that has not said yet where it delivers has at least one line."""
    return sum(
        1 if hook.destination is None else hook.backlog
        for hook in read_hooks(spool)
        if hook.destination is None or hook.destination in destination_ids
    )
