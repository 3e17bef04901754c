"""Command line: loads the command that is named, and ends the process with an exit code."""

from __future__ import annotations

import logging
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated

import typer

from app import __version__
from app.cli.options import DONE, PROBLEM, PROGRAM, UNREAD, USAGE, complain
from app.errors import AppError, UsageError
from app.runtime import log

FAMILIES: Mapping[str, Sequence[str]] = {
    "setup": ("setup",),
    "running": ("hook", "worker", "migrate", "receiver"),
    "version": ("version",),
    "status": ("flush", "status"),
    "doctor": ("doctor",),
    "config": ("config",),
    "jobs": ("jobs",),
    "sent": ("sent",),
    "stats": ("stats",),
    "tail": ("tail",),
    "web": ("web", "metrics"),
    "dead": ("dead",),
    "destination": ("destination",),
    "import_preview": ("import", "preview"),
    "plugin": ("install-plugin", "uninstall-plugin"),
    "uninstall": ("uninstall",),
    "backfill": ("backfill",),
    "verify": ("verify",),
    "recall": ("audit", "recall"),
    "fleet": ("intake", "fleet"),
}
"""By module of this package its commands, in the order of the help."""


def main() -> None:
    """The process. Every expected failure is one line on stderr; a bug is one line without any transcript text."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None when it was closed before we came
        # A file name need not be valid UTF-8, and a terminal need not be able to show all of Unicode.
        stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=logging.WARNING)
    try:
        _run(sys.argv[1:])
    except (AppError, OSError, sqlite3.Error) as error:
        complain(_told(error))
        sys.exit(USAGE if isinstance(error, UsageError) else PROBLEM)
    except Exception as error:  # noqa: BLE001 - a bug of ours: its own message might quote a transcript
        complain(f"internal error, please report it: {type(error).__name__} at {log.where(error)}")
        sys.exit(PROBLEM)


def _run(arguments: Sequence[str]) -> None:
    """Ends the process; also on Ctrl-C, with STOPPED, and quietly, with UNREAD, when nobody reads any more."""
    if "" in arguments:
        raise UsageError("an argument is empty (a variable that is not set?): give it a value, or leave it out")
    told_to = sys.stdout
    try:
        command_line(arguments)(prog_name=PROGRAM)
    except SystemExit:
        if sys.stdout is not told_to:  # typer has put what says nothing in the place of a closed pipe
            sys.exit(UNREAD)
        raise


def _told(error: Exception) -> str:
    match error:
        case sqlite3.Error():
            return f"the queue, ledger.db: {error}"
        case OSError(filename=str(path), strerror=str(reason)):
            return f"{path}: {reason}"
        case _:
            return str(error)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit(DONE)


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def command_line(arguments: Sequence[str]) -> typer.Typer:
    """With the command that is named first alone, for the sake of its start; with all of them where none is named."""
    app = typer.Typer(
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="Exports OpenCode sessions to Helicone through a durable queue.",
    )
    app.callback()(_options)
    named = [family for family, commands in FAMILIES.items() if arguments and arguments[0] in commands]
    for family in named or FAMILIES:
        app.add_typer(import_module(f"app.cli.{family}").commands)
    return app
