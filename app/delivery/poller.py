"""Poller: wakes a worker's threads for due jobs, and has the periodic maintenance done, in a loop of its own.

Every job is found here sooner or later; a wake of the queue only makes it sooner.
"""

from __future__ import annotations

from collections.abc import Callable

from app.capture import folder_limits
from app.capture.eviction import Eviction
from app.database import recover
from app.database.connection import Ledger, shrink
from app.database.open import inspect
from app.delivery.deliver import release_unfinished
from app.delivery.policy_sweep import PolicySweep
from app.ledger import (
    adoption,
    confirmations,
    counts,
    destinations,
    flow,
    incidents,
    maintenance,
    pruning,
    record_identity,
)
from app.ledger.destinations import Destination
from app.ledger.erasure import erase
from app.ledger.job import Claim
from app.queue import Queue
from app.runtime import failpoint
from app.runtime.clock import Reading, jump_ms
from app.runtime.liveness import present
from app.runtime.spool import Spool
from app.settings.model import Settings

POLL_MS = 500
"""Between two ticks at most; less where `flushInterval` is shorter or something is due earlier."""
PRUNE_MS = 60_000
WAKES_PER_TICK = 24
"""No more than wake all threads: whatever is woken for now waits behind few."""


class Poller:
    """Poller of one worker. Methods raise sqlite3.Error and OSError; the next tick does what was left undone."""

    def __init__(  # noqa: PLR0913 - what the worker has
        self,
        target: Destination,
        settings: Settings,
        spool: Spool,
        queue: Queue,
        sweep: PolicySweep,
        eviction: Eviction,
        *,
        is_sending: bool,
        log: Callable[[str], None],
    ) -> None:
        """`is_sending` is false without a key: then nobody is woken."""
        self._target = target
        self._settings = settings
        self._workers = spool.workers
        self._queue = queue
        self.sweep = sweep
        self._eviction = eviction
        self._is_sending = is_sending
        self._log = log
        self.unfinished: list[Claim] = []
        """Jobs whose end could not be written to the ledger."""
        self._seen: Reading | None = None
        self._pruned_ms = 0
        self._erased: tuple[int, int] | None = None

    def tick(self, db: Ledger, now: Reading) -> int:
        """Do what is to be done now; the milliseconds until the next tick."""
        now_ms = now.wall_ms
        if self._seen is None:
            self._start(db, now_ms)
        elif incidents.note_jump(db, jump_ms(self._seen, now), now_ms):
            self._log("the clock jumped ahead, or the machine slept")
        self._seen = now
        self.release_unfinished(db, now_ms)
        if self._queue.mend():
            self._log("the queue was damaged or deleted and is made anew")
        if mended := maintenance.reset_future_times(db, now_ms):
            self._log(f"the clock was wrong before: {mended} time(s) far ahead are now")
        self._reclaim(db, now_ms)
        is_sweeping = self.sweep.look(db, now_ms, self._queue.wake)
        if self._is_sending and counts.is_pending(db, self._target.id):
            self.wake_due(db, now_ms, max(1, WAKES_PER_TICK - self._queue.waiting()))
        if now_ms - self._pruned_ms >= PRUNE_MS or now_ms < self._pruned_ms:
            self._pruned_ms = now_ms
            self._prune(db, now_ms)
        if is_sweeping:
            return 1
        due_ms = maintenance.next_due_ms(db, self._target.id, now_ms)
        return max(1, min(POLL_MS, self._settings.flush_interval_ms, POLL_MS if due_ms is None else due_ms - now_ms))

    def _start(self, db: Ledger, now_ms: int) -> None:
        """A worker that starts may be the answer to what the destination was paused for: it tries at once."""
        inspect(db)
        flow.probe_now(db, self._target.id, now_ms)
        present(self._workers)  # which removes what killed workers left there
        self._take_over(db, now_ms)

    def _take_over(self, db: Ledger, now_ms: int) -> None:
        if self._settings.takes_over:
            adoption.take_over(db, self._target, now_ms)

    def release_unfinished(self, db: Ledger, now_ms: int) -> None:
        """Give back what could not be finished, before anybody takes its lease for that of a thread that hangs."""
        release_unfinished(db, self.unfinished, now_ms)

    def _reclaim(self, db: Ledger, now_ms: int) -> None:
        leasing = maintenance.leasing_workers(db)
        alive = {worker.name for worker in present(self._workers)} if leasing else set()
        recovered = maintenance.recover(db, now_ms, [worker for worker in leasing if worker not in alive])
        if recovered:
            self._log(f"took back {recovered} job(s) of a worker that died, hung or slept")

    def wake_due(self, db: Ledger, now_ms: int, wakes_max: int) -> None:
        """Wake threads for the next jobs that are due, as far as nobody was woken for them yet."""
        for key in maintenance.to_wake(db, self._target.id, now_ms, wakes_max, self._queue.woken()):
            failpoint.reach("poller.waking")
            self.wake(db, key)

    def wake(self, db: Ledger, key: str) -> None:
        """Wake a thread for this job, history after what is live."""
        self._queue.wake(key, is_history=counts.is_history(db, self._target.id, key))

    def _prune(self, db: Ledger, now_ms: int) -> None:
        bytes_max, age_ms_max = self._settings.max_spool_bytes, self._settings.max_spool_age_ms
        bytes_max_of = folder_limits.of_folders(db, self._settings, "max_spool_bytes")
        ages_ms = folder_limits.of_folders(db, self._settings, "max_spool_age_ms")
        steady_ms = maintenance.steady_ms(db, now_ms)
        trusted_ms = maintenance.trusted_age_ms(age_ms_max, steady_ms)
        trusted_ms_of = {folder: maintenance.trusted_age_ms(age_ms, steady_ms) for folder, age_ms in ages_ms.items()}
        given_up = confirmations.give_up_confirmations(
            db,
            now_ms,
            bytes_max=bytes_max,
            age_ms_max=trusted_ms,
            bytes_max_of=bytes_max_of,
            age_ms_max_of=trusted_ms_of,
            room=destinations.own_room(self._target),
        )
        self._take_over(db, now_ms)
        aged = pruning.drop_aged(db, now_ms, trusted_ms, trusted_ms_of)
        made = self._eviction.make(db, now_ms, bytes_max, bytes_max_of)
        pruning.forget_acknowledgements(db, now_ms)
        record_identity.forget_record_identities(db)
        recover.tidy(db.path, older_than_s=(now_ms - age_ms_max) / 1000)
        shrink(db)
        if given_up:
            self._log(
                f"gave up confirming {given_up} delivered job(s): no room (maxSpoolSize), or too old (maxSpoolAge)"
            )
        if aged:
            self._log(f"dropped {aged} job(s) by age (maxSpoolAge)")
        if made.evicted or made.dropped:
            self._log(made.told)
        self._finish_erasure(db, now_ms)

    def _finish_erasure(self, db: Ledger, now_ms: int) -> None:
        """Where a command deleted something, and ended before it had rewritten the files that held it."""
        noted = incidents.unerased(db)
        if noted is None or noted == self._erased or 0 <= now_ms - noted[1] < PRUNE_MS:
            return  # nothing, or tried already, or the command is at it
        self._erased = noted
        self._log("rewrites the ledger, which a purge or recall that was interrupted has not done")
        for left in erase(db):
            self._log(left)
