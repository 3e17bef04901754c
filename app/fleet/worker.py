"""A worker of the centre: Huey's consumer around `deliver` on a ledger that is on a PostgreSQL server.

Any number of these processes run beside each other, on any number of machines. All of them deliver; the one that leads
wakes for what is due, takes back what dead workers held, and looks at what was delivered.

    threads    take wakes and deliver, each on a connection of its own
    listener   one connection: hears of wakes, and holds the lock that says this process lives
    poller     one connection: beats, which tells the server's time as well; leads, if nobody else does
    confirm    one connection: reads back what was delivered, where this process leads
"""

from __future__ import annotations

import logging
import os
import random
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import psycopg
from huey.signals import SIGNAL_INTERRUPTED

from app import __version__
from app.capture.targets import target
from app.database import derived
from app.database.postgres import PostgresLedger
from app.database.schema import SchemaError, require_known
from app.database.server import open_postgres
from app.delivery import backoff, confirm
from app.delivery.access import access
from app.delivery.deliver import DeliveryContext, deliver, release_unfinished
from app.delivery.loop import Loop
from app.delivery.sender import Place, Sender
from app.exporters.access import Access
from app.exporters.client import Client, ClientError
from app.exporters.connect import connect
from app.exporters.kinds import traits_of
from app.exporters.outcome import Outcome
from app.exporters.traits import Plan, Traits
from app.fleet import presence
from app.fleet.failures import DatabaseFailures
from app.fleet.queue import CentralQueue
from app.fleet.sharing import SharedThreads
from app.fleet.tenants import Tenant, reserve_send_time, tenants
from app.ledger import claims, confirmations, counts, destinations, flow, maintenance, pruning, readback
from app.ledger.destinations import Destination
from app.ledger.job import Body, Claim
from app.privacy.policy import Post
from app.runtime import log as runtime_log
from app.runtime.url import EndpointError
from app.settings.lookup import Sources
from app.settings.model import HELICONE
from app.settings.names import DATABASE_URL, LISTEN_URL

log = logging.getLogger("huey.opencode_helicone")
"""Below Huey's own, whose consumer shows what this says with its time."""

CONFIRM_MS = 5_000
UPKEEP_MS = 60_000
WAKES_MAX = 100
"""Of one destination, at one tick."""
SOON_MS = 500
"""Until the next tick, where more is due than was woken for, or only one job at a time may be under way."""
TICK_MS_MIN = 200
"""Where many jobs wait for a retry, the next one is always due soon."""
IN_TURN_MAX = 16
"""Jobs of one session that a thread delivers one after another before it looks who else waits."""


@dataclass(frozen=True, slots=True)
class Sink:
    """One destination that this process delivers to."""

    destination: Destination
    tenant: Tenant | None
    client: Client
    sender: Sender
    traits: Traits
    plan: Plan

    @property
    def rate_per_minute(self) -> int | None:
        """Of records that may be sent there, by all workers together; None: as many as there are."""
        return None if self.tenant is None else self.tenant.rate_per_minute


