"""Commands `install-plugin` and `uninstall-plugin`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli import render
from app.cli.options import print_lines
from app.sources.opencode import install
from app.sources.opencode.program import programs

commands = typer.Typer()

_NOT_ASKED = (
    "OpenCode's version could not be asked: the plugin is written in the form for 1.14 and later. OpenCode below 1.2.5"
    " ends every run because of this form, and 1.2.5 to 1.3 do not load it: if yours is one of these, see that"
    " `opencode --version` answers, and install again"
)
_NOT_FOUND = (
    "no OpenCode was found on PATH or where installers put it: the plugin is written in the form for 1.14 and later."
    " After you installed an older one, run `opencode-helicone install-plugin`"
)

Everywhere = Annotated[bool, typer.Option("--global", help="For all projects of this user (the default).")]
Project = Annotated[
    Path | None, typer.Option("--project", metavar="DIR", help="For one project only; made to be committed.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


@commands.command("install-plugin")
def _install_plugin(*, everywhere: Everywhere = False, project: Project = None, dry_run: DryRun = False) -> None:
    """Put the plugin where OpenCode finds it.

    In the form that the installed OpenCode loads; each one found is asked for its
    version. A second time it changes nothing. A file that is not ours is left alone.
    """
    install_here(_scope(project, everywhere=everywhere), dry_run=dry_run)


def install_here(scope: install.Global | install.Project | None = None, *, dry_run: bool = False) -> None:
    """Put the plugin into this scope (None: for all projects of this user), and say so."""
    scope = scope or _scope(None, everywhere=True)
    with render.spinner("asking OpenCode for its version"):
        found = programs(os.environ)
    flavour = install.flavour_for(found)
    done = install.install(scope, python=sys.executable, flavour=flavour, dry_run=dry_run)
    _print_installed(done, "installed" if done.changed else "is installed already", dry_run=dry_run)
    print_lines([f"for {program}" for program in found])
    if not found:
        print_lines([_NOT_FOUND])
    elif not any(program.version for program in found):
        print_lines([_NOT_ASKED])
    elif flavour == "function" and not all(install.fits(flavour, one.version) for one in found if one.version):
        print_lines(
            ["OpenCode 2 does not load the form that OpenCode below 1.14 needs: there it works without the plugin"]
        )


@commands.command("uninstall-plugin")
def _uninstall_plugin(*, everywhere: Everywhere = False, project: Project = None, dry_run: DryRun = False) -> None:
    """Take the plugin away again.

    What is in the queue stays.
    """
    done = install.uninstall(_scope(project, everywhere=everywhere), dry_run=dry_run)
    _print_installed(done, "removed" if done.changed else "is not installed", dry_run=dry_run)


def _scope(project: Path | None, *, everywhere: bool) -> install.Global | install.Project:
    if project is None:
        return install.Global(install.config_directory(os.environ))
    if everywhere:
        raise typer.BadParameter("--global and --project exclude each other")
    return install.Project(project)


def _print_installed(done: install.Installed, what: str, *, dry_run: bool) -> None:
    would = "would be " if dry_run and done.changed else ""
    print_lines([f"{done.path}: {would}{what}"])
