"""Command `verify`: shows what became of each turn that OpenCode has."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from app.capture.targets import find_target
from app.cli import render
from app.cli.layout import day, show
from app.cli.options import (
    DONE,
    OF_DESTINATION,
    PROBLEM,
    PROGRAM,
    AsJson,
    StoreFile,
    print_json,
    since_option,
    takes,
)
from app.database.open import open_if_made
from app.exporters.client import ReadBackError
from app.exporters.kinds import traits_of
from app.ledger.history import exported
from app.operations.titles import Titles
from app.runtime import clock
from app.runtime.terminal import counted
from app.settings.lookup import Sources
from app.sources.opencode.store import Store, store_file
from app.verify.turn_status import SessionStatus
from app.verify.verify import Choice, verify

if TYPE_CHECKING:
    from app.verify.remote_check import RemoteCheck

commands = typer.Typer(rich_markup_mode=None)

LONG_SESSIONS = 20
"""So many take long enough for a progress bar."""
NAMED_MAX = 3
"""Sessions that the line about what to do names."""


@commands.command("verify")
@takes(OF_DESTINATION)
def _verify(  # noqa: PLR0913 - one for each option
    sources: Sources,
    *,
    since: Annotated[int | None, since_option("Sessions changed since")] = None,
    session: Annotated[list[str] | None, typer.Option(metavar="ID", help="This session; may be repeated.")] = None,
    db: StoreFile = None,
    remote: Annotated[bool, typer.Option("--remote", help="Also look for every record at Helicone.")] = False,
    problems: Annotated[bool, typer.Option("--problems", help="Only sessions with a problem.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every session.")] = False,
    json_wanted: AsJson = False,
) -> None:
    """Compare OpenCode's store with the queue.

    Says by project what became of each session's turns. Exit code 1 when a turn is unexplained.
    """
    if problems and verbose:
        raise typer.BadParameter("--problems and --verbose exclude each other")
    store = Store(db or store_file(os.environ))
    choice = Choice(since or 0, tuple(session or ()))
    with store.kept_open(), render.bar("verifying", total_min=LONG_SESSIONS) as bar:
        statuses = verify(sources, store, choice, pause=time.sleep, progress=bar.show)
    checked: dict[str, RemoteCheck] = {}
    failure = _check_at_helicone(sources, statuses, checked) if remote else ""
    if json_wanted:
        print_json(as_json(statuses, checked, failure))
    else:
        titles = {name: head.title for name, head in Titles(store).all().items()}
        chosen = _is_problem if problems else _has_something_to_say
        every = verbose or bool(session)
        note = [] if remote or sources.load().heard is None else [_OF_CENTRE]
        show(chain(lines(statuses, checked, failure, titles, lambda one: every or chosen(one, checked)), note))
    is_fine = not failure and all(_is_fine(one, checked) for one in statuses)
    raise typer.Exit(DONE if is_fine else PROBLEM)


def _check_at_helicone(sources: Sources, statuses: Sequence[SessionStatus], checked: dict[str, RemoteCheck]) -> str:
    """Look for what each session's jobs say was delivered. Why that came to nothing, '' when it did not."""
    from app.operations.remote import asked, asked_centre  # noqa: PLC0415 - takes longer to load than the rest
    from app.verify.remote_check import check  # noqa: PLC0415 - the same

    settings = sources.load()
    who = "Helicone" if settings.heard is None else "the centre"
    try:
        with (
            closing(open_if_made(settings.spool_directory)) as db,
            (asked if settings.heard is None else asked_centre)(settings) as helicone,
            render.bar(f"looking at {who}", total_min=LONG_SESSIONS) as bar,
        ):
            ours = find_target(db, settings)
            if ours is None:
                return ""  # nothing was ever delivered to here
            delay_ms = traits_of(settings.kind, settings.preset, settings.project).looks_ms(ours.route, 0)[0]
            for done, one in enumerate(statuses):
                bar.show(done, len(statuses))
                known = exported(db, ours.id, one.session)
                checked[one.session] = check(known, helicone.stored, now_ms=clock.now_ms(), delay_ms=delay_ms)
    except ReadBackError as error:
        return str(error)
    return ""


