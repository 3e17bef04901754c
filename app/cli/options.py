"""Options that commands share, the settings that follow from them, and how results are printed."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from platformdirs import user_data_path

from app.cli.since import since_ms, since_whole_day_ms
from app.errors import UsageError
from app.runtime import clock
from app.runtime.terminal import visible
from app.settings.lookup import Sources, typed
from app.settings.model import HELICONE, standard_folder
from app.settings.options import from_arguments

PROGRAM = "opencode-helicone"
DONE, PROBLEM, USAGE, STOPPED, UNREAD = 0, 1, 2, 130, 141
"""Exit codes: all is well; something is not, and was named; arguments or settings are wrong; interrupted; whoever read
what it prints is gone (as of a program that SIGPIPE ends)."""

_SETTINGS: dict[str, Any] = {
    "env_file": Annotated[
        Path | None, typer.Option("--env-file", metavar="PATH", help="Read this instead of .env in the current folder.")
    ],
    "spool_directory": Annotated[str | None, typer.Option(metavar="DIR", help="The folder of the job queue.")],
    "destination": Annotated[
        str | None, typer.Option(metavar="NAME", help="Of [destinations.NAME]; Helicone unless it is said.")
    ],
    "endpoint": Annotated[str | None, typer.Option(metavar="URL", help="Where Helicone is.")],
    "export_mode": Annotated[str | None, typer.Option(metavar="MODE", help="full, metadata_only or off.")],
    "chosen": Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="Any setting by its name: maxRetries=2.")
    ],
}
OF_SPOOL = ("env_file", "spool_directory")
OF_DESTINATION = (*OF_SPOOL, "destination", "endpoint", "chosen")
OF_CAPTURE = (*OF_SPOOL, "destination", "endpoint", "export_mode", "chosen")
"""The options by which a command is told about the spool, about where jobs are delivered, about what is captured."""

Command: TypeAlias = Callable[..., None]
StoreFile = Annotated[Path | None, typer.Option("--db", metavar="PATH", help="OpenCode's store, or a copy of it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def receiver_store() -> Path:
    """Where the receiver of this user keeps what arrives, unless told otherwise."""
    return standard_folder(lambda: user_data_path(f"{PROGRAM}-receiver", appauthor=False)) / "store.db"


def takes(options: Iterable[str]) -> Callable[[Command], Command]:
    """Gives a command these options before its `--json`; its first parameter is where its settings then come from."""

    def decorate(run: Command) -> Command:
        def command(**given: Any) -> None:
            named = {name: given.pop(name) for name in options}
            run(_sources(**named), **given)

        _, *own = inspect.signature(run, eval_str=True).parameters.values()
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_SETTINGS[name])
            for name in options
        ]
        parameters = sorted([*own, *shared], key=lambda one: one.name == "json_wanted")
        described: Any = command
        described.__signature__ = inspect.Signature(parameters)
        described.__annotations__ = {one.name: one.annotation for one in parameters}
        described.__doc__ = run.__doc__
        return command

    return decorate


def _sources(
    env_file: Path | None,
    spool_directory: str | None,
    destination: str | None = None,
    endpoint: str | None = None,
    export_mode: str | None = None,
    chosen: Iterable[str] | None = None,
) -> Sources:
    """Where a command takes its settings from, with what stands on the command line. Raises SettingsError."""
    named = {"spool_directory": spool_directory, "endpoint": endpoint, "export_mode": export_mode}
    given = from_arguments(chosen or ()) | {name: value for name, value in named.items() if value is not None}
    sources = typed(os.environ, Path.cwd(), env_file=env_file, command_line=given)
    return replace(sources, destination=destination or HELICONE)


def complain(message: str) -> None:
    typer.echo(visible(f"{PROGRAM}: {message}".replace("\n", " ")), err=True)


def ask(question: str, remedy: str, *, details: Iterable[str] = (), refused: int = PROBLEM) -> None:
    """Ends the command unless somebody at the terminal says yes; the end of input is a no.

    `remedy`: what to type where nobody can be asked.
    """
    if not sys.stdin.isatty():
        complain(f"this would {question}: say {remedy}")
        raise typer.Exit(USAGE)
    for line in details:
        complain(line)
    try:
        agrees = typer.confirm(visible(f"{question}?"), err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise typer.Exit(STOPPED) from None
        agrees = False
    if not agrees:
        complain("nothing was done")
        raise typer.Exit(refused)


def not_installed(error: ModuleNotFoundError, command: str) -> Exception:
    """What is to be raised where a command misses a package: that of the extra `web`, or any."""
    if error.name is None or not error.name.startswith("prometheus_client"):
        return error
    install = f"install {PROGRAM}[web], in a checkout with uv tool install '.[web]'"
    return UsageError(f"{command} needs the extra `web`: {install}")


def print_json(value: object) -> None:
    # ASCII, so that it is the same JSON whatever the terminal or the pipe can take.
    typer.echo(json.dumps(value, indent=2))


def print_lines(lines: Iterable[str], *, failed: bool = False) -> None:
    for line in lines:
        typer.echo(visible(line), err=failed)


def _parser(read: Callable[[str, int], int]) -> Callable[[str], int]:
    def moment(text: str) -> int:
        try:
            return read(text, clock.now_ms())
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return moment


def one_of(names: Sequence[str], option: str, about: str) -> Any:
    """An option with one of these values, which its help and its complaint name."""

    def parse(text: str) -> str:
        if text not in names:
            raise typer.BadParameter(f"{text!r} is none; there are {', '.join(names)}")
        return text

    metavar = option.removeprefix("--").upper() if option != "--by" else "GROUP"
    return typer.Option(option, metavar=metavar, parser=parse, help=f"{about}: {', '.join(names)}.")


def since_option(what: str, name: str = "--since", *, whole_days: bool = False) -> Any:
    """`--since`, or another time by its name, in ms; `what` is what its help begins with."""
    parser = _parser(since_whole_day_ms if whole_days else since_ms)
    told = f"{what}: 12h, 7d, yesterday, 2026-01-31."
    return typer.Option(name, metavar="DURATION|DATE", parser=parser, help=told, show_default=False)
