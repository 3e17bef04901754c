"""Renders for people what the spool holds, what waits and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from app.cli.layout import ahead, at, local, size
from app.cli.render import problem_lines
from app.cli.render_centre import centre_line
from app.ledger.notices import Unread
from app.operations.status import DestinationStatus, Jobs, Status, named, which
from app.runtime.terminal import counted

if TYPE_CHECKING:
    from app.operations.flush import Flushed


def overview_lines(status: Status, now_ms: int) -> Iterator[str]:
    """What a person wants to know at a glance, the most important first."""
    found = status.verdict
    when = f"; next try {ahead(found.next_try_ms, now_ms)}" if found.next_try_ms is not None else ""
    yield f"{found.level}: {found.text}{when}"
    if found.todo:
        yield f"  {found.todo}"
    sessions = status.sessions
    more = " or more" if sessions.delivered is None else ""
    told = {
        " delivered" if status.centre is None else " at the centre": sessions.delivered,
        f"{more} waiting": sessions.waiting,
        f"{more} with dead jobs": sessions.dead,
        f"{more} with dropped jobs": sessions.dropped,
    }
    told[" to be read"] = sum(one.sessions for one in status.unread)
    numbers = [f"{count}{name}" for name, count in told.items() if count]
    yield f"sessions: {', '.join(numbers) or 'none yet'}"
    if status.centre is not None:
        yield centre_line(status.centre, now_ms)
    last = status.last_delivery
    if last is not None:
        title = f' "{last.title}"' if last.title else f" {last.session}"
        there = "" if status.centre is None else " to the centre"
        yield f"last delivery{there}: {at(last.delivered_ms, now_ms)}{title}"
        if last.url is not None:
            yield f"  {last.url}"
    for one in status.destinations:
        for group in one.dead_letters:
            yield f"dead: {counted(group.jobs, 'job')}: {group.reason}, the last {at(group.last_ms, now_ms)}"
            yield f"  opencode-helicone dead list --error {group.fingerprint}"
    for waiting in (one for one in status.elsewhere if one.text != found.text):
        yield f"elsewhere: {waiting.text}"
        if waiting.todo:
            yield f"  {waiting.todo}"
    yield from unread_lines(status.unread)
    yield from problem_lines(status.problems)
    hooks, workers = len(status.hooks), len(status.workers)
    room = f"{size(status.held_bytes)} of {size(status.held_bytes_max)}"
    yield f"running: {counted(hooks, 'hook')}, {counted(workers, 'worker')}; room taken: {room}"


def status_lines(status: Status, now_ms: int) -> Iterator[str]:
    bodies = f"{size(status.held_bytes)} of {size(status.held_bytes_max)} for bodies not delivered, or not confirmed"
    known = " (has the WAL-reset bug; avoided by its checkpoints)" if status.has_wal_reset_bug else ""
    yield from status.alarms
    yield f"opencode-helicone {status.version}, SQLite {status.sqlite}{known}"
    spool = f"{status.spool}{' (not there yet)' if status.is_new else ''}"
    yield f"spool: {spool}, {size(status.spool_bytes)} of {size(status.spool_bytes_max)}, {bodies}"
    if status.folder_limits:
        told = ", ".join(f"{option} in {folders}" for option, folders in status.folder_limits.items())
        yield f"folders whose own limits bind their jobs alone: {told}"
    yield f"jobs: {_jobs(status.jobs)}{_reasons(status.dropped_by_reason)}"
    for one in status.destinations:
        if not (one.is_meant or one.pause_reason or any(asdict(one.jobs).values())):
            continue  # a key or endpoint that was tried once and never used
        yield from _destination_lines(one, now_ms)
    if status.centre is not None:
        yield centre_line(status.centre, now_ms)
        yield "  delivered means here that the centre has it: it passes it on to Helicone"
    if status.jobs.dead:
        yield f"{counted(status.jobs.dead, 'dead letter')}: opencode-helicone dead list"
    backlog = sum(hook.backlog for hook in status.hooks)
    sessions = sum(hook.sessions for hook in status.hooks)
    automatic = sum(worker.automatic for worker in status.workers)
    yield f"live hooks: {len(status.hooks)}" + (f" ({sessions} sessions, {backlog} to be read)" if status.hooks else "")
    yield f"live workers: {len(status.workers)}" + (f" ({automatic} automatic)" if automatic else "")
    yield from unread_lines(status.unread)
    for refused in status.refused:
        when = local(refused.last_ms)
        yield f"refused: {refused.count} line(s), the last at {when}: {refused.reason}; see logs/hook.log"
    for incident in status.incidents:
        yield f"noted: {incident.what}: {incident.count}, the last at {local(incident.last_ms)}"
    for held in status.held_folders:
        folders = counted(held.folders, "folder")
        yield f"held: {folders}{which(held.directories)}, whose turns wait in OpenCode's store: {held.reason}"
    yield from problem_lines(status.problems)
    yield from waiting_lines(status.waiting)


def unread_lines(unread: Sequence[Unread]) -> Iterator[str]:
    for one in unread:
        reason = one.reason or "about to be read, or a turn goes on, or was cut off; doctor names what stays"
        yield f"unread: {counted(one.sessions, 'session')}, noticed since {local(one.oldest_ms)}: {reason}"


def waiting_lines(waiting: tuple[str, ...]) -> Iterator[str]:
    for reason in waiting:
        yield f"waiting: {reason}"


def _destination_lines(one: DestinationStatus, now_ms: int) -> Iterator[str]:
    yield f"{'this' if one.current else 'beside' if one.is_meant else 'other'} destination: {named(one)}"
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
        yield f"  paused{f' until {local(one.next_probe_ms or 0)}' if is_ahead else ''}: {one.pause_reason}"
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


def flush_lines(flushed: Flushed, *, to_centre: bool = False) -> Iterator[str]:
    """`to_centre`: what was delivered is there, and not at Helicone yet."""
    there = " to the centre" if to_centre else ""
    if flushed.was_stopped or flushed.jobs.pending:
        left = f"{counted(flushed.jobs.pending, 'job')} left"
        how = "interrupted" if flushed.was_stopped else "not done"
        kept = "; nothing is lost: OpenCode and the same command go on from there"
        yield f"{how}: delivered {flushed.delivered} now{there}, {left}{kept}"
    else:
        yield f"delivered {flushed.delivered} now{there}"
    yield f"in all: {_jobs(flushed.jobs)}"
    if not flushed.captured_here:
        yield "nothing was ever captured here: the queue never held a session of the current folder"
    if flushed.backlog:
        yield f"{flushed.backlog} lines or sessions of live hooks are not worked off"
    yield from unread_lines(flushed.unread)
    for failing in flushed.errors:
        yield f"{failing.jobs} {failing.state}: {failing.error}"
    yield from waiting_lines(flushed.waiting)
    if flushed.todo:
        yield f"what to do: {flushed.todo}"


def _jobs(jobs: Jobs) -> str:
    return (
        f"{jobs.pending} pending, {jobs.delivered} delivered, {jobs.dead} dead, {jobs.superseded} superseded,"
        f" {jobs.dropped} dropped"
    )


def _reasons(numbers: Mapping[str, int]) -> str:
    told = ", ".join(f"{number} {reason}" for reason, number in sorted(numbers.items()))
    return f" ({told})" if told else ""
