"""Where Helicone listens: an endpoint as a person gives it, and the URLs that follow from it. Pure, without httpx.

    endpoint                               log URLs, in the order to be tried
    https://api.worker.helicone.ai         …/custom/v1/log                            worker
    https://api.helicone.ai, eu.api.…      …/v1/trace/custom/log                      jawn
    http://127.0.0.1:8585                  …/v1/trace/custom/log, on 404 …/custom/v1/log
    https://host/jawn                      the same two, below /jawn
    https://host/any/custom/v1/log         as given

Two servers of Helicone take Manual-Logger bodies: the Cloudflare worker and jawn, its API server.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from app.errors import UsageError

RouteKind: TypeAlias = Literal["worker", "jawn"]

_WORKER_PATH = "/custom/v1/log"
_JAWN_PATH = "/v1/trace/custom/log"
_READ_BACK_PATH = "/v1/request/query-clickhouse"
_JAWN_LOG = re.compile(r"/v1/trace/custom(/v1)?/log$")
# The provider routes are the same handler; only the provider that Helicone notes differs.
_WORKER_LOG = re.compile(r"/(custom|oai|anthropic|googleapis)/v1/log$")
_CLOUD_JAWN_HOSTS = frozenset({"api.helicone.ai", "eu.api.helicone.ai"})
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_EU_KEY = re.compile(r"[sp]k-helicone-eu-")


class EndpointError(UsageError):
    """An endpoint that cannot be used. The message says what is wrong and never quotes it: it may hold a secret."""


@dataclass(frozen=True, slots=True)
class Route:
    """One URL that takes Manual-Logger bodies."""

    url: str
    kind: RouteKind


def normalise(endpoint: str) -> str:
    """The endpoint in one spelling, because destinations are told apart by it.

    Lower-case scheme and host, no default port, no slash at the end; the path stays as it is. Raises EndpointError.

    >>> normalise("HTTPS://API.Worker.Helicone.AI:443/")
    'https://api.worker.helicone.ai'
    """
    parts, port = _split(endpoint.strip())
    host = _host(parts)
    shown_port = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown_port}{parts.path.rstrip('/')}"


def routes(endpoint: str) -> tuple[Route, ...]:
    """The log URLs of an endpoint; each is tried when the one before it answered 404. Raises EndpointError."""
    base = normalise(endpoint)
    parts = urlsplit(base)
    host = parts.hostname or ""
    if _JAWN_LOG.search(parts.path) or _WORKER_LOG.search(parts.path):
        urls = [base]
    elif host in _CLOUD_JAWN_HOSTS:
        urls = [base + _JAWN_PATH]
    elif _is_cloud(host):
        urls = [base + _WORKER_PATH]
    else:
        urls = [base + _JAWN_PATH, base + _WORKER_PATH]
    return tuple(Route(url, kind_of(url)) for url in urls)


def kind_of(log_url: str) -> RouteKind:
    """Which of the two servers answers at this log URL."""
    return "jawn" if _JAWN_LOG.search(urlsplit(log_url).path) else "worker"


def read_back_url(endpoint: str, api_key: str = "", chosen: str | None = None) -> str | None:
    """Where stored requests can be queried: always jawn, and in the region of the key or host. Raises EndpointError.

    `chosen` is what somebody says instead: jawn's base URL, or the full one of its queries. None for a worker's full
    log URL outside of Helicone's cloud: nothing says where its jawn is.
    """
    if chosen is not None:
        return normalise(chosen).removesuffix(_READ_BACK_PATH) + _READ_BACK_PATH
    base = normalise(endpoint)
    parts = urlsplit(base)
    host = parts.hostname or ""
    if _is_cloud(host):
        european = "eu" in host.split(".") or _EU_KEY.match(api_key)
        return f"https://{'eu.' if european else ''}api.helicone.ai{_READ_BACK_PATH}"
    if _WORKER_LOG.search(parts.path) and kind_of(base) == "worker":
        return None
    return _JAWN_LOG.sub("", base) + _READ_BACK_PATH


def is_cloud(endpoint: str) -> bool:
    """Whether it is Helicone's own. Raises EndpointError."""
    return _is_cloud(urlsplit(normalise(endpoint)).hostname or "")


def is_loopback(host: str) -> bool:
    """127.0.0.0/8, ::1 or localhost: this machine, whatever proxies are set."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_unprotected(endpoint: str) -> bool:
    """Whether what is sent there crosses a network in clear text. Raises EndpointError."""
    parts, _ = _split(endpoint.strip())
    return parts.scheme == "http" and not is_loopback(_host(parts))


def _split(endpoint: str) -> tuple[SplitResult, int | None]:
    if not endpoint.isprintable() or re.search(r"[\s\\]", endpoint):
        raise EndpointError("the endpoint contains a space, a backslash or a control character")
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        raise EndpointError("the endpoint's host or port cannot be read; write https://host[:port][/path]") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise EndpointError("the endpoint must start with https:// or http://")
    if "@" in parts.netloc:
        raise EndpointError("the endpoint contains a user or password; the API key belongs in HELICONE_API_KEY")
    if "?" in endpoint or "#" in endpoint:
        raise EndpointError("the endpoint contains a query or a fragment; leave out everything from '?' or '#' on")
    if port == 0:
        raise EndpointError("the endpoint's port must be between 1 and 65535")
    return parts, port


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").removesuffix(".")
    if not host:
        raise EndpointError("the endpoint has no host; write https://host[:port][/path]")
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host)}]"
        except ValueError:
            raise EndpointError("the endpoint's host is no IPv6 address") from None
    if not _HOST.fullmatch(host):
        raise EndpointError("the endpoint's host is no host name; write an international name in its xn-- form")
    return host


def _is_cloud(host: str) -> bool:
    return host == "helicone.ai" or host.endswith(".helicone.ai")
