"""Transport over HTTP with one total deadline, which reaches this machine directly whatever proxies are set.

    Transport ─▶ pool, direct or through the proxy ─▶ _Backend ─▶ _Stream ─▶ socket
                 `within(30)` sets this thread's deadline; each lookup, connect, handshake, read and write below
                 it gets the time that is left

The pools are httpcore's, as httpx has them: what httpx adds to them takes as long again, and is not needed. They bound
each single read and write, so that a server which sends one byte now and then is never done with.
A synchronous request runs in one thread from end to end; so the deadline can belong to the thread.
"""

from __future__ import annotations

import ipaddress
import os
import queue
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote, unquote_to_bytes, urlsplit

import certifi
import httpcore

from app.runtime.url import is_loopback

# Of each address of a host: a dead IPv6 route must leave time to try IPv4.
_CONNECT_S_MAX = 10.0
_SLICE_BYTES = 64 * 1024
# Node closes idle connections after 5 s; leaving first avoids posting into a connection that is being closed.
_LIMITS: dict[str, Any] = {"max_connections": 1, "keepalive_expiry": 4.0}
_PHASES = ("connect", "read", "write", "pool")
_IN_A_PATH = "/%:@!$&'()*+,;=~"

FAILURES = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
)
"""What is raised when no whole answer came."""

_Lookup: TypeAlias = Callable[[str, int], Iterable[tuple[Any, ...]]]


class _Deadline(threading.local):
    """When this thread's request must be over, by the monotonic clock."""

    ends_s: float = float("inf")


_deadline = _Deadline()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """All that this thread sends and receives inside takes `seconds` at most, or raises httpcore.TimeoutException."""
    _deadline.ends_s = time.monotonic() + seconds
    try:
        yield
    finally:
        _deadline.ends_s = float("inf")


def _left_s(error: type[httpcore.TimeoutException], bound_s: float | None = None) -> float:
    left_s = _deadline.ends_s - time.monotonic()
    if left_s <= 0:
        raise error("the total deadline has passed")
    return left_s if bound_s is None else min(left_s, bound_s)


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    """Cut at the limit that was asked for."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What of a URL is the same in each request."""

    url: httpcore.URL
    host: str
    headers: list[tuple[bytes, bytes]]
    is_loopback: bool


