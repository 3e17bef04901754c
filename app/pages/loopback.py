"""Loopback: a web server that listens on this machine only, and answers neither other names nor others' pages.

A web page's own name may be made to point here (DNS rebinding); then the browser says that name in `Host`. Of what
another page asks for by the right name it says so in `Sec-Fetch-Site`. Who sends no whole request is not waited for.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket

import h11
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.errors import AppError
from app.runtime.url import is_loopback

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")


REQUEST_S_MAX = 10.0
"""A connection on which a request is not whole by then is closed."""
CONNECTIONS_MAX = 200
"""Well below the 1,024 files that a process may have open; of more, the one that has waited longest is closed."""
BACKLOG = 64
"""So many asyncio accepts at once, before it looks at any of them."""
_OWN_PAGES = ("same-origin", "none")
"""What a browser says of a request that a page of this very server made, or a person's own typing."""


class ListenError(AppError):
    """A local server cannot listen as asked."""


class PortTakenError(ListenError):
    """Somebody else listens there."""


def listening(host: str, port: int) -> socket.socket:
    """A listening socket on loopback; port 0 takes a free one. Raises ListenError."""
    if not is_loopback(host):
        raise ListenError(f"it shows transcripts and has no users: {host} is not a loopback address")
    return listening_anywhere(host, port)


def listening_anywhere(host: str, port: int) -> socket.socket:
    """A listening socket on any address of this machine; port 0 takes a free one. Raises ListenError."""
    # asyncio turns Nagle's delay off only for sockets that say TCP; without that, each answer takes 40 ms.
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), port))
        bound.listen(BACKLOG)
    except (OSError, OverflowError, TypeError) as error:  # TypeError: a name that cannot be spelled as a host
        bound.close()
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        kind = PortTakenError if is_taken else ListenError
        raise kind(f"cannot listen on {host} port {port}: {error}") from error
    return bound


def address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(app: ASGIApp, request_s_max: float = REQUEST_S_MAX, ends_s_max: int = 1) -> uvicorn.Server:
    """The web server that these applications are made for; `run(sockets=[listening(...)])` starts it.

    `ends_s_max`: so long a request that is being answered is waited for when it is told to stop.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http=type("Impatient", (_Impatient,), {"request_s_max": request_s_max}),
            backlog=BACKLOG,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=ends_s_max,
        )
    )


class _Impatient(H11Protocol):
    """One connection, which is to become a whole request soon: anybody on this machine may open many."""

    request_s_max = REQUEST_S_MAX
    deadline: asyncio.TimerHandle | None = None
    """While no whole request is here."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the class above
        super().connection_made(transport)
        self.deadline = self.loop.call_later(self.request_s_max, transport.abort)
        if len(self.connections) > CONNECTIONS_MAX:
            others = [one for one in self.connections if isinstance(one, _Impatient)]
            # One that was answered and is kept for a next request goes before one whose first is on its way.
            idle = next((one for one in others if one.is_idle()), None)
            victim = idle or min((one for one in others if one.deadline is not None), key=_until)
            victim.transport.abort()

    def is_idle(self) -> bool:
        """Whether its last request was answered, and nothing of another one is here."""
        return self.deadline is None and self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._wait_no_more()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(self.request_s_max, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait_no_more(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


def _until(one: _Impatient) -> float:
    return 0.0 if one.deadline is None else one.deadline.when()


class CalledByName:
    """Lets a request in whose `Host` is this machine, unless another web page makes it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_of_this_machine(Headers(scope=scope).getlist("host")):
            refusal = PlainTextResponse("only a loopback address or localhost is answered", status_code=403)
            await refusal(scope, receive, send)
            return
        if scope["type"] == "http" and Headers(scope=scope).get("sec-fetch-site", "none") not in _OWN_PAGES:
            await PlainTextResponse("no other web page is answered", status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_of_this_machine(hosts: list[str]) -> bool:
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return found is not None and is_loopback(found[1])
