"""Status: reads what the spool holds, what waits and why, and who is alive; decides what is an alarm."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

from app import __version__
from app.capture.folder_limits import folders_by_option
from app.capture.targets import meant
from app.database.connection import wal_reset_bug
from app.database.open import open_if_made, recover_after
from app.exporters.kinds import traits_of
from app.exporters.traits import Traits
from app.ledger import counts, dead_letters, eviction, folders, incidents, notices, policy_enforcement, readback
from app.ledger import counts as ledger_counts
from app.ledger import destinations as destination
from app.ledger.counts import Conditions, Counts, conditions, errors
from app.ledger.dead_letters import Choice, Group
from app.ledger.destinations import Destination
from app.ledger.notices import Unread
from app.ledger.overview import SessionCounts, last_delivery, session_counts
from app.operations.centre import Centre, centre
from app.runtime.liveness import LiveHook, LiveWorker, read_hooks, read_workers
from app.runtime.spool import Spool
from app.runtime.terminal import counted
from app.runtime.url import normalise
from app.settings.destinations import everything
from app.settings.model import HELICONE, Settings

KEY_CHARACTERS = 8
"""Of a key's fingerprint: enough to tell two keys apart."""
BYTES_BESIDE_BODIES_MAX = 64_000_000
"""Of everything else in the spool directory: keys, acknowledgements, WAL, logs."""
GROUPS_SHOWN = 5
NOT_TRIED = "not tried"
MENDED = "the files of their folder were wrong, and are right now"
TitleOf: TypeAlias = Callable[[str], str]
"""What OpenCode's store says of a session; '' where it has it no more."""
Level: TypeAlias = Literal["ok", "waiting", "problem"]
_NOBODY = -1
"""No destination has this number."""


@dataclass(frozen=True, slots=True)
class Jobs:
    pending: int
    delivered: int
    dead: int
    superseded: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Failing:
    """Jobs that are dead or wait, by the error of their last attempt."""

    state: str
    error: str
    jobs: int


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What was read back of delivered jobs, in numbers of jobs; what was not found in the end is dead."""

    confirmed: int
    waiting: int
    """To be read back."""
    body_not_stored: int
    given_up: int
    """Their bodies went unconfirmed: no room, too old, or switched off."""
    notes: tuple[str, ...]
    """Why it is off or does not work, and what Helicone does not keep, for a person."""
    alarm: str
    """Why what was delivered may not be stored, for a person; '' while nothing says so."""


@dataclass(frozen=True, slots=True)
class Held:
    """Jobs that the settings in force keep from being sent."""

    reason: str
    jobs: int


@dataclass(frozen=True, slots=True)
class HeldFolders:
    """Project folders of which nothing is captured or sent, because their configuration cannot be used."""

    reason: str
    folders: int
    """As their hooks saw them last."""
    directories: tuple[str, ...]
    """Of these folders, as far as OpenCode's store names them."""


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    id: int | None
    """None: the present settings mean it, and nothing was ever captured for it."""
    current: bool
    """The present settings mean this one."""
    is_meant: bool
    """Or name it beside that."""
    kind: str
    name: str
    """By which they do; '' of Helicone, and where none does any more."""
    endpoint: str
    """'' where no endpoint was chosen and no key is known."""
    key: str | None
    """The beginning of the API key's fingerprint; None without a key."""
    route: str | None
    health: str
    """fine; not tried: nothing was ever posted to it; down: it cannot be asked; refused: it will not take anything;
    quota: it takes numbers without bodies."""
    pause_reason: str | None
    next_probe_ms: int | None
    jobs: Jobs
    in_flight: int
    retrying: int
    conditions: Conditions
    oldest_pending_ms: int | None
    errors: tuple[Failing, ...]
    confirmation: Confirmation
    held: tuple[Held, ...]
    """As far as a worker has seen it."""
    without_text: int
    """Jobs that wait without their bodies, which OpenCode's store has."""
    dead_letters: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Lines that a hook could not use."""

    reason: str
    count: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Incident:
    """What went wrong beside jobs and lines, such as rows lost with a damaged ledger."""

    what: str
    count: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Verdict:
    level: Level
    """ok: all that was captured is delivered, or about to be; waiting: it will be, by itself or by the command that is
    named; problem: somebody has to do something."""
    text: str
    todo: str = ""
    """What to do, or to type; '' where nothing is to be done."""
    next_try_ms: int | None = None
    """When it is tried again by itself."""


NO_VERDICT = Verdict("ok", "")


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What waits for another destination than that of the present settings."""

    destination_id: int | None
    jobs: int
    text: str
    todo: str
    """'' where a worker is at it."""


