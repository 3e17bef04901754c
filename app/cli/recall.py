"""`audit` and `recall`: what was delivered and should not have been, and how it is overwritten."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from app.capture.folders import Folders
from app.capture.targets import find_target
from app.cli import render
from app.cli.options import (
    DONE,
    PROBLEM,
    STOPPED,
    USAGE,
    AsJson,
    Chosen,
    Endpoint,
    EnvFile,
    SpoolDirectory,
    StoreFile,
    agrees,
    complain,
    moment,
    print_json,
    print_lines,
    sources_of,
)
from app.cli.render_recall import Report, audit_lines, audit_totals
from app.database.open import open_ledger, open_whole
from app.ledger import destinations, history, versions
from app.ledger.destinations import Destination
from app.ledger.erasure import erase
from app.recall.audit import GONE, Audited, audit
from app.recall.recall import Recall
from app.settings.lookup import Sources
from app.settings.model import SettingsError
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store, StoredSession, store_file
from app.transcript.model import TranscriptError

recalling = typer.Typer(rich_markup_mode=None)

Since = Annotated[
    str | None, typer.Option("--since", metavar="DURATION|DATE", help="Turns since: 12h, 7d, 2026-01-31.")
]


@recalling.command("audit")
def _audit(  # noqa: PLR0913 - one for each option
    *,
    since: Since = None,
    session: Annotated[list[str] | None, typer.Option("--session", metavar="SESSION", help="Only this one.")] = None,
    store: StoreFile = None,
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    endpoint: Endpoint = None,
    chosen: Chosen = None,
    json_wanted: AsJson = False,
) -> None:
    """List what today's rules would redact of what was sent.

    By record, rule and count, never by value. Exit code 1 when there is any, or a
    session cannot be audited.
    """
    sources = sources_of(env_file, spool_directory, endpoint, chosen=chosen)
    settings = sources.load()
    with closing(open_ledger(settings.spool_directory)) as db:
        ours = find_target(db, settings)
        if ours is None and settings.api_key is None:
            raise SettingsError(["audit needs HELICONE_API_KEY: what is under another key is not looked at"])
        known = [] if ours is None else history.exported_sessions(db, ours.id)
        names = [one for one in known if not session or one in session]
        unknown = [one for one in session or [] if one not in known]
        with _store(store) as opencode:
            results = list(_audited(db, sources, opencode, names, moment(since) or 0))
    if json_wanted:
        print_json({"sessions": [asdict(one) for one in results], "totals": audit_totals(results)})
    else:
        print_lines(audit_lines(results))
    for name in unknown:
        complain(f"{name}: not delivered to here")
    raise typer.Exit(PROBLEM if unknown or any(one.records or one.problem for one in results) else DONE)


@recalling.command("recall")
def _recall(  # noqa: PLR0913 - one for each option
    sessions: Annotated[list[str] | None, typer.Argument(metavar="SESSION", help="A root session's id.")] = None,
    *,
    audited: Annotated[bool, typer.Option("--audit", help="The turns that audit lists.")] = False,
    match: Annotated[
        str | None, typer.Option("--match", metavar="REGEX", help="Turns that match (RE2; -: read it); redacted, too.")
    ] = None,
    blank: Annotated[bool, typer.Option("--blank", help="Leave nothing in them.")] = False,
    since: Since = None,
    store: StoreFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be overwritten.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Wait so long.")] = 60,
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    endpoint: Endpoint = None,
    chosen: Chosen = None,
    json_wanted: AsJson = False,
) -> None:
    """Overwrite at Helicone what was delivered.

    Under the same ids, redacted by today's rules or (--blank) empty; then read back. Exit code 0 when all of it is.
    """
    if audited and match is not None:
        raise typer.BadParameter("--audit and --match exclude each other")
    if not (sessions or audited or match is not None):
        raise typer.BadParameter("name SESSIONs, or choose by --audit or --match")
    since_ms, pattern = moment(since) or 0, _pattern(match)
    sources = sources_of(env_file, spool_directory, endpoint, chosen=chosen)
    settings = sources.load()
    if settings.api_key is None:
        raise SettingsError(["recall needs HELICONE_API_KEY: what is under another key is not reached"])
    report = Report()
    with closing(open_whole(settings.spool_directory)) as db, _store(store) as opencode:
        ours = find_target(db, settings)
        if ours is None:
            complain("nothing was delivered to this destination")
            raise typer.Exit(PROBLEM)
        folders = Folders(db, sources)
        held = Recall(db, ours.id, opencode, folders, pattern=pattern, is_blank=blank, since_ms=since_ms)
        names = _named(db, ours.id, sessions or [], report)
        chosen_turns: Mapping[str, Collection[str] | None] = dict.fromkeys(names)
        if audited:
            chosen_turns = _audited_turns(_audited(db, sources, opencode, names, since_ms), report)
        elif pattern is not None:
            chosen_turns = _matching_turns(held, names, report)
        turns = _planned(held, opencode, chosen_turns, report)
        report.problems += _elsewhere(db, ours.id, {*(sessions or []), *turns})
        if turns and not dry_run:
            if not yes:
                _ask(report)
            try:
                _carry_out(sources, ours, held, turns, report, timeout)
            finally:
                report.problems += erase(db)
            if pattern is not None:
                report.notes.append("add that pattern to redactPatterns: what comes is not redacted by it")
    _end(report, json_wanted=json_wanted)


def _pattern(match: str | None) -> str | None:
    """`-` is a line of standard input: a list of processes and the shell's history do not show it."""
    if match != "-":
        return match
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise typer.BadParameter("--match -: there is no pattern on standard input")
    return line


