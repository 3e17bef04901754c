"""Tenants and their machines' tokens: who may send to an intake, and where it goes from there.

    machine ── token ──▶ tenant ──▶ destination, key, limits, policy

A token looks as a Helicone key does, so that a machine needs nothing but another key and another endpoint. Only its
hash is kept: with 108 random bits nobody finds it by trying. A tenant's key is in the database alone, and in no log.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import string
from dataclasses import dataclass, field, replace
from shlex import quote
from typing import Literal

from app.database.connection import Row
from app.database.postgres import PostgresLedger
from app.errors import UsageError
from app.fleet.presence import server_ms
from app.ledger import confirmations, counts, destinations
from app.runtime.url import normalise

GENERATION = "fleet01"
NAMED_MAX = 10
"""Of all tenants, those that are named where somebody asks for another one."""
_SIGNS = string.ascii_lowercase + string.digits


class TenantError(UsageError):
    """There is no such tenant or machine, or there is one already; or it cannot be one."""


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """What of its machines' logs may leave; it only ever withholds more than they do."""

    export_mode: Literal["full", "metadata_only"] = "full"
    """`metadata_only`: no log is taken that was not made so."""
    redact_patterns: tuple[str, ...] = field(default=(), repr=False)
    """Masked in every log. Somebody may have written the very secret down as one."""


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
    policy: TenantPolicy


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
    policy: TenantPolicy = TenantPolicy(),
) -> Tenant:
    """Raises TenantError where the name, or another tenant with the same endpoint and key, is there."""
    now_ms = server_ms(db)
    endpoint = normalise(endpoint)
    found = destinations.destination(db, endpoint, destinations.fingerprint(db, key), now_ms)
    written = db.execute(
        "insert into tenant (name, destination_id, endpoint, key, bytes_max, rate_per_minute, export_mode,"
        " redact_patterns, created_ms) values (?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing",
        (
            name,
            found.id,
            endpoint,
            key,
            bytes_max,
            rate_per_minute,
            policy.export_mode,
            json.dumps(policy.redact_patterns),
            now_ms,
        ),
    )
    if written.rowcount == 0:
        raise TenantError(f"tenant {name}: the name, or its endpoint with its key, is another tenant's already")
    return tenant(db, name)


def tenant(db: PostgresLedger, name: str) -> Tenant:
    """Raises TenantError."""
    row = db.execute("select * from tenant where name = ?", (name,)).fetchone()
    if row is None:
        known = [one.name for one in tenants(db)]
        listed = ", ".join(known[:NAMED_MAX]) + (" and others" if len(known) > NAMED_MAX else "")
        raise TenantError(f"there is no tenant {name}; {f'known: {listed}' if listed else 'there are none yet'}")
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
        policy=TenantPolicy(row["export_mode"], tuple(json.loads(row["redact_patterns"]))),
    )


@dataclass(frozen=True, slots=True)
class Changes:
    """What of a tenant is to be another; None: stays."""

    endpoint: str | None = None
    key: str | None = field(default=None, repr=False)
    bytes_max: int | None = None
    """0: no limit."""
    rate_per_minute: int | None = None
    """0: no limit."""
    export_mode: Literal["full", "metadata_only"] | None = None
    redact_patterns: tuple[str, ...] | None = field(default=None, repr=False)


def change(db: PostgresLedger, name: str, changes: Changes) -> Tenant:
    """The tenant as it is then. What waits for it goes to its new endpoint under its new key. Raises TenantError.

    What is being posted meanwhile goes where it went.
    """
    with db.transaction():
        db.execute("select 1 from tenant where name = ? for update", (name,))
        before = tenant(db, name)
        after = _changed(before, changes)
        if (after.endpoint, after.key) != (before.endpoint, before.key):
            fingerprint = destinations.fingerprint(db, after.key)
            if not destinations.readdress(db, before.destination_id, after.endpoint, fingerprint):
                holder = next(
                    (one.name for one in tenants(db) if (one.endpoint, one.key) == (after.endpoint, after.key)), ""
                )
                whose = f"tenant {holder} has" if holder else "another destination of this database has"
                raise TenantError(f"tenant {name}: {whose} this key at this endpoint already")
        db.execute(
            "update tenant set endpoint = ?, key = ?, bytes_max = ?, rate_per_minute = ?, export_mode = ?,"
            " redact_patterns = ? where id = ?",
            (
                after.endpoint,
                after.key,
                after.bytes_max,
                after.rate_per_minute,
                after.policy.export_mode,
                json.dumps(after.policy.redact_patterns),
                after.id,
            ),
        )
    if after.endpoint != before.endpoint:
        # What was delivered is at the old place, where nobody looks any more.
        confirmations.give_up_confirmation(db, after.destination_id)
    return after


