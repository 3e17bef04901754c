"""`audit` and `recall`: what was delivered and should not have been, and how it is overwritten."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from app import clock, destination, ledger, screen
from app.audit import GONE, Audited, audit
from app.bell import Bell
from app.command import (
    DONE,
    PROBLEM,
    STOPPED,
    USAGE,
    AsJson,
    Chosen,
    Endpoint,
    EnvFile,
    SpoolDirectory,
    complain,
    moment,
    print_json,
    print_lines,
    sources_of,
)
from app.confirm import plan as confirm_plan
from app.db import open_ledger, open_whole
from app.endpoint import read_back_url
from app.folders import Folders
from app.opencode import Store, store_file
from app.recall import Plan, Recall, Sent
from app.settings import SettingsError
from app.sources import Sources
from app.spool import find_target
from app.transcript import TranscriptError

SHORT_CHARACTERS = 16

recalling = typer.Typer(rich_markup_mode=None)

Since = Annotated[
    str | None, typer.Option("--since", metavar="DURATION|DATE", help="Turns since: 12h, 7d, 2026-01-31.")
]
StoreFile = Annotated[Path | None, typer.Option("--db", metavar="PATH", help="OpenCode's store, or a copy of it.")]


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
    """List what was delivered and would be redacted differently today.

    By record, rule and count, never by value. Exit code 1 when there is any.
    """
    sources = sources_of(env_file, spool_directory, endpoint, chosen=chosen)
    with closing(open_ledger(sources.load().spool_directory)) as db:
        ours = find_target(db, sources.load())
        known = [] if ours is None else ledger.exported_sessions(db, ours.id)
        names = [one for one in known if not session or one in session]
        results = list(_audited(db, sources, _store(store), names, moment(since) or 0))
    if json_wanted:
        print_json({"sessions": [asdict(one) for one in results], "totals": _totals(results)})
    else:
        print_lines(_audit_lines(results))
    raise typer.Exit(PROBLEM if any(one.records for one in results) else DONE)


@recalling.command("recall")
def _recall(  # noqa: PLR0913 - one for each option
    sessions: Annotated[list[str] | None, typer.Argument(metavar="SESSION", help="A root session's id.")] = None,
    *,
    audited: Annotated[bool, typer.Option("--audit", help="The turns that audit lists.")] = False,
    match: Annotated[
        str | None, typer.Option("--match", metavar="REGEX", help="Turns that match it (RE2); it is redacted, too.")
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
    sources = sources_of(env_file, spool_directory, endpoint, chosen=chosen)
    settings = sources.load()
    if settings.api_key is None:
        raise SettingsError(["recall needs HELICONE_API_KEY: what is under another key is not reached"])
    with closing(open_whole(settings.spool_directory)) as db:
        ours = find_target(db, settings)
        if ours is None:
            complain("nothing was delivered to this destination")
            raise typer.Exit(PROBLEM)
        held = Recall(db, ours.id, _store(store), Folders(db, sources), pattern=match, is_blank=blank)
        problems = _elsewhere(db, ours.id, sessions or [])
        names = _named(db, ours.id, sessions or [], problems)
        results = list(_audited(db, sources, _store(store), names, moment(since) or 0)) if audited else None
        turns = _chosen_turns(held, names, results, problems, is_searched=match is not None)
        plans = [held.plan(session, wanted) for session, wanted in turns.items()]
        counts = {
            "sessions": sum(1 for one in plans if one.rewrites),
            "turns": sum(len(one.rewrites) for one in plans),
            "records": sum(one.records for one in plans),
        }
        problems += [f"{one.session}: {problem}" for one in plans for problem in one.problems]
        turns = {one.session: [each.version.turn for each in one.rewrites] for one in plans if one.rewrites}
        if dry_run or not turns:
            _end(counts, {}, problems, [], json_wanted=json_wanted, failed=bool(problems))
        if not yes:
            _ask(counts)
        expected = _queue(settings.spool_directory, ours.id, held, turns, problems)
    _deliver(sources, expected, turns, counts, problems, match, timeout, json_wanted=json_wanted)


def _store(path: Path | None) -> Store:
    return Store(path or store_file(os.environ))


def _audited(
    db: sqlite3.Connection, sources: Sources, store: Store, sessions: Sequence[str], since_ms: int
) -> Iterator[Audited]:
    ours = find_target(db, sources.load())
    if ours is None:
        return
    with screen.spinner(f"looking through {len(sessions)} sessions"):
        for one in audit(db, ours.id, store, Folders(db, sources), sessions, since_ms=since_ms):
            if one is not None:
                yield one


def _audit_lines(results: Sequence[Audited]) -> Iterator[str]:
    for one in results:
        if one.problem:
            yield screen.visible(f"{_short(one.session)}: cannot be audited: {one.problem}")
        if one.records:
            day = datetime.fromtimestamp((one.created_ms or 0) / 1000, UTC).date().isoformat()
            yield screen.visible(f"{_short(one.session)}  {one.project or ''}  {day}: {len(one.records)} records")
        for record in one.records:
            told = ", ".join(f"{name}: {count}" for name, count in sorted(record.hits.items()))
            yield screen.visible(f"  {record.path} ({record.kind}): {told}")
    totals = _totals(results)
    yield ", ".join(f"{number} {name}" for name, number in totals.items() if number) or "nothing was delivered"


def _totals(results: Sequence[Audited]) -> dict[str, int]:
    return {
        "sessions audited": sum(1 for one in results if not one.problem),
        "sessions to be redacted differently": sum(1 for one in results if one.records),
        "records to be redacted differently": sum(len(one.records) for one in results),
        "records made differently, with nothing to redact": sum(one.changed for one in results),
        "turns from before digests were kept, compared by rules alone": sum(one.unprinted for one in results),
        "turns no longer in OpenCode": sum(one.gone for one in results),
        "turns overwritten by an earlier recall": sum(one.sealed for one in results),
        "sessions that cannot be audited": sum(1 for one in results if one.problem),
    }


def _short(session: str) -> str:
    return session[:SHORT_CHARACTERS]


def _chosen_turns(
    held: Recall,
    names: Sequence[str],
    results: Iterable[Audited] | None,
    problems: list[str],
    *,
    is_searched: bool,
) -> dict[str, list[str] | None]:
    """By session the turns to be overwritten; None for all of it. What cannot be looked at is a problem.

    `results` of an audit choose, where there was one.
    """
    found: dict[str, list[str] | None] = {}
    for one in results or ():
        if one.problem:
            problems.append(f"{one.session}: cannot be audited: {one.problem}")
        if one.records:
            found[one.session] = list({record.turn: None for record in one.records})
    if results is not None:
        return found
    if not is_searched:
        return dict.fromkeys(names)
    for name in names:
        try:
            turns = held.matching(name)
        except TranscriptError as error:
            problems.append(f"{name}: cannot be searched: {error}")
            continue
        if turns is None:
            problems.append(f"{name}: cannot be searched: {GONE}")
        elif turns:
            found[name] = sorted(turns)
    return found


def _named(db: sqlite3.Connection, ours: int, sessions: Sequence[str], problems: list[str]) -> list[str]:
    """Those of the sessions that were delivered here, or all that were."""
    known = ledger.exported_sessions(db, ours)
    for name in sessions:
        if name not in known:
            root = ledger.frozen(db, ours, name)
            problems.append(f"{name}: " + (f"a subagent: name {root[0]}" if root else "not delivered to here"))
    return [name for name in known if not sessions or name in sessions]


def _elsewhere(db: sqlite3.Connection, ours: int, sessions: Sequence[str]) -> list[str]:
    """Sessions that were delivered under another key or to another endpoint, too: these rows stay as they are."""
    return [
        f"{name}: also delivered to {other.endpoint or 'another endpoint'} under another key: not reached from here"
        for other in destination.destinations(db)
        if other.id != ours
        for name in ledger.exported_sessions(db, other.id)
        if name in sessions and any(one.was_attempted for one in ledger.exported(db, other.id, name))
    ]


def _ask(counts: dict[str, int]) -> None:
    what = f"overwrite {counts['records']} records of {counts['turns']} turns in {counts['sessions']} sessions"
    if not sys.stdin.isatty():
        complain(f"this would {what}: say --yes")
        raise typer.Exit(USAGE)
    if not typer.confirm(f"{what}? It cannot be undone.", err=True):
        complain("nothing was done")
        raise typer.Exit(PROBLEM)


def _queue(
    spool: Path,
    ours: int,
    held: Recall,
    turns: Mapping[str, list[str] | None],
    problems: list[str],
) -> list[Sent]:
    expected: list[Sent] = []
    with closing(Bell(spool, ours)) as bell:
        for session, wanted in turns.items():
            plan: Plan = held.plan(session, wanted)
            sent, refused = held.queue(plan, clock.now_ms(), bell.ring)
            expected += sent
            problems += (f"{session}: {one}" for one in refused)
    return expected


def _deliver(  # noqa: PLR0913 - the rest of `_recall`
    sources: Sources,
    expected: Sequence[Sent],
    turns: Mapping[str, Sequence[str] | None],
    counts: dict[str, int],
    problems: list[str],
    match: str | None,
    timeout_s: float,
    *,
    json_wanted: bool,
) -> None:
    from app import overwritten  # noqa: PLC0415 - its HTTP client takes longer to load than most commands run
    from app.flush import flush  # noqa: PLC0415 - the same
    from app.helicone import Client, ClientError  # noqa: PLC0415 - the same

    settings = sources.load()
    notes = [] if match is None else ["add that pattern to redactPatterns: what comes is not redacted by it"]
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    end_s = time.monotonic() + timeout_s
    try:
        with screen.spinner("overwriting"):
            flushed = flush(sources, timeout_s)
        if flushed.was_stopped:
            raise typer.Exit(STOPPED)
        problems += _undelivered(sources, turns)
        if not flushed.is_done:
            problems += flushed.waiting
        url = read_back_url(settings.endpoint, key, settings.readback_url)
        if url is None:
            notes += ["it cannot be read back: nothing says where; set HELICONE_READBACK_URL"]
            _end(counts, {}, problems, notes, json_wanted=json_wanted, failed=bool(problems))
            return
        pace = confirm_plan("on", settings.endpoint, key, settings.readback_url).queries_per_minute
        with screen.spinner("reading back"), Client(key) as client:
            seen = overwritten.look(client, url, expected, queries_per_minute=pace, end_s=end_s)
    except ClientError as error:
        raise SettingsError([str(error)]) from None
    for one in seen:
        if one.outcome != "overwritten":
            problems.append(f"{one.session}: {one.path}: {one.outcome}{f' ({one.reason})' if one.reason else ''}")
    outcomes = overwritten.counted(seen)
    _end(counts, outcomes, problems, notes, json_wanted=json_wanted, failed=bool(problems))


def _undelivered(sources: Sources, turns: Mapping[str, Sequence[str] | None]) -> Iterator[str]:
    settings = sources.load()
    with closing(open_ledger(settings.spool_directory)) as db:
        ours = find_target(db, settings)
        for session, wanted in turns.items():
            for one in ledger.exported(db, ours.id, session) if ours is not None else ():
                if one.turn in (wanted or ()) and one.state not in {"delivered", "superseded"}:
                    told = one.drop_reason or one.error
                    yield f"{session}: {one.turn}: {one.state}{f' ({told})' if told else ''}"


def _end(
    counts: dict[str, int],
    outcomes: Mapping[str, int],
    problems: Sequence[str],
    notes: Sequence[str],
    *,
    json_wanted: bool,
    failed: bool,
) -> None:
    """Print the result and end the command."""
    if json_wanted:
        print_json({**counts, "outcomes": outcomes, "problems": list(problems), "notes": list(notes)})
    else:
        print_lines([", ".join(f"{number} {name}" for name, number in counts.items())])
        print_lines(f"{number} {name}" for name, number in outcomes.items())
        print_lines((screen.visible(problem) for problem in problems), failed=True)
        print_lines(notes)
    raise typer.Exit(PROBLEM if failed else DONE)