@dataclass(frozen=True, slots=True)
class LastDelivery:
    """Of all destinations."""

    session: str
    title: str
    """'' where OpenCode's store does not have the session any more, or nobody looked."""
    delivered_ms: int
    url: str | None
    """Its page at Helicone; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Status:
    version: str
    sqlite: str
    has_wal_reset_bug: bool
    """This SQLite has it; the ledger's checkpoints are made so that it cannot happen."""
    spool: str
    is_new: bool
    """There is no ledger yet."""
    spool_bytes: int
    spool_bytes_max: int
    held_bytes: int
    """Of bodies not delivered, compressed."""
    held_bytes_max: int
    """`maxSpoolSize`, as often as there are destinations with a room of their own."""
    age_ms_max: int
    """How long a job may wait."""
    folder_limits: Mapping[str, int]
    """In how many folders the project's files set a limit for their own jobs, by the option's name."""
    jobs: Jobs
    """Of all destinations."""
    dropped_by_reason: Mapping[str, int]
    destinations: tuple[DestinationStatus, ...]
    hooks: tuple[LiveHook, ...]
    workers: tuple[LiveWorker, ...]
    unread: tuple[Unread, ...]
    """What the plugin has told of, and OpenCode's store was not read for yet."""
    refused: tuple[Refused, ...]
    incidents: tuple[Incident, ...]
    held_folders: tuple[HeldFolders, ...]
    mended_folders: int
    """Were held, and their files are right now: their turns wait in OpenCode's store."""
    problems: tuple[str, ...]
    """What is wrong in the files that configure the plugin here."""
    waiting: tuple[str, ...]
    """Why jobs wait, for a person."""
    alarms: tuple[str, ...]
    """What a person has to see first: destinations whose 200 may mean nothing."""
    sessions: SessionCounts
    last_delivery: LastDelivery | None
    centre: Centre | None = None
    """What the intake has said; None where Helicone's key is no token."""
    elsewhere: tuple[Elsewhere, ...] = ()
    """What waits for other destinations."""
    verdict: Verdict = NO_VERDICT
    """What comes of all this."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look into the held folders, of which the ledger knows hashes, found."""

    directories: Mapping[str, str]
    """By hash, as far as OpenCode's store names them."""
    mended: Collection[str]
    """Hashes of those that were held by their files, and whose files are right by now."""


LookInto: TypeAlias = Callable[[sqlite3.Connection], Looked]


def no_title(_: str) -> str:
    return ""


def nobody_looked(_: sqlite3.Connection) -> Looked:
    return Looked({}, ())


def read_status(
    settings: Settings, now_ms: int, title_of: TitleOf = no_title, look_into: LookInto = nobody_looked
) -> Status:
    """Of a spool that is missing, as if it were empty. Raises OSError, sqlite3.Error, SchemaError.

    A ledger that a statement finds to be damaged is recovered; to look for damage is for `doctor` and the worker.
    """
    is_new = not (settings.spool_directory / "ledger.db").exists()
    with closing(open_if_made(settings.spool_directory)) as db:
        try:
            return status_in(db, settings, now_ms, title_of, look_into, is_new=is_new)
        except sqlite3.Error as error:
            if not recover_after(db, error):
                raise
    with closing(open_if_made(settings.spool_directory)) as db:
        return status_in(db, settings, now_ms, title_of, look_into, is_new=is_new)


def status_in(
    db: sqlite3.Connection,
    settings: Settings,
    now_ms: int,
    title_of: TitleOf = no_title,
    look_into: LookInto = nobody_looked,
    *,
    is_new: bool = False,
) -> Status:
    """The same of a ledger that is open."""
    spool = Spool(settings.spool_directory)
    total = counts.counts(db)
    looked = look_into(db)
    still, no_longer = _held_folders(db, looked)
    destinations = [_without(one, no_longer) for one in read_destinations(db, settings, now_ms)]
    workers = read_workers(spool)
    # Helicone's keys share one, each other destination has its own.
    held_bytes_max = settings.max_spool_bytes * (1 + sum(one.kind != HELICONE for one in destinations))
    return Status(
        version=__version__,
        sqlite=sqlite3.sqlite_version,
        has_wal_reset_bug=wal_reset_bug(sqlite3.sqlite_version),
        spool=str(spool.path),
        is_new=is_new,
        spool_bytes=_bytes_under(spool),
        spool_bytes_max=held_bytes_max + BYTES_BESIDE_BODIES_MAX,
        held_bytes=total.body_bytes,
        held_bytes_max=held_bytes_max,
        age_ms_max=settings.max_spool_age_ms,
        folder_limits=folders_by_option(db, settings),
        jobs=_jobs(total),
        dropped_by_reason=dict(total.dropped_by_reason),
        destinations=tuple(destinations),
        hooks=read_hooks(spool),
        workers=workers,
        unread=tuple(notices.unread(db)),
        refused=tuple(Refused(*row) for row in incidents.refusals(db)),
        incidents=tuple(Incident(*row) for row in incidents.incidents(db)),
        held_folders=still,
        mended_folders=len(looked.mended),
        problems=tuple(one.text for one in settings.complaints),
        waiting=waiting(destinations, workers, now_ms),
        alarms=tuple(alarms(destinations)),
        sessions=session_counts(db),
        last_delivery=_last_delivery(db, settings, destinations, title_of),
        centre=centre(settings),
    )


