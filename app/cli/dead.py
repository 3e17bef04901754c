"""`dead …`: the commands for jobs that are not tried again."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer

from app.cli import render
from app.cli.options import (
    PROBLEM,
    USAGE,
    AsJson,
    EnvFile,
    SpoolDirectory,
    agrees,
    complain,
    moment,
    print_json,
    print_lines,
    sources_of,
)
from app.database.open import open_ledger
from app.ledger.dead_letters import Choice
from app.ledger.erasure import erase
from app.operations import dead_letters
from app.runtime import clock
from app.runtime.liveness import read_workers
from app.runtime.spool import Spool
from app.settings.model import Settings

dead = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Jobs that are not tried again.")

Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="The beginning of a job's key.")]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]
OfError = Annotated[str | None, typer.Option("--error", metavar="FINGERPRINT", help="Those with this error.")]
Since = Annotated[
    str | None, typer.Option("--since", metavar="DURATION|DATE", help="Those that died since: 12h, 7d, 2026-01-31.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@dead.command("list")
def _list(
    *,
    error: OfError = None,
    since: Since = None,
    dropped: Annotated[bool, typer.Option("--dropped", help="Jobs that were dropped instead.")] = False,
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    json_wanted: AsJson = False,
) -> None:
    """List dead letters, grouped by their error.

    With --dropped those jobs that were dropped, by reason.
    """
    if dropped and error is not None:
        raise typer.BadParameter("--error and --dropped exclude each other: dropped jobs have a reason, no error")
    settings = sources_of(env_file, spool_directory).load()
    since_ms = moment(since)
    with closing(open_ledger(settings.spool_directory)) as db:
        listed = (
            dead_letters.list_dropped(db, since_ms or 0)
            if dropped
            else dead_letters.list_dead(db, Choice(fingerprint=error, since_ms=since_ms))
        )
    if json_wanted:
        print_json(asdict(listed))
    else:
        print_lines(render.letters_lines(listed, "dropped" if dropped else "dead"))


@dead.command("show")
def _show(
    key: Annotated[
        str, typer.Argument(metavar="KEY|SESSION", help="The beginning of a job's key, or a session's whole id.")
    ],
    *,
    bodies: Annotated[bool, typer.Option("--bodies", help="Also the records, as they would leave.")] = False,
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    json_wanted: AsJson = False,
) -> None:
    """Say all there is to know about a dead or dropped job, or each of a session.

    And what can be done about it.
    """
    settings = sources_of(env_file, spool_directory).load()
    with closing(open_ledger(settings.spool_directory)) as db:
        found = dead_letters.open_letters(db, key, with_bodies=bodies)
    if json_wanted:
        print_json({"letters": [asdict(one) for one in found]})
    else:
        for one in found:
            print_lines(render.letter_lines(one))


@dead.command("retry")
def _retry(  # noqa: PLR0913 - one for each option
    keys: Keys = None,
    *,
    everything: All = False,
    error: OfError = None,
    since: Since = None,
    yes: Yes = False,
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    json_wanted: AsJson = False,
) -> None:
    """Try dead letters again, as if they were new.

    Dropped jobs are never touched.
    """

    def act(db: sqlite3.Connection, settings: Settings, choice: Choice) -> int:
        return dead_letters.retry(db, settings, choice, clock.now_ms())

    settings = sources_of(env_file, spool_directory).load()
    jobs = _on_chosen(settings, keys or [], _wide(error, since, everything=everything), act, "retry", yes=yes)
    if json_wanted:
        print_json({"jobs": jobs})
    else:
        is_served = bool(read_workers(Spool(settings.spool_directory)))
        print_lines(render.retried_lines(jobs, is_served=is_served, has_key=settings.api_key is not None))


@dead.command("purge")
def _purge(  # noqa: PLR0913 - one for each option
    keys: Keys = None,
    *,
    everything: All = False,
    error: OfError = None,
    since: Since = None,
    yes: Yes = False,
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    json_wanted: AsJson = False,
) -> None:
    """Give dead letters up: their bodies go.

    They stay known as dropped, so that they are not exported again by themselves.
    """

    def act(db: sqlite3.Connection, _: Settings, choice: Choice) -> int:
        return dead_letters.purge(db, choice, clock.now_ms())

    settings = sources_of(env_file, spool_directory).load()
    jobs = _on_chosen(settings, keys or [], _wide(error, since, everything=everything), act, "purge", yes=yes)
    with closing(open_ledger(settings.spool_directory)) as db:
        left = erase(db)  # also where nothing was purged: an earlier one may not have come so far
    if json_wanted:
        print_json({"jobs": jobs, "left": left})
    else:
        print_lines(render.purged_lines(jobs))
        print_lines(left, failed=True)
    if left:
        raise typer.Exit(PROBLEM)


def _wide(error: str | None, since: str | None, *, everything: bool) -> Choice | None:
    """What is chosen by something else than keys, None when nothing is."""
    if everything and (error or since):
        raise typer.BadParameter("--all stands alone; --error and --since may be combined")
    if not (everything or error or since):
        return None
    return Choice(fingerprint=error, since_ms=moment(since))


def _on_chosen(
    settings: Settings,
    keys: list[str],
    wide: Choice | None,
    act: Callable[[sqlite3.Connection, Settings, Choice], int],
    verb: str,
    *,
    yes: bool,
) -> int:
    """Do it to what was named, or after a question to what was described. The number of jobs."""
    if bool(keys) == (wide is not None):
        raise typer.BadParameter("name KEYs, or choose by --all, --error or --since")
    with closing(open_ledger(settings.spool_directory)) as db:
        if wide is None:
            return act(db, settings, dead_letters.choose(db, [key.lower() for key in keys]))
        jobs = dead_letters.list_dead(db, wide).jobs
        if jobs and not yes:
            _ask(verb, jobs)
        return act(db, settings, wide) if jobs else 0


def _ask(verb: str, jobs: int) -> None:
    """Ends the command unless somebody says yes."""
    what = f"{verb} {render.dead_letters(jobs)}"
    if not sys.stdin.isatty():
        complain(f"this would {what}: say --yes")
        raise typer.Exit(USAGE)
    if not agrees(f"{what}?"):
        complain("nothing was done")
        raise typer.Exit(PROBLEM)
