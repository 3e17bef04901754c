"""Verdict: whether sessions arrive, in one line; and if not, why, since when, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from urllib.parse import urlsplit

from app.ledger.overview import LOST
from app.operations.status import (
    DestinationStatus,
    Elsewhere,
    Level,
    LookInto,
    Status,
    TitleOf,
    Verdict,
    no_title,
    nobody_looked,
    read_status,
    which,
)
from app.runtime.terminal import counted
from app.runtime.url import is_loopback
from app.settings.destinations import everything
from app.settings.model import HELICONE, Settings

SERIOUS_LAST: tuple[Level, ...] = ("ok", "waiting", "problem")
_LIST_DROPPED = "opencode-helicone dead list --dropped"
_GIVE_A_KEY = "opencode-helicone setup, or set HELICONE_API_KEY"


def judged(
    settings: Settings, now_ms: int, title_of: TitleOf = no_title, look_into: LookInto = nobody_looked
) -> Status:
    """The status with its verdict. Raises what `read_status` raises."""
    return judge(read_status(settings, now_ms, title_of, look_into), settings)


def judge(status: Status, settings: Settings) -> Status:
    """The status with what comes of it."""
    status = replace(status, elsewhere=tuple(elsewhere(status, has_key=settings.api_key is not None)))
    towards = {"" if one.kind == HELICONE else one.destination: one for one in (*everything(settings), settings)}
    found = [verdict(status, towards[one.name], one) for one in status.destinations if one.is_meant]
    is_off = settings.common is not None and settings.export_mode == "off" and settings.common.export_mode != "off"
    if is_off and len(found) > 1:
        found = found[1:]  # somebody has switched it off for the sake of the others
    return replace(status, verdict=max(found, key=lambda one: SERIOUS_LAST.index(one.level)))


def verdict(status: Status, settings: Settings, ours: DestinationStatus) -> Verdict:
    """The most serious of what there is to say of one destination, and of what is no destination's."""
    jobs = f"; {_wait(ours.jobs.pending)}" if ours.jobs.pending else ""
    if not settings.enable or settings.export_mode == "off":
        setting = "exportMode is off" if settings.enable else "enable is false"
        text = f"switched off: {setting}, nothing is captured or sent{jobs}"
        return Verdict("problem", text, "opencode-helicone config show")
    if ours.key is None:
        return Verdict("problem", f"no API key is set, so nothing is delivered{jobs}", _GIVE_A_KEY)
    return next(
        chain(
            _here(settings, jobs),
            _at_helicone(status, settings, ours, jobs),
            _waits(status, settings, ours),
            _left(status),
            _at_centre(status, settings),
            _ignored(settings),
            _well(status, settings, ours),
        )
    )


def _here(settings: Settings, jobs: str) -> Iterator[Verdict]:
    """Before any hook has seen it."""
    if settings.held:
        text = f"nothing of this folder is captured or sent: {settings.held_because}{jobs}"
        yield Verdict("problem", text, "opencode-helicone doctor")


def _ignored(settings: Settings) -> Iterator[Verdict]:
    for one in settings.complaints:
        yield Verdict("problem", f"a setting does not count: {one.short}", "opencode-helicone doctor")


def _at_helicone(status: Status, settings: Settings, ours: DestinationStatus, jobs: str) -> Iterator[Verdict]:
    reason = None if is_over(settings, ours) else ours.pause_reason
    if reason is not None and ours.health == "refused":
        text = f"{_who(settings, ours)} refuses what is sent: {reason}{key_of(settings, ours)}{jobs}"
        todo = settings.how_to_undo("api_key") if key_of(settings, ours) else ""
        yield _paused(status, ours, "problem", text, todo or "opencode-helicone doctor")
    yield from (Verdict("problem", alarm, "opencode-helicone doctor --send") for alarm in status.alarms)
    if status.held_folders:
        folders = counted(sum(one.folders for one in status.held_folders), "folder")
        first = status.held_folders[0]
        where = which([name for one in status.held_folders for name in one.directories])
        text = f"{folders} held back{where}: {first.reason}{anew(first.reason)}"
        yield Verdict("problem", text, "opencode-helicone doctor")
    if status.mended_folders:
        folders = counted(status.mended_folders, "folder")
        text = f"{folders} held back until now, whose files are right again: what waits is read by OpenCode or flush"
        yield Verdict("waiting", text, "opencode-helicone flush")
    if reason is not None:
        how = "takes nothing now" if reason[:1].isdigit() else "cannot be reached"  # a status begins with its number
        text = f"{_who(settings, ours)} {how}: {reason}{jobs}"
        yield _paused(status, ours, "waiting", text, deliver_it(ours))


def anew(reason: str) -> str:
    """What is to be done beside mending a file, where OpenCode had read it before."""
    return " (as OpenCode read them when it started: start it anew)" if " from plugin options" in reason else ""


def _waits(status: Status, settings: Settings, ours: DestinationStatus) -> Iterator[Verdict]:
    there = status.centre
    for held in ours.held:
        if there is not None and held.reason == settings.silence:
            text = f"{_wait(held.jobs)}: {held.reason}{f' ({there.failure})' if there.failure else ''}"
            is_awaited = there.heard_ms is None and not there.is_refused and _is_served(status, ours)
            yield Verdict("waiting" if is_awaited else "problem", text, "opencode-helicone doctor")
        yield Verdict("problem", f"{_wait(held.jobs)}: {held.reason}", "opencode-helicone doctor")
    if ours.jobs.pending and not _is_served(status, ours):
        text = f"{_wait(ours.jobs.pending)}{f' for {ours.name}' if ours.name else ''}, and no worker runs"
        yield Verdict("waiting", text, flush_it(ours))