def _held_folders(db: sqlite3.Connection, looked: Looked) -> tuple[tuple[HeldFolders, ...], Collection[str]]:
    """Those that are held still, by their reasons; and the reasons that hold no folder any more."""
    found = folders.held_folders(db)
    still: dict[str, list[str]] = {}
    for one in found:
        if one.hash not in looked.mended:
            still.setdefault(one.reason, []).append(one.hash)
    told = [
        HeldFolders(reason, len(held), tuple(looked.directories[one] for one in held if one in looked.directories))
        for reason, held in sorted(still.items(), key=lambda each: -len(each[1]))
    ]
    return tuple(told), {one.reason for one in found} - still.keys()


def which(directories: Sequence[str]) -> str:
    """The names of some folders in brackets; '' of none."""
    more = f" and {len(directories) - 2} more" if len(directories) > 2 else ""  # noqa: PLR2004 - two fit into a line
    return f" ({', '.join(directories[:2])}{more})" if directories else ""


def _without(one: DestinationStatus, reasons: Collection[str]) -> DestinationStatus:
    """A worker has not seen yet that its files hold a folder no longer."""
    held = [
        replace(held, reason=MENDED) if any(held.reason.endswith(reason) for reason in reasons) else held
        for held in one.held
    ]
    return replace(one, held=tuple(held))


def _last_delivery(
    db: sqlite3.Connection, settings: Settings, destinations: Sequence[DestinationStatus], title_of: TitleOf
) -> LastDelivery | None:
    found = last_delivery(db)
    if found is None:
        return None
    there = next(one for one in destinations if one.id == found.destination_id)
    key, dashboard = "", None
    if there.current and there.kind == HELICONE:
        key, dashboard = settings.credential, settings.dashboard_url
    traits = _traits(there.kind, next((one for one in everything(settings) if one.destination == there.name), None))
    page = traits.session_url(there.endpoint, key, dashboard, found.session, found.session_name)
    return LastDelivery(found.session, title_of(found.session), found.delivered_ms, page)


def read_destinations(db: sqlite3.Connection, settings: Settings, now_ms: int) -> tuple[DestinationStatus, ...]:
    """The one that the settings mean first."""
    known = {(one.endpoint, one.key_fingerprint): one for one in destination.destinations(db)}
    found: list[DestinationStatus] = []
    # Once, where Helicone is switched off and still the one that is asked for.
    for towards in {one.destination: one for one in (settings, *everything(settings))}.values():
        identity = meant(db, towards)
        one = known.pop(identity) if identity in known else _unseen(towards, *identity)
        found.append(_destination(db, one, towards, now_ms, current=not found))
    found += (_destination(db, one, None, now_ms, current=False) for one in known.values())
    return tuple(found)


def _unseen(settings: Settings, endpoint: str, fingerprint: str) -> Destination:
    """Nothing was ever captured for it."""
    unseen = Destination(_NOBODY, endpoint, fingerprint, None, "fine", None, 0, None, None, {}, "", was_tried=False)
    name = "" if settings.kind == HELICONE else settings.destination
    return replace(unseen, kind=settings.kind, name=name)


def _destination(
    db: sqlite3.Connection, one: Destination, settings: Settings | None, now_ms: int, *, current: bool
) -> DestinationStatus:
    """`settings`: those that mean it."""
    counts = ledger_counts.counts(db, one.id)
    return DestinationStatus(
        id=None if one.id == _NOBODY else one.id,
        current=current,
        is_meant=settings is not None,
        kind=one.kind,
        name=one.name,
        endpoint=one.endpoint,
        key=one.key_fingerprint[:KEY_CHARACTERS] or None,
        route=one.route,
        health=one.health if one.was_tried or counts.retrying or one.health != "fine" else NOT_TRIED,
        pause_reason=one.pause_reason,
        next_probe_ms=one.probe_ms,
        jobs=_jobs(counts),
        in_flight=counts.in_flight,
        retrying=counts.retrying,
        conditions=conditions(db, one.id, now_ms),
        oldest_pending_ms=counts.oldest_pending_ms,
        errors=tuple(Failing(*row) for row in errors(db, one.id)),
        confirmation=_confirmation(db, one, settings if one.id != _NOBODY else None),
        held=tuple(Held(*row) for row in policy_enforcement.held(db, one.id)),
        without_text=eviction.without_bodies(db, one.id),
        dead_letters=tuple(dead_letters.dead_groups(db, Choice(destination_id=one.id))[:GROUPS_SHOWN]),
    )