@contextmanager
def _store(path: Path | None) -> Iterator[Store]:
    store = Store(path or store_file(os.environ))
    with store.kept_open():
        yield store


def _audited(
    db: sqlite3.Connection, sources: Sources, store: Store, sessions: Sequence[str], since_ms: int
) -> Iterator[Audited]:
    ours = find_target(db, sources.load())
    if ours is None:
        return
    folders = Folders(db, sources)
    with render.bar("auditing") as bar:
        for done, one in enumerate(audit(db, ours.id, store, folders, sessions, since_ms=since_ms), 1):
            bar.show(done, len(sessions))
            if one is not None:
                yield one


def _audited_turns(results: Iterable[Audited], report: Report) -> dict[str, list[str] | None]:
    """By session the turns that today's rules would redact differently."""
    found: dict[str, list[str] | None] = {}
    for one in results:
        if one.problem:
            report.complain(one.session, [f"cannot be audited: {one.problem}"])
        if one.records:
            found[one.session] = list({record.turn: None for record in one.records})
    return found


def _matching_turns(held: Recall, names: Sequence[str], report: Report) -> dict[str, list[str] | None]:
    found: dict[str, list[str] | None] = {}
    with render.bar("searching") as bar:
        for done, name in enumerate(names, 1):
            bar.show(done, len(names))
            try:
                turns = held.matching(name)
            except TranscriptError as error:
                report.complain(name, [f"cannot be searched: {error}"])
                continue
            if turns is None:
                report.complain(name, [f"cannot be searched: {GONE}"])
            elif turns:
                found[name] = sorted(turns)
    return found


def _planned(
    held: Recall, store: Store, turns: Mapping[str, Collection[str] | None], report: Report
) -> dict[str, tuple[str, ...]]:
    """By session the turns that can be overwritten; their bodies are made again when they are queued."""
    found = {}
    stored: dict[str, StoredSession] = {}
    with suppress(StoreError):  # `--blank` does without
        stored = {one.id: one for one in store.roots(among=turns)}
    with render.bar("planning") as bar:
        for done, (session, wanted) in enumerate(turns.items(), 1):
            bar.show(done, len(turns))
            plan = held.plan(session, wanted)
            report.count(plan, stored.get(session))
            if plan.rewrites:
                found[session] = tuple(one.version.turn for one in plan.rewrites)
    return found


def _named(db: sqlite3.Connection, ours: int, sessions: Sequence[str], report: Report) -> list[str]:
    """Those of the sessions that were delivered here, or all that were."""
    known = history.exported_sessions(db, ours)
    for name in sessions:
        if name not in known:
            root = versions.frozen(db, ours, name)
            report.complain(name, [f"a subagent: name {root[0]}" if root else "not delivered to here"])
    return [name for name in known if not sessions or name in sessions]


def _elsewhere(db: sqlite3.Connection, ours: int, sessions: Collection[str]) -> list[str]:
    """Sessions that were delivered under another key or to another endpoint, too: these rows stay as they are."""
    return [
        f"{name}: also delivered to {other.endpoint or 'another endpoint'} under another key: not reached from here"
        for other in destinations.destinations(db)
        if other.id != ours
        for name in history.exported_sessions(db, other.id)
        if name in sessions and any(one.was_attempted for one in history.exported(db, other.id, name))
    ]


def _ask(report: Report) -> None:
    """Ends the command unless somebody says yes."""
    if not sys.stdin.isatty():
        complain(f"this would {report.question}: say --yes")
        raise typer.Exit(USAGE)
    for line in report.chosen:
        complain(line)
    if not agrees(f"{report.question}? It cannot be undone."):
        complain("nothing was done")
        raise typer.Exit(USAGE)


def _carry_out(
    sources: Sources,
    ours: Destination,
    held: Recall,
    turns: Mapping[str, Collection[str]],
    report: Report,
    timeout_s: float,
) -> None:
    from app.exporters.helicone.client import ClientError  # noqa: PLC0415 - takes longer to load than most commands run
    from app.recall.carry_out import StoppedError, overwrite, read_back  # noqa: PLC0415 - the same

    end_s = time.monotonic() + timeout_s
    try:
        read_back(sources, overwrite(sources, ours, held, turns, report, end_s), report, end_s)
    except StoppedError:
        complain("stopped: what is queued is delivered by the next worker")
        raise typer.Exit(STOPPED) from None
    except ClientError as error:
        raise SettingsError([str(error)]) from None


def _end(report: Report, *, json_wanted: bool) -> None:
    """Print it and end the command."""
    if json_wanted:
        print_json(asdict(report))
    else:
        print_lines(report.lines())
        print_lines(report.problem_lines(), failed=True)
        print_lines(report.notes)
    raise typer.Exit(PROBLEM if report.problems else DONE)