def _left(status: Status) -> Iterator[Verdict]:
    """What nobody is at."""
    if status.jobs.dead:
        dead = counted(status.jobs.dead, "job")
        yield Verdict("problem", f"{dead} dead: not tried again by itself", "opencode-helicone dead list")
    yield from (Verdict("waiting", one.text, one.todo) for one in status.elsewhere if one.todo)
    looser = status.dropped_by_reason.get("policy", 0)
    if looser:
        text = f"{counted(looser, 'job')} made under looser settings, dropped and not captured again yet"
        yield Verdict("waiting", text, _LIST_DROPPED)
    for unread in status.unread:
        if unread.reason is not None:
            text = f"{counted(unread.sessions, 'session')} cannot be read: {unread.reason}"
            yield Verdict("waiting", text, "opencode-helicone doctor")


def _at_centre(status: Status, settings: Settings) -> Iterator[Verdict]:
    there = status.centre
    if there is None or settings.heard is None:
        return
    if there.is_refused:
        yield Verdict("problem", f"the intake refuses this machine: {there.failure}", "opencode-helicone doctor")
    if there.dead:
        text = f"{counted(there.dead, 'log')} of this machine {'is' if there.dead == 1 else 'are'} dead at the centre"
        yield Verdict("problem", text, "opencode-helicone dead list")


def _well(status: Status, settings: Settings, ours: DestinationStatus) -> Iterator[Verdict]:
    if ours.health == "quota":
        yield Verdict("waiting", "the quota is exceeded: Helicone keeps numbers without texts")
    if ours.jobs.pending:
        where = " to the centre" if settings.heard is not None else ""
        yield Verdict("ok", f"{counted(ours.jobs.pending, 'job')} being delivered{where}")
    if status.last_delivery is None:
        where = f"; there is no queue in {status.spool} yet" if status.is_new else ""
        text = f"nothing was captured yet: start OpenCode and say something{where}"
        yield Verdict("ok", text, "opencode-helicone doctor")
    # How long and how much may wait is the user's own choice: what that cost is told, and nobody is alarmed.
    lost = sum(status.dropped_by_reason.get(why, 0) for why in LOST)
    what, but = ("all that", "") if not lost else ("what", f", but for {counted(lost, 'job')} dropped for age or size")
    told = f"the centre has {what} was captured" if settings.heard is not None else f"{what} was captured is delivered"
    yield Verdict("ok", told + but, _LIST_DROPPED if lost else "")


def _paused(status: Status, one: DestinationStatus, level: Level, text: str, todo: str) -> Verdict:
    """A worker that runs tries again by itself."""
    if _is_served(status, one):
        return Verdict(level, text, todo, one.next_probe_ms)
    return Verdict(level, f"{text}; no worker runs", todo)


def is_over(settings: Settings, one: DestinationStatus) -> bool:
    """Whether it paused for something that is not there any more.

    An intake's 403 is about the export mode that a log was made under: such a one is dropped, and captured again under
    that which the intake wants.
    """
    return settings.heard is not None and (one.pause_reason or "").startswith("403") and not one.jobs.pending


def key_of(settings: Settings, one: DestinationStatus) -> str:
    """Where the key comes from that Helicone refuses; '' where it refuses something else."""
    of_key = ("401", "403") if settings.heard is None else ("401",)  # an intake's 403 is about the export mode
    is_of_key = one.kind == HELICONE and one.health == "refused" and (one.pause_reason or "").startswith(of_key)
    return f"; the key is from {settings.origin('api_key')}" if is_of_key else ""


def deliver_it(one: DestinationStatus) -> str:
    """What to type where it cannot be reached: first what starts it, if it may be the receiver of this machine."""
    parts = urlsplit(one.endpoint)
    is_refused = "ConnectError" in (one.pause_reason or "")
    if one.kind == HELICONE and is_refused and parts.scheme == "http" and is_loopback(parts.hostname or ""):
        start = f"opencode-helicone receiver --port {parts.port or 80} in another terminal (if it is that receiver)"
        return f"{start}, then {flush_it(one)}"
    return flush_it(one)


def flush_it(one: DestinationStatus) -> str:
    return f"opencode-helicone flush{f' --destination {one.name}' if one.name else ''}"


def _who(settings: Settings, one: DestinationStatus) -> str:
    return one.name or ("Helicone" if settings.heard is None else "the intake")


def elsewhere(status: Status, *, has_key: bool) -> Iterator[Elsewhere]:
    for one in status.destinations:
        if one.is_meant or not one.jobs.pending or one.id is None:
            continue
        where = f"for {one.endpoint or 'any endpoint'}"
        jobs = _wait(one.jobs.pending)
        refused = f"; refused there: {one.pause_reason}" if one.health == "refused" else ""
        if _is_served(status, one) and not refused:
            yield Elsewhere(one.id, one.jobs.pending, f"{jobs} {where}, and a worker is at it", "")
        elif one.kind != HELICONE:
            text = f"{jobs} {where}, which no setting names any more"
            yield Elsewhere(one.id, one.jobs.pending, text, f"opencode-helicone destination forget {one.id}")
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
