"""Verdict: whether sessions arrive, in one line; and if not, why, since when, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from app.operations.status import DestinationStatus, Elsewhere, Level, Status, TitleOf, Verdict, no_title, read_status
from app.runtime.terminal import counted
from app.settings.model import Settings

_GIVE_A_KEY = "opencode-helicone setup, or set HELICONE_API_KEY"


def judged(settings: Settings, now_ms: int, title_of: TitleOf = no_title) -> Status:
    """The status with its verdict. Raises what `read_status` raises."""
    return judge(read_status(settings, now_ms, title_of), settings)


def judge(status: Status, settings: Settings) -> Status:
    """The status with what comes of it."""
    status = replace(status, elsewhere=tuple(elsewhere(status, has_key=settings.api_key is not None)))
    return replace(status, verdict=verdict(status, enable=settings.enable, export_mode=settings.export_mode))


def verdict(status: Status, *, enable: bool, export_mode: str) -> Verdict:
    """The most serious of what there is to say."""
    (ours,) = (one for one in status.destinations if one.current)
    jobs = f"; {_wait(ours.jobs.pending)}" if ours.jobs.pending else ""
    if not enable or export_mode == "off":
        setting = "exportMode is off" if enable else "enable is false"
        text = f"switched off: {setting}, nothing is captured or sent{jobs}"
        return Verdict("problem", text, "opencode-helicone config show")
    if ours.key is None:
        return Verdict("problem", f"no API key is set, so nothing is delivered{jobs}", _GIVE_A_KEY)
    return next(chain(_at_helicone(status, ours, jobs), _waits(status, ours), _left(status), _well(status, ours)))


def _at_helicone(status: Status, ours: DestinationStatus, jobs: str) -> Iterator[Verdict]:
    if ours.pause_reason is not None and ours.health == "refused":
        yield _paused(status, ours, "problem", f"Helicone refuses what is sent: {ours.pause_reason}{jobs}")
    yield from (Verdict("problem", alarm, "opencode-helicone doctor --send") for alarm in status.alarms)
    if status.held_folders:
        folders = counted(sum(one.folders for one in status.held_folders), "folder")
        text = f"{folders} held back: {status.held_folders[0].reason}"
        yield Verdict("problem", text, "opencode-helicone doctor")
    if ours.pause_reason is not None:
        yield _paused(status, ours, "waiting", f"Helicone cannot be reached: {ours.pause_reason}{jobs}")


def _waits(status: Status, ours: DestinationStatus) -> Iterator[Verdict]:
    for held in ours.held:
        yield Verdict("problem", f"{_wait(held.jobs)}: {held.reason}", "opencode-helicone doctor")
    if ours.jobs.pending and not _is_served(status, ours):
        yield Verdict("waiting", f"{_wait(ours.jobs.pending)}, and no worker runs", "opencode-helicone flush")


def _left(status: Status) -> Iterator[Verdict]:
    """What nobody is at."""
    if status.jobs.dead:
        dead = counted(status.jobs.dead, "job")
        yield Verdict("problem", f"{dead} dead: not tried again by itself", "opencode-helicone dead list")
    yield from (Verdict("waiting", one.text, one.todo) for one in status.elsewhere if one.todo)
    for unread in status.unread:
        if unread.reason is not None:
            text = f"{counted(unread.sessions, 'session')} cannot be read: {unread.reason}"
            yield Verdict("waiting", text, "opencode-helicone doctor")


def _well(status: Status, ours: DestinationStatus) -> Iterator[Verdict]:
    if ours.health == "quota":
        yield Verdict("waiting", "the quota is exceeded: Helicone keeps numbers without texts")
    if ours.jobs.pending:
        yield Verdict("ok", f"{counted(ours.jobs.pending, 'job')} being delivered")
    if status.last_delivery is None:
        yield Verdict("ok", "nothing was captured yet: start OpenCode and say something", "opencode-helicone doctor")
    yield Verdict("ok", "all that was captured is delivered")


def _paused(status: Status, one: DestinationStatus, level: Level, text: str) -> Verdict:
    """A worker that runs tries again by itself."""
    if _is_served(status, one):
        return Verdict(
            level,
            text,
            "opencode-helicone flush" if level == "waiting" else "opencode-helicone doctor",
            one.next_probe_ms,
        )
    return Verdict(
        level,
        f"{text}; no worker runs",
        "opencode-helicone flush" if level == "waiting" else "opencode-helicone doctor",
    )


def elsewhere(status: Status, *, has_key: bool) -> Iterator[Elsewhere]:
    for one in status.destinations:
        if one.current or not one.jobs.pending or one.id is None:
            continue
        where = f"for {one.endpoint or 'any endpoint'}"
        jobs = _wait(one.jobs.pending)
        refused = f"; refused there: {one.pause_reason}" if one.health == "refused" else ""
        if _is_served(status, one) and not refused:
            yield Elsewhere(one.id, one.jobs.pending, f"{jobs} {where}, and a worker is at it", "")
        elif one.key is not None:
            text = f"{jobs} {where} under another key ({one.key}…)"
            if not has_key or one.endpoint != next(each.endpoint for each in status.destinations if each.current):
                text = f"{jobs} {where}, another endpoint (key {one.key}…)"
            yield Elsewhere(one.id, one.jobs.pending, text + refused, f"opencode-helicone destination adopt {one.id}")
        else:
            text = f"{jobs} {where}, captured without a key"
            todo = (
                f"opencode-helicone destination adopt {one.id}"
                if has_key
                else "opencode-helicone setup, or set HELICONE_API_KEY"
            )
            yield Elsewhere(one.id, one.jobs.pending, text, todo)


def _is_served(status: Status, one: DestinationStatus) -> bool:
    return any(worker.destination == one.id for worker in status.workers)


def _wait(jobs: int) -> str:
    return f"{counted(jobs, 'job')} {'waits' if jobs == 1 else 'wait'}"
