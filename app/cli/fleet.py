"""Commands `intake` and `fleet …`: the centre, where logs of many machines arrive; whose they are, what waits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.centre import centre
from app.cli.fleet_dead import dead
from app.cli.fleet_tenant import tenant
from app.cli.layout import at, size
from app.cli.options import PROGRAM, AsJson, complain, not_installed, print_json, print_lines
from app.errors import AppError, UsageError
from app.runtime.terminal import counted
from app.settings.names import DATABASE_URL

if TYPE_CHECKING:
    from app.fleet.presence import Process, Worker
    from app.fleet.tenants import Machine
    from app.operations.fleet import CentreStatus, DestinationStatus, MachineStatus

commands = typer.Typer(rich_markup_mode=None)
fleet = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The centre: tenants, machines, what waits there."
)
token = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What machines send with.")
commands.add_typer(fleet, name="fleet")
fleet.add_typer(tenant, name="tenant")
fleet.add_typer(token, name="token")
fleet.add_typer(dead, name="dead")

PORT = 8787
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
    with centre():
        pass  # whatever is wrong with it is said before anybody is told to send
    from app.intake.server import serve  # noqa: PLC0415 - what the extra `fleet` brings
    from app.operations.fleet import url_of  # noqa: PLC0415 - the same
    from app.pages.loopback import address, listening_anywhere  # noqa: PLC0415 - loaded by then

    with listening_anywhere(host, port) as bound:
        print_lines([f"listening on {address(bound)} until stopped"])
        serve(url_of(os.environ), bound)


@token.command("add")
def _add_token(tenant_name: OfTenant, machine: OfMachine) -> None:
    """Print a token for a machine, once.

    Alone on standard output. One that the machine had before counts no more.
    """
    with centre() as db:
        from app.fleet.tenants import add_token  # noqa: PLC0415 - what the extra `fleet` brings

        made = add_token(db, tenant_name, machine)
    typer.echo(made)
    complain("this is shown once, and counts from now on instead of any that the machine had before")
    complain(f"there: {PROGRAM} setup --endpoint https://INTAKE/custom/v1/log --key-stdin")


@token.command("revoke")
def _revoke_token(tenant_name: OfTenant, machine: OfMachine) -> None:
    """Refuse what a machine sends from now on.

    What it has sent is sent on. What it has not waits there.
    """
    with centre() as db:
        from app.fleet.tenants import revoke  # noqa: PLC0415 - what the extra `fleet` brings

        revoke(db, tenant_name, machine)
    print_lines([f"machine {machine} of tenant {tenant_name} is refused from now on"])


@token.command("list")
def _list_tokens(*, json_wanted: AsJson = False) -> None:
    """List machines, and when each sent last."""
    with centre() as db:
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
    """Say what waits for each tenant and machine, and which workers and intakes there are."""
    with centre() as db:
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
    for one_intake in found.intakes:
        yield _process_line("intake", one_intake, "silent" if one_intake.is_silent else "runs", found.now_ms)
    if all(one_intake.is_silent for one_intake in found.intakes):
        yield f"no intake runs: `{PROGRAM} intake` takes logs"


_FULL = "; full: its machines are answered 429, and keep what is new, until something of it is delivered"


def _waiting_lines(one: DestinationStatus, now_ms: int) -> Iterator[str]:
    yield f"{one.tenant or 'no tenant'}  {one.endpoint or 'any address'}"
    yield f"  {one.health}{f': {one.reason}' if one.reason else ''}{_FULL if one.is_full else ''}"
    oldest = "" if one.oldest_waiting_ms is None else f", the oldest since {at(one.oldest_waiting_ms, now_ms)}"
    limit = "" if one.bytes_max is None else f" of {size(one.bytes_max)}"
    yield f"  {one.waiting} wait{oldest}"
    yield f"  {_ended(one)}; room taken: {size(one.held_bytes)}{limit}"
    yield from _machine_lines(one.machines, now_ms)


def _ended(one: DestinationStatus | MachineStatus) -> str:
    dropped = f", {one.dropped} dropped (too old, or purged)" if one.dropped else ""
    return f"{one.dead} dead, {one.delivered} delivered{dropped}"


def _machine_lines(machines: Iterable[MachineStatus], now_ms: int) -> Iterator[str]:
    """Those of which something waits or is dead."""
    others = 0
    for one in machines:
        if not one.waiting and not one.dead:
            others += 1
            continue
        oldest = "" if one.oldest_waiting_ms is None else f", the oldest since {at(one.oldest_waiting_ms, now_ms)}"
        yield f"  {one.machine or 'no machine'}: {one.waiting} wait{oldest}; {_ended(one)}"
    if others:
        yield f"  {counted(others, 'machine')} of which nothing waits or is dead"


def _worker_line(one: Worker, now_ms: int) -> str:
    return _process_line("worker", one, "silent" if one.is_silent else "leads" if one.leads else "follows", now_ms)


def _process_line(kind: str, one: Process, state: str, now_ms: int) -> str:
    return f"{kind} {one.machine} {one.process} ({one.version}): {state}, last beat {at(one.seen_ms, now_ms)}"


@fleet.command("metrics")
def _metrics(
    *,
    textfile: Annotated[
        Path | None, typer.Option("--textfile", metavar="PATH", help="Write this file, at once, instead of printing.")
    ] = None,
) -> None:
    """Print numbers for Prometheus, by tenant and machine.

    For its node exporter's collector of text files: --textfile.
    """
    found, problem = _status_or_problem()
    try:
        from app.operations.fleet_metrics import exposition  # noqa: PLC0415 - what the extra `web` brings
        from app.operations.metrics import write_textfile  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        raise not_installed(error, "fleet metrics") from None
    data = exposition(found)
    if textfile is None:
        typer.echo(data.decode(), nl=False)
    else:
        write_textfile(textfile, data)
    if problem is not None:
        raise problem


def _status_or_problem() -> tuple[CentreStatus | None, AppError | None]:
    """Why there is no status, where the database cannot be asked: the numbers tell of that, too. Raises UsageError."""
    try:
        with centre() as db:
            from app.operations.fleet import read_status  # noqa: PLC0415 - what the extra `fleet` brings

            return read_status(db), None
    except UsageError:
        raise
    except AppError as error:
        return None, error