class Transport:
    """Connections by the way they go out: direct, or through one of the proxies that the environment names.

    Follows no redirect, sends nothing again, keeps no cookies. `headers` go with each request, beside its host and
    length.
    """

    def __init__(self, trust: ssl.SSLContext, headers: Mapping[str, str]) -> None:
        self._trust = trust
        self._headers = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        self._lock = threading.Lock()
        self._idle: dict[str | None, list[httpcore.ConnectionPool]] = {}
        """By proxy. A pool of one connection each: httpcore asks all of a pool's at each request, under one lock."""
        self._pools: list[httpcore.ConnectionPool] = []
        self._targets: dict[str, _Target] = {}

    def post(self, url: str, body: bytes, bytes_max: int, deadline_s: float) -> Reply:
        """Send and hear all, or the first `bytes_max` of the answer. Raises one of FAILURES.

        UnsupportedProtocol also for a proxy setting that cannot be used; its message never quotes the setting, which
        may hold a password.
        """
        target = self._targets.get(url) or self._targets.setdefault(url, self._target(url))
        proxy = None if target.is_loopback else proxy_for(target.url.scheme.decode(), target.host, target.url.port)
        request = httpcore.Request(
            "POST",
            target.url,
            headers=[*target.headers, (b"Content-Length", b"%d" % len(body))],
            content=body,
            extensions={"timeout": dict.fromkeys(_PHASES, max(deadline_s, 0.001))},
        )
        with self._connection(proxy) as connection, within(deadline_s):
            response = connection.handle_request(request)
            try:
                read = _first(response.iter_stream(), bytes_max)
            finally:
                response.close()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return Reply(response.status, headers, read)

    def close(self) -> None:
        for pool in self._pools:
            pool.close()

    @contextmanager
    def _connection(self, proxy: str | None) -> Iterator[httpcore.ConnectionPool]:
        """The one that was used last of those that are idle, which is the least likely to be closed by now."""
        with self._lock:
            idle = self._idle.setdefault(proxy, [])
            pool = idle.pop() if idle else None
        if pool is None:
            pool = self._pool(proxy)
            self._pools.append(pool)
        try:
            yield pool
        finally:
            idle.append(pool)

    def _target(self, url: str) -> _Target:
        """Of a URL as `app.runtime.url.normalise` spells it; whatever else stands in its path is escaped."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        target = quote(parts.path or "/", safe=_IN_A_PATH)
        return _Target(
            httpcore.URL(scheme=parts.scheme, host=host, port=parts.port, target=target),
            host,
            [(b"Host", parts.netloc.encode("ascii")), *self._headers],
            is_loopback(host),
        )

    def _pool(self, proxy: str | None) -> httpcore.ConnectionPool:
        backend = _Backend(_look_up)
        if proxy is None:
            return httpcore.ConnectionPool(ssl_context=self._trust, network_backend=backend, **_LIMITS)
        try:
            parts = urlsplit(proxy)
            url = httpcore.URL(scheme=parts.scheme, host=parts.hostname or "", port=parts.port, target="/")
        except ValueError:  # also a host that is not ASCII
            raise httpcore.UnsupportedProtocol("the proxy setting is no URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise httpcore.UnsupportedProtocol("the proxy is none of http:// or https://")
        login = tuple(unquote_to_bytes(part or "") for part in (parts.username, parts.password))
        return httpcore.HTTPProxy(
            url,
            proxy_auth=(login[0], login[1]) if any(login) else None,
            ssl_context=self._trust,
            proxy_ssl_context=self._trust if parts.scheme == "https" else None,
            network_backend=backend,
            **_LIMITS,
        )


def _first(chunks: Iterator[bytes], bytes_max: int) -> bytes:
    held = bytearray()
    for chunk in chunks:
        held += chunk
        if len(held) >= bytes_max:
            break
    return bytes(held[:bytes_max])


def proxy_for(scheme: str, host: str, port: int | None) -> str | None:
    """The proxy that the environment names (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY), or None."""
    if urllib.request.proxy_bypass(f"{host}:{port or (443 if scheme == 'https' else 80)}"):
        return None
    settings = urllib.request.getproxies()
    proxy = settings.get(scheme) or settings.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def trust() -> ssl.SSLContext:
    """What certificates are believed. Raises OSError for one of the variables that cannot be used."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file or not folder:
        return ssl.create_default_context(cafile=file or certifi.where())
    return ssl.create_default_context(capath=folder)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, look_up: _Lookup) -> None:
        self._look_up = look_up
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in _addresses(host, port, self._look_up):
            bound_s = _left_s(httpcore.ConnectTimeout, min(timeout or _CONNECT_S_MAX, _CONNECT_S_MAX))
            try:
                return _Stream(self._plain.connect_tcp(address, port, bound_s, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class _Stream(httpcore.NetworkStream):
    """A connection whose every step gets the time that is left."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left_s(httpcore.ReadTimeout, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In slices: within one call, httpcore grants the whole timeout again after each partial send.
        for start in range(0, len(buffer), _SLICE_BYTES):
            self._stream.write(buffer[start : start + _SLICE_BYTES], _left_s(httpcore.WriteTimeout, timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        bound_s = _left_s(httpcore.ConnectTimeout, timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, bound_s))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _look_up(host: str, port: int) -> Iterable[tuple[Any, ...]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _addresses(host: str, port: int, look_up: _Lookup) -> list[str]:
    """The addresses of `host`. The system's resolver knows no deadline, so it is left behind in a thread of its own."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found.put([entry[4][0] for entry in look_up(host, port)])
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA cannot hold
            found.put(error)

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    try:
        answer = found.get(timeout=min(_left_s(httpcore.ConnectTimeout), threading.TIMEOUT_MAX))
    except queue.Empty:
        raise httpcore.ConnectTimeout(f"no address for {host} in time") from None
    if isinstance(answer, Exception):
        # By hand: the pool raises it anew `from None`, and only the context survives that.
        error = httpcore.ConnectError(str(answer))
        error.__context__ = answer
        raise error
    return answer
