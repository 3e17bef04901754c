"""The intake's server: answers a log as Helicone does, once it is in the ledger; and says what became of others.

    POST /custom/v1/log

    200   it is committed; `helicone-id` names it. Or a later version of it is there already
    400   Helicone would refuse it as well
    401   no token, or one that nobody has any more: the machine pauses, and its jobs wait there
    403   its tenant takes no log that was made under this export mode: the same
    429   what waits for the tenant has reached its limit          } with Retry-After: the machine waits
    503   the database is away, or a tenant's pattern is none      }

    GET /custom/v1/machine, POST /custom/v1/states                  `app.settings.intake`

Nothing else is permanent: a machine that is refused with another status would give its turn up. Each record is a job of
its own, of the session that it names; one that comes again changed takes the place of the one before, whatever has
become of that. It speaks as Helicone's worker does, which says under which id it has taken a log; at jawn's address is
nothing, as with the worker: who asks there first goes on to this one.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from typing import TypeVar

from anyio import from_thread, to_thread
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from app import __version__
from app.database.postgres import PostgresLedger
from app.database.schema import SchemaError, is_newer
from app.database.server import open_postgres
from app.fleet import presence, tenants
from app.fleet.failures import DatabaseFailures
from app.fleet.presence import server_ms
from app.fleet.queue import CentralQueue
from app.fleet.tenants import Admission
from app.intake import answers
from app.intake.answers import Answer
from app.intake.logs import Posted, read_log, version_of
from app.ledger import adoption, arrivals, versions
from app.ledger.decision import WANTED
from app.pages.loopback import server
from app.receiver import handler
from app.runtime import failpoint
from app.settings import intake as protocol
from app.settings.intake import DEAD_MAX, IDS_MAX, LOG_PATH, MACHINE_PATH, MODE_HEADER, STATES_PATH, TOKEN, TURN_HEADER

log = logging.getLogger("opencode_helicone")

REQUEST_S_MAX = 40.0
"""Longer than a machine takes for a POST: a slow line is no reason to hear nothing."""
BODY_BYTES_MAX = 64 * 1024 * 1024
UNKNOWN_BYTES_MAX = 1024 * 1024
"""No more of a body is kept before it is known whose it is: anybody may open connections and send."""
CONNECTIONS = 8
"""To the database, of one process: so many logs are written at a time."""
GIVEN_UP_S = 25.0
"""A machine waits 30 s for its POST."""
UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
TIME_DIGITS = 15
"""Of a time in milliseconds; those of today have 13."""
ENDS_S_MAX = 5
"""So long an intake that ends tries to say so."""
NOT_SERVED = "a machine was not served"
BEAT = "this intake cannot say that it runs"
WAKE_EVERY_S = 0.05
"""What arrives within so long wakes the workers together: each wake takes a lock of the whole database server."""


T = TypeVar("T")


class Intake:
    """Shared by the threads that write."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: queue.LifoQueue[PostgresLedger | None] = queue.LifoQueue()
        for _ in range(CONNECTIONS):
            self._idle.put(None)
        self._queue = CentralQueue(url)
        self._arrived: list[tuple[int, str, bool]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._name = uuid.uuid4().hex
        self._is_too_old = False
        self._failures = DatabaseFailures(log)

    def take(self, token: str, posted: Posted) -> Answer:
        """What a log is answered; 200 only when it is committed."""
        return self._ask(token, lambda db, admitted: self._take(db, admitted, token, posted))

    def refusal(self, token: str) -> Answer | None:
        """What whoever has this token is answered, whatever it sends; None for one that counts."""
        answer = self._ask(token, lambda _db, _admitted: answers.KNOWN)
        return None if answer is answers.KNOWN else answer

    def machine(self, token: str) -> Answer:
        """What a machine is told about itself."""
        return self._ask(token, _machine)

    def states(self, token: str, asked: bytes) -> Answer:
        """What became of some records of its tenant."""
        return self._ask(token, lambda db, admitted: _states(db, admitted, asked))

    def _ask(self, token: str, act: Callable[[PostgresLedger, Admission], Answer]) -> Answer:
        def answer(db: PostgresLedger) -> Answer:
            admitted = tenants.admitted(db, token)
            return answers.UNKNOWN if admitted is None else act(db, admitted)

        try:
            return self._with_database(answer)
        except SchemaError as error:
            self._failures.failed(NOT_SERVED, str(error))
            return answers.NEWER
        except (sqlite3.Error, OSError) as error:
            self._failures.failed(NOT_SERVED, str(error))
            return answers.AWAY

    def _with_database(self, act: Callable[[PostgresLedger], T]) -> T:
        """Raises sqlite3.Error, OSError, SchemaError."""
        db = self._idle.get()
        try:
            if db is not None:
                if db.is_current() and not self._is_too_old:
                    # One that was open while the server started anew says so only when it is asked.
                    with suppress(sqlite3.OperationalError):
                        return act(db)
                db.close()
            db = open_postgres(self._url)  # which refuses a newer schema
            self._is_too_old = False
            return act(db)
        finally:
            self._idle.put(db)

    def _take(self, db: PostgresLedger, admitted: Admission, token: str, posted: Posted) -> Answer:
        tenant, now_ms = admitted.tenant, server_ms(db)
        read = read_log(tenant, token, posted, now_ms)
        if isinstance(read, Answer):
            return read
        if tenants.is_full(db, tenant):
            return answers.FULL
        turn_ms = now_ms if posted.turn_ms is None else min(posted.turn_ms, now_ms)
        version = version_of(admitted, read, turn_ms)
        if posted.is_given_up():
            return answers.LATE
        decision = versions.insert(db, tenant.destination_id, version, [read.body], now_ms=now_ms)
        # Where its time is the server's own, that has gone back: what has come now only seems the older one.
        if (
            decision not in WANTED
            and turn_ms == now_ms
            and not arrivals.is_current(db, tenant.destination_id, version.key)
        ):
            return answers.LATE
        if not tenants.is_there(db, tenant):
            # Removed meanwhile, when this one did not wait yet. The machine keeps it.
            adoption.give_up(db, tenant.destination_id, now_ms)
            return answers.UNKNOWN
        if decision in WANTED:
            with self._lock:
                self._arrived.append((tenant.destination_id, version.key, False))
        failpoint.reach("intake.committed")
        return read.taken

    def wake(self) -> None:
        """Wake workers for what has arrived, until `stop`."""
        while not self._stop.wait(WAKE_EVERY_S):
            with self._lock:
                arrived, self._arrived = self._arrived, []
            self._queue.wake(arrived)

    def beat(self) -> None:
        """Say that this process lives, until `stop`; then that it has ended."""
        says = {"version": __version__, "machine": socket.gethostname(), "process": os.getpid(), **presence.INTAKE}
        while True:
            try:
                self._is_too_old = self._with_database(lambda db: self._beat(db, says))
                if not self._is_too_old:
                    self._failures.works(BEAT, NOT_SERVED)
            except (sqlite3.Error, OSError, SchemaError) as error:
                self._failures.failed(BEAT, str(error))
            if self._stop.wait(presence.BEAT_MS / 1000):
                break
        with suppress(sqlite3.Error, OSError, SchemaError):
            self._with_database(lambda db: presence.withdraw(db, self._name))

    def _beat(self, db: PostgresLedger, says: Mapping[str, object]) -> bool:
        """Whether a newer program has changed the tables meanwhile: then nothing is written here any more."""
        presence.beat(db, self._name, says)
        return is_newer(db)

    def stop(self) -> None:
        """`beat` and `wake` end."""
        self._stop.set()

    def close(self) -> None:
        self._queue.close()
        with suppress(queue.Empty):
            while True:
                db = self._idle.get_nowait()
                if db is not None:
                    db.close()


def _machine(db: PostgresLedger, admitted: Admission) -> Answer:
    tenant = admitted.tenant
    found = arrivals.of_machine(db, tenant.destination_id, admitted.machine, DEAD_MAX)
    answer = protocol.IntakeAnswer(
        export_mode=tenant.policy.export_mode,
        redact_patterns=tenant.policy.redact_patterns,
        waiting=found.waiting,
        dead=found.dead,
        dead_records=tuple(
            protocol.DeadRecord(one.session, one.request_id, one.reason, one.finished_ms) for one in found.dead_latest
        ),
    )
    return Answer(200, protocol.encoded(answer), answers.JSON)


def _states(db: PostgresLedger, admitted: Admission, asked: bytes) -> Answer:
    names = _asked(asked)
    if names is None:
        return answers.NO_QUESTION
    found = arrivals.arrivals(db, admitted.tenant.destination_id, {name.lower() for name in names})
    states = {
        name: protocol.RecordState(found[name.lower()].state, found[name.lower()].reason)
        for name in names
        if name.lower() in found
    }
    return Answer(200, protocol.encoded(states), answers.JSON)


def _asked(text: bytes) -> list[str] | None:
    """The request ids of a question; None where it is none."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    names = told.get("requestIds") if isinstance(told, dict) else None
    if not isinstance(names, list) or len(names) > IDS_MAX:
        return None
    if not all(isinstance(name, str) and UUID.fullmatch(name) for name in names):
        return None
    return names


def create(url: str) -> Starlette:
    """The intake as an ASGI application, for this database."""
    intake = Intake(url)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        beats = threading.Thread(target=intake.beat, name="beat", daemon=True)
        for thread in (beats, threading.Thread(target=intake.wake, name="wake", daemon=True)):
            thread.start()
        try:
            yield
        finally:
            intake.stop()
            beats.join(ENDS_S_MAX)
            intake.close()

    async def answer(request: Request, act: Callable[[str, bytes], Answer]) -> Response:
        token = _token(request)

        async def refused() -> Answer | None:
            return answers.UNKNOWN if token is None else await to_thread.run_sync(intake.refusal, token)

        try:
            # All of it, whoever sends it: an answer that comes before is lost with the connection.
            raw = await _read(request, refused)
        except ClientDisconnect:
            return Response(status_code=400)
        if token is None:
            return _response(answers.UNKNOWN)
        return _response(raw if isinstance(raw, Answer) else await to_thread.run_sync(act, token, raw))

    async def take(request: Request) -> Response:
        is_given_up = _given_up(request)
        mode, turn_ms = request.headers.get(MODE_HEADER), _digits(request.headers.get(TURN_HEADER))
        return await answer(request, lambda token, raw: intake.take(token, Posted(raw, mode, turn_ms, is_given_up)))

    async def machine(request: Request) -> Response:
        return await answer(request, lambda token, _: intake.machine(token))

    async def states(request: Request) -> Response:
        return await answer(request, intake.states)

    routes = [
        Route(LOG_PATH, take, methods=["POST"]),
        Route(MACHINE_PATH, machine, methods=["GET"]),
        Route(STATES_PATH, states, methods=["POST"]),
    ]
    app = Starlette(lifespan=lifespan, routes=routes)
    app.router.redirect_slashes = False
    return app


def _given_up(request: Request) -> Callable[[], bool]:
    """As of `Posted`, for a request that has just begun; to be asked in a thread."""
    began_s = time.monotonic()
    return lambda: time.monotonic() - began_s > GIVEN_UP_S or from_thread.run(request.is_disconnected)


def _token(request: Request) -> str | None:
    """What may be one, by its form."""
    token = handler.bearer(request.headers.get("authorization"))
    return token if token is not None and TOKEN.fullmatch(token) else None


def _digits(header: str | None) -> int | None:
    """A time in a header; None where there is none, or none that anybody's clock shows."""
    return int(header) if header and header.isascii() and header.isdecimal() and len(header) <= TIME_DIGITS else None


async def _read(request: Request, refused: Callable[[], Awaitable[Answer | None]]) -> bytes | Answer:
    """The body; or what is answered in its place, when all of it has come and was thrown away."""
    chunks: list[bytes] = []
    size, answer = 0, None
    async for chunk in request.stream():
        is_first_beyond = size <= UNKNOWN_BYTES_MAX < size + len(chunk)
        size += len(chunk)
        if is_first_beyond:
            answer = await refused()
        if size > BODY_BYTES_MAX:
            return answer or answers.TOO_LARGE
        if answer is None:
            chunks.append(chunk)
        else:
            chunks.clear()
    return answer or b"".join(chunks)


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers))


def serve(url: str, bound: socket.socket) -> None:
    """Serve on this socket until SIGINT or SIGTERM. Raises sqlite3.Error where the database is away as it begins."""
    with closing(open_postgres(url)) as db, closing(CentralQueue(url)) as wakes:
        wakes.make_tables(db)
    with suppress(KeyboardInterrupt):
        server(create(url), REQUEST_S_MAX, int(GIVEN_UP_S)).run(sockets=[bound])
