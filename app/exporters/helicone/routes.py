"""Finds the URLs of Helicone that follow from an endpoint as a person gives it. Pure, without httpx.

    endpoint                               log URLs, in the order to be tried
    https://api.worker.helicone.ai         …/custom/v1/log                            worker
    https://api.helicone.ai, eu.api.…      …/v1/trace/custom/log                      jawn
    http://127.0.0.1:8585                  …/v1/trace/custom/log, on 404 …/custom/v1/log
    https://host/jawn                      the same two, below /jawn
    https://host/any/custom/v1/log         as given

Two servers of Helicone take Manual-Logger bodies: the Cloudflare worker and jawn, its API server.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from app.runtime.url import RouteKind, normalise

WORKER_PATH = "/custom/v1/log"
_JAWN_PATH = "/v1/trace/custom/log"
_READ_BACK_PATH = "/v1/request/query-clickhouse"
_JAWN_LOG = re.compile(r"/v1/trace/custom(/v1)?/log$")
# The provider routes are the same handler; only the provider that Helicone notes differs.
_WORKER_LOG = re.compile(r"/(custom|oai|anthropic|googleapis)/v1/log$")
_CLOUD_JAWN_HOSTS = frozenset({"api.helicone.ai", "eu.api.helicone.ai"})
_EU_KEY = re.compile(r"[sp]k-helicone-eu-")


def routes(endpoint: str) -> tuple[str, ...]:
    """The log URLs of an endpoint; each is tried when the one before it answered 404. Raises EndpointError."""
    base = normalise(endpoint)
    parts = urlsplit(base)
    host = parts.hostname or ""
    if _JAWN_LOG.search(parts.path) or _WORKER_LOG.search(parts.path):
        urls = [base]
    elif host in _CLOUD_JAWN_HOSTS:
        urls = [base + _JAWN_PATH]
    elif _is_cloud(host):
        urls = [base + WORKER_PATH]
    else:
        urls = [base + _JAWN_PATH, base + WORKER_PATH]
    return tuple(urls)


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


def session_url(endpoint: str, api_key: str, dashboard: str | None, session: str, name: str) -> str | None:
    """The page of a session, for a browser; None where nothing says where that is. Raises EndpointError.

    `dashboard`: the base URL of a Helicone that somebody hosts.
    """
    host = urlsplit(normalise(endpoint)).hostname or ""
    if dashboard is None and _is_cloud(host):
        european = "eu" in host.split(".") or _EU_KEY.match(api_key)
        dashboard = f"https://{'eu' if european else 'us'}.helicone.ai"
    if dashboard is None or not name:
        return None
    return f"{normalise(dashboard)}/sessions/{quote(name, safe='')}/{quote(session, safe='')}"


def is_cloud(endpoint: str) -> bool:
    """Whether it is Helicone's own. Raises EndpointError."""
    return _is_cloud(urlsplit(normalise(endpoint)).hostname or "")


def _is_cloud(host: str) -> bool:
    return host == "helicone.ai" or host.endswith(".helicone.ai")
