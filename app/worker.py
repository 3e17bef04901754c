"""The worker process: Huey's consumer around `deliver`, and two loops beside it.

The poller finds what nobody woke; `confirm` reads back what was delivered.

`huey_consumer app.worker.huey` finds its instance here; it is made when it is asked for, so importing this module
does nothing. `Worker` is the same thing for a caller that has settings already.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huey import SqliteHuey
from huey.consumer import ConsumerStopped
from huey.signals import SIGNAL_INTERRUPTED

from app import __version__
from app.capture import folder_limits
from app.capture.autostart import worker_signature
from app.capture.config import capture
from app.capture.eviction import Eviction
from app.capture.keyring import Keyring
from app.capture.recapture import Recapturer
from app.capture.targets import target
from app.database.connection import PATIENT_MS, Ledger
from app.database.open import open_ledger, recover_after
from app.database.schema import SchemaError, is_newer, migrations, require_known
from app.delivery import backoff, confirm
from app.delivery.access import access
from app.delivery.deliver import DeliveryContext, deliver
from app.delivery.lifetime import Lifetime
from app.delivery.loop import Loop
from app.delivery.policy_check import PolicyCheck
from app.delivery.policy_sweep import PolicySweep
from app.delivery.poller import POLL_MS, Poller
from app.delivery.sender import Place, Sender
from app.exporters.client import ClientError
from app.exporters.connect import connect
from app.exporters.kinds import traits_of
from app.exporters.outcome import Outcome
from app.fleet import NOT_INSTALLED, is_missing
from app.ledger import claims, confirmations, destinations, flow, readback
from app.ledger.destinations import Destination
from app.ledger.eviction import Recaptured
from app.ledger.job import Body, Claim
from app.privacy.policy import Hold, Permit
from app.privacy.redact import PatternError
from app.queue import Queue
from app.runtime import clock, failpoint, log
from app.runtime.liveness import Announced
from app.runtime.spool import Spool
from app.runtime.upgrade import Upgrade, become_anew
from app.runtime.url import EndpointError
from app.settings.lookup import Sources, typed
from app.settings.model import Settings, SettingsError
from app.settings.names import DATABASE_URL
from app.sources.opencode.store import store_file

if TYPE_CHECKING:
    from app.delivery.intake import Asking

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
CONFIRM_MS = 500
"""How often delivered jobs that are due to be read back are looked for."""
CONFIRM_MS_MAX = 2_000
"""The same where none is due before: nothing that is delivered meanwhile is due sooner."""
ASKING_MS = 1_000
"""How often it is looked whether the intake is to be asked what may leave."""
SIGNAL_S_MAX = 0.5
"""How long it may take until the main thread sees a signal. It has nothing else to do, ten times a second at Huey's."""
SCHEDULE_S = 60
"""How often Huey looks for messages of a later time, of which there are none: as seldom as it can."""
SIGNALS_S = 0.01
REFUSALS = (401, 403)
"""After these an intake is asked at once: it takes another mode by now, or says that the token counts no more."""
FLUSH_S = 0.1
"""How often it is asked whether that is over which a worker was made for."""
LEAVE_S_MAX = 2.0
"""How long a worker that ends waits for each of its loops to be done with the present step."""


