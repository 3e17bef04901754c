"""The worker process: Huey's consumer around `deliver`, and a watch that looks after what no ring brings.

`huey_consumer app.worker.huey` finds its instance here; it is made when it is asked for, so importing this module
does nothing. `Worker` is the same thing for a caller that has settings already.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from huey import SqliteHuey
from huey.consumer import ConsumerStopped
from huey.signals import SIGNAL_INTERRUPTED

from app import __version__
from app.capture import folder_limits
from app.capture.autostart import worker_signature
from app.capture.config import capture
from app.capture.eviction import Room
from app.capture.keyring import Keyring
from app.capture.recapture import Remaking
from app.capture.targets import target
from app.database import recover
from app.database.connection import PATIENT_MS, Ledger, shrink
from app.database.open import heal, inspect, open_ledger
from app.database.schema import SchemaError, is_newer, require_known
from app.delivery import backoff, confirm
from app.delivery.deliver import Courier, deliver, let_go
from app.delivery.policy_check import Permits
from app.delivery.policy_sweep import Tightening
from app.exporters.client import ClientError, ReadBackError
from app.exporters.connect import connect
from app.exporters.kinds import TRAITS
from app.exporters.outcome import Outcome
from app.ledger import (
    adoption,
    claims,
    confirmations,
    counts,
    destinations,
    flow,
    incidents,
    maintenance,
    pruning,
    readback,
    record_identity,
)
from app.ledger.destinations import Destination
from app.ledger.erasure import erase
from app.ledger.eviction import Remade
from app.ledger.job import Body, Claim
from app.privacy.policy import Hold, Permit
from app.privacy.redact import PatternError
from app.queue import Bell
from app.runtime import clock, failpoint, log
from app.runtime.liveness import Announced, Only, present
from app.runtime.spool import Spool
from app.runtime.upgrade import Succession, become_anew, is_replaced
from app.runtime.url import EndpointError
from app.settings.lookup import Sources, typed
from app.settings.model import Settings, SettingsError
from app.sources.opencode.store import store_file

CONSUMER = {
    "workers": 12,
    "worker_type": "thread",
    "initial_delay": 0.05,
    "max_delay": 0.5,
    "backoff": 1.1,
    "periodic": False,
    "graceful_signal": "TERM",
    "shutdown_timeout": 20,
}
"""What the Procfile's command line says, for the worker that starts without one."""
POST_S_MAX = 30.0
"""For one record in all, whichever routes are tried: well within the lease."""
NOT_FOUND = 404
LOOK_MS = 500
"""How often the watch looks into the ledger at least; `flushInterval` makes it more often when it is shorter."""
PRUNE_MS = 60_000
CONFIRM_MS = 500
"""How often delivered jobs that are due to be read back are looked for."""
RINGS_PER_LOOK = 24
SIGNALS_S = 0.01
LEAVE_S_MAX = 2.0
"""How long a worker that ends waits for its watch, and for what reads back, to be done with the present look."""
MAKE_WAY_S_MAX = 60.0
"""How long a worker whose ledger has become too new waits, doing nothing, for its own program to be installed anew."""
IDLE_MS = 3 * 60_000
"""An automatic worker ends when no hook was alive and nothing could be sent for so long."""


class _Huey(SqliteHuey):  # type: ignore[misc]  # huey ships no types
    """Keeps the consumer, which `huey_consumer` makes, so that the tasks see when it is told to stop."""

    consumer: Any = None
    prepare: Callable[[], None]

    def create_consumer(self, **options: Any) -> Any:
        self.prepare()
        self.consumer = super().create_consumer(**options)
        return self.consumer