# --- what is printed


def as_json(statuses: Sequence[SessionStatus], checked: Mapping[str, RemoteCheck], failure: str) -> dict[str, object]:
    return {
        "sessions": [
            {**asdict(one), "remote": asdict(checked[one.session]) if one.session in checked else None}
            for one in statuses
        ],
        "turns": sum(one.turns for one in statuses),
        "states": dict(_states(statuses)),
        "unexplained": sum(len(one.unexplained) for one in statuses),
        "remote_failure": failure,
    }


def lines(
    statuses: Sequence[SessionStatus],
    checked: Mapping[str, RemoteCheck],
    failure: str,
    titles: Mapping[str, str],
    listed: Callable[[SessionStatus], bool],
) -> Iterator[str]:
    """The verdict, what to do, and project by project a line and the sessions of it that are `listed`."""
    counted_in = [one for one in statuses if one.turns or one.copied or not one.is_fine]
    is_fine = not failure and all(_is_fine(one, checked) for one in counted_in)
    numbers = f"{counted(len(counted_in), 'session')}, {counted(sum(one.turns for one in counted_in), 'turn')}"
    is_held = any(one.held or one.states.get("held") for one in counted_in)
    verdict = "problem" if not is_fine else "waiting" if is_held else "ok"
    yield f"{verdict}: {numbers}: {_told(counted_in, checked) or 'none'}"
    yield from (f"  {one}" for one in _advice(counted_in, checked, failure))
    projects: dict[str, list[SessionStatus]] = {}
    for one in counted_in:
        projects.setdefault(one.project or "(no folder)", []).append(one)
    for project, sessions in sorted(projects.items()):
        shown = [one for one in sessions if listed(one)]
        if not shown and verdict == "ok" and len(projects) == 1:
            continue  # the first line has said it
        yield f"{project}: {counted(len(sessions), 'session')}: {_told(sessions, checked) or 'none'}"
        for one in sorted(shown, key=lambda one: one.changed_ms):
            title = f' "{titles[one.session]}"' if titles.get(one.session) else ""
            note = "; deleted in OpenCode" if one.is_deleted else f"; {one.failure}" if one.failure else ""
            yield f"  {day(one.changed_ms)} {one.session}{title}: {_told([one], checked)}{note}"


_OF_CENTRE = "delivered means here that the centre has it; --remote asks what became of it there"
_QUIET = {"delivered", "recalled", "inside", "elsewhere", "earlier", "switched_off", "undone", "other_destination"}
"""States of turns of which there is nothing to do, and nothing to come."""
_LOST = {"age", "size", "policy"}


def _is_fine(one: SessionStatus, checked: Mapping[str, RemoteCheck]) -> bool:
    return one.is_fine and (one.session not in checked or checked[one.session].is_fine)


def _is_problem(one: SessionStatus, checked: Mapping[str, RemoteCheck]) -> bool:
    return bool(not _is_fine(one, checked) or one.states.get("dead") or _LOST & one.dropped_by_reason.keys())


def _has_something_to_say(one: SessionStatus, checked: Mapping[str, RemoteCheck]) -> bool:
    return bool(_is_problem(one, checked) or {state for state, turns in one.states.items() if turns} - _QUIET)


