"""Network check: whether the proxies and certificates that the environment names can be used. Connects to nobody."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from app.operations.finding import Finding
from app.runtime.url import is_loopback

# What the client says of a destination that it could not reach.
_UNREACHED = (("certificate is not trusted", "certificate-untrusted"), ("proxy", "proxy-unusable"))


def proxies(endpoint: str) -> Iterator[Finding]:
    """The proxy through which records leave, as the client finds it. It may hold a password, and is not quoted."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    settings = urllib.request.getproxies()
    proxy = settings.get(parts.scheme) or settings.get("all")
    if not proxy or is_loopback(host) or urllib.request.proxy_bypass(f"{host}:{port}"):
        return
    scheme, _, rest = proxy.rpartition("://")
    where = rest.rpartition("@")[2].partition("/")[0]
    if scheme.lower() in ("", "http", "https") and where:
        yield Finding("proxy", "ok", f"records leave through {where}")
        return
    kind = f"a {scheme.lower()}:// proxy" if scheme.lower().startswith("socks") else "no http:// or https:// proxy"
    todo = f"name an HTTP proxy, or put {host} into NO_PROXY"
    yield Finding("proxy", "problem", f"HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names {kind}", todo, "proxy-unusable")


def certificates(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether what stands in for the system's certificates can be read."""
    file, folder = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if not (file or folder):
        return
    named = "SSL_CERT_FILE" if file else "SSL_CERT_DIR"
    try:
        ssl.create_default_context(cafile=file or None, capath=None if file else folder)
    except OSError as error:
        found = f"{named}, {file or folder}, cannot be used: {error.strerror or error}"
        yield Finding("certificates", "problem", found, "name a PEM file, or unset it", "certificates-unusable")
    else:
        yield Finding("certificates", "ok", f"those of {named}")


def fault_of(reason: str | None, otherwise: str) -> str:
    """The fault's name, by what was said of a destination that could not be reached."""
    return next((name for words, name in _UNREACHED if words in (reason or "")), otherwise)
