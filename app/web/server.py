"""Server of the web view: pages that are looked at, and numbers that are scraped. No request changes anything.

GET /, /sessions, /session, /jobs, /job, /stats, /sent, /doctor     for who has the cookie
GET /stamp                                                          whether a page would say something else by now
GET /metrics, /healthz                                              for everybody on this machine: numbers alone
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import AppError
from app.operations.metrics import CONTENT_TYPE, exposition
from app.operations.reading import UnreadableLedgerError, look_at_ledger
from app.pages.loopback import CalledByName, address, listening, server
from app.pages.response import HEADERS, html, static_routes
from app.pages.template import Templates
from app.runtime import clock, log
from app.settings.model import SettingsError
from app.web import views
from app.web.access import Access, cookie
from app.web.site import Look, Page, Site, View, stamp

BRAND = "opencode-helicone"
NAV = (
    ("./", "Overview"),
    ("sessions", "Sessions"),
    ("jobs", "Jobs"),
    ("jobs?state=dead", "Dead"),
    ("stats", "Stats"),
    ("sent", "Sent"),
    ("doctor", "Doctor"),
)
VIEWS: dict[str, View] = {
    "/": views.overview,
    "/sessions": views.sessions,
    "/session": views.session,
    "/jobs": views.jobs,
    "/job": views.job,
    "/stats": views.stats,
    "/sent": views.sent,
}
Answer: TypeAlias = Callable[[Request], Awaitable[Response]]
AT_ONCE = 2
"""Pages in the making; others wait. A large one takes hundreds of megabytes."""


def create(site: Site, access: Access, on_ready: Callable[[], None] = lambda: None) -> Starlette:
    pages = _Pages(site, access)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        on_ready()
        yield
        pages.leave()

    app = Starlette(
        lifespan=lifespan,
        routes=[
            *(Route(path, pages.shown(view)) for path, view in VIEWS.items()),
            Route("/doctor", pages.guarded(pages.doctor)),
            Route("/stamp", pages.stamp),
            Route("/metrics", pages.for_all(pages.metrics)),
            Route("/healthz", pages.for_all(pages.healthz)),
            *static_routes(),
        ],
    )
    app.router.redirect_slashes = False
    app.add_middleware(_OnlyGet)
    app.add_middleware(CalledByName)
    return app


def serve(site: Site, host: str, port: int, on_listening: Callable[[str], None]) -> None:
    """Serve until SIGINT, then end the process. `on_listening` gets the address with its token. Raises ListenError."""
    access = Access(lambda: secrets.token_urlsafe(24))
    with listening(host, port) as bound, suppress(KeyboardInterrupt):
        url = f"{address(bound)}/?token={access.token}"
        server(create(site, access, lambda: on_listening(url))).run(sockets=[bound])
    # A page that is still in the making only reads, and is for nobody; Python would wait for its thread.
    os._exit(0)


class _OnlyGet:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "GET":
            refusal = PlainTextResponse("only GET is answered: nothing can be changed here", 405, {"allow": "GET"})
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


class _Pages:
    """Each request is one look: the ledger is opened for it, and closed before the page is made."""

    def __init__(self, site: Site, access: Access) -> None:
        self._site = site
        self._access = access
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._for_all = ThreadPoolExecutor(1)
        """Of its own: whoever may not see the pages must not hold them up."""

    def leave(self) -> None:
        for pool in (self._pool, self._for_all):
            pool.shutdown(wait=False, cancel_futures=True)

    def shown(self, view: View) -> Answer:
        def make(request: Request, now_ms: int) -> Page:
            settings = self._site.sources.load()
            asked = dict(request.query_params)
            return look_at_ledger(
                settings.spool_directory, lambda db: view(Look(self._site, settings, db, now_ms, asked))
            )

        return self.guarded(make)

    def doctor(self, _request: Request, now_ms: int) -> Page:
        return views.doctor(self._site, now_ms)

    def for_all(self, make: Callable[[], Response]) -> Answer:
        async def answer(_request: Request) -> Response:
            return await _beside(self._for_all, make)

        return answer

    def guarded(self, make: Callable[[Request, int], Page]) -> Answer:
        """The page for who may see it; or what is in its way."""

        def page(request: Request) -> Response:
            now_ms = clock.now_ms()
            try:
                return self._rendered(request, make(request, now_ms), now_ms)
            except Exception as error:  # noqa: BLE001 - each is said on the page, none on standard error
                return self._rendered(request, _said(error), now_ms)

        async def answer(request: Request) -> Response:
            refused = self._refused(request)
            return refused or await _beside(self._pool, lambda: page(request))

        return answer

    async def stamp(self, request: Request) -> Response:
        refused = self._refused(request)
        return refused or JSONResponse({"stamp": self._stamp()}, headers=HEADERS)

    def metrics(self) -> Response:
        try:
            data = exposition(self._site.sources.load(), clock.now_ms())
        except SettingsError:
            return PlainTextResponse("the settings cannot be used", 503)
        return Response(data, media_type=CONTENT_TYPE)

    def healthz(self) -> Response:
        """Says no more than that: everybody on this machine may ask."""
        try:
            look_at_ledger(self._site.sources.load().spool_directory, lambda db: db.execute("select 1 from meta"))
        except (UnreadableLedgerError, SettingsError):
            return PlainTextResponse("the queue cannot be read", 503)
        return PlainTextResponse("ok")

    def _refused(self, request: Request) -> Response | None:
        """What who may not see it gets; None for who may."""
        token = request.query_params.get("token")
        if token is not None and request.url.path == "/":
            found = self._access.swap(token)
            if found == "opened":
                # Out of the address, which people copy and browsers remember.
                answer = RedirectResponse("./", HTTPStatus.SEE_OTHER, HEADERS)
                answer.set_cookie(cookie(request.url.port), self._access.cookie, httponly=True, samesite="strict")
                return answer
            return self._closed(is_used=found == "used")
        told = request.cookies.get(cookie(request.url.port), "")
        return None if self._access.is_allowed(told) else self._closed()

    def _closed(self, *, is_used: bool = False) -> Response:
        return html(
            _templates().render("closed.html", {"title": "Closed", "brand": BRAND, "nav": (), "is_used": is_used}), 403
        )

    def _rendered(self, request: Request, page: Page, now_ms: int) -> Response:
        here = request.url.path.lstrip("/") or "./"
        is_dead = here == "jobs" and request.query_params.get("state") == "dead"
        here = "jobs?state=dead" if is_dead else {"session": "sessions", "job": "jobs"}.get(here, here)
        values = {
            "title": f"{page.title} · {BRAND}",
            "brand": BRAND,
            "nav": [{"href": href, "name": name, "is_here": href == here} for href, name in NAV],
            "stamp": self._stamp(),
            "now_ms": now_ms,
            "options": self._site.options,
            **page.values,
        }
        return html(_templates().render(page.template, values))

    def _stamp(self) -> str:
        try:
            return stamp(self._site.sources.load().spool_directory)
        except SettingsError:
            return "settings"


async def _beside(pool: ThreadPoolExecutor, make: Callable[[], Response]) -> Response:
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, make)
    except asyncio.CancelledError:  # the server ends, and does not wait for it
        return PlainTextResponse("the pages have ended", 503)


def _said(error: Exception) -> Page:
    match error:
        case SettingsError():
            return Page("unreadable.html", "Settings", {"problems": error.problems})
        case sqlite3.Error():
            return Page("unreadable.html", "Queue", {"problems": [f"the queue, ledger.db: {error}"]})
        case AppError() | OSError():
            return Page("unreadable.html", "Queue", {"problems": [str(error)]})
        case _:  # a bug of ours: its own message might quote a transcript
            told = f"internal error, please report it: {type(error).__name__} at {log.where(error)}"
            return Page("unreadable.html", "Error", {"problems": [told]})


@cache
def _templates() -> Templates:
    return Templates(Path(__file__).parent / "templates")
