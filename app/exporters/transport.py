"""Transport of httpx with one total deadline, which reaches this machine directly whatever proxies are set.

    Transport ─▶ httpx.HTTPTransport, direct or through the proxy ─▶ _Backend ─▶ _Stream ─▶ socket
                 `within(30)` sets this thread's deadline; each lookup, connect, handshake, read and write below
                 it gets the time that is left

httpx bounds each single read and write, so that a server which sends one byte now and then is never done with. Its
transports are used without its `Client`: redirects, cookies and logins are not wanted, and take as long again.
A synchronous request runs in one thread from end to end; so the deadline can belong to the thread.
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpcore
import httpx

from app.exporters.client import ClientError
from app.exporters.outcome import REASON_CHARS_MAX, Outcome
from app.runtime.url import is_loopback

# Of each address of a host: a dead IPv6 route must leave time to try IPv4.
_CONNECT_S_MAX = 10.0
_SLICE_BYTES = 64 * 1024
# One connection: httpcore asks all of a pool's at each request, under one lock. Node closes idle ones after 5 s;
# leaving first avoids posting into a connection that is being closed.
_LIMITS = httpx.Limits(max_connections=1, keepalive_expiry=4.0)
_PHASES = ("connect", "read", "write", "pool")

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


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    """Cut at the limit that was asked for."""


class Transport:
    """Connections by the way they go out: direct, or through one of the proxies that the environment names.

    Follows no redirect, sends nothing again, keeps no cookies. `headers` go with each request, beside its host and
    length.
    """

    def __init__(self, trust: ssl.SSLContext, headers: Mapping[str, str]) -> None:
        self._trust = trust
        self._headers = _encoded(headers)
        self._lock = threading.Lock()
        self._idle: dict[str | None, list[httpx.HTTPTransport]] = {}
        """By proxy."""
        self._is_closed = False
        self._urls: dict[str, httpx.URL] = {}

    def post(self, url: str, body: bytes, bytes_max: int, deadline_s: float) -> Reply:
        """Send and hear all, or the first `bytes_max` of the answer. Raises httpx.TransportError.

        UnsupportedProtocol also for a proxy setting that cannot be used; its message never quotes the setting, which
        may hold a password.
        """
        return self.send("POST", url, {}, body, bytes_max, deadline_s)

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, bytes_max: int, deadline_s: float
    ) -> Reply:
        """The same by another method, and with headers of its own."""
        target = self._urls.get(url) or self._urls.setdefault(url, httpx.URL(url))
        timeout = dict.fromkeys(_PHASES, max(deadline_s, 0.001))
        named = [*self._headers, *_encoded(headers)]
        request = httpx.Request(method, target, headers=named, content=body, extensions={"timeout": timeout})
        with self._connection(proxy_for(target)) as connection, within(deadline_s):
            response = connection.handle_request(request)
            try:
                assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - of a synchronous transport
                read = _first(iter(response.stream), bytes_max)
            finally:
                response.close()
        return Reply(response.status_code, response.headers, read)

    def close(self) -> None:
        """A connection that another thread is using is closed by that thread, when it has its answer."""
        with self._lock:
            self._is_closed = True
            idle = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in idle:
            connection.close()

    @contextmanager
    def _connection(self, proxy: str | None) -> Iterator[httpx.HTTPTransport]:
        """The one that was used last of those that are idle, which is the least likely to be closed by now."""
        with self._lock:
            idle = self._idle.get(proxy)
            connection = idle.pop() if idle else None
        if connection is None:
            connection = self._connect(proxy)
        try:
            yield connection
        finally:
            with self._lock:
                is_over = self._is_closed
                if not is_over:
                    self._idle.setdefault(proxy, []).append(connection)
            if is_over:
                connection.close()

    def _connect(self, proxy: str | None) -> httpx.HTTPTransport:
        connection = httpx.HTTPTransport(
            verify=self._trust,
            trust_env=False,
            http1=True,
            http2=False,
            limits=_LIMITS,
            proxy=None if proxy is None else self._proxy(proxy),
            retries=0,
        )
        # httpx has no argument for it. Were the attribute renamed, each phase would still have its own timeout.
        connection._pool._network_backend = _Backend(_look_up)  # noqa: SLF001
        return connection

    def _proxy(self, proxy: str) -> httpx.Proxy:
        try:
            url = httpx.URL(proxy)
        except httpx.InvalidURL:
            raise httpx.UnsupportedProtocol("the proxy setting is no URL") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx.UnsupportedProtocol("the proxy is none of http:// or https://")
        return httpx.Proxy(url, ssl_context=self._trust if url.scheme == "https" else None)


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]


def _first(chunks: Iterator[bytes], bytes_max: int) -> bytes:
    held = bytearray()
    for chunk in chunks:
        held += chunk
        if len(held) >= bytes_max:
            break
    return bytes(held[:bytes_max])


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


def unreached(error: httpx.TransportError, deadline_s: float) -> Outcome:
    """What it means that no whole answer came. Texts of the other side are left out: they may quote what was sent."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            untrusted = f"the server's certificate is not trusted: {cause.verify_message}; see caFile"
            return Outcome("refused", untrusted[:REASON_CHARS_MAX])
    if isinstance(error, httpx.UnsupportedProtocol):
        return Outcome("refused", f"{error}; see HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY"[:REASON_CHARS_MAX])
    if isinstance(error, httpx.ProxyError):
        status = re.match(r"4[0-9]{2}(?= |$)", str(error))
        if status:
            return Outcome("refused", f"the proxy refused with {status[0]}; see HTTPS_PROXY and NO_PROXY")
    if isinstance(error, httpx.TimeoutException):
        return Outcome("wait", f"{type(error).__name__}: no complete answer within {deadline_s:g} s")
    details = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror]
    return Outcome("wait", ": ".join([type(error).__name__, *details[-1:]])[:REASON_CHARS_MAX])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what lies beneath it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        # httpcore's pool raises `from None`, which leaves only the context.
        cause = cause.__cause__ or cause.__context__


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """Mozilla's list (certifi), or SSL_CERT_FILE in its place, and these. Raises ClientError."""
    try:
        trust = httpx.create_ssl_context()
    except OSError as error:
        raise ClientError(f"SSL_CERT_FILE or SSL_CERT_DIR cannot be used: {error.strerror or error}") from error
    if ca_file is not None:
        try:
            trust.load_verify_locations(ca_file)
        except OSError as error:
            raise ClientError(f"caFile, {ca_file}, cannot be used: {error.strerror or error}") from error
    return trust
