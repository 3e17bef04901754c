"""Commands `hook`, `worker`, `migrate` and `receiver`: what runs until it is told to stop, and the ledger it needs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import (
    OF_DESTINATION,
    OF_SPOOL,
    PROGRAM,
    USAGE,
    complain,
    print_lines,
    receiver_store,
    takes,
)
from app.database.open import open_ledger
from app.database.schema import migrations
from app.ledger.destinations import Destination
from app.settings.lookup import Sources, unattended
from app.settings.model import SettingsError

commands = typer.Typer()


@commands.command("hook")
def _hook() -> None:
    """Read what OpenCode's plugin gives notice of.

    On standard input, until it ends. The plugin starts this.
    """
    from app.capture.daemon import main as serve  # noqa: PLC0415 - normally __main__ has done this, without a command line

    serve()


@commands.command("worker")
@takes(OF_DESTINATION)
def _worker(sources: Sources, *, automatic: Annotated[bool, typer.Option("--automatic", hidden=True)] = False) -> None:
    """Deliver until told to stop.

    By SIGTERM or SIGINT; what is being posted then is finished. It serves this machine's queue, as
    huey_consumer app.worker.huey does where no variable names a centre's database.
    """
    from app.worker import Worker  # noqa: PLC0415 - its HTTP client takes longer to load than most commands run

    try:
        unattended_sources = replace(unattended(os.environ), destination=sources.destination)
        worker = Worker(unattended_sources if automatic else sources, automatic=automatic)
        if not automatic:
            print_lines(_worker_lines(worker.target, str(worker.spool.worker_log)), failed=True)
        worker.run()
    except SettingsError as error:
        if not automatic:
            raise
        complain(error.for_logs)  # its standard error is worker.log
        raise typer.Exit(USAGE) from None


@commands.command("migrate")
@takes(OF_SPOOL)
def _migrate(sources: Sources) -> None:
    """Make the queue, or bring it up to date.

    Whatever writes to it does so, too.
    """
    spool = sources.load().spool_directory
    open_ledger(spool).close()
    print_lines([f"{spool / 'ledger.db'}: schema {migrations()[-1][0]}"])


@commands.command("receiver")
def _receiver(
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="A loopback address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="0 takes a free one.")] = 8686,
    store: Annotated[Path | None, typer.Option(metavar="FILE", help="What it keeps; made when missing.")] = None,
    faults: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON: what goes wrong first.")] = None,
    url: Annotated[bool, typer.Option("--url", help="Say where the page of the one that runs is, and end.")] = False,
) -> None:
    """Run a Helicone-compatible server here.

    To try the program without Helicone, on this machine only.
    """
    from app.pages.loopback import PortTakenError  # noqa: PLC0415 - a web server takes longer to load than most commands run
    from app.receiver import background, server  # noqa: PLC0415 - the same
    from app.receiver.access import ReceiverError  # noqa: PLC0415 - the same

    kept = store or receiver_store()
    if url:
        found = background.find(kept, port)
        if found is None:
            raise ReceiverError(f"no receiver that keeps {kept} runs: `{PROGRAM} receiver` starts one")
        print_lines([found.page])
        return
    try:
        server.serve(
            host=host,
            port=port,
            store_path=kept,
            faults_path=faults,
            on_listening=lambda url, key, page: print_lines(_receiver_lines(url, key, kept, page)),
        )
    except PortTakenError:
        raise ReceiverError(background.who_has(port, kept)) from None


def _worker_lines(target: Destination, log: str) -> Iterator[str]:
    if target.key_fingerprint:
        yield f"delivering to {target.name and f'{target.name}, '}{target.endpoint} until stopped; log: {log}"
    else:
        yield f"no HELICONE_API_KEY is set: jobs wait; log: {log}"


def _receiver_lines(url: str, key: str, store: Path, page: str) -> Iterator[str]:
    again = f"{PROGRAM} receiver --url --port {url.rpartition(':')[2]}"
    again += "" if store == receiver_store() else f" --store {shlex.quote(str(store))}"
    yield f"listening on {url}, keeping {store}"
    yield f"to use it: export HELICONE_ENDPOINT={url} HELICONE_API_KEY={key}"
    yield f"to see what arrives, open {page}"
    yield f"  {again}    says that address again"
