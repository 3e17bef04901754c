"""Commands `audit` and `recall`: find what was delivered and should not have been, and overwrite it."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
    OF_DESTINATION,
    PROBLEM,
    STOPPED,
    USAGE,
    AsJson,
    StoreFile,
    Yes,
    ask,
    complain,
    print_json,
    print_lines,
    since_option,
    takes,
)
from app.cli.render_recall import Report, audit_lines, audit_totals
from app.database.open import open_if_made, open_whole
from app.exporters.client import ReadBackError
from app.exporters.encoding import overwriting
from app.exporters.kinds import traits_of
from app.ledger.destinations import Destination
from app.ledger.erasure import erase
from app.ledger.history import exported_sessions
from app.queue import Queue
from app.recall.audit import audit
from app.recall.carry_out import overwrite
from app.recall.expected import ExpectedContent
from app.recall.recall import Recall
from app.recall.rewrite import Problem, Refusal
from app.settings.lookup import Sources
from app.settings.model import Settings, SettingsError
from app.sources.opencode.access import StoreError
from app.sources.opencode.rows import Head
from app.sources.opencode.store import Store, store_file

commands = typer.Typer(rich_markup_mode=None)

Since = Annotated[int | None, since_option("Turns since")]


@commands.command("audit")
@takes(OF_DESTINATION)
def _audit(
    sources: Sources,
    *,
    since: Since = None,
    session: Annotated[list[str] | None, typer.Option("--session", metavar="SESSION", help="Only this one.")] = None,
    store: StoreFile = None,
    json_wanted: AsJson = False,
) -> None:
    """List what today's rules would redact of what was sent.

    By record, rule and count, never by value. Exit code 1 when there is any, or a
    session cannot be audited.
    """
    settings = sources.load()
    with closing(open_if_made(settings.spool_directory)) as db:
        ours = find_target(db, settings)
        if ours is None and not settings.credential:
            raise SettingsError(["audit needs HELICONE_API_KEY: what is under another key is not looked at"])
        known = [] if ours is None else exported_sessions(db, ours.id)
        names = [one for one in known if not session or one in session]
        unknown = [one for one in session or [] if one not in known]
        folders, results = Folders(db, sources), []
        with _store(store) as opencode, render.bar("auditing") as bar:
            for done, name in enumerate(names, 1):
                bar.show(done, len(names))
                one = audit(db, ours.id, opencode, folders, name, since or 0) if ours is not None else None
                results += [one] if one is not None else []
    if json_wanted:
        print_json({"sessions": [asdict(one) for one in results], "totals": audit_totals(results)})
    else:
        print_lines(audit_lines(results))
    for name in unknown:
        complain(f"{name}: not delivered to here")
    raise typer.Exit(PROBLEM if unknown or any(one.records or one.problem for one in results) else DONE)


@commands.command("recall")
@takes(OF_DESTINATION)
def _recall(  # noqa: PLR0913 - one for each option
    sources: Sources,
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
    yes: Yes = False,
    timeout: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Wait so long.")] = 60,
    json_wanted: AsJson = False,
) -> None:
    """Overwrite at Helicone what was delivered.

    Under the same ids, redacted by today's rules or (--blank) empty; then read back. Exit code 0 when all of it is.
    """
    if audited and match is not None:
        raise typer.BadParameter("--audit and --match exclude each other")
    if not (sessions or audited or match is not None):
        raise typer.BadParameter("name SESSIONs, or choose by --audit or --match")
    pattern = _pattern(match)
    settings = sources.load()
    if not settings.credential:
        raise SettingsError(["recall needs HELICONE_API_KEY: what is under another key is not reached"])
    if traits_of(settings.kind, settings.preset, settings.project).RECALLED == "impossible":
        told = "without a preset nobody here knows how anything is deleted there: delete it by its own means"
        raise SettingsError([f"recall --destination {settings.destination}: {told}"])
    report = Report()
    with closing(open_whole(settings.spool_directory, open_if_made)) as db, _store(store) as opencode:
        ours = find_target(db, settings)
        if ours is None:
            complain("nothing was delivered to this destination")
            raise typer.Exit(PROBLEM)
        recall = Recall(
            db, ours.id, opencode, Folders(db, sources), pattern=pattern, is_blank=blank, since_ms=since or 0
        )
        names, problems = recall.named(sessions or [])
        report.tell(problems)
        wanted: Mapping[str, Collection[str] | None] = dict.fromkeys(names)
        if audited or pattern is not None:
            wanted = _chosen(names, recall.audited if audited else recall.matching, report)
        turns = _planned(recall, opencode, wanted, report)
        report.tell(recall.elsewhere({*(sessions or []), *turns}))
        if turns and not dry_run:
            if not yes:
                ask(report.question, "--yes", details=[*report.chosen, _what_stays(blank=blank)], refused=USAGE)
            try:
                _carry_out(sources, ours, recall, turns, report, timeout)
            finally:
                report.problems += erase(db)
            if pattern is not None:
                report.notes.append("add that pattern to redactPatterns: what comes is not redacted by it")
    _end(report, json_wanted=json_wanted)


def _what_stays(*, blank: bool) -> str:
    return "it cannot be undone" + ("" if blank else "; what today's rules let through stays: --blank empties them")


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


def _chosen(
    names: Sequence[str], choose: Callable[[str], frozenset[str] | Problem], report: Report
) -> dict[str, frozenset[str]]:
    """By session the turns that are chosen of it."""
    found = {}
    with render.bar("looking") as bar:
        for done, name in enumerate(names, 1):
            bar.show(done, len(names))
            turns = choose(name)
            if isinstance(turns, Problem):
                report.tell([turns])
            elif turns:
                found[name] = turns
    return found


def _planned(
    recall: Recall, store: Store, turns: Mapping[str, Collection[str] | None], report: Report
) -> dict[str, tuple[str, ...]]:
    """By session the turns that can be overwritten; their bodies are made again when they are queued."""
    found = {}
    stored: dict[str, Head] = {}
    with suppress(StoreError):  # `--blank` does without
        stored = {one.id: one for one in store.roots(among=turns)}
    with render.bar("planning") as bar:
        for done, (session, wanted) in enumerate(turns.items(), 1):
            bar.show(done, len(turns))
            plan = recall.plan(session, wanted)
            report.count(plan, stored.get(session))
            if plan.rewrites:
                found[session] = tuple(one.version.turn for one in plan.rewrites)
    return found


def _carry_out(
    sources: Sources,
    ours: Destination,
    recall: Recall,
    turns: Mapping[str, Collection[str]],
    report: Report,
    timeout_s: float,
) -> None:
    from app.operations.flush import flush  # noqa: PLC0415 - takes longer to load than most commands run

    waiting: tuple[str, ...] = ()

    def deliver(left_s: float) -> bool:
        nonlocal waiting
        with render.spinner("overwriting") as tell:
            flushed = flush(sources, left_s, tell, only_present=True)
        if flushed.was_stopped:
            complain("stopped: what is queued is delivered by the next worker")
            raise typer.Exit(STOPPED)
        waiting = () if flushed.is_done else flushed.waiting
        return flushed.is_done

    settings, end_s = sources.load(), time.monotonic() + timeout_s
    with closing(Queue(settings.spool_directory, ours.id)) as queue:
        done = overwrite(recall, turns, queue.wake, deliver, end_s)
    report.tell(done.problems)
    report.problems += waiting
    _read_back(settings, done.expected, report, end_s)


def _read_back(settings: Settings, expected: Sequence[ExpectedContent], report: Report, end_s: float) -> None:
    from app.operations.remote import asked  # noqa: PLC0415 - the same
    from app.recall.compare import DONE as DONE_THERE  # noqa: PLC0415 - the same
    from app.recall.compare import look, presence  # noqa: PLC0415 - the same

    try:
        with render.spinner("reading back"), asked(settings) as helicone:
            read = presence(helicone.stored) if overwriting(settings.kind) is None else helicone.shown
            seen = look(read, expected, end_s=end_s)
    except ReadBackError as error:
        report.notes.append(f"it cannot be read back: {error}")
        return
    report.outcomes = dict(Counter(one.outcome for one in seen))
    for one in seen:
        if one.outcome not in DONE_THERE:
            told = f"{one.outcome}{f' ({one.reason})' if one.reason else ''}"
            report.tell([Problem(Refusal.NOT_THERE, one.session, one.path, told)])


def _end(report: Report, *, json_wanted: bool) -> None:
    """Print it and end the command."""
    if json_wanted:
        print_json(asdict(report))
    else:
        print_lines(report.lines())
        print_lines(report.problems, failed=True)
        print_lines(report.notes)
    raise typer.Exit(PROBLEM if report.problems else DONE)
