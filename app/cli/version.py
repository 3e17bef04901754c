"""Command `version`."""

from __future__ import annotations

import platform
import sqlite3

import typer

from app import __version__
from app.cli.options import PROGRAM, AsJson, print_json, print_lines

commands = typer.Typer()


@commands.command("version")
def _version(*, json_wanted: AsJson = False) -> None:
    """Print the versions of this program, Python and SQLite."""
    python = platform.python_version()
    if json_wanted:
        print_json({"version": __version__, "python": python, "sqlite": sqlite3.sqlite_version})
    else:
        print_lines([f"{PROGRAM} {__version__} (Python {python}, SQLite {sqlite3.sqlite_version})"])
