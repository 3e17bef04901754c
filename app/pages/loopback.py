"""Loopback: a web server that listens on this machine only, and answers nobody who calls it by another name.

A web page's own name may be made to point here (DNS rebinding); then the browser says that name in `Host`.
"""

from __future__ import annotations

import errno
import re
import socket

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import AppError
from app.runtime.url import is_loopback

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")


class ListenError(AppError):
    """A local server cannot listen as asked."""


class PortTakenError(ListenError):
    """Somebody else listens there."""


def listening(host: str, port: int) -> socket.socket:
    """A listening socket on loopback; port 0 takes a free one. Raises ListenError."""
    if not is_loopback(host):
        raise ListenError(f"it shows transcripts and has no users: {host} is not a loopback address")
    # asyncio turns Nagle's delay off only for sockets that say TCP; without that, each answer takes 40 ms.
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), port))
        bound.listen(128)
    except (OSError, OverflowError) as error:
        bound.close()
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        kind = PortTakenError if is_taken else ListenError
        raise kind(f"cannot listen on {host} port {port}: {error}") from error
    return bound


def address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(app: ASGIApp) -> uvicorn.Server:
    """The web server that these applications are made for; `run(sockets=[listening(...)])` starts it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )


class CalledByName:
    """Lets a request in whose `Host` is this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_of_this_machine(Headers(scope=scope).getlist("host")):
            refusal = PlainTextResponse("only a loopback address or localhost is answered", status_code=403)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_of_this_machine(hosts: list[str]) -> bool:
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return found is not None and is_loopback(found[1])
