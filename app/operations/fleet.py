"""The centre as whoever runs it sees it: its database, tenants, what waits for each, which processes there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from pydantic import SecretStr, ValidationError

from app.database.postgres import PostgresLedger
from app.database.server import open_postgres
from app.errors import AppError, UsageError
from app.fleet import presence, tenants
from app.fleet.presence import Process, Worker
from app.fleet.tenants import Changes, Machine, Tenant, TenantError, TenantPolicy
from app.ledger import arrivals, counts, destinations
from app.ledger.arrivals import Sums
from app.ledger.destinations import Destination
from app.privacy.user_patterns import compile_pattern
from app.runtime.url import is_unprotected
from app.settings.intake import TOKEN
from app.settings.model import checked
from app.settings.names import DATABASE_URL
from app.settings.options import words_of


class CentreError(AppError):
    """The centre's database cannot be used. Its URL, which may hold a password, is in no message."""


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """What of one machine waits at one destination, and what became of the rest."""

    machine: str
    """'' of what no machine has sent."""
    waiting: int
    dead: int
    delivered: int
    dropped: int
    """Given up: too old, or purged."""
    oldest_waiting_ms: int | None


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """What waits at one destination, and what became of the rest."""

    tenant: str | None
    """None: no tenant's; a worker's own settings name it, or did."""
    endpoint: str
    health: str
    reason: str
    waiting: int
    dead: int
    delivered: int
    dropped: int
    """Given up: too old, or purged."""
    held_bytes: int
    """Of what waits or is dead."""
    bytes_max: int | None
    oldest_waiting_ms: int | None
    is_full: bool
    """Nothing more is taken for it: what is held has reached `bytes_max`."""
    machines: tuple[MachineStatus, ...]
    """All that may send or have sent, by name."""


@dataclass(frozen=True, slots=True)
class CentreStatus:
    now_ms: int
    """By the server's clock, as all times here."""
    destinations: tuple[DestinationStatus, ...]
    workers: tuple[Worker, ...]
    intakes: tuple[Process, ...]


def url_of(environ: Mapping[str, str]) -> str:
    """Raises UsageError where no variable names the database."""
    url = environ.get(DATABASE_URL, "").strip()
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


def add_tenant(db: PostgresLedger, name: str, wanted: Changes, *, allow_http: bool) -> Tenant:
    """A tenant whose endpoint and key are such as a machine's own settings may have. Raises UsageError."""
    if not wanted.key or wanted.endpoint is None:
        raise TenantError("Helicone's key is missing: give it on standard input, or by --key-file")
    _check(wanted, allow_http=allow_http)
    return tenants.add_tenant(
        db,
        name,
        endpoint=wanted.endpoint,
        key=wanted.key,
        bytes_max=wanted.bytes_max,
        rate_per_minute=wanted.rate_per_minute,
        policy=TenantPolicy(wanted.export_mode or "full", wanted.redact_patterns or ()),
    )


def change_tenant(db: PostgresLedger, name: str, changes: Changes, *, allow_http: bool) -> Tenant:
    """The tenant as it is then. Raises UsageError."""
    if changes == Changes():
        raise TenantError("nothing to be changed was named: --help lists what can be")
    if changes.key == "":
        raise TenantError("the file of Helicone's key is empty")
    _check(changes, allow_http=allow_http)
    return tenants.change(db, name, changes)


def _check(changes: Changes, *, allow_http: bool) -> None:
    if changes.key is not None:
        try:
            checked("api_key", SecretStr(changes.key))
        except ValidationError as error:
            raise TenantError(f"Helicone's key: {words_of(error)}") from None
        if TOKEN.fullmatch(changes.key):  # its logs would go round in a circle, and count as delivered
            raise TenantError("that is a machine's token: here belongs Helicone's key")
    if changes.endpoint is not None and is_unprotected(changes.endpoint) and not allow_http:
        why = "http:// shows the key and the sessions to everybody on the way: use https://, or --allow-http"
        raise TenantError(f"the endpoint is on another machine, where {why}")
    for number, pattern in enumerate(changes.redact_patterns or (), start=1):
        compile_pattern(number, pattern)


def read_status(db: PostgresLedger) -> CentreStatus:
    """Looks at all jobs."""
    of_tenants = {one.destination_id: one for one in tenants.tenants(db)}
    sums, machines = arrivals.by_machine(db), tenants.machines(db)
    shown = (
        _destination_status(
            db, one, of_tenants.get(one.id), [of for of in sums if of.destination_id == one.id], machines
        )
        for one in destinations.destinations(db)
    )
    return CentreStatus(
        now_ms=presence.server_ms(db),
        # What a tenant that was removed has had delivered is history.
        destinations=tuple(one for one in shown if one.tenant is not None or one.waiting or one.dead),
        workers=tuple(presence.workers(db)),
        intakes=tuple(presence.intakes(db)),
    )


def _destination_status(
    db: PostgresLedger,
    one: Destination,
    tenant: Tenant | None,
    sums: Sequence[Sums],
    machines: Sequence[Machine],
) -> DestinationStatus:
    jobs, held_bytes = counts.counts(db, one.id), tenants.held_bytes(db, one.id)
    bytes_max = tenant.bytes_max if tenant else None
    by_name = {
        machine.name: MachineStatus(machine.name, 0, 0, 0, 0, None)
        for machine in machines
        if tenant is not None and machine.tenant == tenant.name
    } | {
        of.machine: MachineStatus(of.machine, of.waiting, of.dead, of.delivered, of.dropped, of.oldest_waiting_ms)
        for of in sums
    }
    return DestinationStatus(
        tenant=tenant.name if tenant else None,
        endpoint=one.endpoint,
        health=one.health,
        reason=one.pause_reason or "",
        waiting=jobs.pending,
        dead=jobs.dead,
        delivered=jobs.delivered,
        dropped=jobs.dropped,
        held_bytes=held_bytes,
        bytes_max=bytes_max,
        is_full=bytes_max is not None and held_bytes >= bytes_max,
        oldest_waiting_ms=jobs.oldest_pending_ms,
        machines=tuple(by_name[name] for name in sorted(by_name)),
    )
