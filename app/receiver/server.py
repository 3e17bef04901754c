"""Server that is compatible with Helicone: routes, limits and sockets of the local receiver.

    POST /custom/v1/log                                         as the cloud's worker
    POST /v1/trace/custom/log, /v1/trace/custom/v1/log          as jawn, the self-hosted API server
    POST /v1/request/query-clickhouse                           read back
    POST /_faults                                               script what goes wrong next, in exchange for the key
    GET  /_sends                                                every POST that arrived, in order, in exchange for it
    GET  /, /session                                            a page for people, in exchange for a pass
    GET  /_who                                                  proves to a command that it has the key
    POST /_stop                                                 end, in exchange for the key

It listens on this machine only, answers nobody who calls it by another name (a web page's name may be made to point
here), and knows one key, random, which lies beside its store. What was sent under one key is read back only with it.
Unlike Helicone's, its read-back also shows rows that share a request id, because such rows are the mistake that one
looks for here.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.pages.loopback import CalledByName, address, listening, server
from app.pages.response import HEADERS, html, static_routes
from app.receiver import faults, handler, page, store
from app.receiver.access import cookie, own_key, page_pass, page_url, proof
from app.receiver.faults import Fault, FaultError, Script
from app.runtime import clock
from app.runtime.url import RouteKind

BODY_BYTES_MAX = 64 * 1024 * 1024
READ_LIMIT_MAX = 1_000
NONCE_SIGNS_MAX = 100

_WORKER_PATH = "/custom/v1/log"
_JAWN_PATHS = ("/v1/trace/custom/log", "/v1/trace/custom/v1/log")
_SENT_ID = re.compile(rb'"Helicone-Request-Id"\s*:\s*"([^"\\]{1,200})"', re.IGNORECASE)

_Object: TypeAlias = dict[str, Any]


def create(
    store_path: Path,
    *,
    keys: frozenset[str] | None = None,
    script: Iterable[Fault] = (),
    on_ready: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
) -> Starlette:
    """The receiver as an ASGI application. It opens its store when it starts, in the thread that serves it.

    `keys`: the API keys that it knows; None, for tests: every well-formed one. `on_ready` is called once it can
    answer, `on_stop` when somebody who has a key wants it to end.
    """
    handlers = _Handlers(keys, Script(script), on_stop)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        with store.opened(store_path) as db:
            handlers.db = db
            on_ready()
            yield

    app = Starlette(
        lifespan=lifespan,
        exception_handlers={404: _not_found},
        routes=[
            *(Route(path, handlers.log, methods=["POST"]) for path in (_WORKER_PATH, *_JAWN_PATHS)),
            Route("/v1/request/query-clickhouse", handlers.query, methods=["POST"]),
            Route("/_faults", handlers.script, methods=["POST"]),
            Route("/_sends", handlers.show_sends, methods=["GET"]),
            Route("/_stop", handlers.stop, methods=["POST"]),
            Route("/_who", handlers.who, methods=["GET"]),
            Route("/", handlers.show_overview, methods=["GET"]),
            Route("/session", handlers.show_session, methods=["GET"]),
            *static_routes(),
        ],
    )
    app.router.redirect_slashes = False  # neither of the real servers does
    app.add_middleware(CalledByName)
    return app


def serve(
    *,
    host: str,
    port: int,
    store_path: Path,
    faults_path: Path | None = None,
    on_listening: Callable[[str, str, str], None] = lambda _url, _key, _page: None,
) -> None:
    """Serve until SIGINT, then return; SIGTERM ends the process once everything is closed.

    Port 0 takes a free one; `on_listening` gets the address, the key, and the address of the page.

    `faults_path`: a JSON file with the first faults. Raises ListenError, ReceiverError, ReceiverStoreError, FaultError.
    """
    script = () if faults_path is None else faults.read(faults_path)
    with store.opened(store_path):
        pass  # refuse a wrong file here: once it runs, the server could only log it
    with listening(host, port) as bound:
        url, key = address(bound), own_key(store_path)
        served: list[uvicorn.Server] = []
        app = create(
            store_path,
            keys=frozenset({key}),
            script=script,
            on_ready=lambda: on_listening(url, key, page_url(url, key)),
            on_stop=lambda: setattr(served[0], "should_exit", True),
        )
        served.append(server(app))
        with suppress(KeyboardInterrupt):
            served[0].run(sockets=[bound])


class _Handlers:
    """The handlers, and what they share. All run in one thread, the event loop's."""

    db: sqlite3.Connection

    def __init__(self, keys: frozenset[str] | None, script: Script, on_stop: Callable[[], None]) -> None:
        self._keys = keys
        self._script = script
        self._on_stop = on_stop

    async def log(self, request: Request) -> Response:
        kind: RouteKind = "jawn" if request.url.path in _JAWN_PATHS else "worker"
        if self._keys is not None:
            # Everybody on this machine can post: of whoever has no key nothing is read, and nothing kept.
            refuse = handler.jawn_refusal if kind == "jawn" else handler.worker_refusal
            refusal = refuse(request.headers, self._keys)
            if refusal is not None:
                return _response(refusal)
        raw = await _read(request)
        key = handler.bearer(request.headers.get("authorization"))
        owner = store.organisation(self.db, key)
        n = store.arrived(self.db, request.url.path, owner, _sent_id(request, raw), raw, clock.now_ms())
        fault = self._script.take(kind)
        await asyncio.sleep(fault.delay_ms / 1000)
        if fault.reset:
            return _BrokenOff()
        if fault.status is not None:
            reply = _scripted(fault, fault.status)
        else:
            reply = self._reply(kind, request, raw)
            if reply.log is not None and owner is not None and not fault.unstored:
                log = replace(reply.log, request_body="", response_body="") if fault.over_quota else reply.log
                store.put(self.db, owner, log)
        if fault.drop_after_store:
            return _BrokenOff()
        store.answered(self.db, n, reply.status)
        return _response(reply)

    def _reply(self, kind: RouteKind, request: Request, raw: bytes) -> handler.Reply:
        reply = handler.jawn_reply if kind == "jawn" else handler.worker_reply
        return reply(dict(request.headers), raw, self._keys, clock.now_ms(), str(uuid.uuid4()))

    async def query(self, request: Request) -> Response:
        if (refused := self._refusal(request)) is not None:
            return refused
        fault = self._script.take("read")
        await asyncio.sleep(fault.delay_ms / 1000)
        if fault.reset:
            return _BrokenOff()
        if fault.status is not None:
            return _response(_scripted(fault, fault.status))
        raw = await _read(request)
        refusal = handler.jawn_refusal(request.headers, self._keys)
        if refusal is not None:
            return _response(refusal)
        query = _parsed(raw)
        if not isinstance(query, dict):
            return Response(status_code=500)
        return self._found(query, handler.bearer(request.headers.get("authorization")), fault)

    def _found(self, query: _Object, key: str | None, fault: Fault) -> Response:
        if fault.blind:
            return JSONResponse({"data": [], "error": None}, status_code=201)
        try:
            wanted = store.compiled(query.get("filter", "all"), unit_ms=1000 if fault.cut_since else 1)
        except store.ReceiverStoreError as error:
            return JSONResponse({"data": None, "error": str(error)}, status_code=400)
        rows = store.select(
            self.db,
            store.organisation(self.db, key) or "",
            wanted,
            newest_first=(query.get("sort") or {}).get("created_at", "desc") == "desc",
            limit=min(int(query.get("limit") or 10), READ_LIMIT_MAX),
            offset=int(query.get("offset") or 0),
        )
        # Measured: this one query answers 201.
        return JSONResponse({"data": [_shown(row) for row in rows], "error": None}, status_code=201)

    async def script(self, request: Request) -> Response:
        # A web page cannot send this type to another origin without asking first, and nobody here says yes.
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            return JSONResponse({"error": "send application/json"}, status_code=415)
        if (refused := self._refusal(request)) is not None:
            return refused
        try:
            script = faults.parse(_parsed(await _read(request)))
        except FaultError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        self._script = Script(script)
        return JSONResponse({"faults": len(script)})

    async def show_sends(self, request: Request) -> Response:
        return self._refusal(request) or JSONResponse({"sends": [asdict(send) for send in store.sends(self.db)]})

    def _refusal(self, request: Request) -> Response | None:
        """For whoever has none of its keys, where it has some."""
        refusal = None if self._keys is None else handler.jawn_refusal(request.headers, self._keys)
        return None if refusal is None else _response(refusal)

    async def who(self, request: Request) -> Response:
        nonce, (_host, port) = request.query_params.get("nonce", ""), request.scope["server"]
        if len(nonce) > NONCE_SIGNS_MAX:
            return PlainTextResponse("the nonce is too long", 400)
        # With several keys, of tests, one speaks for all.
        return PlainTextResponse(proof(min(self._keys or {""}), nonce, port))

    async def stop(self, request: Request) -> Response:
        refusal = handler.jawn_refusal(request.headers, self._keys)
        if refusal is not None:
            return _response(refusal)
        self._on_stop()
        return PlainTextResponse("ends")

    async def show_overview(self, request: Request) -> Response:
        told = request.query_params.get("pass")
        if told is not None and self._is_pass(told):
            # Out of the address, which people copy and browsers remember.
            answer = RedirectResponse("./", 303, HEADERS)
            answer.set_cookie(cookie(request.url.port), told, httponly=True, samesite="strict")
            return answer
        return self._page(request, lambda: page.overview(store.sessions(self.db)))

    async def show_session(self, request: Request) -> Response:
        wanted = request.query_params.get("id", "")
        return self._page(request, lambda: page.session(store.of_session(self.db, wanted)))

    def _page(self, request: Request, make: Callable[[], str]) -> Response:
        is_allowed = self._keys is None or self._is_pass(request.cookies.get(cookie(request.url.port), ""))
        return html(make()) if is_allowed else html(page.closed(), 403)

    def _is_pass(self, told: str) -> bool:
        return any(hmac.compare_digest(page_pass(key).encode(), told.encode()) for key in self._keys or ())