class CentralWorker:
    """One process. `huey` is what `huey_consumer` is given."""

    def __init__(self, sources: Sources, url: str, listen_url: str) -> None:
        self._url = url
        self._listen_url = listen_url
        self._local = threading.local()
        self._clock = presence.ServerClock()
        self._name = uuid.uuid4().hex
        self._unfinished: list[Claim] = []
        self._is_leading = False
        self._beaten_ms = 0
        """When this process last said that it lives, by the server's clock."""
        self._steady_since_ms = 0
        """Since then this process has reached the server at every beat."""
        self._maintained_ms = 0
        self._allowances: dict[int, confirm.Allowance] = {}
        self._knows_schema = True
        self._is_first_thread = threading.Lock()
        self._threads = SharedThreads()
        """Huey's."""
        self._failures = DatabaseFailures(log)
        self._healths: dict[int, str] = {}
        """By destination, how it was when that was looked at last."""
        self._all_threads_ended = threading.Event()
        try:
            # Before its threads claim anything: a worker that has no row counts as dead.
            self._beat()
            self._settings = sources.load()
            self._sinks: Mapping[int, Sink] = {}
            self._refused: set[Tenant] = set()
            self._own = [self._sink_of_settings()] if self._settings.credential else []
            self._refresh()
            self.queue = CentralQueue(url, self._handle_wake)
            self.queue.make_tables(self.db)
        finally:
            self.leave()
        self.huey = self.queue.huey
        self.huey.ended = self._ended
        self.huey.on_startup(name="loops")(self._begin)
        self.huey.on_shutdown(name="leave")(self._end)
        self.huey.signal(SIGNAL_INTERRUPTED)(self._interrupted)

    def _sink_of_settings(self) -> Sink:
        """Of a ledger that this process's settings name a key for, as on a machine of its own."""
        settings = self._settings
        found = target(self.db, settings, self._clock.now_ms())
        traits = traits_of(settings.kind, settings.preset, settings.project)
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        client = connect(access(settings), settings.ca_file)
        place = Place(found, settings.endpoint, settings.destination, traits)
        plan = traits.read_back(settings.confirm, settings.endpoint, key, settings.readback_url)
        return Sink(found, None, client, Sender(self, place, client), traits, plan)

    def _sink_of(self, tenant: Tenant) -> Sink:
        settings = self._settings
        found = destinations.by_id(self.db, tenant.destination_id)
        traits = traits_of(HELICONE, "", "")
        client = connect(Access(HELICONE, tenant.key), settings.ca_file)
        place = Place(found, tenant.endpoint, tenant.name, traits)
        plan = traits.read_back(settings.confirm, tenant.endpoint, tenant.key, None)
        return Sink(found, tenant, client, Sender(self, place, client), traits, plan)

    def _refresh(self) -> None:
        """Make `_sinks` match the tenants in the database. A POST under way keeps the client that it began with."""
        known = {one.tenant: one for one in self._sinks.values() if one.tenant is not None}
        found = [known.get(tenant) or self._sink_if_any(tenant) for tenant in tenants(self.db)]
        self._sinks = {one.destination.id: one for one in (*self._own, *found) if one is not None}

    def _sink_if_any(self, tenant: Tenant) -> Sink | None:
        """None where its key or endpoint is none: its jobs wait, and nobody else's do."""
        try:
            return self._sink_of(tenant)
        except (ClientError, EndpointError) as error:
            if tenant not in self._refused:
                self._refused.add(tenant)
                log.warning("tenant %s is delivered nothing: %s", tenant.name, error)
            return None

    # --- a thread's own connection

    @property
    def db(self) -> PostgresLedger:
        db: PostgresLedger | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = open_postgres(self._url)
        return db

    def leave(self) -> None:
        """The calling thread ends, or needs the ledger no more: its own connection is closed."""
        db: PostgresLedger | None = getattr(self._local, "db", None)
        if db is not None:
            self._local.db = None
            db.close()

    # --- one wake

    def _handle_wake(self, destination_id: int, key: str) -> None:
        if self._is_silent() or not self._knows_schema:
            return  # the leader wakes for it again
        try:
            if destination_id not in self._sinks:
                self._refresh()
            sink = self._sinks.get(destination_id)
            if sink is None or not self._threads.take(destination_id, key, is_only_one=len(self._sinks) == 1):
                return
            following: str | None = key
            while following is not None:
                try:
                    self._deliver(sink, following)
                finally:
                    self._threads.give_back(destination_id)
                following = (
                    None
                    if self._stopping()
                    else self._threads.take_again(destination_id, is_only_one=len(self._sinks) == 1)
                )
        except (sqlite3.Error, SchemaError) as error:
            self._failed("ledger", error)

    def _deliver(self, sink: Sink, key: str) -> None:
        """Raises sqlite3.Error."""
        destination_id, rate_per_minute = sink.destination.id, sink.rate_per_minute
        send_ms = None
        if rate_per_minute is not None:
            send_ms = reserve_send_time(self.db, destination_id, rate_per_minute)
            if send_ms is None:
                return  # the leader wakes for it again
        following = deliver(self.db, key, self._context(sink, send_ms))
        for _ in range(1, IN_TURN_MAX if rate_per_minute is None else 1):
            if following is None or self._stopping():
                break
            following = deliver(self.db, following, self._context(sink))
        if following is not None and not self._stopping():
            self._wake([(destination_id, following)])
        elif rate_per_minute is not None:
            self._wake_due(sink, 1)  # who has sent wakes the next, so that nobody waits for the leader's tick
        elif destinations.by_id(self.db, destination_id).concurrency is not None:
            # Few are under way after a pause: who is done wakes the next, and one more when there is room.
            self._wake_due(sink, 2)

    def _post_at(self, sink: Sink, send_ms: int | None, claim: Claim, body: Body) -> Outcome:
        """Post at the time that was reserved for it.

        It is waited for with the job claimed: else others would be woken for it, and reserve times for nothing.
        """
        if send_ms is not None:
            time.sleep(max(0, send_ms - self._clock.now_ms()) / 1000)
        return sink.sender.post(claim, body)

    def _context(self, sink: Sink, send_ms: int | None = None) -> DeliveryContext:
        settings, sender = self._settings, sink.sender
        return DeliveryContext(
            destination_id=sink.destination.id,
            worker=self._name,
            policy=backoff.RetryPolicy.of(settings.max_retries, settings.retry_base_delay_ms),
            # What may leave was decided where it was captured.
            permit=lambda _: Post(),
            post=partial(self._post_at, sink, send_ms),
            clock=self._clock.now_ms,
            dice=random.random,
            stopping=self._stopping,
            at_once=sender.at_once,
            beside=sender.beside,
            leave=self._unfinished.append,
            make_way=sender.make_way,
            post_changed=sender.post_changed,
            when_to_confirm=lambda: confirm.when(
                self.db, sink.destination.id, sink.plan, sink.traits, self._clock.now_ms()
            ),
        )

    def _wake(self, jobs: Sequence[tuple[int, str]]) -> None:
        self.queue.wake(
            [(destination_id, key, counts.is_history(self.db, destination_id, key)) for destination_id, key in jobs]
        )

    def _wake_due(self, sink: Sink, wakes_max: int) -> int:
        """The number of jobs that somebody was woken for."""
        destination_id = sink.destination.id
        woken = self.queue.woken(destination_id)
        keys = maintenance.to_wake(self.db, destination_id, self._clock.now_ms(), wakes_max, woken)
        self._wake([(destination_id, key) for key in keys])
        return len(keys)

    def _stopping(self) -> bool:
        return bool(self.huey.consumer.stop_flag.is_set())

    def _interrupted(self, *_: object) -> None:
        """The consumer gives up waiting for its threads: nothing that they hold is charged."""
        for destination_id in sorted(set(claims.release_all(self.db, self._name))):
            # The probe of a pause may have been among them.
            flow.probe_now(self.db, destination_id, self._clock.now_ms())

    def _ended(self) -> None:
        """The process ends, and where its threads were not waited for (SIGINT), none of them has said so."""
        if self._all_threads_ended.is_set():
            return
        self._all_threads_ended.set()
        try:
            presence.withdraw(self.db, self._name)
        except (sqlite3.Error, SchemaError) as error:
            self._failed("ledger", error)
        finally:
            self.leave()

    # --- beside Huey's threads

    def _begin(self) -> None:
        """Huey calls this in each of its threads; the first one starts the loops."""
        self._threads.join()
        if not self._is_first_thread.acquire(blocking=False):
            return
        log.info("delivers from the database %s, as %s names it", self.db.place, DATABASE_URL)
        self.leave()
        stop = self.huey.consumer.stop_flag
        for loop, end in (
            # It says that this process lives for as long as anything is under way.
            (Loop("poller", presence.BEAT_MS, self._tick), self._all_threads_ended),
            (Loop("listener", presence.BEAT_MS // 5, self._listen), stop),
            (Loop("confirm", CONFIRM_MS, self._confirm), stop),
        ):
            threading.Thread(target=self._run, args=(loop, end), name=loop.name, daemon=True).start()

    def _run(self, loop: Loop, end: threading.Event) -> None:
        try:
            loop.run(end, self._failed)
        finally:
            self.leave()

    def _end(self) -> None:
        """Huey calls this in each of its threads as it ends; the last one says that nothing is under way any more."""
        is_last = self._threads.leave() == 0 and self._stopping()
        try:
            if is_last:
                self._all_threads_ended.set()
                release_unfinished(self.db, self._unfinished, self._clock.now_ms())
                presence.withdraw(self.db, self._name)
        except (sqlite3.Error, SchemaError) as error:
            self._failed("ledger", error)
        finally:
            self.leave()

    def _failed(self, what: str, error: Exception) -> None:
        if isinstance(error, sqlite3.Error | SchemaError):
            self._failures.failed(what, str(error))
        elif isinstance(error, psycopg.Error | OSError):
            self._failures.failed(what, type(error).__name__)
        else:
            log.error("%s: %s at %s", what, type(error).__name__, runtime_log.where(error))
        db: PostgresLedger | None = getattr(self._local, "db", None)
        if db is not None and not db.is_current():
            self.leave()

    def _listen(self) -> int:
        """Hear rings, for as long as the connection lives."""
        with closing(PostgresLedger(self._listen_url)) as db:
            presence.hold(db, self._name)
            self.queue.listen(db, self.huey.consumer.stop_flag)
        return 0

    def _tick(self) -> int:
        """Say that this process lives, and lead where nobody else does; the milliseconds until the next time."""
        now_ms = self._beat()
        self._require_known_schema()
        release_unfinished(self.db, self._unfinished, now_ms)
        self.queue.look()
        self._refresh()
        self._is_leading = presence.lead(self.db, self._name)
        # Not the listener, which is another connection: of that the first failure alone is told.
        self._failures.works("poller", "ledger")
        if not self._is_leading:
            return presence.BEAT_MS
        self._take_back(now_ms)
        next_ms = self._wake_all(now_ms)
        if now_ms - self._maintained_ms >= UPKEEP_MS:
            self._maintained_ms = now_ms
            self._maintain(now_ms)
        return max(TICK_MS_MIN, next_ms - self._clock.now_ms())

    def _wake_all(self, now_ms: int) -> int:
        """Wake for what is due at all destinations; when the next tick is worth while."""
        next_ms = now_ms + presence.BEAT_MS
        for destination_id, first_ms in maintenance.first_due_ms(self.db).items():
            self._beat_if_due()
            sink = self._sinks.get(destination_id)
            if sink is None:
                continue
            if first_ms > now_ms:
                next_ms = min(next_ms, first_ms)
                continue
            if not self._threads.is_waited_for(destination_id):
                is_more = self._wake_due(sink, WAKES_MAX) == WAKES_MAX
                if is_more or claims.is_isolated_due(self.db, destination_id, now_ms):
                    next_ms = min(next_ms, now_ms + SOON_MS)
            due_ms = maintenance.next_due_ms(self.db, destination_id, now_ms)
            next_ms = next_ms if due_ms is None else min(next_ms, due_ms)
        return next_ms

    def _beat(self) -> int:
        """Say that this process lives; the server's time."""
        says = {"version": __version__, "machine": socket.gethostname(), "process": os.getpid()}
        now_ms = self._clock.set(partial(presence.beat, self.db, self._name, says))
        if not 0 <= now_ms - self._beaten_ms < presence.MISSING_MS:
            self._steady_since_ms = now_ms
        self._beaten_ms = now_ms
        return now_ms

    def _beat_if_due(self) -> None:
        """Between steps that may each wait for a lock: others must not take this process for dead meanwhile."""
        if self._clock.now_ms() - self._beaten_ms >= presence.BEAT_MS:
            self._beat()

    def _is_silent(self) -> bool:
        """Whether others may take this process for dead, and what it claims for held by a dead one."""
        return self._clock.now_ms() - self._beaten_ms >= presence.MISSING_MS

    def _require_known_schema(self) -> None:
        """Raises SchemaError where a newer program has changed the tables; then nothing is claimed here any more."""
        try:
            require_known(self.db)
        except SchemaError:
            self._knows_schema = False
            raise
        self._knows_schema = True

    def _take_back(self, now_ms: int) -> None:
        """Take back the jobs of dead workers.

        Does nothing within MISSING_MS after this process itself lost the server, or soon after the server's start: then
        others may only be late.
        """
        if now_ms - self._steady_since_ms < presence.MISSING_MS or presence.is_starting(self.db):
            return
        dead = presence.dead(self.db, maintenance.leasing_workers(self.db))
        recovered = maintenance.recover(self.db, now_ms, dead)
        if recovered:
            log.warning("took back %d job(s) of a worker that died, hung or slept", recovered)

    def _maintain(self, now_ms: int) -> None:
        for sink in self._sinks.values():
            self._tell_health(sink)
            if sink.plan.url is None:
                confirmations.give_up_confirmation(self.db, sink.destination.id)
        if mended := maintenance.reset_future_times(self.db, now_ms):
            log.warning("the server's clock was wrong before: %d time(s) far ahead are now", mended)
        steady_ms = maintenance.steady_ms(self.db, now_ms)
        age_ms_max = maintenance.trusted_age_ms(self._settings.max_spool_age_ms, steady_ms)
        given_up = confirmations.give_up_confirmations(self.db, now_ms, bytes_max=None, age_ms_max=age_ms_max)
        if given_up:
            log.warning("gave up confirming %d delivered job(s): too old (maxSpoolAge)", given_up)
        # No job is dropped by age: a machine has given up its own, because this one was answered with 200.
        self._beat_if_due()
        pruning.forget_acknowledgements(self.db, now_ms)
        self._beat_if_due()
        derived.sum_up(self.db)
        presence.forget_dead(self.db)

    def _tell_health(self, sink: Sink) -> None:
        """Log it where it is another one than before, and not fine from the beginning."""
        one = destinations.by_id(self.db, sink.destination.id)
        if one.health != self._healths.get(one.id, "fine"):
            whose = one.endpoint if sink.tenant is None else f"tenant {sink.tenant.name}"
            log.warning("%s: %s; `opencode-helicone fleet status` says more", whose, one.health)
        self._healths[one.id] = one.health

    def _confirm(self) -> int:
        """Read back what is due at one destination after another, where this process leads."""
        for sink in self._sinks.values():
            if not self._is_leading:
                break
            if sink.plan.url is None:
                continue
            failure = confirm.confirm(
                self.db,
                sink.destination.id,
                confirm.fetch_from(sink.client, sink.plan.url),
                self._clock.now_ms(),
                traits=sink.traits,
                allowance=self._allowance(sink),
                dice=random.random,
            )
            if failure is not None:
                log.warning("delivered jobs cannot be confirmed: %s", failure)
        self._failures.works("confirm")
        return CONFIRM_MS

    def _allowance(self, sink: Sink) -> confirm.Allowance:
        destination_id = sink.destination.id
        if destination_id not in self._allowances:
            readback.resume_read_back(self.db, destination_id)
            self._allowances[destination_id] = confirm.Allowance(sink.plan.queries_per_minute, 1, self._clock.now_ms())
        return self._allowances[destination_id]


def from_environment(sources: Sources, environ: Mapping[str, str]) -> CentralWorker:
    """The worker that these variables mean.

    Raises what CentralWorker raises, and sqlite3.Error where the server is away.
    """
    url = environ[DATABASE_URL].strip()
    return CentralWorker(sources, url, environ.get(LISTEN_URL, "").strip() or url)
