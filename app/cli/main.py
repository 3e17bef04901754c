"""Command line: defines the other commands, turns results into text or JSON, and ends with an exit code."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app import __version__
from app.capture.folders import effective
from app.cli import render
from app.cli.backfill import backfill
from app.cli.dead import dead
from app.cli.destination import destination
from app.cli.import_preview import importing
from app.cli.options import (
    DONE,
    OF_CAPTURE,
    OF_DESTINATION,
    OF_SPOOL,
    PROBLEM,
    PROGRAM,
    STOPPED,
    USAGE,
    AsJson,
    complain,
    print_json,
    print_lines,
    takes,
)
from app.cli.plugin import plugin
from app.cli.recall import recalling
from app.cli.setup import receiver_store, setting_up
from app.cli.uninstall import uninstalling
from app.cli.verify import verification
from app.database.open import open_ledger, read_ledger
from app.database.schema import SchemaError, migrations
from app.errors import AppError, UsageError
from app.operations import doctor
from app.operations.finding import Finding
from app.operations.status import read_status
from app.runtime import clock, log
from app.settings.lookup import Sources, unattended
from app.settings.model import SettingsError
from app.settings.views import shown

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Exports OpenCode sessions to Helicone through a durable queue.",
)
config = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Settings.")
app.add_typer(config, name="config")
app.add_typer(dead, name="dead")
app.add_typer(importing)
app.add_typer(plugin)
app.add_typer(backfill)
app.add_typer(verification)
app.add_typer(recalling)
app.add_typer(setting_up)
app.add_typer(uninstalling)
app.add_typer(destination, name="destination")


def main() -> None:
    """The process. Every expected failure is one line on stderr; a bug is one line without any transcript text."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None when it was closed before we came
        # A file name need not be valid UTF-8, and a terminal need not be able to show all of Unicode.
        stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=logging.WARNING)
    try:
        # Ends the process; also on Ctrl-C, with STOPPED, and quietly when nobody reads any more.
        app(prog_name=PROGRAM)
    except (AppError, OSError, sqlite3.Error) as error:
        complain(_told(error))
        sys.exit(USAGE if isinstance(error, UsageError) else PROBLEM)
    except Exception as error:  # noqa: BLE001 - a bug of ours: its own message might quote a transcript
        complain(f"internal error, please report it: {type(error).__name__} at {log.where(error)}")
        sys.exit(PROBLEM)


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


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("hook")
def _hook() -> None:
    """Read what OpenCode's plugin gives notice of.

    On standard input, until it ends. The plugin starts this.
    """
    from app.capture.daemon import main as serve  # noqa: PLC0415 - normally __main__ has done this, without a command line

    serve()


@app.command("worker")
@takes(OF_DESTINATION)
def _worker(sources: Sources, *, automatic: Annotated[bool, typer.Option("--automatic", hidden=True)] = False) -> None:
    """Deliver until told to stop.

    By SIGTERM or SIGINT; what is being posted then is finished. The same as huey_consumer app.worker.huey.
    """
    from app.worker import Worker  # noqa: PLC0415 - its HTTP client takes longer to load than most commands run

    try:
        worker = Worker(unattended(os.environ) if automatic else sources, automatic=automatic)
        if not automatic:
            print_lines(render.worker_lines(worker.target, str(worker.spool.worker_log)), failed=True)
        worker.run()
    except SettingsError as error:
        if not automatic:
            raise
        complain(error.for_logs)  # its standard error is worker.log
        raise typer.Exit(USAGE) from None


