"""Tenants and their machines' tokens: who may send to an intake, and where it goes from there.

    machine ── token ──▶ tenant ──▶ destination, key, limits

A token looks as a Helicone key does, so that a machine needs nothing but another key and another endpoint. Only its
hash is kept: with 108 random bits nobody finds it by trying. A tenant's key is in the database alone, and in no log.
"""

from __future__ import annotations

import hashlib
import secrets
import string
from dataclasses import dataclass, field

from app.database.connection import Row
from app.database.postgres import PostgresLedger
from app.errors import UsageError
from app.fleet.presence import server_ms
from app.ledger import destinations
from app.runtime.url import normalise

GENERATION = "fleet01"
_SIGNS = string.ascii_lowercase + string.digits


class TenantError(UsageError):
    """There is no such tenant or machine, or there is one already; or it cannot be one."""


@dataclass(frozen=True, slots=True)
class Tenant:
    id: int
    name: str
    destination_id: int
    endpoint: str
    key: str = field(repr=False)
    """Helicone's."""
    bytes_max: int | None
    """Of what waits."""
    rate_per_minute: int | None
    """Records sent on, by all workers together."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of a token, but for the token."""

    tenant: str
    name: str
    created_ms: int
    seen_ms: int | None
    revoked_ms: int | None


def new_token() -> str:
    groups = ("".join(secrets.choice(_SIGNS) for _ in range(7)) for _ in range(3))
    return "-".join(("sk-helicone", GENERATION, *groups))


def hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def add_tenant(
    db: PostgresLedger,
    name: str,
    *,
    endpoint: str,
    key: str,
    bytes_max: int | None = None,
    rate_per_minute: int | None = None,
) -> Tenant:
    """Raises TenantError where the name, or another tenant with the same endpoint and key, is there."""
    now_ms = server_ms(db)
    endpoint = normalise(endpoint)
    found = destinations.destination(db, endpoint, destinations.fingerprint(db, key), now_ms)
    written = db.execute(
        "insert into tenant (name, destination_id, endpoint, key, bytes_max, rate_per_minute, created_ms)"
        " values (?, ?, ?, ?, ?, ?, ?) on conflict do nothing",
        (name, found.id, endpoint, key, bytes_max, rate_per_minute, now_ms),
    )
    if written.rowcount == 0:
        raise TenantError(f"tenant {name}: the name, or its endpoint with its key, is another tenant's already")
    return tenant(db, name)


def tenant(db: PostgresLedger, name: str) -> Tenant:
    """Raises TenantError."""
    row = db.execute("select * from tenant where name = ?", (name,)).fetchone()
    if row is None:
        raise TenantError(f"there is no tenant {name}")
    return _read(row)


def tenants(db: PostgresLedger) -> list[Tenant]:
    return [_read(row) for row in db.execute("select * from tenant order by name")]


def _read(row: Row) -> Tenant:
    return Tenant(
        id=row["id"],
        name=row["name"],
        destination_id=row["destination_id"],
        endpoint=row["endpoint"],
        key=row["key"],
        bytes_max=row["bytes_max"],
        rate_per_minute=row["rate_per_minute"],
    )


def add_token(db: PostgresLedger, tenant_name: str, machine: str) -> str:
    """A token for this machine; one that it had before is none any more. It is shown once. Raises TenantError."""
    token = new_token()
    db.execute(
        "insert into token (hash, tenant_id, machine, created_ms) values (:hash, :tenant, :machine, :now)"
        " on conflict (tenant_id, machine) do update set hash = excluded.hash, created_ms = excluded.created_ms,"
        " revoked_ms = null, seen_ms = null",
        {"hash": hashed(token), "tenant": tenant(db, tenant_name).id, "machine": machine, "now": server_ms(db)},
    )
    return token


def revoke(db: PostgresLedger, tenant_name: str, machine: str) -> None:
    """Its next POST is refused. Raises TenantError."""
    updated = db.execute(
        "update token set revoked_ms = :now where tenant_id = :tenant and machine = :machine and revoked_ms is null",
        {"now": server_ms(db), "tenant": tenant(db, tenant_name).id, "machine": machine},
    )
    if updated.rowcount == 0:
        raise TenantError(f"machine {machine} of tenant {tenant_name} has no token")


def machines(db: PostgresLedger) -> list[Machine]:
    rows = db.execute(
        "select t.name as tenant, k.machine, k.created_ms, k.seen_ms, k.revoked_ms from token k"
        " join tenant t on t.id = k.tenant_id order by t.name, k.machine"
    )
    return [
        Machine(row["tenant"], row["machine"], row["created_ms"], row["seen_ms"], row["revoked_ms"]) for row in rows
    ]


SEEN_AGAIN_MS = 60_000


def admitted(db: PostgresLedger, token: str) -> Tenant | None:
    """Whose machine this is; None for a token that nobody has, or has any more."""
    row = db.execute(
        "select t.*, k.seen_ms from token k join tenant t on t.id = k.tenant_id"
        " where k.hash = ? and k.revoked_ms is null",
        (hashed(token),),
    ).fetchone()
    if row is None:
        return None
    now_ms = server_ms(db)
    if row["seen_ms"] is None or row["seen_ms"] < now_ms - SEEN_AGAIN_MS:  # else each POST would write its row
        db.execute("update token set seen_ms = ? where hash = ?", (now_ms, hashed(token)))
    return _read(row)


def is_full(db: PostgresLedger, found: Tenant) -> bool:
    """Whether what waits for it has reached its limit."""
    return found.bytes_max is not None and held_bytes(db, found.destination_id) >= found.bytes_max


def held_bytes(db: PostgresLedger, destination_id: int) -> int:
    """Of what waits or is dead there: what a tenant's limit is about."""
    (held,) = db.execute(
        "select coalesce(sum(body_bytes), 0) from tally where destination_id = ? and state in ('pending', 'dead')",
        (destination_id,),
    ).fetchone()
    return int(held)


AHEAD_MS_MAX = 1_000
"""A thread sleeps until its turn: longer, and those of a slow tenant would keep everybody else's waiting."""
SPREAD_MS = 63_000
"""Over so long the turns of a minute are spread: some are used late, and still no ten seconds may have more than a
sixth of them (`make bounds`)."""


def take_turn(db: PostgresLedger, destination_id: int, rate_per_minute: int) -> int | None:
    """When the next record may be sent to it, in the server's time. The caller has this moment for himself.

    SPREAD_MS have `rate_per_minute` of them, at even distances. None where the next one that is free is too far ahead.
    One that only a clock which was wrong can have set, is now.
    """
    row = db.execute(
        # The time is asked for once more: the row may have been waited for.
        "update tenant set next_ms = max(floor(extract(epoch from clock_timestamp()) * 1000)::bigint,"
        "  iif(next_ms > now.ms + :ahead + 60000, 0, next_ms)) + :every"
        " from (select floor(extract(epoch from clock_timestamp()) * 1000)::bigint as ms) now"
        " where destination_id = :destination and (next_ms <= now.ms + :ahead or next_ms > now.ms + :ahead + 60000)"
        " returning next_ms - :every as at_ms",
        {"every": -(-SPREAD_MS // rate_per_minute), "destination": destination_id, "ahead": AHEAD_MS_MAX},
    ).fetchone()
    return None if row is None else int(row["at_ms"])