def _advice(statuses: Sequence[SessionStatus], checked: Mapping[str, RemoteCheck], failure: str) -> Iterator[str]:
    wrong = [one for one in statuses if one.unexplained]
    if wrong:
        named = " ".join(f"--session {one.session}" for one in wrong[:NAMED_MAX])
        more = f" (and {len(wrong) - NAMED_MAX} more)" if len(wrong) > NAMED_MAX else ""
        count = sum(len(one.unexplained) for one in wrong)
        yield f"{count} unexplained: start OpenCode in that project, or: {PROGRAM} backfill {named}{more}"
    states = _states(statuses)
    if states["held"]:
        yield f"{states['held']} held: mend what `{PROGRAM} doctor` names there, then: {PROGRAM} flush"
    before = states["elsewhere"] + states["earlier"]
    if before:
        yield f"{before} from before capture: {PROGRAM} backfill queues them (--dry-run says what it would send)"
    dead = Counter[str]()
    for one in checked.values():
        dead.update(one.dead_at_centre)
    yield from (f"{count} dead at the centre: {reason}" for reason, count in dead.items())
    lost = [name for name, one in checked.items() if one.missing]
    if lost:
        named = " ".join(lost[:NAMED_MAX])
        yield f"not at Helicone, though it has accepted them: see `{PROGRAM} doctor --send`; {named}"
    unnamed = sum(one.unnamed_turns for one in checked.values())
    if unnamed:
        yield f"{unnamed} delivered turn(s) with unknown ids were not looked for: they are older than the ids kept"
    if failure:
        yield f"Helicone could not be asked: {failure}"


_WORDS = {
    "in_progress": "in progress",
    "unread": "unread yet",
    "undone": "undone before they were read",
    "switched_off": "switched off",
    "held": "held until the files of their folder are right",
    "elsewhere": "from before the plugin was used in their folder",
    "earlier": "from before capture began, or while it was off",
    "inside": "inside another session",
    "other_destination": "for another destination",
    "changed": "CHANGED SINCE",
    "never_seen": "NEVER SEEN",
}
_ORDER = ("delivered", "recalled", "waiting", "dead", "dropped", *_WORDS)


def _told(statuses: Sequence[SessionStatus], checked: Mapping[str, RemoteCheck]) -> str:
    """What is not zero."""
    reasons: Counter[str] = Counter()
    for one in statuses:
        reasons.update(one.dropped_by_reason)
    inner = {
        "delivered": {
            "confirmed": sum(one.confirmed for one in statuses),
            "without bodies": sum(one.body_not_stored for one in statuses),
        },
        "waiting": {
            "held": sum(one.held for one in statuses),
            "to be made again": sum(one.without_bodies for one in statuses),
        },
        "dropped": reasons,
    }
    states = _states(statuses)
    told = [
        f"{states[name]} {_WORDS.get(name, name)}{_bracketed(inner.get(name, {}))}" for name in _ORDER if states[name]
    ]
    records = Counter(_WORDS.get(one.record or "", "") for one in statuses if "session" in one.unexplained)
    told += [f"{count} session record(s) {name}" for name, count in records.items()]
    told += [
        f"{count} {name}"
        for name, count in {
            "older version(s)": sum(one.superseded for one in statuses),
            "turn(s) gone in OpenCode": sum(one.gone for one in statuses),
            "copied by a fork": sum(one.copied for one in statuses),
            "turn(s) that CANNOT BE READ": sum(one.unreadable for one in statuses),
            "odd value(s)": sum(one.odd for one in statuses),
        }.items()
        if count
    ]
    told += _remote([checked[one.session] for one in statuses if one.session in checked])
    return ", ".join(told)


def _remote(checked: Sequence[RemoteCheck]) -> list[str]:
    numbers = {
        "found": sum(one.found for one in checked),
        "without bodies": sum(one.without_bodies for one in checked),
        "not yet there": sum(one.not_yet for one in checked),
        "waiting at the centre": sum(one.at_centre for one in checked),
        "DEAD AT THE CENTRE": sum(sum(one.dead_at_centre.values()) for one in checked),
        "MISSING": sum(one.missing for one in checked),
    }
    told = ", ".join(f"{count} {name}" for name, count in numbers.items() if count)
    return [f"records at Helicone: {told}"] if told else []


def _bracketed(numbers: Mapping[str, int]) -> str:
    told = ", ".join(f"{count} {name}" for name, count in numbers.items() if count)
    return f" ({told})" if told else ""


def _states(statuses: Sequence[SessionStatus]) -> Counter[str]:
    states: Counter[str] = Counter()
    for one in statuses:
        states.update(one.states)
    return states
