"""`verify`: what became of each turn that OpenCode has."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from app.capture.targets import find_target
from app.cli import render
from app.cli.options import (
    DONE,
    PROBLEM,
    PROGRAM,
    AsJson,
    Chosen,
    Endpoint,
    EnvFile,
    SpoolDirectory,
    StoreFile,
    complain,
    moment,
    print_json,
    print_lines,
    sources_of,
)
from app.database.open import open_ledger
from app.delivery import confirm
from app.ledger import history
from app.runtime import clock
from app.settings.lookup import Sources
from app.settings.model import SettingsError
from app.sources.opencode.store import Store, store_file
from app.verify.turn_status import Verdict
from app.verify.verify import Choice, UnknownSessionError, verify

if TYPE_CHECKING:
    from app.verify.remote_check import Sought  # brings the HTTP client along

verification = typer.Typer(rich_markup_mode=None)

LONG_SESSIONS = 20
"""So many take long enough for a progress bar."""
NAMED_MAX = 3
"""Sessions that the line about what to do names."""


@verification.command("verify")
def _verify(  # noqa: PLR0913 - one for each option
    *,
    since: Annotated[
        str | None, typer.Option(metavar="DATE|DURATION", help="Sessions changed since: 2026-01-31, 36h, 7d.")
    ] = None,
    session: Annotated[list[str] | None, typer.Option(metavar="ID", help="This session; may be repeated.")] = None,
    db: StoreFile = None,
    remote: Annotated[bool, typer.Option("--remote", help="Also look for every record at Helicone.")] = False,
    env_file: EnvFile = None,
    spool_directory: SpoolDirectory = None,
    endpoint: Endpoint = None,
    chosen: Chosen = None,
    json_wanted: AsJson = False,
) -> None:
    """Compare OpenCode's store with the queue.

    Says of each session what became of its turns. Exit code 1 when a turn is unexplained.
    """
    sources = sources_of(env_file, spool_directory, endpoint, chosen=chosen)
    choice = Choice(moment(since) or 0, tuple(session or ()))
    store = Store(db or store_file(os.environ))
    try:
        with store.kept_open(), _progress("verifying") as step:
            verdicts = verify(sources, store, choice, pause=time.sleep, progress=step)
    except UnknownSessionError as error:
        complain(str(error))
        raise typer.Exit(PROBLEM) from None
    sought: dict[str, Sought] = {}
    failure = _seek(sources, verdicts, sought) if remote else ""
    if json_wanted:
        print_json(as_json(verdicts, sought, failure))
    else:
        print_lines(lines(verdicts, sought, failure))
    is_fine = all(one.is_fine for one in verdicts) and all(one.is_fine for one in sought.values()) and not failure
    raise typer.Exit(DONE if is_fine else PROBLEM)


def _seek(sources: Sources, verdicts: Sequence[Verdict], sought: dict[str, Sought]) -> str:
    """Look for what each session's jobs say was delivered. Why that came to nothing, '' when it did not."""
    from app.exporters.helicone.client import Client, ClientError, ReadBackError  # noqa: PLC0415 - takes longer to load than the rest
    from app.verify.remote_check import seek  # noqa: PLC0415 - the same

    settings = sources.load()
    secret = settings.api_key.get_secret_value() if settings.api_key else ""
    plan = confirm.plan("on", settings.endpoint, secret, settings.readback_url)
    if not secret or plan.url is None:
        return plan.off_reason or "there is no key to ask with (HELICONE_API_KEY)"
    url, wait = plan.url, _pace(plan.queries_per_minute)
    try:
        with (
            closing(open_ledger(settings.spool_directory)) as db,
            Client(secret) as client,
            _progress("looking at Helicone") as step,
        ):
            ours = find_target(db, settings)
            for done, one in enumerate(verdicts if ours is not None else ()):
                step(done, len(verdicts))
                known = history.exported(db, ours.id if ours else -1, one.session)
                sought[one.session] = seek(
                    known,
                    lambda start_ms, ids: wait() or client.stored(url, start_ms=start_ms, request_ids=ids),
                    now_ms=clock.now_ms(),
                    delay_ms=confirm.looks_ms(ours.route if ours else None, 0)[0],
                )
    except ClientError as error:
        raise SettingsError([str(error)]) from None
    except ReadBackError as error:
        return str(error)
    return ""


def _pace(queries_per_minute: int) -> Callable[[], None]:
    """Returns when another query may be made."""
    allowance = confirm.Allowance(queries_per_minute, queries_per_minute, clock.read().steady_ms)

    def wait() -> None:
        while not allowance.take(clock.read().steady_ms):
            time.sleep(0.1)

    return wait


# --- what is printed


def as_json(verdicts: Sequence[Verdict], sought: Mapping[str, Sought], failure: str) -> dict[str, object]:
    return {
        "sessions": [
            {**asdict(one), "remote": asdict(sought[one.session]) if one.session in sought else None}
            for one in verdicts
        ],
        "turns": sum(one.turns for one in verdicts),
        "states": dict(_states(verdicts)),
        "unexplained": sum(len(one.unexplained) for one in verdicts),
        "remote_failure": failure,
    }


