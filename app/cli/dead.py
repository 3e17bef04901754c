"""Commands `dead …`: list, show, retry and purge jobs that are not tried again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from typing import Annotated

import typer

from app.cli.layout import local, size
from app.cli.options import OF_SPOOL, PROBLEM, PROGRAM, AsJson, Yes, ask, print_json, print_lines, since_option, takes
from app.cli.render import how_to_deliver
from app.cli.render_centre import dead_lines
from app.database.connection import Database, Unmade
from app.ledger.dead_letters import Choice
from app.ledger.erasure import erase
from app.operations import dead_letters
from app.operations.centre import centre
from app.operations.dead_letters import DeadLetterError, Listed, Opened, short
from app.operations.reading import opened
from app.runtime import clock
from app.runtime.liveness import read_workers
from app.runtime.spool import Spool
from app.runtime.terminal import counted
from app.settings.lookup import Sources

commands = typer.Typer(name="dead", no_args_is_help=True, rich_markup_mode=None, help="Jobs that are not tried again.")

LETTERS_SHOWN = 20
"""Of a list; all of them are in its JSON."""

Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="The beginning of a job's key.")]
All = Annotated[bool, typer.Option("--all", help="All dead letters.")]
OfError = Annotated[str | None, typer.Option("--error", metavar="FINGERPRINT", help="Those with this error.")]
Since = Annotated[int | None, since_option("Those that died since")]


@commands.command("list")
@takes(OF_SPOOL)
def _list(
    sources: Sources,
    *,
    error: OfError = None,
    since: Since = None,
    dropped: Annotated[bool, typer.Option("--dropped", help="Jobs that were dropped instead.")] = False,
    json_wanted: AsJson = False,
) -> None:
    """List dead letters, grouped by their error.

    With --dropped those jobs that were dropped, by reason.
    """
    settings = sources.load()
    there = None if dropped else centre(settings)
    if dropped and error is not None:
        raise typer.BadParameter("--error and --dropped exclude each other: dropped jobs have a reason, no error")
    with closing(opened(settings.spool_directory)) as db:
        listed = (
            dead_letters.list_dropped(db, since or 0)
            if dropped
            else dead_letters.list_dead(db, Choice(fingerprint=error, since_ms=since))
        )
    if json_wanted:
        print_json({**asdict(listed), "centre": None if there is None else asdict(there)})
    else:
        print_lines(letters_lines(listed, "dropped" if dropped else "dead"))
        print_lines([] if there is None else dead_lines(there, clock.now_ms()))


@commands.command("show")
@takes(OF_SPOOL)
def _show(
    sources: Sources,
    key: Annotated[
        str, typer.Argument(metavar="KEY|SESSION", help="The beginning of a job's key, or a session's whole id.")
    ],
    *,
    bodies: Annotated[bool, typer.Option("--bodies", help="Also the records, as they would leave.")] = False,
    json_wanted: AsJson = False,
) -> None:
    """Say all there is to know about a dead or dropped job, or each of a session.

    And what can be done about it.
    """
    with closing(opened(sources.load().spool_directory)) as db:
        found = dead_letters.open_letters(db, key, with_bodies=bodies)
    if json_wanted:
        print_json({"letters": [asdict(one) for one in found]})
    else:
        for one in found:
            print_lines(_letter_lines(one))


@commands.command("retry")
@takes(OF_SPOOL)
def _retry(
    sources: Sources,
    keys: Keys = None,
    *,
    everything: All = False,
    error: OfError = None,
    since: Since = None,
    yes: Yes = False,
    json_wanted: AsJson = False,
) -> None:
    """Try dead letters again, as if they were new.

    Dropped jobs are never touched.
    """
    wide = wide_choice(error, since, everything=everything)
    settings = sources.load()
    with closing(opened(settings.spool_directory)) as db:
        choice = chosen(db, keys or [], wide, None if yes else "retry")
        jobs = dead_letters.retry(db, settings, choice, clock.now_ms())
    if json_wanted:
        print_json({"jobs": jobs})
    else:
        is_served = bool(read_workers(Spool(settings.spool_directory)))
        print_lines(_retried_lines(jobs, is_served=is_served, has_key=settings.api_key is not None))


@commands.command("purge")
@takes(OF_SPOOL)
def _purge(
    sources: Sources,
    keys: Keys = None,
    *,
    everything: All = False,
    error: OfError = None,
    since: Since = None,
    yes: Yes = False,
    json_wanted: AsJson = False,
) -> None:
    """Give dead letters up: their bodies go.

    They stay known as dropped, so that they are not exported again by themselves.
    """
    wide = wide_choice(error, since, everything=everything)
    with closing(opened(sources.load().spool_directory)) as db:
        choice = chosen(db, keys or [], wide, None if yes else "purge")
        jobs = dead_letters.purge(db, choice, clock.now_ms())
        left = (
            [] if isinstance(db, Unmade) else erase(db)
        )  # also where nothing was purged: an earlier one may not have come so far
    if json_wanted:
        print_json({"jobs": jobs, "left": left})
    else:
        print_lines([f"{counted(jobs, 'dead letter')} purged"])
        print_lines(left, failed=True)
    if left:
        raise typer.Exit(PROBLEM)


def wide_choice(error: str | None, since: int | None, *, everything: bool) -> Choice | None:
    """What is chosen by something else than keys, None when nothing is."""
    if everything and (error or since is not None):
        raise typer.BadParameter("--all stands alone; --error and --since may be combined")
    if not (everything or error or since is not None):
        return None
    return Choice(fingerprint=error, since_ms=since)


def chosen(
    db: Database,
    keys: list[str],
    wide: Choice | None,
    verb: str | None,
    *,
    lister: str = "dead list",
    destination_id: int | None = None,
) -> Choice:
    """What was named, or what was described; what is to be done with it is asked for first, where there is a verb.

    `lister` is the command that lists them.
    """
    if bool(keys) == (wide is not None):
        raise typer.BadParameter("name KEYs, or choose by --all, --error or --since")
    if wide is None:
        return dead_letters.choose(db, keys, destination_id)
    wide = replace(wide, destination_id=destination_id)
    jobs = dead_letters.list_dead(db, wide).jobs
    if not jobs and wide.fingerprint is not None:
        raise DeadLetterError(f"no dead letter has the error {wide.fingerprint}: {PROGRAM} {lister} names them")
    if jobs and verb is not None:
        ask(f"{verb} {counted(jobs, 'dead letter')}", "--yes")
    return wide


def letters_lines(listed: Listed, state: str, retry: str = "dead retry") -> Iterator[str]:
    """`retry` is the command that tries them again."""
    yield f"{listed.jobs} {state}"
    for group in listed.groups:
        name = f"{group.fingerprint}  " if group.fingerprint else ""
        yield f"{name}{group.jobs} {state}, the last at {local(group.last_ms)}: {group.reason}"
        if group.answer:
            yield f"  the answer began: {group.answer}"
    for letter in listed.letters[:LETTERS_SHOWN]:
        yield f"  {short(letter.key)}  {local(letter.finished_ms)}  {letter.session} {letter.turn}: {letter.reason}"
    if listed.jobs > LETTERS_SHOWN:
        yield f"  and {listed.jobs - LETTERS_SHOWN} older ones; --json lists more"
    if listed.groups and listed.groups[0].fingerprint:
        yield f"to try a group again: {PROGRAM} {retry} --error {listed.groups[0].fingerprint}"


def _letter_lines(opened: Opened) -> Iterator[str]:
    letter = opened.letter
    error = f" (error {letter.fingerprint})" if letter.fingerprint else ""
    yield f"job {letter.key}"
    yield f"{letter.state} since {local(letter.finished_ms)}: {letter.reason}{error}"
    yield f"session {letter.session}, turn {letter.turn}, for {opened.endpoint or 'any endpoint'}"
    first = next((one.started_ms for one in opened.attempts), letter.enqueued_ms)
    again = "" if first >= letter.enqueued_ms else f" again, to be retried; the first attempt known: {local(first)}"
    yield f"{letter.records} records, {size(letter.body_bytes)} held; queued at {local(letter.enqueued_ms)}{again}"
    yield f"what to do: {opened.todo}"
    yield f"tried {counted(letter.attempts, 'time')}{', the last:' if opened.attempts else ''}"
    for one in opened.attempts:
        took = "ended with its worker" if one.ended_ms is None else f"{one.ended_ms - one.started_ms} ms"
        answer = f"; the answer began: {one.answer}" if one.answer else ""
        yield f"  {one.number}  {local(one.started_ms)}  {took}  {one.error or ''}{answer}"
    for body in opened.bodies:
        yield from json.dumps(body, ensure_ascii=False, indent=2).split("\n")
    if opened.problem:
        yield f"the records cannot be read: {opened.problem}"


def _retried_lines(jobs: int, *, is_served: bool, has_key: bool) -> Iterator[str]:
    yield f"{counted(jobs, 'dead letter')} will be tried again"
    if jobs:
        yield from how_to_deliver(is_served=is_served, has_key=has_key)
