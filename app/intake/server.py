"""The intake's server: answers a log as Helicone does, once it is in the ledger.

    POST /custom/v1/log

    200   it is committed; `helicone-id` names it
    400   Helicone would refuse it as well
    401   no token, or one that nobody has any more: the machine pauses, and its jobs wait there
    429   what waits for the tenant has reached its limit    } with Retry-After: the machine waits
    503   the database is away                               }

Nothing else is permanent: a machine that is refused with another status would give its turn up. Each record is a job of
its own, of the session that it names; one that comes again changed takes the place of the one before, whatever has
become of that. It speaks as Helicone's worker does, which says under which id it has taken a log; at jawn's address is
nothing, as with the worker: who asks there first goes on to this one.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import socket
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass

from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from app.database.postgres import PostgresLedger
from app.database.schema import SchemaError
from app.database.server import open_postgres
from app.fleet import tenants
from app.fleet.presence import server_ms
from app.fleet.queue import CentralQueue
from app.fleet.tenants import Tenant
from app.ledger import versions
from app.ledger.decision import WANTED, Decision
from app.ledger.job import Body, Version
from app.pages.loopback import server
from app.receiver import handler
from app.runtime import failpoint
from app.settings.intake import LOG_PATH, TOKEN

log = logging.getLogger("opencode_helicone")

REQUEST_S_MAX = 40.0
"""Longer than a machine takes for a POST: a slow line is no reason to hear nothing."""
BODY_BYTES_MAX = 64 * 1024 * 1024
CONNECTIONS = 8
"""To the database, of one process: so many logs are written at a time."""
FULL_S = 60
AWAY_S = 5
WAKE_EVERY_S = 0.05
"""What arrives within so long wakes the workers together: each wake takes a lock of the whole database server."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]


_UNKNOWN = Answer(401, b"Unauthorized", {})
_FULL = Answer(429, b"what waits has reached its limit", {"retry-after": str(FULL_S)})
_AWAY = Answer(503, b"the database is away", {"retry-after": str(AWAY_S)})


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

    def take(self, token: str, raw: bytes) -> Answer:
        """What is answered; 200 only when it is committed."""
        db = self._idle.get()
        try:
            if db is not None and db.is_current():
                # One that was open while the server started anew says so only when it is asked.
                with suppress(sqlite3.OperationalError):
                    return self._answer(db, token, raw)
                db.close()
            db = open_postgres(self._url)
            return self._answer(db, token, raw)
        except (sqlite3.Error, OSError, SchemaError) as error:
            log.warning("a log was not taken: %s", error)
            return _AWAY
        finally:
            self._idle.put(db)

    def _answer(self, db: PostgresLedger, token: str, raw: bytes) -> Answer:
        tenant = tenants.admitted(db, token)
        if tenant is None:
            return _UNKNOWN
        now_ms = server_ms(db)
        # Without the request's own headers: the body alone is sent on.
        reply = handler.worker_reply({"authorization": f"Bearer {token}"}, raw, None, now_ms, str(uuid.uuid4()))
        if reply.log is None:
            return Answer(reply.status, reply.body, reply.headers)
        if tenants.is_full(db, tenant):
            return _FULL
        session = reply.log.properties.get("Helicone-Session-Id") or reply.log.request_id
        if not self._put(db, tenant, reply.log.request_id, session, raw, now_ms):
            return _AWAY
        failpoint.reach("intake.committed")
        return Answer(reply.status, reply.body, reply.headers)

    def _put(self, db: PostgresLedger, tenant: Tenant, request_id: str, session: str, raw: bytes, now_ms: int) -> bool:
        """False where the server's clock went back, so that what has come now seems the older one."""
        body = Body(uuid.UUID(request_id), raw)
        key = hashlib.sha256(f"{session}\0{request_id}\0{body.digest.hex()}".encode()).hexdigest()
        # In the order of arrival: whoever sends a record again, changed, means the later one.
        version = Version(session, session, request_id, key, now_ms, "", "")
        decision = versions.insert(db, tenant.destination_id, version, [body], now_ms=now_ms)
        if decision in WANTED:
            with self._lock:
                self._arrived.append((tenant.destination_id, key, False))
        return decision is not Decision.SUPERSEDED

    def wake(self) -> None:
        """Wake workers for what has arrived, until `close`."""
        while not self._stop.wait(WAKE_EVERY_S):
            with self._lock:
                arrived, self._arrived = self._arrived, []
            self._queue.wake(arrived)

    def close(self) -> None:
        self._stop.set()
        self._queue.close()
        with suppress(queue.Empty):
            while True:
                db = self._idle.get_nowait()
                if db is not None:
                    db.close()


def create(url: str) -> Starlette:
    """The intake as an ASGI application, for this database."""
    intake = Intake(url)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        thread = threading.Thread(target=intake.wake, name="wake", daemon=True)
        thread.start()
        try:
            yield
        finally:
            intake.close()

    async def take(request: Request) -> Response:
        try:
            # All of it, whoever sends it: an answer that comes before is lost with the connection.
            raw = await _read(request)
        except ClientDisconnect:
            return Response(status_code=400)
        token = handler.bearer(request.headers.get("authorization"))
        if token is None or not TOKEN.fullmatch(token):
            return _response(_UNKNOWN)
        if raw is None:
            return Response(b"Payload too large", 400)
        return _response(await to_thread.run_sync(intake.take, token, raw))

    app = Starlette(lifespan=lifespan, routes=[Route(LOG_PATH, take, methods=["POST"])])
    app.router.redirect_slashes = False
    return app


async def _read(request: Request) -> bytes | None:
    """None where it is longer than anybody's log."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers))


def serve(url: str, bound: socket.socket) -> None:
    """Serve on this socket until SIGINT or SIGTERM. Raises sqlite3.Error where the database is away as it begins."""
    with closing(open_postgres(url)) as db, closing(CentralQueue(url)) as wakes:
        wakes.make_tables(db)
    with suppress(KeyboardInterrupt):
        server(create(url), REQUEST_S_MAX).run(sockets=[bound])
