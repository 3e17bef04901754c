"""Transport of httpx with one total deadline, which reaches this machine directly whatever proxies are set.

    httpx.Client ─▶ Transport ─▶ pool, direct or through the proxy ─▶ _Backend ─▶ _Stream ─▶ socket
                    `within(30)` sets this thread's deadline; each lookup, connect, handshake, read and write below
                    it gets the time that is left

httpx bounds each single read and write, so that a server which sends one byte now and then is never done with.
A synchronous request runs in one thread from end to end; so the deadline can belong to the thread.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import httpcore
import httpx

from app.runtime.url import is_loopback

# Of each address of a host: a dead IPv6 route must leave time to try IPv4.
_CONNECT_S_MAX = 10.0
_SLICE_BYTES = 64 * 1024
# Node closes idle connections after 5 s; leaving first avoids posting into a connection that is being closed.
_LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=4.0)

_Lookup: TypeAlias = Callable[[str, int], Iterable[tuple[Any, ...]]]


class _Deadline(threading.local):
    """When this thread's request must be over, by the monotonic clock."""

    ends_s: float = float("inf")


_deadline = _Deadline()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """All that this thread sends and receives inside takes `seconds` at most, or raises httpx.TimeoutException."""
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


class Transport(httpx.BaseTransport):
    """Pools by the way they go out: direct, or through one of the proxies that the environment names.

    Raises httpx.UnsupportedProtocol for a proxy setting that cannot be used; its message never quotes the setting,
    which may hold a password.
    """

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._trust = trust
        self._lock = threading.Lock()
        self._pools: dict[str | None, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        proxy = proxy_for(request.url)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = self._pool(proxy)
            pool = self._pools[proxy]
        response = pool.handle_request(request)
        # No redirect is followed, and httpx would refuse the whole answer for an address that it cannot read.
        response.headers.pop("location", None)
        return response

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def _pool(self, proxy: str | None) -> httpx.HTTPTransport:
        pool = httpx.HTTPTransport(
            verify=self._trust,
            trust_env=False,
            http1=True,
            http2=False,
            limits=_LIMITS,
            proxy=None if proxy is None else self._proxy(proxy),
            retries=0,
        )
        # httpx has no argument for it. Were the attribute renamed, each phase would still have its own timeout.
        pool._pool._network_backend = _Backend(_look_up)  # noqa: SLF001
        return pool

    def _proxy(self, proxy: str) -> httpx.Proxy:
        try:
            url = httpx.URL(proxy)
        except httpx.InvalidURL:
            raise httpx.UnsupportedProtocol("the proxy setting is no URL") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx.UnsupportedProtocol("the proxy is none of http:// or https://")
        return httpx.Proxy(url, ssl_context=self._trust if url.scheme == "https" else None)


def proxy_for(url: httpx.URL) -> str | None:
    """The proxy that the environment names for `url` (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY), or None."""
    port = url.port or (443 if url.scheme == "https" else 80)
    if is_loopback(url.host) or urllib.request.proxy_bypass(f"{url.host}:{port}"):
        return None
    settings = urllib.request.getproxies()
    proxy = settings.get(url.scheme) or settings.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


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