def lines(verdicts: Sequence[Verdict], sought: Mapping[str, Sought], failure: str) -> Iterator[str]:
    """The table, a total, and what to do."""
    shown = [one for one in verdicts if one.turns or one.copied or not one.is_fine]
    rows = [
        (one.session, one.project or "-", render.day(one.changed_ms), str(one.turns), _told([one], sought))
        for one in shown
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for one, row in zip(shown, rows, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        note = "; deleted in OpenCode" if one.is_deleted else f"; {one.failure}" if one.failure else ""
        yield "  ".join([*cells, row[3].rjust(widths[3]), f"{row[4]}{note}"])
    turns = sum(one.turns for one in shown)
    yield f"total: {len(shown)} session(s), {turns} turn(s): {_told(shown, sought) or 'none'}"
    yield from _advice(shown, sought, failure)


def _advice(verdicts: Sequence[Verdict], sought: Mapping[str, Sought], failure: str) -> Iterator[str]:
    wrong = [one for one in verdicts if one.unexplained]
    if wrong:
        named = " ".join(f"--session {one.session}" for one in wrong[:NAMED_MAX])
        more = f" (and {len(wrong) - NAMED_MAX} more)" if len(wrong) > NAMED_MAX else ""
        count = sum(len(one.unexplained) for one in wrong)
        yield f"{count} unexplained: start OpenCode in that project, or: {PROGRAM} backfill {named}{more}"
    lost = [name for name, one in sought.items() if one.missing]
    if lost:
        named = " ".join(lost[:NAMED_MAX])
        yield f"not at Helicone, though it has accepted them: see `{PROGRAM} doctor --send`; {named}"
    unnamed = sum(one.unnamed_turns for one in sought.values())
    if unnamed:
        yield f"{unnamed} delivered turn(s) with unknown ids were not looked for: they are older than the ids kept"
    if failure:
        yield f"Helicone could not be asked: {failure}"


_WORDS = {
    "in_progress": "in progress",
    "unread": "unread yet",
    "undone": "undone before they were read",
    "switched_off": "switched off",
    "elsewhere": "in a folder that is not captured",
    "earlier": "from before capture or while it was off",
    "inside": "inside another session",
    "other_destination": "for another destination",
    "changed": "CHANGED SINCE",
    "never_seen": "NEVER SEEN",
}
_ORDER = ("delivered", "recalled", "waiting", "dead", "dropped", *_WORDS)


def _told(verdicts: Sequence[Verdict], sought: Mapping[str, Sought]) -> str:
    """What is not zero."""
    reasons: Counter[str] = Counter()
    for one in verdicts:
        reasons.update(one.dropped_by_reason)
    inner = {
        "delivered": {
            "confirmed": sum(one.confirmed for one in verdicts),
            "without bodies": sum(one.body_not_stored for one in verdicts),
        },
        "waiting": {
            "held": sum(one.held for one in verdicts),
            "to be made again": sum(one.without_bodies for one in verdicts),
        },
        "dropped": reasons,
    }
    states = _states(verdicts)
    told = [
        f"{states[name]} {_WORDS.get(name, name)}{_bracketed(inner.get(name, {}))}" for name in _ORDER if states[name]
    ]
    records = Counter(_WORDS.get(one.record or "", "") for one in verdicts if "session" in one.unexplained)
    told += [f"{count} session record(s) {name}" for name, count in records.items()]
    told += [
        f"{count} {name}"
        for name, count in {
            "older version(s)": sum(one.superseded for one in verdicts),
            "turn(s) gone in OpenCode": sum(one.gone for one in verdicts),
            "copied by a fork": sum(one.copied for one in verdicts),
            "turn(s) that CANNOT BE READ": sum(one.unreadable for one in verdicts),
            "odd value(s)": sum(one.odd for one in verdicts),
        }.items()
        if count
    ]
    told += _remote([sought[one.session] for one in verdicts if one.session in sought])
    return ", ".join(told)


def _remote(sought: Sequence[Sought]) -> list[str]:
    numbers = {
        "found": sum(one.found for one in sought),
        "without bodies": sum(one.without_bodies for one in sought),
        "not yet there": sum(one.not_yet for one in sought),
        "MISSING": sum(one.missing for one in sought),
    }
    told = ", ".join(f"{count} {name}" for name, count in numbers.items() if count)
    return [f"records at Helicone: {told}"] if told else []


def _bracketed(numbers: Mapping[str, int]) -> str:
    told = ", ".join(f"{count} {name}" for name, count in numbers.items() if count)
    return f" ({told})" if told else ""


def _states(verdicts: Sequence[Verdict]) -> Counter[str]:
    states: Counter[str] = Counter()
    for one in verdicts:
        states.update(one.states)
    return states


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for long work that somebody watches; it is told (done, all)."""
    if not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    from rich.console import Console  # noqa: PLC0415 - costs 50 ms, and mostly nobody watches
    from rich.progress import Progress  # noqa: PLC0415 - the same

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, all_: bar.update(task, completed=done, total=all_, visible=all_ >= LONG_SESSIONS)
