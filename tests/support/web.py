"""The web view over somebody's queue and store, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.pages import loopback
from app.web.access import Access, cookie
from app.web.server import create
from app.web.site import Site
from tests.support.long_use import LongUse


@dataclass(frozen=True, slots=True)
class Running:
    url: str
    access: Access

    @property
    def opened_by(self) -> str:
        """The address that a person is told."""
        return f"{self.url}/?token={self.access.token}"

    @property
    def cookie(self) -> dict[str, str]:
        """A header, as of a browser that has opened it."""
        return {"cookie": f"{cookie(int(self.url.rpartition(':')[2]))}={self.access.cookie}"}


def site_of(use: LongUse) -> Site:
    return Site(use.sources, use.home, use.store)


def access_by(*words: str) -> Access:
    """Dice that fall so."""
    told = iter(words or ("token-of-a-test", "cookie-of-a-test"))
    return Access(lambda: next(told))


@contextmanager
def showing(site: Site) -> Iterator[Running]:
    access = access_by()
    with loopback.listening("127.0.0.1", 0) as bound:
        server = loopback.server(create(site, access))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="web")
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(loopback.address(bound), access)
        finally:
            server.should_exit = True
            thread.join(20)
