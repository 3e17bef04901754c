"""What the commands share: their options, the settings that follow from these, and how results are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from app.cli.since import since_ms
from app.runtime import clock
from app.runtime.terminal import visible
from app.settings.lookup import Sources, typed
from app.settings.options import from_arguments

PROGRAM = "opencode-helicone"
DONE, PROBLEM, USAGE, STOPPED = 0, 1, 2, 130
"""Exit codes: all is well; something is not, and was named; arguments or settings are wrong; interrupted."""

EnvFile = Annotated[
    Path | None, typer.Option("--env-file", metavar="PATH", help="Read this instead of .env in the current folder.")
]
SpoolDirectory = Annotated[str | None, typer.Option(metavar="DIR", help="The folder of the job queue.")]
Endpoint = Annotated[str | None, typer.Option(metavar="URL", help="Where Helicone is.")]
ExportMode = Annotated[str | None, typer.Option(metavar="MODE", help="full, metadata_only or off.")]
Chosen = Annotated[
    list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="Any setting by its name: maxRetries=2.")
]
StoreFile = Annotated[Path | None, typer.Option("--db", metavar="PATH", help="OpenCode's store, or a copy of it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def sources_of(
    env_file: Path | None,
    spool_directory: str | None,
    endpoint: str | None = None,
    export_mode: str | None = None,
    *,
    chosen: Iterable[str] | None = None,
) -> Sources:
    """Where a command takes its settings from, with what stands on the command line. Raises SettingsError."""
    named = {"spool_directory": spool_directory, "endpoint": endpoint, "export_mode": export_mode}
    given = from_arguments(chosen or ()) | {name: value for name, value in named.items() if value is not None}
    return typed(os.environ, Path.cwd(), env_file=env_file, command_line=given)


def complain(message: str) -> None:
    typer.echo(visible(f"{PROGRAM}: {message}".replace("\n", " ")), err=True)


def agrees(question: str) -> bool:
    """Whether somebody at the terminal says yes; the end of input is a no. Ends the command on Ctrl-C."""
    try:
        return typer.confirm(visible(question), err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise typer.Exit(STOPPED) from None
        return False


def print_json(value: object) -> None:
    # ASCII, so that it is the same JSON whatever the terminal or the pipe can take.
    typer.echo(json.dumps(value, indent=2))


def print_lines(lines: Iterable[str], *, failed: bool = False) -> None:
    for line in lines:
        typer.echo(visible(line), err=failed)


def moment(since: str | None) -> int | None:
    """What `--since` says, in ms; None where it was not given."""
    if since is None:
        return None
    try:
        return since_ms(since, clock.now_ms())
    except ValueError as error:
        raise typer.BadParameter(f"--since {error}") from None
