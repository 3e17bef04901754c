"""Commands `fleet dead …`: what of a tenant's logs is not tried again."""

from __future__ import annotations

from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.centre import centre
from app.cli.dead import All, Keys, OfError, Since, chosen, letters_lines, wide_choice
from app.cli.options import AsJson, Yes, print_json, print_lines
from app.ledger.dead_letters import Choice
from app.operations import dead_letters
from app.runtime.terminal import counted

if TYPE_CHECKING:
    from app.database.postgres import PostgresLedger

dead = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Logs of a tenant that are not tried again.")

OfTenant = Annotated[str, typer.Argument(metavar="TENANT", help="Its name.")]


@dead.command("list")
def _list(tenant_name: OfTenant, *, error: OfError = None, since: Since = None, json_wanted: AsJson = False) -> None:
    """List a tenant's dead letters, grouped by their error."""
    with centre() as db:
        from app.fleet.tenants import tenant  # noqa: PLC0415 - what the extra `fleet` brings

        destination_id = tenant(db, tenant_name).destination_id
        listed = dead_letters.list_dead(db, Choice(fingerprint=error, since_ms=since, destination_id=destination_id))
    if json_wanted:
        print_json(asdict(listed))
    else:
        print_lines(letters_lines(listed, "dead", f"fleet dead retry {quote(tenant_name)}"))


@dead.command("retry")
def _retry(
    tenant_name: OfTenant,
    keys: Keys = None,
    *,
    everything: All = False,
    error: OfError = None,
    since: Since = None,
    yes: Yes = False,
    json_wanted: AsJson = False,
) -> None:
    """Try a tenant's dead letters again, as if they were new.

    The workers find them within seconds.
    """
    wide = wide_choice(error, since, everything=everything)
    with centre() as db:
        from app.fleet.presence import server_ms  # noqa: PLC0415 - what the extra `fleet` brings

        choice = _chosen(db, tenant_name, keys, wide, None if yes else "retry")
        jobs = len(dead_letters.reopen(db, choice, server_ms(db)))
    if json_wanted:
        print_json({"jobs": jobs})
    else:
        print_lines([f"{counted(jobs, 'dead letter')} will be tried again"])


@dead.command("purge")
def _purge(
    tenant_name: OfTenant,
    keys: Keys = None,
    *,
    everything: All = False,
    error: OfError = None,
    since: Since = None,
    yes: Yes = False,
    json_wanted: AsJson = False,
) -> None:
    """Give a tenant's dead letters up: their bodies go.

    They stay known as dropped; their machines do not send them again by themselves.
    """
    wide = wide_choice(error, since, everything=everything)
    with centre() as db:
        from app.fleet.presence import server_ms  # noqa: PLC0415 - what the extra `fleet` brings

        choice = _chosen(db, tenant_name, keys, wide, None if yes else "purge")
        jobs = dead_letters.purge(db, choice, server_ms(db))
    if json_wanted:
        print_json({"jobs": jobs})
    else:
        print_lines([f"{counted(jobs, 'dead letter')} purged"])


def _chosen(
    db: PostgresLedger, tenant_name: str, keys: list[str] | None, wide: Choice | None, verb: str | None
) -> Choice:
    """As `app.cli.dead.chosen`, of one tenant. Raises TenantError."""
    from app.fleet.tenants import tenant  # noqa: PLC0415 - what the extra `fleet` brings

    found = tenant(db, tenant_name)
    lister = f"fleet dead list {quote(tenant_name)}"
    return chosen(db, keys or [], wide, verb, lister=lister, destination_id=found.destination_id)
