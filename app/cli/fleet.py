"""Commands `intake` and `fleet …`: the centre, where logs of many machines arrive; whose they are, what waits."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.layout import at, size
from app.cli.options import PROGRAM, STOPPED, AsJson, complain, print_json, print_lines
from app.errors import UsageError
from app.runtime.terminal import counted
from app.settings.names import DATABASE_URL

if TYPE_CHECKING:
    from app.database.postgres import PostgresLedger
    from app.fleet.presence import Worker
    from app.fleet.tenants import Machine, Tenant
    from app.operations.fleet import CentreStatus, Waiting

commands = typer.Typer(rich_markup_mode=None)
fleet = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The centre: tenants, machines, what waits there."
)
tenant = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Whose logs an intake takes, and where they go.")
token = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What machines send with.")
commands.add_typer(fleet, name="fleet")
fleet.add_typer(tenant, name="tenant")
fleet.add_typer(token, name="token")

PORT = 8787
CLOUD = "https://api.worker.helicone.ai"
KEY_CHARACTERS_MAX = 2_000
"""So many are read; more than a key may have."""
BYTES_MAX = 2**50
PER_MINUTE_MAX = 60_000
"""One each millisecond."""

OfTenant = Annotated[str, typer.Argument(metavar="TENANT", help="Its name.")]
OfMachine = Annotated[str, typer.Argument(metavar="MACHINE", help="Any name for the machine.")]


@commands.command("intake")
def _intake(
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Any address of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="0 takes a free one.")] = PORT,
) -> None:
    """Take logs from many machines, until told to stop.

    Into the database of OPENCODE_HELICONE_DATABASE_URL, for workers to send on. It speaks HTTP: TLS is the business of
    a proxy before it.
    """
    with _database():
        pass  # whatever is wrong with it is said before anybody is told to send
    from app.intake.server import serve  # noqa: PLC0415 - what the extra `fleet` brings
    from app.operations.fleet import url_of  # noqa: PLC0415 - the same
    from app.pages.loopback import address, listening_anywhere  # noqa: PLC0415 - loaded by then

    with listening_anywhere(host, port) as bound:
        print_lines([f"listening on {address(bound)} until stopped"])
        serve(url_of(os.environ), bound)


@tenant.command("add")
def _add_tenant(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Any name for it.")],
    *,
    endpoint: Annotated[str, typer.Option(metavar="URL", help="Where its Helicone is.")] = CLOUD,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Also http:// to another machine, where others read along.")
    ] = False,
    key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read Helicone's key there.")] = None,
    bytes_max: Annotated[
        int | None, typer.Option(min=1, max=BYTES_MAX, metavar="N", help="Take no more while so much waits.")
    ] = None,
    rate_per_minute: Annotated[
        int | None, typer.Option(min=1, max=PER_MINUTE_MAX, metavar="N", help="Send no more logs a minute.")
    ] = None,
) -> None:
    """Take logs for a tenant, to be sent on under its key.

    Helicone's key is read from standard input, or from --key-file. It is kept in the database.
    """
    with _database() as db:
        from app.operations.fleet import add_tenant  # noqa: PLC0415 - what the extra `fleet` brings

        added = add_tenant(
            db,
            name,
            endpoint=endpoint,
            key=_read_key(key_file),
            allow_http=allow_http,
            bytes_max=bytes_max,
            rate_per_minute=rate_per_minute,
        )
    print_lines(
        [
            f"tenant {added.name}: what its machines send goes to {added.endpoint}",
            f"a token for a machine: {PROGRAM} fleet token add {added.name} MACHINE",
        ]
    )


def _read_key(key_file: Path | None) -> str:
    if key_file is not None:
        with key_file.expanduser().open(encoding="utf-8", errors="replace") as file:
            return file.read(KEY_CHARACTERS_MAX).strip()
    if not sys.stdin.isatty():
        return sys.stdin.read(KEY_CHARACTERS_MAX).strip()
    try:
        return str(typer.prompt("Helicone's key (not shown)", hide_input=True, err=True)).strip()
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise typer.Exit(STOPPED) from None
        return ""


@tenant.command("list")
def _list_tenants(*, json_wanted: AsJson = False) -> None:
    """List tenants, where their logs go, and their limits."""
    with _database() as db:
        from app.fleet.tenants import tenants  # noqa: PLC0415 - what the extra `fleet` brings

        found = tenants(db)
    if json_wanted:
        print_json({"tenants": [_tenant_json(one) for one in found]})
    else:
        print_lines([_tenant_line(one) for one in found] or [f"no tenants yet: {PROGRAM} fleet tenant add NAME"])


def _tenant_json(one: Tenant) -> dict[str, object]:
    return {
        "name": one.name,
        "endpoint": one.endpoint,
        "bytes_max": one.bytes_max,
        "rate_per_minute": one.rate_per_minute,
    }


def _tenant_line(one: Tenant) -> str:
    limits = [
        *([f"at most {size(one.bytes_max)} wait"] if one.bytes_max is not None else []),
        *([f"{counted(one.rate_per_minute, 'log')} a minute"] if one.rate_per_minute is not None else []),
    ]
    return f"{one.name}  {one.endpoint}  {', '.join(limits) or 'no limits'}"


@token.command("add")
def _add_token(tenant_name: OfTenant, machine: OfMachine) -> None:
    """Print a token for a machine, once.

    Alone on standard output. One that the machine had before counts no more.
    """
    with _database() as db:
        from app.fleet.tenants import add_token  # noqa: PLC0415 - what the extra `fleet` brings

        made = add_token(db, tenant_name, machine)
    typer.echo(made)
    complain("this is shown once, and counts from now on instead of any that the machine had before")
    complain("there: HELICONE_API_KEY=<it> HELICONE_ENDPOINT=<the intake>/custom/v1/log OPENCODE_HELICONE_CONFIRM=off")


@token.command("revoke")
def _revoke_token(tenant_name: OfTenant, machine: OfMachine) -> None:
    """Refuse what a machine sends from now on.

    What it has sent is sent on. What it has not waits there.
    """
    with _database() as db:
        from app.fleet.tenants import revoke  # noqa: PLC0415 - what the extra `fleet` brings

        revoke(db, tenant_name, machine)
    print_lines([f"machine {machine} of tenant {tenant_name} is refused from now on"])


@token.command("list")
def _list_tokens(*, json_wanted: AsJson = False) -> None:
    """List machines, and when each sent last."""
    with _database() as db:
        from app.fleet.presence import server_ms  # noqa: PLC0415 - what the extra `fleet` brings
        from app.fleet.tenants import machines  # noqa: PLC0415 - the same

        found, now_ms = machines(db), server_ms(db)
    if json_wanted:
        print_json({"tokens": [_machine_json(one) for one in found]})
    else:
        print_lines(
            [_machine_line(one, now_ms) for one in found]
            or [f"no tokens yet: {PROGRAM} fleet token add TENANT MACHINE"]
        )


def _machine_json(one: Machine) -> dict[str, object]:
    return {
        "tenant": one.tenant,
        "machine": one.name,
        "created_ms": one.created_ms,
        "seen_ms": one.seen_ms,
        "revoked_ms": one.revoked_ms,
    }


def _machine_line(one: Machine, now_ms: int) -> str:
    seen = "never used" if one.seen_ms is None else f"last used {at(one.seen_ms, now_ms)}"
    revoked = "" if one.revoked_ms is None else f", revoked {at(one.revoked_ms, now_ms)}"
    return f"{one.tenant}  {one.name}  made {at(one.created_ms, now_ms)}, {seen}{revoked}"


@fleet.command("status")
def _status(*, json_wanted: AsJson = False) -> None:
    """Say what waits for each tenant, and which workers there are."""
    with _database() as db:
        from app.operations.fleet import read_status  # noqa: PLC0415 - what the extra `fleet` brings

        found = read_status(db)
    if json_wanted:
        print_json(asdict(found))
    else:
        print_lines(_status_lines(found))


def _status_lines(found: CentreStatus) -> Iterator[str]:
    for one in found.destinations:
        yield from _waiting_lines(one, found.now_ms)
    if not found.destinations:
        yield f"no tenants yet: {PROGRAM} fleet tenant add NAME"
    for worker in found.workers:
        yield _worker_line(worker, found.now_ms)
    if all(worker.is_silent for worker in found.workers):
        yield f"no worker runs: `huey_consumer app.worker.huey` with {DATABASE_URL} delivers"


def _waiting_lines(one: Waiting, now_ms: int) -> Iterator[str]:
    yield f"{one.tenant or 'no tenant'}  {one.endpoint or 'any address'}"
    yield f"  {one.health}{f': {one.reason}' if one.reason else ''}"
    oldest = "" if one.oldest_waiting_ms is None else f", the oldest since {at(one.oldest_waiting_ms, now_ms)}"
    limit = "" if one.bytes_max is None else f" of {size(one.bytes_max)}"
    yield f"  {one.waiting} wait{oldest}"
    yield f"  {one.dead} dead, {one.delivered} delivered; room taken: {size(one.held_bytes)}{limit}"


def _worker_line(one: Worker, now_ms: int) -> str:
    state = "silent" if one.is_silent else "leads" if one.leads else "follows"
    return f"worker {one.machine} {one.process} ({one.version}): {state}, last beat {at(one.seen_ms, now_ms)}"


@contextmanager
def _database() -> Iterator[PostgresLedger]:
    """Raises UsageError where the extra, or the variable, is missing; CentreError."""
    try:
        from app.operations.fleet import database  # noqa: PLC0415 - what the extra `fleet` brings
    except ImportError as error:
        if not (error.name or "psycopg").startswith("psycopg"):
            raise
        install = f"install {PROGRAM}[fleet], in a checkout with uv tool install '.[fleet]'"
        raise UsageError(f"the centre needs the extra `fleet`: {install}") from None
    with database(os.environ) as db:
        yield db