class _BrokenOff(Response):
    """An answer whose end never comes: the server closes the connection when less was sent than was announced."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})


async def _not_found(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("invalid path", status_code=404)


async def _read(request: Request) -> bytes:
    held = bytearray()
    async for chunk in request.stream():
        held += chunk
        if len(held) > BODY_BYTES_MAX:
            raise HTTPException(413)
    return bytes(held)


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _response(reply: handler.Reply) -> Response:
    is_json = reply.body[:1] in (b"{", b"[")
    headers = {"content-type": "application/json" if is_json else "text/plain"} | {
        name.lower(): value for name, value in reply.headers.items()
    }
    return Response(reply.body, reply.status, headers)


def _scripted(fault: Fault, status: int) -> handler.Reply:
    return handler.Reply(status, fault.body.encode(), dict(fault.headers))


def _sent_id(request: Request, raw: bytes) -> str | None:
    found = _SENT_ID.search(raw)
    in_body = found[1].decode("utf-8", "replace") if found else None
    return request.headers.get("helicone-request-id", in_body)


def _shown(row: store.Stored) -> _Object:
    """A row with the names of Helicone's own answer."""
    log = row.log
    return {
        "request_id": log.request_id,
        "request_created_at": _iso(log.created_ms),
        "request_model": log.model,
        "request_user_id": log.user_id,
        "request_properties": dict(log.properties),
        "request_body": _parsed(log.request_body.encode()),
        "response_id": log.request_id,
        "response_created_at": _iso(log.ended_ms),
        "response_status": log.status,
        "response_body": _parsed(log.response_body.encode()) or log.response_body,
        "provider": log.provider,
        "delay_ms": log.latency_ms,
        "time_to_first_token": log.ttft_ms,
        "total_tokens": log.prompt_tokens + log.completion_tokens,
        "prompt_tokens": log.prompt_tokens,
        "prompt_cache_read_tokens": log.cache_read_tokens,
        "prompt_cache_write_tokens": log.cache_write_tokens,
        "completion_tokens": log.completion_tokens,
        "cost": log.cost_usd,
        # A body is never empty otherwise.
        "storage_location": "clickhouse" if log.request_body else "not_stored_exceeded_free",
    }


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