class Worker:
    """One worker process for one spool and one destination."""

    def __init__(self, sources: Sources, *, automatic: bool = False) -> None:
        settings = sources.load()
        self.spool = Spool(settings.spool_directory)
        self.automatic = automatic
        self._local = threading.local()
        with ExitStack() as opened:
            opened.callback(self.leave)
            self._settle(sources, settings)
            opened.pop_all()  # `close` does it from here on

    def _settle(self, sources: Sources, settings: Settings) -> None:
        log.carry_warnings(self.spool.worker_log)
        self.target: Destination = target(self.db, settings, clock.now_ms())
        # What a hook found in its environment or in a project, for a worker that was started without it.
        self.settings = sources.load(recorded=self.target.delivery_options)
        self.signature = worker_signature(self.settings)
        self._key = settings.api_key.get_secret_value() if settings.api_key else ""
        self._routes = TRAITS.routes(self.settings.endpoint)
        self._route = self.target.route
        self._plan = TRAITS.read_back(
            self.settings.confirm, self.settings.endpoint, self._key, self.settings.readback_url
        )
        self._permits = Permits(sources)
        self._client = connect(self._key, redact=_redact(self.settings, self._permits.keyring)) if self._key else None
        self._remaking = Remaking(store_file(sources.environ), self.target.id, self.spool.hooks)
        self._tightening = Tightening(self._permits, self._remaking, self.target.id, self._log)
        self._room = Room(store_file(sources.environ))
        self._announced: Announced | None = None
        self._only = Only(self.spool.automatic_worker(self.target.id))
        self._watching = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._left: list[Claim] = []
        self._useful_ms = clock.now_ms()
        self._seen = clock.read()
        self._pruned_ms = 0
        self._erased: tuple[int, int] | None = None
        self._succession: Succession | None = Succession()
        self._outdated_s: float | None = None
        self._is_replaced = False
        self.bell = Bell(self.spool.path, self.target.id, self._answer, huey_class=_Huey)
        self.huey = self.bell.huey
        self.huey.prepare = self._announce
        self.huey.on_startup(name="watch")(self._start_watch)
        self.huey.on_shutdown(name="leave")(self.leave)
        self.huey.signal(SIGNAL_INTERRUPTED)(self._interrupted)

    # --- a thread's own ledger connection

    @property
    def db(self) -> Ledger:
        db: Ledger | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = open_ledger(self.spool.path)
            db.execute(f"pragma busy_timeout = {PATIENT_MS}")
        return db

    def leave(self) -> None:
        """The calling thread ends, or needs the ledger no more: its own connection is closed."""
        db: Ledger | None = getattr(self._local, "db", None)
        if db is not None:
            self._local.db = None
            db.close()

    def _heal(self, error: Exception) -> None:
        """After a failed statement: where the ledger was damaged and is recovered, this thread takes the new one."""
        db: Ledger | None = getattr(self._local, "db", None)
        try:
            if db is None or not heal(db, error):
                return
            self.leave()
            self._log("the ledger was damaged and is recovered; `opencode-helicone status` says what is lost")
            if target(self.db, self.settings, clock.now_ms()).id != self.target.id:
                self._end()  # the new ledger knows this destination by another number
        except (sqlite3.Error, OSError, SchemaError) as another:
            self._log(f"the damaged ledger is not recovered yet: {another}")

    # --- one ring

    def _answer(self, key: str) -> None:
        if self._client is None or self._announced is None:
            return
        courier = Courier(
            destination_id=self.target.id,
            worker=self._announced.name,
            policy=backoff.Policy.of(self.settings.max_retries, self.settings.retry_base_delay_ms),
            permit=self._permit,
            post=self._post,
            clock=clock.now_ms,
            dice=random.random,
            stopping=self._stopping,
            max_retries_of=self._max_retries,
            rebuild=self._rebuild,
            leave=self._left.append,
            when_to_confirm=lambda: confirm.when(self.db, self.target.id, self._plan, clock.now_ms()),
        )
        try:
            require_known(self.db)
            following = deliver(self.db, key, courier)
        except (sqlite3.Error, SchemaError) as error:
            # The next look of the watch lets the job go that was under way.
            self._log(f"ledger: {error}")
            self._heal(error)
            return
        if self._stopping():
            return
        if following is not None:
            self._ring(following)
        elif destinations.by_id(self.db, self.target.id).concurrency is not None:
            # Few rings are under way after a pause: who is done calls the next, and one more when there is room.
            for ringing in maintenance.to_ring(self.db, self.target.id, clock.now_ms(), 2, self.bell.rung()):
                self._ring(ringing)

    def _ring(self, key: str) -> None:
        self.bell.ring(key, is_history=counts.is_history(self.db, self.target.id, key))

    def _permit(self, held: Claim) -> Permit:
        return self._permits.permit(self.db, held.folder, held.policy)

    def _max_retries(self, held: Claim) -> int | None:
        return folder_limits.of_folders(self.db, self.settings, "max_retries").get(held.folder)

    def _rebuild(self, held: Claim) -> Remade | Hold | None:
        capturing = self._permits.capture(self.db, held.folder)
        made = capturing if isinstance(capturing, Hold) else self._remaking.rebuild(self.db, held, capturing)
        if made is None:
            self._log("dropped a job that waited without its text: OpenCode's store no longer has its turn")
        return made

    def _post(self, body: Body) -> Outcome:
        """Try the route that answered last, then the others: the first that knows the path is remembered."""
        assert self._client is not None  # noqa: S101 - `_answer` asked
        outcome: Outcome | None = None
        ends_s = time.monotonic() + POST_S_MAX
        for url in sorted(self._routes, key=lambda url: url != self._route):
            left_s = ends_s - time.monotonic()
            outcome = self._client.post(url, body.body, str(body.request_id), clock.now_ms(), left_s)
            if outcome.status is not None and outcome.status != NOT_FOUND and url != self._route:
                # The answer counts more than the note: where the ledger is locked, the next answer brings it.
                with suppress(sqlite3.OperationalError):
                    destinations.remember_route(self.db, self.target.id, url)
                    self._route = url
            if outcome.status != NOT_FOUND:
                break
        assert outcome is not None  # noqa: S101 - there is always a route
        return outcome

    def _stopping(self) -> bool:
        return self._stop.is_set() or self.huey.consumer.stop_flag.is_set()

    def _interrupted(self, *_: object) -> None:
        """The consumer gives up waiting for its threads: nothing that they hold is charged."""
        if self._announced is not None:
            claims.release_all(self.db, self._announced.name)
            # The probe of a pause may have been among them.
            flow.probe_now(self.db, self.target.id, clock.now_ms())

    # --- the watch

    def _announce(self) -> None:
        self._announced = Announced(self.spool.workers)
        self._announced.say({"destination": self.target.id, "automatic": self.automatic, "version": __version__})

    def _start_watch(self) -> None:
        """Huey calls this in each of its threads; the first one starts the watch."""
        if self._watching.acquire(blocking=False):
            self._begin("watch", self._watch)
            # Apart from the watch, so that reading back, however slow, delays nothing.
            self._begin("confirm", self._confirm)

    def _begin(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._run_and_leave, args=(run,), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run_and_leave(self, run: Callable[[], None]) -> None:
        try:
            run()
        finally:
            self.leave()

    def _watch(self) -> None:
        look = self._first_look
        pause_ms = 0
        while not self._stop.wait(pause_ms / 1000):
            try:
                pause_ms = look()
                look = self._look
            except (sqlite3.Error, OSError) as error:
                self._log(f"watch: {error}")
                self._heal(error)
                pause_ms = LOOK_MS
            except Exception as error:  # noqa: BLE001 - a worker whose watch has died looks alive and retries nothing
                place = traceback.extract_tb(error.__traceback__)[-1]
                self._log(f"watch: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}")
                pause_ms = LOOK_MS

    def _first_look(self) -> int:
        """A worker that starts may be the answer to what the destination was paused for: it tries at once."""
        self._log(f"starts: {self.signature}, {'automatic' if self.automatic else 'started by hand'}")
        for complaint in self.settings.complaints:
            self._log(complaint.short)
        inspect(self.db)
        flow.probe_now(self.db, self.target.id, clock.now_ms())
        present(self.spool.workers)  # which removes what killed workers left there
        if self.settings.takes_over:
            adoption.take_over(self.db, self.target, clock.now_ms())
        return self._look()

    def _look(self) -> int:
        """Do what is to be done now; the milliseconds until the next look."""
        if self._announced is not None and not self._announced.is_there():
            self._log("ends: the spool was removed or replaced")
            self._end()
            return LOOK_MS
        if self._makes_way(time.monotonic()):
            return LOOK_MS
        now_ms = self._read_clock()
        self._let_go(now_ms)
        if self.bell.mend():
            self._log("the queue was damaged or deleted and is made anew")
        if mended := maintenance.unwarp(self.db, now_ms):
            self._log(f"the clock was wrong before: {mended} time(s) far ahead are now")
        self._recover(now_ms)
        is_remaking = self._tightening.look(self.db, now_ms, self.bell.ring)
        if self._client is not None:
            # No more than wake all threads: whatever is rung now waits behind few.
            room = max(1, RINGS_PER_LOOK - self.bell.waiting())
            for key in maintenance.to_ring(self.db, self.target.id, now_ms, room, self.bell.rung()):
                failpoint.reach("watch.ringing")
                self._ring(key)
        if now_ms - self._pruned_ms >= PRUNE_MS or now_ms < self._pruned_ms:
            self._pruned_ms = now_ms
            self._prune(now_ms)
        if self.automatic:
            self._consider_ending(now_ms)
        if is_remaking:
            return 1
        due_ms = maintenance.next_due_ms(self.db, self.target.id, now_ms)
        return max(1, min(LOOK_MS, self.settings.flush_interval_ms, LOOK_MS if due_ms is None else due_ms - now_ms))

    def _read_clock(self) -> int:
        before, self._seen = self._seen, clock.read()
        if incidents.note_jump(self.db, clock.jump_ms(before, self._seen), self._seen.wall_ms):
            self._log("the clock jumped ahead, or the machine slept")
        return self._seen.wall_ms

    def _makes_way(self, now_s: float) -> bool:
        """Whether nothing is to be done any more: another program is installed, or has made the ledger newer."""
        heir = self._succession.heir(now_s, self._log) if self._succession else None
        if heir is not None:
            self._log(f"ends: version {heir.version} was installed over version {__version__} and takes over")
            self._end(anew=True)
            return True
        if not is_newer(self.db):
            return False
        if self._outdated_s is None:
            self._outdated_s = now_s
            self._log(f"delivers nothing: the ledger is newer than version {__version__}, which waits to be replaced")
        if now_s - self._outdated_s >= MAKE_WAY_S_MAX:
            self._log("ends: the ledger belongs to a newer version than the one that is installed here")
            self._end(anew=True)  # it will refuse the ledger, and say so to whoever looks after its processes
        return True

    def _let_go(self, now_ms: int) -> None:
        """Give back what could not be finished, before anybody takes its lease for that of a thread that hangs."""
        for held in list(self._left):
            let_go(self.db, held, now_ms)
            self._left.remove(held)

    def _recover(self, now_ms: int) -> None:
        leasing = maintenance.leasing_workers(self.db)
        alive = {worker.name for worker in present(self.spool.workers)} if leasing else set()
        recovered = maintenance.recover(self.db, now_ms, [worker for worker in leasing if worker not in alive])
        if recovered:
            self._log(f"took back {recovered} job(s) of a worker that died, hung or slept")

    def _prune(self, now_ms: int) -> None:
        bytes_max, age_ms_max = self.settings.max_spool_bytes, self.settings.max_spool_age_ms
        bytes_max_of = folder_limits.of_folders(self.db, self.settings, "max_spool_bytes")
        ages_ms = folder_limits.of_folders(self.db, self.settings, "max_spool_age_ms")
        steady_ms = maintenance.steady_ms(self.db, now_ms)
        trusted_ms = maintenance.trusted_age_ms(age_ms_max, steady_ms)
        trusted_ms_of = {folder: maintenance.trusted_age_ms(age_ms, steady_ms) for folder, age_ms in ages_ms.items()}
        given_up = confirmations.give_up_confirmations(
            self.db,
            now_ms,
            bytes_max=bytes_max,
            age_ms_max=trusted_ms,
            bytes_max_of=bytes_max_of,
            age_ms_max_of=trusted_ms_of,
        )
        if given_up:
            self._log(
                f"gave up confirming {given_up} delivered job(s): no room (maxSpoolSize), or too old (maxSpoolAge)"
            )
        if self.settings.takes_over:
            adoption.take_over(self.db, self.target, now_ms)
        aged = pruning.drop_aged(self.db, now_ms, trusted_ms, trusted_ms_of)
        made = self._room.make(self.db, now_ms, bytes_max, bytes_max_of)
        pruning.forget_acknowledgements(self.db, now_ms)
        record_identity.forget_footprints(self.db)
        recover.tidy(self.db.path, older_than_s=(now_ms - age_ms_max) / 1000)
        shrink(self.db)
        if aged:
            self._log(f"dropped {aged} job(s) by age (maxSpoolAge)")
        if made.emptied or made.dropped:
            self._log(made.told)
        self._finish_erasure(now_ms)

    def _finish_erasure(self, now_ms: int) -> None:
        """Where a command deleted something, and ended before it had rewritten the files that held it."""
        noted = incidents.unerased(self.db)
        if noted is None or noted == self._erased or 0 <= now_ms - noted[1] < PRUNE_MS:
            return  # nothing, or tried already, or the command is at it
        self._erased = noted
        self._log("rewrites the ledger, which a purge or recall that was interrupted has not done")
        for left in erase(self.db):
            self._log(left)

    # --- reading back

    def _confirm(self) -> None:
        allowance = confirm.Allowance(self._plan.queries_per_minute, 1, clock.now_ms())
        look = self._first_confirmation
        while not self._stop.wait(CONFIRM_MS / 1000):
            try:
                if not look(allowance):
                    return
                look = self._confirm_due
            except (sqlite3.Error, OSError, SchemaError) as error:
                self._log(f"confirm: {error}")
                self._heal(error)
            except Exception as error:  # noqa: BLE001 - as of the watch
                if self._stop.is_set():
                    return  # the client is closed under its hands
                place = traceback.extract_tb(error.__traceback__)[-1]
                self._log(f"confirm: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}")

    def _first_confirmation(self, allowance: confirm.Allowance) -> bool:
        if self._plan.url is None:
            if self._succession is None:
                return False  # `flush` decides nothing about what others have delivered
            given_up = confirmations.give_up_confirmation(self.db, self.target.id)
            self._log(f"delivered jobs are not confirmed: {self._plan.off_reason}; {given_up} given up")
            return False
        readback.resume_read_back(self.db, self.target.id)
        return self._confirm_due(allowance)

    def _confirm_due(self, allowance: confirm.Allowance) -> bool:
        require_known(self.db)
        failure = confirm.confirm(
            self.db,
            self.target.id,
            self._stored,
            clock.now_ms(),
            allowance=allowance,
            dice=random.random,
        )
        if failure is not None:
            self._log(f"delivered jobs cannot be confirmed: {failure}")
        return True

    def _stored(self, start_ms: int, request_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, bool] | confirm.Unread:
        assert self._client is not None  # noqa: S101 - without a key nothing was delivered
        assert self._plan.url is not None  # noqa: S101 - nor is anything read back without an address
        try:
            return self._client.stored(self._plan.url, start_ms=start_ms, request_ids=request_ids)
        except ReadBackError as error:
            return confirm.Unread(str(error))

    # --- the end

    def _consider_ending(self, now_ms: int) -> None:
        """An automatic worker ends when another is wanted, or when nobody needs it any more."""
        wanted = destinations.by_id(self.db, self.target.id).worker_wanted
        if is_replaced(self.signature, wanted):
            self._log("ends: a worker of another version or with other settings is wanted")
            self._end()
            return
        if present(self.spool.hooks) or counts.sendable(self.db, self.target.id, now_ms):
            self._useful_ms = now_ms
            return
        self._useful_ms = min(self._useful_ms, now_ms)  # the clock was set back
        if now_ms - self._useful_ms < IDLE_MS:
            return
        self._only.release()
        # Whoever came after the last look found the lock taken and started nobody: look once more without it.
        if counts.sendable(self.db, self.target.id, clock.now_ms()) and self._only.take():
            self._useful_ms = clock.now_ms()
            return
        self._log("ends: no OpenCode is running and nothing can be sent")
        self._end()

    def _end(self, *, anew: bool = False) -> None:
        """Finish what is being posted, begin nothing new, and end; `anew`: come back as the installed program."""
        self._is_replaced = anew
        self._stop.set()
        # Huey's threads are at work before its main thread has set its handlers.
        while signal.getsignal(signal.SIGHUP) in {signal.SIG_DFL, signal.SIG_IGN}:
            time.sleep(SIGNALS_S)
        # To huey_consumer it means to start anew, to `run` to return. (The stop flag alone waits for no thread.)
        os.kill(os.getpid(), signal.SIGHUP)

    def _log(self, message: str) -> None:
        log.append(self.spool.worker_log, message, clock.now_ms())

    # --- the process

    def run(self) -> bool:
        """Consume until told to stop; must be called in the main thread. False when an automatic one runs already."""
        if self.automatic and not self._only.take():
            return False
        try:
            consumer = self.huey.create_consumer(**CONSUMER)
            # Huey would start anew by sys.argv, which loses `-I -m app`; a terminal that closes means the end.
            consumer._signal_actions[signal.SIGHUP] = (False, True)  # noqa: SLF001 - (restart, graceful)
            consumer.run()
        finally:
            self.close()
        if self._is_replaced:
            become_anew()
        return True

    def run_until(self, is_over: Callable[[], bool]) -> bool:
        """Consume until `is_over()`, in the main thread; what is being posted then is waited for.

        False when a signal ended it before.
        """
        self._succession = None  # it ends soon
        consumer = self.huey.create_consumer(**CONSUMER)
        try:
            consumer.start()
            while not (is_over() or is_newer(self.db)):
                consumer.loop()
            consumer.stop(graceful=True)
            require_known(self.db)
        except ConsumerStopped:
            return False
        finally:
            self.huey.notify_interrupted_tasks()
            self.close()
        return True

    def close(self) -> None:
        self._stop.set()
        failpoint.reach("worker.ending")
        try:
            self._let_go(clock.now_ms())
        except sqlite3.Error as error:
            self._log(f"ledger: {error}")
        self._only.release()
        if self._announced is not None:
            self._announced.withdraw()
        if self._client is not None:
            self._client.close()
        for thread in self._threads:
            thread.join(LEAVE_S_MAX)
        self.bell.close()
        self.leave()


def _redact(settings: Settings, keyring: Keyring) -> Callable[[str], str] | None:
    """For the answers that are kept. None, so that none is, while the settings may withhold more than is known."""
    try:
        capture(settings, ())
    except (SettingsError, PatternError):
        return None

    def redact(text: str) -> str:
        return capture(settings, keyring.look()).redaction.text(text)

    return redact


def __getattr__(name: str) -> Any:
    """`huey_consumer app.worker.huey`: the instance for the settings of this process."""
    if name != "huey":
        raise AttributeError(name)
    try:
        return Worker(typed(os.environ, Path.cwd())).huey
    except SettingsError as error:
        sys.exit(f"opencode-helicone: {error.for_logs}; config show says more")
    except (EndpointError, ClientError, SchemaError, OSError, sqlite3.Error) as error:
        sys.exit(f"opencode-helicone: {error}")
