"""Checks URLs of endpoints as persons give them, and spells them in one way. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from app.errors import UsageError

RouteKind: TypeAlias = Literal["worker", "jawn"]
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_][a-z0-9_-]{0,62})*")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class EndpointError(UsageError):
    """An endpoint that cannot be used. The message says what is wrong and never quotes it: it may hold a secret."""


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
