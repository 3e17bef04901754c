"""Commands `fleet tenant …`: whose logs an intake takes, where they go, what of them may leave."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from app.cli.centre import centre
from app.cli.layout import size
from app.cli.options import PROGRAM, STOPPED, AsJson, one_of, print_json, print_lines
from app.runtime.terminal import counted

if TYPE_CHECKING:
    from app.fleet.tenants import Tenant

tenant = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Whose logs an intake takes, and where they go.")

CLOUD = "https://api.worker.helicone.ai"
KEY_CHARACTERS_MAX = 2_000
"""So many are read; more than a key may have."""
BYTES_MAX = 2**50
PER_MINUTE_MAX = 60_000
"""One each millisecond."""

AllowHttp = Annotated[
    bool, typer.Option("--allow-http", help="Also http:// to another machine, where others read along.")
]
KeyFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Read Helicone's key there; - is standard input.")]
ExportMode = Annotated[
    str | None, one_of(("full", "metadata_only"), "--export-mode", "Take no log that was made under a looser one")
]
Patterns = Annotated[
    list[str] | None,
    typer.Option("--redact-pattern", metavar="PATTERN", help="Mask what it matches in each log; may be repeated."),
]


@tenant.command("add")
def _add(  # noqa: PLR0913 - one parameter for each option
    name: Annotated[str, typer.Argument(metavar="NAME", help="Any name for it.")],
    *,
    endpoint: Annotated[str, typer.Option(metavar="URL", help="Where its Helicone is.")] = CLOUD,
    allow_http: AllowHttp = False,
    key_file: KeyFile = None,
    bytes_max: Annotated[
        int | None, typer.Option(min=1, max=BYTES_MAX, metavar="N", help="Take no more while so much waits.")
    ] = None,
    rate_per_minute: Annotated[
        int | None, typer.Option(min=1, max=PER_MINUTE_MAX, metavar="N", help="Send no more logs a minute.")
    ] = None,
    export_mode: ExportMode = None,
    redact_pattern: Patterns = None,
) -> None:
    """Take logs for a tenant, to be sent on under its key.

    Helicone's key is read from standard input, or from --key-file. It is kept in the database.
    """
    with centre() as db:
        from app.fleet.tenants import Changes  # noqa: PLC0415 - what the extra `fleet` brings
        from app.operations.fleet import add_tenant  # noqa: PLC0415 - the same

        wanted = Changes(
            endpoint,
            _read_key(key_file),
            bytes_max,
            rate_per_minute,
            _mode(export_mode),
            tuple(redact_pattern or ()),
        )
        added = add_tenant(db, name, wanted, allow_http=allow_http)
    print_lines(
        [
            f"tenant {added.name}: what its machines send goes to {added.endpoint}",
            f"a token for a machine: {PROGRAM} fleet token add {quote(added.name)} MACHINE",
        ]
    )


@tenant.command("set")
def _set(  # noqa: PLR0913 - one parameter for each option
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    *,
    endpoint: Annotated[str | None, typer.Option(metavar="URL", help="Where its Helicone is.")] = None,
    allow_http: AllowHttp = False,
    key_file: KeyFile = None,
    bytes_max: Annotated[
        int | None,
        typer.Option(min=0, max=BYTES_MAX, metavar="N", help="Take no more while so much waits; 0: no limit."),
    ] = None,
    rate_per_minute: Annotated[
        int | None,
        typer.Option(min=0, max=PER_MINUTE_MAX, metavar="N", help="Send no more logs a minute; 0: no limit."),
    ] = None,
    export_mode: ExportMode = None,
    redact_pattern: Patterns = None,
    no_redact_patterns: Annotated[
        bool, typer.Option("--no-redact-patterns", help="Mask nothing more than the machines do.")
    ] = False,
) -> None:
    """Change what is named of a tenant; the rest stays.

    What waits goes to the new endpoint, under the new key. Patterns take the place of all that it had.
    """
    if no_redact_patterns and redact_pattern:
        raise typer.BadParameter("--redact-pattern and --no-redact-patterns exclude each other")
    with centre() as db:
        from app.fleet.tenants import Changes  # noqa: PLC0415 - what the extra `fleet` brings
        from app.operations.fleet import change_tenant  # noqa: PLC0415 - the same

        changes = Changes(
            endpoint,
            None if key_file is None else _read_key(key_file),
            bytes_max,
            rate_per_minute,
            _mode(export_mode),
            () if no_redact_patterns else tuple(redact_pattern) if redact_pattern else None,
        )
        changed = change_tenant(db, name, changes, allow_http=allow_http)
    print_lines([_line(changed)])


@tenant.command("remove")
def _remove(name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")]) -> None:
    """Forget a tenant: its key, its limits and its machines.

    Refused while a machine may send for it, or one of its logs waits or is dead.
    """
    with centre() as db:
        from app.fleet.tenants import remove  # noqa: PLC0415 - what the extra `fleet` brings

        remove(db, name)
    print_lines([f"tenant {name} is no more; what was delivered for it stays noted"])


@tenant.command("list")
def _list(*, json_wanted: AsJson = False) -> None:
    """List tenants, where their logs go, their limits, and what may leave."""
    with centre() as db:
        from app.fleet.tenants import tenants  # noqa: PLC0415 - what the extra `fleet` brings

        found = tenants(db)
    if json_wanted:
        print_json({"tenants": [_json(one) for one in found]})
    else:
        print_lines([_line(one) for one in found] or [f"no tenants yet: {PROGRAM} fleet tenant add NAME"])


def _mode(given: str | None) -> Literal["full", "metadata_only"] | None:
    return cast('Literal["full", "metadata_only"] | None', given)


def _read_key(key_file: Path | None) -> str:
    if key_file is not None and str(key_file) != "-":
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


def _json(one: Tenant) -> dict[str, object]:
    return {
        "name": one.name,
        "endpoint": one.endpoint,
        "bytes_max": one.bytes_max,
        "rate_per_minute": one.rate_per_minute,
        "export_mode": one.policy.export_mode,
        "redact_patterns": len(one.policy.redact_patterns),
    }


def _line(one: Tenant) -> str:
    """Not the patterns: somebody may have written the very secret down as one."""
    limits = [
        *([f"at most {size(one.bytes_max)} wait"] if one.bytes_max is not None else []),
        *([f"{counted(one.rate_per_minute, 'log')} a minute"] if one.rate_per_minute is not None else []),
    ]
    patterns = len(one.policy.redact_patterns)
    policy = [one.policy.export_mode, *([f"{counted(patterns, 'pattern')} masked"] if patterns else [])]
    return f"{one.name}  {one.endpoint}  {', '.join(limits) or 'no limits'}  {', '.join(policy)}"
