"""Checks inside the ledger: whether it is whole, who serves it, what waits, was lost or is dead."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

from app.capture.mended import mended
from app.capture.mended import named as named_folders
from app.capture.reconcile import QUIET_MS
from app.capture.targets import find_target
from app.database import derived
from app.database.connection import Unmade
from app.ledger import counts, incidents, notices
from app.ledger import counts as ledger_counts
from app.ledger.folders import held_folders
from app.ledger.history import exported_sessions
from app.ledger.overview import LOST
from app.ledger.readback import BLIND
from app.operations import environment_check, network_check, plugin_check
from app.operations.finding import Finding, Level
from app.operations.site import Site
from app.operations.status import DestinationStatus, alarms, named, read_destinations, which
from app.operations.verdict import anew, deliver_it, is_over, key_of
from app.runtime.liveness import open_sessions, present, read_hooks, read_workers
from app.runtime.terminal import counted
from app.settings.model import SettingsError
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store, store_file

_CLOCK_MS_MAX = 60_000
"""Clocks of processes on one machine differ by less."""


def _history(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    """Sessions of OpenCode 1.0 and 1.1 that the newer one has not taken over."""
    try:
        left = Store(store_file(site.sources.environ)).left_in_files()
    except StoreError:
        return  # said already
    ours = find_target(db, site.settings)
    left -= set() if ours is None else set(exported_sessions(db, ours.id))
    if left:
        found = f"{len(left)} session(s) lie in files of OpenCode 1.0 or 1.1 that the newer OpenCode has not taken over"
        yield Finding("history", "warning", found, "queue them", "history-unmigrated")


def _hook(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    if not site.settings.enable:
        return iter(())
    environ, directory = site.sources.environ, site.directory
    return plugin_check.never_seen(db, environ, directory, python=sys.executable, now_ms=site.now_ms)


def _integrity(_: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    if isinstance(db, Unmade):
        yield Finding("ledger", "ok", "not there yet")
        return
    schema = db.execute("pragma user_version").fetchone()[0]
    said = [str(row[0]) for row in db.execute("pragma integrity_check(3)")]
    wrong = [table for table in derived.TABLES if not derived.is_right(db, table)] if said == ["ok"] else []
    if wrong:
        found = f"{' and '.join(wrong)} do not say what the jobs say"
        yield Finding("ledger", "warning", found, "start a worker: it makes them anew", "counts-wrong")
    elif said == ["ok"]:
        yield Finding("ledger", "ok", f"schema {schema}, sound")
    else:
        yield Finding("ledger", "problem", f"ledger.db is damaged: {'; '.join(said)}", "keep a copy", "ledger-damaged")


def _queue(site: Site, _: sqlite3.Connection) -> Iterator[Finding]:
    path = site.spool.path / "queue.db"
    if not path.exists():
        yield Finding("queue.db", "ok", "not there yet")
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)) as queue:
            wakes = queue.execute("select count(*) from task").fetchone()[0]
        yield Finding("queue.db", "ok", f"{wakes} wake-up(s)")
    except sqlite3.Error as error:
        todo = "nothing: who opens it next makes it anew"
        yield Finding("queue.db", "warning", f"cannot be read: {error}", todo, "queue-damaged")


def _processes(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    hooks, workers = read_hooks(site.spool), read_workers(site.spool)
    found = f"{len(hooks)} hook(s) and {len(workers)} worker(s) alive"
    served = {worker.destination for worker in workers}
    waits = any(
        one.jobs.pending and one.is_meant and one.key is not None and one.id not in served
        for one in read_destinations(db, site.settings, site.now_ms)
    )
    if waits:
        todo = "start OpenCode, run flush, or a worker under your process manager"
        yield Finding("processes", "warning", f"{found}: jobs wait, and no worker serves them", todo, "no-worker")
    else:
        yield Finding("processes", "ok", found)


def _environment(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    """Whether OpenCode sees what the shell sees, as far as its hooks are alive to tell."""
    told = [hook.says.get("environment") for hook in present(site.spool.hooks)]
    hooks = [one for one in told if isinstance(one, dict)]  # older ones do not say
    return environment_check.differences(db, site.sources.environ, site.sources.own, hooks)


def _held(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    store = Store(store_file(site.sources.environ))
    right, known = mended(db, site.sources, store), named_folders(db, site.sources, store)
    still: dict[str, list[str]] = {}
    for one in held_folders(db):
        if one.hash not in right and not (one.hash in known and _is_told(site, known[one.hash])):
            still.setdefault(one.reason, []).append(one.hash)
    if right:
        found = f"{len(right)} folder(s) were held, and their files are right now"
        yield Finding("held", "warning", found, "run flush, or start OpenCode: either reads what waits", "folder-held")
    for reason, held in sorted(still.items(), key=lambda each: -len(each[1])):
        where = which([known[one] for one in held if one in known])
        found = f"{len(held)} folder(s){where}, as seen last: {reason}{anew(reason)}"
        yield Finding("held", "problem", found, "correct it; the turns wait in OpenCode's store", "folder-held")


def _is_told(site: Site, directory: str) -> bool:
    """Whether all that holds the folder now is a fault of the files that count here: a finding for each is enough."""
    told = {one.text for one in site.settings.complaints if one.holds}
    try:
        there = {one.text for one in site.sources.load(directory).complaints if one.holds}
    except SettingsError:
        return False
    return bool(there) and there <= told


_HEALTH: dict[str, tuple[Level, str, str]] = {
    "down": (
        "warning",
        "see that it runs; a worker that runs tries again by itself",
        "destination-down",
    ),
    "refused": ("problem", "check the key and the endpoint; flush tries again now", "destination-refused"),
    "quota": ("warning", "Helicone keeps numbers without bodies until the quota has room", "quota-exceeded"),
}
_ELSEWHERE = "use its key once, open its project with the present one, or move them"


def _destinations(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    for one in read_destinations(db, site.settings, site.now_ms):
        if not one.is_meant and one.jobs.pending:
            yield Finding("destination", "warning", _described(one), _ELSEWHERE, "jobs-elsewhere")
        elif one.is_meant:
            level, todo, name = _HEALTH.get("" if is_over(site.settings, one) else one.health, ("ok", "", ""))
            fault = network_check.fault_of(one.pause_reason, name)
            whose = key_of(site.settings, one)
            instead = site.settings.how_to_undo("api_key") if whose else ""
            if fault == "destination-down":
                instead = deliver_it(one)
            yield Finding("destination", level, f"{_described(one)}{whose}", todo, fault, instead)


def _read_back(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    found = read_destinations(db, site.settings, site.now_ms)
    for alarm in alarms(found):
        name = "never-stored" if "never found" in alarm else "read-back-blind"
        yield Finding("read back", "warning", alarm, "doctor --send posts one log and looks for it", name)
    for one in found:
        if one.is_meant and BLIND in one.confirmation.notes:
            todo = "see that Helicone's database is well"
            yield Finding("read back", "warning", f"{named(one)}: {BLIND}", todo, "read-back-blind")


def _described(one: DestinationStatus) -> str:
    why = f": {one.pause_reason}" if one.pause_reason else ""
    whose = "" if one.is_meant else ", another than that of the present settings"
    return f"{named(one)}{whose}: {one.health}{why}; {one.jobs.pending} job(s) wait"


def _incidents(_: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    for what, count, _last_ms in incidents.incidents(db):
        todo, name = "see logs/ in the spool", "incident"
        if what.startswith("ledger: "):
            todo, name = "the damaged file is kept for a while: ledger.db.damaged-*", "ledger-damaged"
        elif what == incidents.UNERASED:
            todo, name = "run dead purge --all, or start a worker", "unerased"
        yield Finding("incident", "warning", f"{counted(count, 'time')}: {what}", todo, name)


def _clock(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    ahead_ms = counts.latest_ms(db) - site.now_ms
    if ahead_ms > _CLOCK_MS_MAX:
        found = f"the ledger holds times {ahead_ms // 1000} s ahead of the clock: it was set back, or was wrong"
        yield Finding("clock", "warning", found, "nothing: times far ahead are mended by the worker", "clock-back")
    else:
        yield Finding("clock", "ok", "not behind the ledger")


def _refusals(_: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    refused = incidents.refusals(db)
    for reason, count, _last_ms in refused:
        found = f"{count} line(s) of the plugin were not used: {reason}"
        todo = "logs/hook.log says why; verify shows what is missing, backfill takes it"
        yield Finding("lines", "warning", found, todo, "lines-unused")
    if not refused:
        yield Finding("lines", "ok", "each line of the plugin was used")


def _unread(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    left = notices.left_unread(db, site.now_ms - QUIET_MS) - open_sessions(site.spool.hooks)
    if left:
        found = f"{len(left)} session(s) that OpenCode has told of were not read, and no OpenCode is at them"
        todo = "run flush; those of a store that is gone are forgotten after 30 days"
        yield Finding("unread", "warning", found, todo, "sessions-unread")
    for one in notices.unread(db):
        if one.reason is not None:
            found = f"{one.sessions} session(s) that OpenCode has told of wait: {one.reason}"
            todo = "they are read when that is mended, within 30 days; flush tries now"
            yield Finding("unread", "warning", found, todo, "sessions-unread")


def _letters(_: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    counts = ledger_counts.counts(db)
    if counts.dead:
        yield Finding(
            "dead",
            "warning",
            f"{counts.dead} dead letter(s)",
            "dead list says why, dead retry tries again",
            "jobs-dead",
        )
    else:
        yield Finding("dead", "ok", "no dead letters")
    for reason, jobs in sorted(counts.dropped_by_reason.items()):
        if reason in LOST:
            todo = "dead list --dropped names them, import queues a session again"
            yield Finding("dropped", "warning", f"{jobs} dropped: {reason}", todo, "jobs-dropped")
        else:
            yield Finding("dropped", "ok", f"{jobs} dropped: {reason}")


CHECKS: tuple[Callable[[Site, sqlite3.Connection], Iterator[Finding]], ...] = (
    _integrity,
    _queue,
    _processes,
    _environment,
    _hook,
    _history,
    _held,
    _destinations,
    _read_back,
    _clock,
    _incidents,
    _refusals,
    _unread,
    _letters,
)
"""In the order in which they are told."""

THOROUGH = frozenset({_history, _integrity, _clock})
"""Checks that read all of ledger or store, or ask the server."""
