"""What each page of the web view costs over years of use, beside the same over a month; and a scrape of its numbers.

CPU of the thread that makes the page, without the web server around it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.runtime import clock
from app.web.access import cookie
from app.web.server import create
from benchmarks.table import Row
from tests.support.long_use import LongUse
from tests.support.web import access_by, site_of

TURNS = 46
"""Of the longest sessions."""
MANY, FEW = 3_000, 30
SHORT_MANY, SHORT_FEW = 30, 20
REPEATS = 15
GOAL = 2.0
SCRAPE_MS_MAX = 50
PAGES = (
    "/",
    "/sessions",
    "/session?id={latest}",
    "/jobs",
    *(f"/jobs?state={state}" for state in ("pending", "delivered", "dead", "dropped", "superseded")),
    "/stats",
    "/stats?by=session",
    "/sent",
    "/sent?session={latest}",
    "/doctor",
    "/stamp",
)


class Visitor:
    """A browser that has the cookie; what it asks for is made in this process."""

    def __init__(self, use: LongUse) -> None:
        self.use = use
        access = access_by()
        self._cookie = f"{cookie(None)}={access.cookie}".encode()
        routes = create(site_of(use), access).routes
        self._endpoints: dict[str, Callable[[Request], Coroutine[None, None, Response]]] = {
            route.path: route.endpoint for route in routes if isinstance(route, Route)
        }

    def cpu_ms(self, page: str) -> float:
        path, _, query = page.format(latest=self.use.latest).partition("?")
        headers = [(b"cookie", self._cookie), (b"host", b"127.0.0.1")]
        scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": headers}
        with asyncio.Runner() as runner:
            runner.get_loop()
            began_s = time.process_time()
            answer = runner.run(self._endpoints[path](Request(scope)))
            spent_s = time.process_time() - began_s
        if answer.status_code != 200 or b"Nothing to be seen" in bytes(answer.body):
            raise RuntimeError(f"{page}: {answer.status_code} {bytes(answer.body).decode()[-500:]}")
        return 1000 * spent_s


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as benchmarks/table.py says
    many, few, repeats = (SHORT_MANY, SHORT_FEW, 2) if short else (MANY, FEW, REPEATS)
    with tempfile.TemporaryDirectory() as folder:
        uses = [LongUse(Path(folder) / str(number), clock.now_ms(), number, TURNS) for number in (few, many)]
        for use in uses:
            use.home.mkdir()
            use.make()
        less, more = (Visitor(use) for use in uses)
        jobs_few, jobs_many = (sum(map(use.turns_of, range(use.sessions))) for use in uses)
        beside = f"{jobs_few:,} jobs, {few} sessions"
        for page in PAGES:
            less.cpu_ms(page), more.cpu_ms(page)  # a first time: templates are compiled, the files' pages in memory
            pairs = [(less.cpu_ms(page), more.cpu_ms(page)) for _ in range(repeats)]
            small, large = (statistics.median(column) for column in zip(*pairs, strict=True))
            what = f"web {page}: {jobs_many:,} jobs, {many:,} sessions"
            note = f"{small:.1f} to {large:.1f} ms"
            yield Row(what, beside, [high / low for low, high in pairs], GOAL, note=note)
        more.cpu_ms("/metrics")
        scrapes = [more.cpu_ms("/metrics") for _ in range(repeats)]
        yield Row(
            f"web /metrics: {jobs_many:,} jobs",
            f"{SCRAPE_MS_MAX} ms of CPU",
            [one / SCRAPE_MS_MAX for one in scrapes],
            1.0,
            note=f"{statistics.median(scrapes):.1f} ms",
        )
