"""Commands `web` and `metrics`: a page to look at queue and store, and numbers to watch them by."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import OF_DESTINATION, PROGRAM, StoreFile, not_installed, print_lines, takes
from app.runtime import clock
from app.settings.lookup import Sources
from app.sources.opencode.store import store_file

if TYPE_CHECKING:
    from app.web.site import Site

commands = typer.Typer(rich_markup_mode=None)

PORT = 8687


@commands.command("web")
@takes(OF_DESTINATION)
def _web(
    sources: Sources,
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="A loopback address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="0 takes a free one.")] = PORT,
    db: StoreFile = None,
) -> None:
    """Show queue and store in a browser, until Ctrl-C.

    On this machine only. Nothing can be changed there. The address that is printed opens once.
    """
    try:
        from app.web import server  # noqa: PLC0415 - its web server takes longer to load than most commands run
    except ModuleNotFoundError as error:
        raise not_installed(error, "web") from None
    from app.pages.loopback import ListenError, PortTakenError  # noqa: PLC0415 - loaded by then

    try:
        server.serve(
            _site(sources, db), host, port, lambda url: print_lines([f"open {url}", "it opens once; Ctrl-C ends"])
        )
    except PortTakenError:
        who = f"{PROGRAM} web that runs already, or another program, has it"
        raise ListenError(f"port {port} is taken: {who}; --port 0 takes a free one") from None


def _site(sources: Sources, db: Path | None) -> Site:
    from app.web.site import Site  # noqa: PLC0415 - as above

    given = {name: value for name, value in sources.command_line.items() if name == "spool_directory"}
    options = "".join(f" --spool-directory {shlex.quote(str(value))}" for value in given.values())
    if sources.env_file is not None:
        options += f" --env-file {shlex.quote(str(sources.env_file))}"
    return Site(sources, Path.cwd(), db or store_file(os.environ), options)


@commands.command("metrics")
@takes(OF_DESTINATION)
def _metrics(
    sources: Sources,
    *,
    textfile: Annotated[
        Path | None, typer.Option("--textfile", metavar="PATH", help="Write this file, at once, instead of printing.")
    ] = None,
) -> None:
    """Print numbers for Prometheus.

    For its node exporter's collector of text files: --textfile.
    """
    try:
        from app.operations.metrics import exposition, write_textfile  # noqa: PLC0415 - others do without Prometheus
    except ModuleNotFoundError as error:
        raise not_installed(error, "metrics") from None
    data = exposition(sources.load(), clock.now_ms())
    if textfile is None:
        typer.echo(data.decode(), nl=False)
    else:
        write_textfile(textfile, data)