def _traits(kind: str, settings: Settings | None) -> Traits:
    return traits_of(kind) if settings is None else traits_of(settings.kind, settings.preset, settings.project)


def _confirmation(db: sqlite3.Connection, one: Destination, settings: Settings | None) -> Confirmation:
    """`settings`: those that mean it, as far as anything was ever captured for it."""
    going, traits, off_reason = readback.confirmations(db, one.id), _traits(one.kind, settings), ""
    if settings is not None:
        plan = traits.read_back(settings.confirm, normalise(settings.endpoint), "", settings.readback_url)
        off_reason = plan.off_reason
    notes = []
    alarm = ""
    if going.is_never_found:
        causes = "; ".join(traits.NOT_STORED_CAUSES)
        alarm = f"accepted, never found: no delivered turn was there when it was read back. Known causes: {causes}"
    elif going.failure == readback.UNPROVEN:
        alarm = readback.UNPROVEN
    if off_reason:
        notes.append(f"off: {off_reason}")
    elif going.failure in (readback.BLIND, readback.UNPROVEN):
        notes.append(going.failure)
    elif going.failure is not None:
        elsewhere = "; if jawn is elsewhere, set readbackUrl" if one.kind == HELICONE else ""
        notes.append(f"paused: {going.failure}{elsewhere}")
    if one.health == "quota":
        notes.append("the quota is exceeded: Helicone keeps numbers without bodies")
    if going.body_not_stored:
        notes.append("`import` sends again what was stored without its body")
    return Confirmation(going.confirmed, going.waiting, going.body_not_stored, going.given_up, tuple(notes), alarm)


def _jobs(counts: Counts) -> Jobs:
    return Jobs(**{field.name: getattr(counts, field.name) for field in fields(Jobs)})


def alarms(destinations: Sequence[DestinationStatus]) -> Iterator[str]:
    """Alarms of what still matters: a destination tried once, and that nothing waits for, alarms nobody."""
    for one in destinations:
        is_of_use = one.is_meant or one.jobs.pending or one.jobs.dead or one.confirmation.waiting
        if one.confirmation.alarm and is_of_use:
            yield f"{named(one)}: {one.confirmation.alarm}"


def waiting(destinations: Sequence[DestinationStatus], workers: Sequence[LiveWorker], now_ms: int) -> tuple[str, ...]:
    """Why jobs wait, one sentence for each reason; nothing when none does."""
    found = []
    for one in destinations:
        others = one.jobs.pending - sum(held.jobs for held in one.held)
        found += [f"{counted(held.jobs, 'job')} for {named(one)}: {held.reason}" for held in one.held]
        if others:
            served = any(worker.destination == one.id for worker in workers)
            found.append(f"{counted(others, 'job')} for {named(one)}: {_reason(one, now_ms, served=served)}")
        if one.retrying:
            found.append(f"of them {counted(one.retrying, 'job')} failed before and will be tried again")
        if one.without_text:
            found.append(
                f"of them {counted(one.without_text, 'job')} without text, for want of room; OpenCode's store has it"
            )
    return tuple(found)


def _reason(one: DestinationStatus, now_ms: int, *, served: bool) -> str:
    if one.key is None and one.current:
        return "no HELICONE_API_KEY is set"
    if one.key is None:
        return "captured without a key; a worker that has the only key for that endpoint takes them over as it starts"
    if not one.is_meant:
        return "another destination than that of the present settings"
    if one.pause_reason is not None:
        until_s = max(0, (one.next_probe_ms or 0) - now_ms + 999) // 1000
        when = f"next try in {until_s} s" if served else "no worker runs"
        return f"paused, {when}: {one.pause_reason}"
    if not served:
        return "no worker runs (opencode-helicone worker, or flush)"
    return "a worker is at it"


def named(one: DestinationStatus) -> str:
    if one.name:
        return f"{one.name} ({one.endpoint})"
    return f"{one.endpoint or 'any endpoint'} ({f'key {one.key}…' if one.key else 'no key'})"


def _bytes_under(spool: Spool) -> int:
    """Of all files, as far as they stay: logs turn over, and SQLite removes its own beside a database."""
    total = 0
    for path in spool.path.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