@app.command("flush")
@takes(OF_DESTINATION)
def _flush(
    sources: Sources,
    *,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Give up after this time.")] = 30,
    expect_some: Annotated[
        bool, typer.Option("--expect-some", help="Exit code 1 where this folder never had a job.")
    ] = False,
    json_wanted: AsJson = False,
) -> None:
    """Deliver what waits, now.

    Waits for live hooks and for a worker, and delivers itself when no worker does. Exit code 0 when nothing is left.
    """
    from app.operations.flush import flush  # noqa: PLC0415 - as in `_worker`

    with render.spinner("delivering"):
        flushed = flush(sources, timeout, expect_some=expect_some)
    if json_wanted:
        print_json(asdict(flushed))
    else:
        print_lines(render.flush_lines(flushed))
    is_fine = flushed.is_done and (flushed.captured_here or not expect_some)
    raise typer.Exit(STOPPED if flushed.was_stopped else DONE if is_fine else PROBLEM)


@app.command("status")
@takes(OF_DESTINATION)
def _status(sources: Sources, *, json_wanted: AsJson = False) -> None:
    """Say what waits, and why."""
    now_ms = clock.now_ms()
    status = read_status(sources.load(), now_ms)
    if json_wanted:
        print_json(asdict(status))
    else:
        print_lines(render.status_lines(status, now_ms))


@app.command("doctor")
@takes(OF_DESTINATION)
def _doctor(
    sources: Sources,
    *,
    send: Annotated[bool, typer.Option("--send", help="Also send a tiny log and look for it.")] = False,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Look for it so long.")] = 30,
    json_wanted: AsJson = False,
) -> None:
    """Check everything, and say what to do.

    Exit code 1 when there is a problem.
    """
    found: list[Finding] = []
    for finding in _examined(sources, timeout, send=send):
        found.append(finding)
        if not json_wanted:
            print_lines([render.finding_line(finding)])
    if json_wanted:
        print_json({"findings": [asdict(one) for one in found]})
    raise typer.Exit(PROBLEM if any(one.level == "problem" for one in found) else DONE)


def _examined(sources: Sources, timeout_s: float, *, send: bool) -> Iterator[Finding]:
    yield from doctor.examine(sources, Path.cwd(), clock.now_ms())
    if send:
        from app.operations import send_test  # noqa: PLC0415 - as in `_worker`

        yield from send_test.send(sources.load(), clock.now_ms(), timeout_s)


@config.command("show")
@takes(OF_CAPTURE)
def _config_show(sources: Sources, *, json_wanted: AsJson = False) -> None:
    """Print the settings and their origins.

    As they are in force in the current folder. The API key is not printed.
    """
    settings = sources.load()
    try:
        with closing(read_ledger(settings.spool_directory)) as db:
            settings = effective(db, sources, Path.cwd())
    except FileNotFoundError:
        pass  # then nothing is recorded
    except (OSError, sqlite3.Error, SchemaError) as error:
        complain(f"without what hooks have recorded: {error}")
    problems = [one.text for one in settings.complaints]
    if json_wanted:
        print_json({"settings": [asdict(one) for one in shown(settings)], "problems": problems})
    else:
        print_lines(render.setting_line(one) for one in shown(settings))
        print_lines(render.problem_lines(problems))


@app.command("migrate")
@takes(OF_SPOOL)
def _migrate(sources: Sources) -> None:
    """Make the queue, or bring it up to date.

    Every other command does so, too.
    """
    spool = sources.load().spool_directory
    open_ledger(spool).close()
    print_lines([f"{spool / 'ledger.db'}: schema {migrations()[-1][0]}"])


@app.command("receiver")
def _receiver(
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="A loopback address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="0 takes a free one.")] = 8686,
    store: Annotated[Path | None, typer.Option(metavar="FILE", help="What it keeps; made when missing.")] = None,
    faults: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON: what goes wrong first.")] = None,
) -> None:
    """Run a Helicone-compatible server here.

    To try the program without Helicone, on this machine only.
    """
    from app.receiver import server  # noqa: PLC0415 - its web server takes longer to load than most commands run

    kept = store or receiver_store()
    server.serve(
        host=host,
        port=port,
        store_path=kept,
        faults_path=faults,
        on_listening=lambda url, key, page: print_lines(render.receiver_lines(url, key, str(kept), page)),
    )