def _changed(before: Tenant, changes: Changes) -> Tenant:
    policy = before.policy
    patterns = policy.redact_patterns if changes.redact_patterns is None else changes.redact_patterns
    bytes_max = before.bytes_max if changes.bytes_max is None else changes.bytes_max
    rate_per_minute = before.rate_per_minute if changes.rate_per_minute is None else changes.rate_per_minute
    return replace(
        before,
        endpoint=before.endpoint if changes.endpoint is None else normalise(changes.endpoint),
        key=before.key if changes.key is None else changes.key,
        bytes_max=bytes_max or None,
        rate_per_minute=rate_per_minute or None,
        policy=TenantPolicy(changes.export_mode or policy.export_mode, patterns),
    )


def remove(db: PostgresLedger, name: str) -> None:
    """Forget a tenant, its key and its machines; what was delivered stays in the ledger.

    Raises TenantError while it has a token that counts, or a log that waits or is dead.
    """
    with db.transaction():
        db.execute("select 1 from tenant where name = ? for update", (name,))
        found = tenant(db, name)
        sender = next((one for one in machines(db) if one.tenant == name and one.revoked_ms is None), None)
        if sender is not None:
            raise TenantError(
                f"machine {sender.name} may still send for it: fleet token revoke {quote(name)} {quote(sender.name)}"
            )
        jobs = counts.counts(db, found.destination_id)
        if jobs.dead:
            helps = f"fleet dead retry {quote(name)} tries them again, fleet dead purge {quote(name)} gives them up"
            raise TenantError(f"{jobs.dead} of its logs are dead: {helps}")
        if jobs.pending:
            helps = "fleet status says why; fleet tenant set gives it another endpoint or key"
            raise TenantError(f"{jobs.pending} of its logs still wait: {helps}")
        db.execute("delete from token where tenant_id = ?", (found.id,))
        db.execute("delete from tenant where id = ?", (found.id,))
        destinations.vacate(db, found.destination_id)
    confirmations.give_up_confirmation(db, found.destination_id)  # nobody has its key any more


def is_there(db: PostgresLedger, found: Tenant) -> bool:
    """Whether it has not been removed; waits for whoever is about to remove it."""
    return db.execute("select 1 from tenant where id = ? for key share", (found.id,)).fetchone() is not None


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


@dataclass(frozen=True, slots=True)
class Admission:
    """Who has a token."""

    tenant: Tenant
    machine: str


def admitted(db: PostgresLedger, token: str) -> Admission | None:
    """Whose machine this is; None for a token that nobody has, or has any more."""
    row = db.execute(
        "select t.*, k.machine, k.seen_ms from token k join tenant t on t.id = k.tenant_id"
        " where k.hash = ? and k.revoked_ms is null",
        (hashed(token),),
    ).fetchone()
    if row is None:
        return None
    now_ms = server_ms(db)
    if row["seen_ms"] is None or row["seen_ms"] < now_ms - SEEN_AGAIN_MS:  # else each POST would write its row
        db.execute("update token set seen_ms = ? where hash = ?", (now_ms, hashed(token)))
    return Admission(_read(row), row["machine"])


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


def reserve_send_time(db: PostgresLedger, destination_id: int, rate_per_minute: int) -> int | None:
    """When the next record may be sent to it, in the server's time. Nobody else gets the same time.

    SPREAD_MS have `rate_per_minute` of them, at even distances. None where the next one that is free is too far ahead.
    A time too far ahead was set by a wrong clock: then it is now.
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