class _Huey(SqliteHuey):  # type: ignore[misc]  # huey ships no types
    """Keeps the consumer, which `huey_consumer` makes, so that the tasks see when it is told to stop."""

    consumer: Any = None
    prepare: Callable[[], None]

    def create_consumer(self, **options: Any) -> Any:
        self.prepare()
        self.consumer = super().create_consumer(**{**options, "scheduler_interval": SCHEDULE_S})
        self.consumer._stop_flag_timeout = SIGNAL_S_MAX  # noqa: SLF001 - Huey has no option for it
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
        self._traits = traits_of(settings.kind, settings.preset, settings.project)
        self._plan = self._traits.read_back(
            self.settings.confirm, self.settings.endpoint, self._key, self.settings.readback_url
        )
        self._policy_check = PolicyCheck(sources.watching(settings))
        self._asking = None if settings.heard is None else _asking(settings, self._log)
        self._client = (
            connect(access(settings), settings.ca_file, _redact(self.settings, self._policy_check.keyring))
            if settings.credential
            else None
        )
        place = Place(self.target, self.settings.endpoint, self.settings.destination, self._traits)
        if self._client is None:
            self._sender = None
        elif self._asking is None:
            self._sender = Sender(self, place, self._client)
        else:
            self._sender = Sender(self, place, self._client, self._asking.headers_of)
        self._recapture = Recapturer(store_file(sources.environ), self.target.id, self.spool.hooks)
        self.queue = Queue(self.spool.path, self.target.id, self._answer, huey_class=_Huey)
        self.poller = Poller(
            self.target,
            self.settings,
            self.spool,
            self.queue,
            PolicySweep(self._policy_check, self._recapture, self.target.id, self._log),
            Eviction(store_file(sources.environ), destinations.own_room(self.target)),
            is_sending=self._client is not None,
            log=self._log,
        )
        upgrade = Upgrade(migrations()[-1][0])
        self.lifetime = Lifetime(self.spool, self.target.id, self.signature, upgrade, self._log)
        self._announced: Announced | None = None
        self._allowance: confirm.Allowance | None = None
        self._is_first_thread = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._is_restarting = False
        self.huey = self.queue.huey
        self.huey.prepare = self.announce
        self.huey.on_startup(name="loops")(self._start_loops)
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

    def _recover_after(self, error: Exception) -> None:
        """After a failed statement: where the ledger was damaged and is recovered, this thread takes the new one."""
        db: Ledger | None = getattr(self._local, "db", None)
        try:
            if db is None or not recover_after(db, error):
                return
            self.leave()
            self._log("the ledger was damaged and is recovered; `opencode-helicone status` says what is lost")
            if target(self.db, self.settings, clock.now_ms()).id != self.target.id:
                self._end()  # the new ledger knows this destination by another number
        except (sqlite3.Error, OSError, SchemaError) as another:
            self._log(f"the damaged ledger is not recovered yet: {another}")

    # --- one wake

    def _answer(self, key: str) -> None:
        if self._sender is None or self._announced is None:
            return
        context = DeliveryContext(
            destination_id=self.target.id,
            worker=self._announced.name,
            policy=backoff.RetryPolicy.of(self.settings.max_retries, self.settings.retry_base_delay_ms),
            permit=self._permit,
            post=self._post,
            clock=clock.now_ms,
            dice=random.random,
            stopping=self._stopping,
            max_retries_of=self._max_retries,
            rebuild=self._rebuild,
            at_once=self._sender.at_once,
            beside=self._sender.beside,
            leave=self.poller.unfinished.append,
            make_way=self._sender.make_way,
            post_changed=self._sender.post_changed,
            when_to_confirm=lambda: confirm.when(self.db, self.target.id, self._plan, self._traits, clock.now_ms()),
        )
        try:
            require_known(self.db)
            following = deliver(self.db, key, context)
        except (sqlite3.Error, SchemaError) as error:
            self._failed("ledger", error)  # the next tick lets the job go that was under way
            return
        if self._stopping():
            return
        if following is not None:
            self.poller.wake(self.db, following)
        elif destinations.by_id(self.db, self.target.id).concurrency is not None:
            # Few are under way after a pause: who is done wakes the next, and one more when there is room.
            self.poller.wake_due(self.db, clock.now_ms(), 2)

    def _post(self, claim: Claim, body: Body) -> Outcome:
        assert self._sender is not None  # noqa: S101 - without it nothing is claimed
        outcome = self._sender.post(claim, body)
        if outcome.status in REFUSALS and self._asking is not None:
            self._asking.hurry()
        return outcome

    def _permit(self, claim: Claim) -> Permit:
        return self._policy_check.permit(self.db, claim.folder, claim.policy)

    def _max_retries(self, claim: Claim) -> int | None:
        return folder_limits.of_folders(self.db, self.settings, "max_retries").get(claim.folder)

    def _rebuild(self, claim: Claim) -> Recaptured | Hold | None:
        capturing = self._policy_check.capture(self.db, claim.folder)
        made = capturing if isinstance(capturing, Hold) else self._recapture.rebuild(self.db, claim, capturing)
        if made is None:
            self._log("dropped a job that waited without its text: OpenCode's store no longer has its turn")
        return made

    def _stopping(self) -> bool:
        return self._stop.is_set() or self.huey.consumer.stop_flag.is_set()

    def _interrupted(self, *_: object) -> None:
        """The consumer gives up waiting for its threads: nothing that they hold is charged."""
        if self._announced is not None:
            claims.release_all(self.db, self._announced.name)
            # The probe of a pause may have been among them.
            flow.probe_now(self.db, self.target.id, clock.now_ms())

    # --- beside Huey's threads

    def announce(self) -> None:
        self._announced = Announced(self.spool.workers)
        self._announced.say({"destination": self.target.id, "automatic": self.automatic, "version": __version__})

    def _start_loops(self) -> None:
        """Huey calls this in each of its threads; the first one starts the loops."""
        if not self._is_first_thread.acquire(blocking=False):
            return
        self._log(f"starts: {self.signature}, {'automatic' if self.automatic else 'started by hand'}")
        # Where the centre's database was to be named, and is not, this tells. Below Huey's own logger, whose consumer
        # shows what it says.
        logging.getLogger("huey.opencode_helicone").info("delivers from %s", self.spool.path)
        for complaint in self.settings.complaints:
            self._log(complaint.short)
        # Apart from each other, so that reading back, however slow, delays nothing.
        loops = [Loop("poller", POLL_MS, self.poll), Loop("confirm", CONFIRM_MS, self._confirm)]
        if self._asking is not None:
            loops.append(Loop("intake", ASKING_MS, partial(self._ask, self._asking)))
        for loop in loops:
            thread = threading.Thread(target=self._run, args=(loop,), name=loop.name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, loop: Loop) -> None:
        try:
            loop.run(self._stop, self._failed)
        finally:
            self.leave()

    def _failed(self, what: str, error: Exception) -> None:
        if isinstance(error, sqlite3.Error | OSError | SchemaError):
            self._log(f"{what}: {error}")
            self._recover_after(error)
        else:
            self._log(f"{what}: {type(error).__name__} at {log.where(error)}")

    def poll(self) -> int:
        """Do what is to be done now; the milliseconds until the next time."""
        now = clock.read()
        if self._announced is not None and not self._announced.is_there():
            self._log("ends: the spool was removed or replaced")
            self._end()
            return POLL_MS
        match self.lifetime.next_step(self.db, now, is_automatic=self.automatic):
            case "work":
                return self.poller.tick(self.db, now)
            case "end":
                self._end()
            case "restart":
                self._end(restart=True)
            case "wait":
                pass
        return POLL_MS

    def _confirm(self) -> int | None:
        """Read back what is due; None where nothing is read back."""
        require_known(self.db)
        now_ms = clock.now_ms()
        if self._plan.url is None:
            if not self.lifetime.is_short:  # else it decides nothing about what others have delivered
                given_up = confirmations.give_up_confirmation(self.db, self.target.id)
                self._log(f"delivered jobs are not confirmed: {self._plan.off_reason}; {given_up} given up")
            return None
        if self._client is None:
            return None  # without a key nothing was delivered
        if self._allowance is None:
            readback.resume_read_back(self.db, self.target.id)
            self._allowance = confirm.Allowance(self._plan.queries_per_minute, 1, now_ms)
        failure = confirm.confirm(
            self.db,
            self.target.id,
            confirm.fetch_from(self._client, self._plan.url),
            now_ms,
            traits=self._traits,
            allowance=self._allowance,
            dice=random.random,
        )
        if failure is not None:
            self._log(f"delivered jobs cannot be confirmed: {failure}")
        next_ms = confirmations.next_confirmation_ms(self.db, self.target.id)
        return CONFIRM_MS_MAX if next_ms is None else max(CONFIRM_MS, min(CONFIRM_MS_MAX, next_ms - now_ms))

    def _ask(self, asking: Asking) -> int:
        if asking.step(clock.read()):
            flow.probe_now(self.db, self.target.id, clock.now_ms())
        return ASKING_MS

    # --- the end

    def _end(self, *, restart: bool = False) -> None:
        """Finish what is being posted, begin nothing new, and end; `restart`: come back as the installed program."""
        self._is_restarting = restart
        self._stop.set()
        # Huey's threads are at work before its main thread has set its handlers.
        while signal.getsignal(signal.SIGHUP) in {signal.SIG_DFL, signal.SIG_IGN}:
            time.sleep(SIGNALS_S)
        # To huey_consumer it means to start anew, to `run` to return. (The stop flag alone waits for no thread.)
        os.kill(os.getpid(), signal.SIGHUP)

    def _log(self, message: str) -> None:
        # All workers have one log. Before the settings are known there is nothing to be told.
        whose = f"{self.target.name}: " if self.target.name else ""
        log.append(self.spool.worker_log, whose + message, clock.now_ms())

    # --- the process

    def run(self) -> bool:
        """Consume until told to stop; must be called in the main thread. False when an automatic one runs already."""
        if self.automatic and not self.lifetime.lock.take():
            return False
        try:
            consumer = self.huey.create_consumer(**CONSUMER)
            # Huey would start anew by sys.argv, which loses `-I -m app`; a terminal that closes means the end.
            consumer._signal_actions[signal.SIGHUP] = (False, True)  # noqa: SLF001 - (restart, graceful)
            consumer.run()
        finally:
            self.close()
        if self._is_restarting:
            become_anew()
        return True

    def run_until(self, is_over: Callable[[], bool]) -> bool:
        """Consume until `is_over()`, in the main thread; what is being posted then is waited for.

        False when a signal ended it before.
        """
        self.lifetime.is_short = True
        consumer = self.huey.create_consumer(**CONSUMER)
        consumer._stop_flag_timeout = FLUSH_S  # noqa: SLF001 - somebody waits
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
            self.poller.release_unfinished(self.db, clock.now_ms())
        except sqlite3.Error as error:
            self._log(f"ledger: {error}")
        self.lifetime.lock.release()
        if self._announced is not None:
            self._announced.withdraw()
        if self._client is not None:
            self._client.close()
        if self._asking is not None:
            self._asking.close()
        for thread in self._threads:
            thread.join(LEAVE_S_MAX)
        self.queue.close()
        self.leave()


def _asking(settings: Settings, log: Callable[[str], None]) -> Asking:
    from app.delivery.intake import Asking, Intake  # noqa: PLC0415 - hardly anybody has an intake
    from app.settings.heard import place  # noqa: PLC0415 - the same

    return Asking(Intake(settings), place(settings), log)


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
    is_of_centre = bool(os.environ.get(DATABASE_URL, "").strip())
    try:
        sources = typed(os.environ, Path.cwd())
        return _of_centre(sources) if is_of_centre else Worker(sources).huey
    except SettingsError as error:
        sys.exit(f"opencode-helicone: {error.for_logs}; config show says more")
    except (EndpointError, ClientError, SchemaError, OSError, sqlite3.Error) as error:
        where = f"the database that {DATABASE_URL} names: " if is_of_centre and isinstance(error, sqlite3.Error) else ""
        sys.exit(f"opencode-helicone: {where}{error}")


def _of_centre(sources: Sources) -> Any:
    try:
        from app.fleet.worker import from_environment  # noqa: PLC0415 - of packages that only the centre has
    except ImportError as error:
        if not is_missing(error):
            raise
        sys.exit(f"opencode-helicone: {NOT_INSTALLED}")
    return from_environment(sources, os.environ).huey
