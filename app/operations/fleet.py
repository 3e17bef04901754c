"""The centre as whoever runs it sees it: its database, what waits for each tenant, which workers there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

from pydantic import SecretStr, ValidationError

from app.database.postgres import PostgresLedger
from app.database.server import open_postgres
from app.errors import AppError, UsageError
from app.fleet import presence, tenants
from app.fleet.presence import Worker
from app.fleet.tenants import Tenant, TenantError
from app.ledger import counts, destinations
from app.runtime.url import is_unprotected
from app.settings.model import checked
from app.settings.names import DATABASE_URL
from app.settings.options import words_of


class CentreError(AppError):
    """The centre's database cannot be used. Its URL, which may hold a password, is in no message."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits at one destination, and what became of the rest."""

    tenant: str | None
    """None: no tenant's; a worker's own settings name it, or did."""
    endpoint: str
    health: str
    reason: str
    waiting: int
    dead: int
    delivered: int
    held_bytes: int
    """Of what waits or is dead."""
    bytes_max: int | None
    oldest_waiting_ms: int | None


@dataclass(frozen=True, slots=True)
class CentreStatus:
    now_ms: int
    """By the server's clock, as all times here."""
    destinations: tuple[Waiting, ...]
    workers: tuple[Worker, ...]


def url_of(environ: Mapping[str, str]) -> str:
    """Raises UsageError where no variable names the database."""
    url = environ.get(DATABASE_URL, "")
    if not url:
        raise UsageError(
            f"{DATABASE_URL} is not set: it names the centre's database, postgresql://USER@SERVER/DATABASE"
        )
    return url


@contextmanager
def database(environ: Mapping[str, str]) -> Iterator[PostgresLedger]:
    """A connection to it; the first one makes its tables. Raises UsageError, CentreError, SchemaError."""
    url = url_of(environ)
    try:
        with closing(open_postgres(url)) as db:
            yield db
    except sqlite3.Error as error:
        raise CentreError(f"the database that {DATABASE_URL} names: {error}") from None


def add_tenant(
    db: PostgresLedger,
    name: str,
    *,
    endpoint: str,
    key: str,
    allow_http: bool,
    bytes_max: int | None,
    rate_per_minute: int | None,
) -> Tenant:
    """A tenant whose endpoint and key are such as a machine's own settings may have. Raises UsageError."""
    if not key:
        raise TenantError("Helicone's key is missing: give it on standard input, or by --key-file")
    try:
        checked("api_key", SecretStr(key))
    except ValidationError as error:
        raise TenantError(f"Helicone's key: {words_of(error)}") from None
    if is_unprotected(endpoint) and not allow_http:
        why = "http:// shows the key and the sessions to everybody on the way: use https://, or --allow-http"
        raise TenantError(f"the endpoint is on another machine, where {why}")
    return tenants.add_tenant(
        db, name, endpoint=endpoint, key=key, bytes_max=bytes_max, rate_per_minute=rate_per_minute
    )


def read_status(db: PostgresLedger) -> CentreStatus:
    of_tenants = {one.destination_id: one for one in tenants.tenants(db)}
    return CentreStatus(
        now_ms=presence.server_ms(db),
        destinations=tuple(
            _waiting(db, one, of_tenants.get(one.id))
            for one in destinations.destinations(db)
            if one.id in of_tenants or destinations.is_used(db, one.id)
        ),
        workers=tuple(presence.workers(db)),
    )


def _waiting(db: PostgresLedger, one: destinations.Destination, tenant: Tenant | None) -> Waiting:
    jobs = counts.counts(db, one.id)
    return Waiting(
        tenant=tenant.name if tenant else None,
        endpoint=one.endpoint,
        health=one.health,
        reason=one.pause_reason or "",
        waiting=jobs.pending,
        dead=jobs.dead,
        delivered=jobs.delivered,
        held_bytes=tenants.held_bytes(db, one.id),
        bytes_max=tenant.bytes_max if tenant else None,
        oldest_waiting_ms=jobs.oldest_pending_ms,
    )
