"""Renders results for people: the lines of `status`, `doctor`, `dead` and others, and progress bars.

The same facts for programs are the dataclasses themselves, as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from app.backfill.backfill import Plan, Queued
from app.backfill.import_files import Imported
from app.ledger.destinations import Destination
from app.ledger.notices import Unread
from app.operations.dead_letters import Listed, Opened, short
from app.operations.finding import Finding
from app.operations.preview import Previewed
from app.operations.status import DestinationStatus, Jobs, Status, counted, named
from app.settings.views import Shown

if TYPE_CHECKING:
    from app.operations.flush import Flushed

LETTERS_SHOWN = 20
"""Of a list; all of them are in its JSON."""


def day(time_ms: int) -> str:
    """A local date."""
    return datetime.fromtimestamp(time_ms / 1000).astimezone().strftime("%Y-%m-%d")


def import_lines(result: Imported) -> Iterator[str]:
    numbers = {
        "new": result.new,
        "known": result.known,
        "older than what is known": result.superseded,
        "noted without content": result.off,
        "not taken (captured while off, or deleted)": result.shut,
        "copied by a fork": result.copied,
        "odd value(s)": result.odd,
        "turn(s) that cannot be read": result.unreadable,
    }
    told = ", ".join(f"{number} {name}" for name, number in numbers.items() if number)
    if result.outcome == "imported":
        told = "; ".join(filter(None, [told or "nothing to export", result.reason]))
    else:
        told = f"{result.outcome}: {result.reason}"
    yield ": ".join(filter(None, [result.file, result.session, told]))


def status_lines(status: Status, now_ms: int) -> Iterator[str]:
    bodies = f"{_size(status.held_bytes)} of {_size(status.held_bytes_max)} for bodies not delivered, or not confirmed"
    known = " (has the WAL-reset bug; avoided by its checkpoints)" if status.has_wal_reset_bug else ""
    yield from status.alarms
    yield f"opencode-helicone {status.version}, SQLite {status.sqlite}{known}"
    spool = f"{status.spool}{' (made now)' if status.is_new else ''}"
    yield f"spool: {spool}, {_size(status.spool_bytes)} of {_size(status.spool_bytes_max)}, {bodies}"
    if status.folder_limits:
        told = ", ".join(f"{option} in {folders}" for option, folders in status.folder_limits.items())
        yield f"folders whose own limits bind their jobs alone: {told}"
    yield f"jobs: {_jobs(status.jobs)}{_reasons(status.dropped_by_reason)}"
    for one in status.destinations:
        if not (one.current or one.pause_reason or any(asdict(one.jobs).values())):
            continue  # a key or endpoint that was tried once and never used
        yield from _destination_lines(one, now_ms)
    if status.jobs.dead:
        yield f"{counted(status.jobs.dead, 'dead letter')}: opencode-helicone dead list"
    backlog = sum(hook.backlog for hook in status.hooks)
    sessions = sum(hook.sessions for hook in status.hooks)
    automatic = sum(worker.automatic for worker in status.workers)
    yield f"live hooks: {len(status.hooks)}" + (f" ({sessions} sessions, {backlog} to be read)" if status.hooks else "")
    yield f"live workers: {len(status.workers)}" + (f" ({automatic} automatic)" if automatic else "")
    yield from unread_lines(status.unread)
    for refused in status.refused:
        when = _moment(refused.last_ms)
        yield f"refused: {refused.count} line(s), the last at {when}: {refused.reason}; see logs/hook.log"
    for incident in status.incidents:
        yield f"noted: {incident.what}: {incident.count}, the last at {_moment(incident.last_ms)}"
    for held in status.held_folders:
        folders = counted(held.folders, "folder")
        yield f"held: {folders}, whose turns wait in OpenCode's store: {held.reason}"
    yield from problem_lines(status.problems)
    yield from waiting_lines(status.waiting)


def problem_lines(problems: Sequence[str]) -> Iterator[str]:
    for problem in problems:
        yield f"problem: {problem}"


def unread_lines(unread: Sequence[Unread]) -> Iterator[str]:
    for one in unread:
        reason = one.reason or "about to be read, or a turn goes on, or was cut off; doctor names what stays"
        yield f"unread: {counted(one.sessions, 'session')}, noticed since {_moment(one.oldest_ms)}: {reason}"


def waiting_lines(waiting: tuple[str, ...]) -> Iterator[str]:
    for reason in waiting:
        yield f"waiting: {reason}"


def _destination_lines(one: DestinationStatus, now_ms: int) -> Iterator[str]:
    yield f"{'this' if one.current else 'other'} destination: {named(one)}"
    at = one.conditions
    yield f"  {_jobs(one.jobs)}; {one.in_flight} in flight, {one.retrying} failed before, {at.in_backoff} in backoff"
    if at.isolated:
        yield f"  {at.isolated} tried alone, because workers died with them"
    if one.oldest_pending_ms is not None:
        yield f"  the oldest waits for {(now_ms - one.oldest_pending_ms) // 1000} s"
    if one.route is not None:
        yield f"  route: {one.route}"
    yield f"  health: {one.health}"
    if one.pause_reason is not None:
        is_ahead = one.next_probe_ms is not None and one.next_probe_ms > now_ms
        yield f"  paused{f' until {_moment(one.next_probe_ms or 0)}' if is_ahead else ''}: {one.pause_reason}"
    for failing in one.errors:
        if failing.state != "dead":
            yield f"  {failing.jobs} {failing.state}: {failing.error}"
    for group in one.dead_letters:
        yield f"  {group.jobs} dead (error {group.fingerprint}): {group.reason}"
    read = one.confirmation
    told = f"{read.confirmed} confirmed, {read.waiting} to be confirmed"
    told += f", {read.body_not_stored} stored without body" if read.body_not_stored else ""
    told += f", {read.given_up} given up" if read.given_up else ""
    if any((read.confirmed, read.waiting, read.body_not_stored, read.given_up, read.notes)):
        yield "; ".join([f"  read back: {told}", *read.notes])


def flush_lines(flushed: Flushed) -> Iterator[str]:
    yield _jobs(flushed.jobs)
    if not flushed.captured_here:
        yield "nothing was ever captured here: the queue never held a session of the current folder"
    if flushed.backlog:
        yield f"{flushed.backlog} lines or sessions of live hooks are not worked off"
    yield from unread_lines(flushed.unread)
    for failing in flushed.errors:
        yield f"{failing.jobs} {failing.state}: {failing.error}"
    yield from waiting_lines(flushed.waiting)


def preview_lines(result: Previewed | Imported) -> Iterator[str]:
    if isinstance(result, Imported):
        yield from import_lines(result)
        return
    yield f"{result.file}: {result.session}: {len(result.records)} records, {result.mode}"
    for record in result.records:
        yield f"--- {record.path} ({record.kind}, {record.request_id}, {len(record.body)} bytes)"
        yield from json.dumps(json.loads(record.body), ensure_ascii=False, indent=2).split("\n")
    for name, number in sorted(result.hits.items()):
        yield f"redacted: {name}: {number}"
    for name, number in sorted(result.identity_hits.items()):
        yield f"NOT redacted, matches an id or a name: {name}: {number}"


def setting_line(setting: Shown) -> str:
    value = setting.value if isinstance(setting.value, str) else json.dumps(setting.value, ensure_ascii=False)
    unit = f" {setting.unit}" if setting.unit else ""
    return f"{setting.name} = {value}{unit}  [{setting.origin}]"


class Bar:
    """Shows how far long work has come; told (done, all) of it."""

    def __init__(self, show: Callable[[int, int], object], tell: Callable[[str], object]) -> None:
        self._show = show
        self._tell = tell
        self._is_waiting = False

    def show(self, done: int, total: int) -> None:
        self._is_waiting = False
        self._show(done, total)

    def wait(self) -> None:
        """Said once for each time."""
        if not self._is_waiting:
            self._tell("waits for a worker to make room: half of maxSpoolSize is in use")
        self._is_waiting = True


@contextmanager
def bar(text: str, *, total_min: int = 0) -> Iterator[Bar]:
    """A bar on a terminal, for work of so many steps or more; elsewhere only waiting is told of."""
    if not sys.stderr.isatty():
        yield Bar(lambda _done, _total: None, lambda line: sys.stderr.write(f"opencode-helicone: {line}\n"))
        return
    from rich.console import Console  # noqa: PLC0415 - costs 50 ms, and mostly nobody watches
    from rich.progress import Progress  # noqa: PLC0415 - the same

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(text, total=None, visible=not total_min)

        def show(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total, visible=total >= total_min)

        yield Bar(show, shown.console.print)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - as above

    with Console(stderr=True).status(text):
        yield


def plan_lines(plan: Plan) -> Iterator[str]:
    """What a backfill would send."""
    yield f"{counted(plan.logs, 'log')} in {counted(plan.turns, 'turn')} of {counted(len(plan.sessions), 'session')}"
    for project in plan.projects.values():
        name = (project.directory or "(no folder)") + (" (not there any more)" if project.is_gone else "")
        sessions = counted(project.sessions, "session")
        if project.sessions:
            what = f"{counted(project.logs, 'log')} in {counted(project.turns, 'turn')} of {sessions}"
            yield f"  {name}: {what}"
        if project.left_out:
            yield f"  {name}: {counted(project.left_out, 'session')} left out: {project.reason}"
        if project.shut:
            told = "captured while export was off (--include-off takes them), deleted, or recalled"
            yield f"  {name}: {counted(project.shut, 'turn')} not taken: {told}"
    for session, reason in plan.unreadable.items():
        yield f"  {session}: cannot be read: {reason}"
    if plan.too_old:
        told = "not changed for 90 days: Helicone would blank their bodies (--since takes them)"
        yield f"  {counted(plan.too_old, 'session')} left out, {told}"


def queued_lines(queued: Queued, waiting: int, *, is_served: bool, has_key: bool) -> Iterator[str]:
    unfinished = (
        f"; {counted(queued.unfinished, 'turn')} left to the OpenCode that is at it" if queued.unfinished else ""
    )
    yield f"{counted(queued.new, 'job')} queued{unfinished}; {counted(waiting, 'job')} wait"
    if waiting:
        yield from _how_to_deliver(is_served=is_served, has_key=has_key)


def _jobs(jobs: Jobs) -> str:
    return (
        f"{jobs.pending} pending, {jobs.delivered} delivered, {jobs.dead} dead, {jobs.superseded} superseded,"
        f" {jobs.dropped} dropped"
    )


def _reasons(numbers: Mapping[str, int]) -> str:
    told = ", ".join(f"{number} {reason}" for reason, number in sorted(numbers.items()))
    return f" ({told})" if told else ""


def _size(number: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def worker_lines(target: Destination, log: str) -> Iterator[str]:
    if target.key_fingerprint:
        yield f"delivering to {target.endpoint} until stopped; log: {log}"
    else:
        yield f"no HELICONE_API_KEY is set: jobs wait; log: {log}"


def receiver_lines(url: str, key: str, store: str, page: str) -> Iterator[str]:
    yield f"listening on {url}, keeping {store}"
    yield f"to use it: export HELICONE_ENDPOINT={url} HELICONE_API_KEY={key}"
    yield f"to see what arrives, open {page}"


def letters_lines(listed: Listed, state: str) -> Iterator[str]:
    yield f"{listed.jobs} {state}"
    for group in listed.groups:
        name = f"{group.fingerprint}  " if group.fingerprint else ""
        yield f"{name}{group.jobs} {state}, the last at {_moment(group.last_ms)}: {group.reason}"
    for letter in listed.letters[:LETTERS_SHOWN]:
        yield f"  {short(letter.key)}  {_moment(letter.finished_ms)}  {letter.session} {letter.turn}: {letter.reason}"
    if listed.jobs > LETTERS_SHOWN:
        yield f"  and {listed.jobs - LETTERS_SHOWN} older ones; --json lists more"


def letter_lines(opened: Opened) -> Iterator[str]:
    letter = opened.letter
    error = f" (error {letter.fingerprint})" if letter.fingerprint else ""
    yield f"job {letter.key}"
    yield f"{letter.state} since {_moment(letter.finished_ms)}: {letter.reason}{error}"
    yield f"session {letter.session}, turn {letter.turn}, for {opened.endpoint or 'any endpoint'}"
    yield f"{letter.records} records, {_size(letter.body_bytes)} held; queued at {_moment(letter.enqueued_ms)}"
    yield f"what to do: {opened.todo}"
    yield f"tried {letter.attempts} times{', the last:' if opened.attempts else ''}"
    for one in opened.attempts:
        took = "ended with its worker" if one.ended_ms is None else f"{one.ended_ms - one.started_ms} ms"
        answer = f"; the answer began: {one.answer}" if one.answer else ""
        yield f"  {one.number}  {_moment(one.started_ms)}  {took}  {one.error or ''}{answer}"
    for body in opened.bodies:
        yield from json.dumps(body, ensure_ascii=False, indent=2).split("\n")
    if opened.problem:
        yield f"the records cannot be read: {opened.problem}"


def retried_lines(jobs: int, *, is_served: bool, has_key: bool) -> Iterator[str]:
    yield f"{counted(jobs, 'dead letter')} will be tried again"
    if jobs:
        yield from _how_to_deliver(is_served=is_served, has_key=has_key)


def _how_to_deliver(*, is_served: bool, has_key: bool) -> Iterator[str]:
    if not has_key:
        yield "nothing is delivered without a key: set HELICONE_API_KEY"
    elif not is_served:
        yield "no worker runs: opencode-helicone flush delivers now"


def finding_line(finding: Finding) -> str:
    todo = f" ({finding.todo})" if finding.todo else ""
    return f"{finding.level:8} {finding.check}: {finding.found}{todo}"
