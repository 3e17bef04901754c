"""Doctor: runs one check after the other, and says of each what it found and what to do.

    settings ─▶ checks around the ledger ─▶ the ledger opens ─▶ checks inside it

A ledger that is missing is made, an older one migrated and a damaged one recovered, as by every command; nothing else
is mended here.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from app import __version__
from app.capture.config import capture
from app.capture.keyring import Keyring
from app.capture.reconcile import QUIET_MS
from app.capture.targets import find_target
from app.database import derived
from app.database.connection import wal_reset_bug
from app.database.open import open_ledger, read_ledger
from app.database.schema import SchemaError
from app.ledger import counts, incidents, notices
from app.ledger import counts as ledger_counts
from app.ledger.folders import held_folders
from app.ledger.history import exported_sessions
from app.ledger.readback import BLIND
from app.operations import environment_check, network_check, plugin_check
from app.operations.finding import Finding, Level
from app.operations.status import BYTES_BESIDE_BODIES_MAX, DestinationStatus, alarms, named, read_destinations
from app.privacy.user_patterns import PatternError
from app.runtime import filesystem
from app.runtime.liveness import open_sessions, present, read_hooks, read_workers
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import Settings, SettingsError
from app.sources.opencode import config
from app.sources.opencode.access import UNTRIED, AbsentError, InMemoryError, StoreError
from app.sources.opencode.config import Document
from app.sources.opencode.program import programs
from app.sources.opencode.store import Store, store_file
from app.transcript.model import Json

# As Helicone itself asks of a key; one that somebody hosts may be less strict.
_KEY = re.compile(r"[sp]k(-helicone)?(-eu)?(-cp|-rl)?(-\w{7}){4}", re.ASCII)
_LOST = ("age", "size", "policy")
"""Why jobs are dropped without anybody having asked for it."""
_NAME_MAX = 60
_CLOCK_MS_MAX = 60_000
"""Clocks of processes on one machine differ by less."""


@dataclass(frozen=True, slots=True)
class Site:
    """What there is to look at."""

    settings: Settings
    sources: Sources
    directory: Path
    """Where the command was typed: perhaps a project."""
    now_ms: int

    @property
    def spool(self) -> Spool:
        return Spool(self.settings.spool_directory)


def examine(sources: Sources, directory: Path, now_ms: int, *, is_quick: bool = False) -> Iterator[Finding]:
    """Findings as they come; they end early where the settings or the ledger cannot be used.

    `is_quick`: without `THOROUGH`, and nothing is made, migrated or recovered.
    """
    try:
        site = Site(sources.load(), sources, directory, now_ms)
    except SettingsError as error:
        yield from (Finding("settings", "problem", one, "correct it", _setting(one)) for one in error.problems)
        return
    yield Finding("settings", "ok", f"version {__version__}")
    for look in _AROUND:
        if not (is_quick and look in THOROUGH):
            yield from look(site)
    try:
        db = read_ledger(site.spool.path) if is_quick else open_ledger(site.spool.path)
    except FileNotFoundError:
        yield Finding("ledger", "warning", "there is no queue yet", "start OpenCode, or type opencode-helicone migrate")
        return
    except (OSError, sqlite3.Error, SchemaError) as error:
        yield _unopened(error)
        return
    with closing(db):
        for inspect in _INSIDE:
            if not (is_quick and inspect in THOROUGH):
                yield from inspect(site, db)


def _setting(problem: str) -> str:
    return "variable-misspelt" if "there is no such" in problem else "setting-wrong"


def _unopened(error: Exception) -> Finding:
    found = f"ledger.db cannot be opened: {error}"
    match error:
        case SchemaError():
            return Finding(
                "ledger", "problem", found, "use the newer version again, or update this one", "ledger-newer"
            )
        case OSError():
            return Finding("ledger", "problem", found, "the queue needs it", "spool-unusable")
        case _:
            return Finding("ledger", "problem", found, "see logs/ in the spool directory", "ledger-unusable")


# --- around the ledger


def _key(site: Site) -> Iterator[Finding]:
    key = site.settings.api_key
    if key is None:
        yield Finding(
            "key",
            "problem",
            "no HELICONE_API_KEY is set: jobs wait",
            "export it where OpenCode is started",
            "key-missing",
        )
    elif not _KEY.fullmatch(key.get_secret_value()):
        yield Finding(
            "key", "warning", "HELICONE_API_KEY does not look like a key of Helicone", "copy it once more", "key-odd"
        )
    else:
        yield Finding("key", "ok", f"set ({site.settings.origin('api_key')})")


def _configuration(site: Site) -> Iterator[Finding]:
    """What OpenCode's files say to the plugin, here and everywhere."""
    for one in site.settings.complaints:
        todo = "correct it: nothing of this folder is captured or sent until then" if one.holds else "correct it"
        yield Finding("configuration", "problem" if one.holds else "warning", one.text, todo, _option(one.text))
    found = config.read(site.sources.environ, str(site.directory))
    for document in found.documents:
        yield from _strangers(document)
    if not site.settings.complaints:
        yield Finding("configuration", "ok", f"{len(found.entries)} place(s) in OpenCode's files configure the plugin")


def _option(problem: str) -> str:
    """The name of a fault in OpenCode's files."""
    if "there is no such" in problem:
        return "option-misspelt"
    if "redaction pattern" in problem or problem.startswith("redactPatterns"):
        return "pattern-refused"
    return "config-unreadable" if problem.startswith("/") else "option-refused"


def _strangers(document: Document) -> Iterator[Finding]:
    """Where another plugin that does the same is listed, and where options may stand that nobody reads."""
    lists = [value for key in ("plugin", "plugins") if isinstance(value := document.value.get(key), list)]
    if any(config.PREDECESSOR in _listed_as(one) for one in chain(*lists)):
        found = f"{document.origin}: {config.PREDECESSOR} is listed, which sends every session, too"
        yield Finding("configuration", "problem", found, "take it out of the list", "predecessor-listed")
    block = document.value.get("plugins")
    for name in block if isinstance(block, dict) else ():
        if name not in {config.PLUGIN, config.PREDECESSOR}:
            found = f"{document.origin}: plugins.{name[:_NAME_MAX]} counts nowhere: OpenCode drops this block"
            todo = f"if it is meant for this plugin, name it {config.PLUGIN}"
            yield Finding("configuration", "warning", found, todo, "block-unknown")


def _listed_as(plugin: Json) -> str:
    """The package or path of one element of OpenCode's list."""
    match plugin:
        case str(name) | [str(name), *_] | {"package": str(name)}:
            return name
        case _:
            return ""


def _patterns(site: Site) -> Iterator[Finding]:
    if site.settings.held:
        return
    try:
        capture(site.settings, ())
    except PatternError as error:
        todo = "correct the pattern: nothing is captured until then"
        yield Finding("redaction", "problem", str(error), todo, "pattern-refused")
    else:
        own = len(site.settings.redact_patterns)
        yield Finding("redaction", "ok", f"mode {site.settings.export_mode}, {own} pattern(s) of yours")


def _place(site: Site) -> Iterator[Finding]:
    """Before the ledger is opened, which closes what is open to others."""
    spool = site.spool.path
    weak = filesystem.findings(spool)
    for found in weak:
        name = "spool-open" if "open to other users" in found else "spool-unusable"
        yield Finding("spool", "problem", found, "name another folder, or put this one right", name)
    if not weak:
        yield Finding("spool", "ok", str(spool) if spool.exists() else f"{spool} is not there yet")
    left = site.directory / config.PREDECESSORS_SPOOL
    if left.is_dir() and left != spool and not (left / "ledger.db").exists():
        found = f"{left} is the spool of {config.PREDECESSOR}: nothing sends what it holds"
        yield Finding("spool", "warning", found, "delete it", "predecessor-spool")


def _disk(site: Site) -> Iterator[Finding]:
    path = site.spool.path
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    wanted = site.settings.max_spool_bytes + BYTES_BESIDE_BODIES_MAX
    found = f"{free // 1_000_000} MB free, the queue may take {wanted // 1_000_000} MB"
    level: Level = "ok" if free >= wanted else "warning" if free >= BYTES_BESIDE_BODIES_MAX else "problem"
    if level == "ok":
        yield Finding("disk", level, found)
    else:
        yield Finding("disk", level, found, "make room, or set maxSpoolSize lower", "disk-full")


def _sqlite(_: Site) -> Iterator[Finding]:
    version = sqlite3.sqlite_version
    known = ": has the WAL-reset bug, which checkpoints of our own avoid" if wal_reset_bug(version) else ""
    yield Finding("SQLite", "ok", f"{version}{known}")


def _plugin(site: Site) -> Iterator[Finding]:
    environ = site.sources.environ
    return plugin_check.look(environ, site.directory, python=sys.executable, programs=programs(environ))


def _network(site: Site) -> Iterator[Finding]:
    yield from network_check.proxies(site.settings.endpoint)
    yield from network_check.certificates(site.sources.environ)


def _consumer(site: Site) -> Iterator[Finding]:
    """Whether `huey_consumer app.worker.huey` would load another package than ours."""
    if site.settings.worker != "external":
        return  # a hook starts the worker, and looks in no folder
    ours = Path(__file__).resolve().parent.parent
    named = site.sources.environ.get("PYTHONPATH", "").split(os.pathsep)
    for folder in (site.directory, *(Path(one) for one in named if one)):
        for other in (folder / "app" / "__init__.py", folder / "app.py"):
            if other.is_file() and other.parent.resolve() != ours:
                todo = "start the worker in another folder, without that PYTHONPATH"
                yield Finding("consumer", "warning", f"{other} is found before this program", todo, "app-shadowed")


def _store(site: Site) -> Iterator[Finding]:
    """All that is captured is read from it."""
    path = store_file(site.sources.environ)
    try:
        store = Store(path)
        found = f"{store.place}, {len(store.roots())} session(s)"
        yield Finding("OpenCode's store", "ok", f"{found}; {UNTRIED}" if store.is_newer() else found)
    except InMemoryError as error:
        todo = "start OpenCode without OPENCODE_DB, or with the name of a file"
        yield Finding("OpenCode's store", "problem", str(error), todo, "store-in-memory")
    except AbsentError:
        yield Finding("OpenCode's store", "ok", f"{path} is not there yet")
    except StoreError as error:
        todo = "what OpenCode writes there is not captured"
        yield Finding("OpenCode's store", "problem", str(error), todo, "store-unreadable")


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


def _logins(site: Site) -> Iterator[Finding]:
    """Whether all that OpenCode logs in with is known, so that it is masked."""
    keyring = Keyring(site.sources.environ)
    keyring.look()
    for problem in keyring.problems:
        todo = "mend it: until then these may leave as a part of a transcript"
        yield Finding("logins", "problem", problem, todo, "logins-unreadable")


# --- inside


def _hook(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    if not site.settings.enable:
        return iter(())
    environ, directory = site.sources.environ, site.directory
    return plugin_check.never_seen(db, environ, directory, python=sys.executable, now_ms=site.now_ms)


def _integrity(_: Site, db: sqlite3.Connection) -> Iterator[Finding]:
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
        one.jobs.pending and one.current and one.key is not None and one.id not in served
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


def _held(_: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    for reason, folders in held_folders(db):
        found = f"{folders} folder(s), as seen last: {reason}"
        yield Finding("held", "problem", found, "correct it; the turns wait in OpenCode's store", "folder-held")


_HEALTH: dict[str, tuple[Level, str, str]] = {
    "down": (
        "warning",
        "nothing while a worker runs: it is tried again by itself; flush tries now",
        "destination-down",
    ),
    "refused": ("problem", "check the key and the endpoint; flush tries again now", "destination-refused"),
    "quota": ("warning", "Helicone keeps numbers without bodies until the quota has room", "quota-exceeded"),
}
_ELSEWHERE = "use its key once, open its project with the present one, or move them"


def _destinations(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    for one in read_destinations(db, site.settings, site.now_ms):
        if not one.current and one.jobs.pending:
            yield Finding("destination", "warning", _described(one), _ELSEWHERE, "jobs-elsewhere")
        elif one.current:
            level, todo, name = _HEALTH.get(one.health, ("ok", "", ""))
            fault = network_check.fault_of(one.pause_reason, name)
            yield Finding("destination", level, _described(one), todo, fault)


def _read_back(site: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    found = read_destinations(db, site.settings, site.now_ms)
    for alarm in alarms(found):
        name = "never-stored" if "never found" in alarm else "read-back-blind"
        yield Finding("read back", "warning", alarm, "doctor --send posts one log and looks for it", name)
    for one in found:
        if one.current and BLIND in one.confirmation.notes:
            todo = "see that Helicone's database is well"
            yield Finding("read back", "warning", f"{named(one)}: {BLIND}", todo, "read-back-blind")


def _described(one: DestinationStatus) -> str:
    why = f": {one.pause_reason}" if one.pause_reason else ""
    whose = "" if one.current else ", another than that of the present settings"
    return f"{named(one)}{whose}: {one.health}{why}; {one.jobs.pending} job(s) wait"


def _incidents(_: Site, db: sqlite3.Connection) -> Iterator[Finding]:
    for what, count, _last_ms in incidents.incidents(db):
        todo, name = "see logs/ in the spool", "incident"
        if what.startswith("ledger: "):
            todo, name = "the damaged file is kept for a while: ledger.db.damaged-*", "ledger-damaged"
        elif what == incidents.UNERASED:
            todo, name = "run dead purge --all, or start a worker", "unerased"
        yield Finding("incident", "warning", f"{count} times: {what}", todo, name)


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
        if reason in _LOST:
            todo = "dead list --dropped names them, import queues a session again"
            yield Finding("dropped", "warning", f"{jobs} dropped: {reason}", todo, "jobs-dropped")
        else:
            yield Finding("dropped", "ok", f"{jobs} dropped: {reason}")


_AROUND: tuple[Callable[[Site], Iterator[Finding]], ...] = (
    _key,
    _configuration,
    _patterns,
    _place,
    _disk,
    _sqlite,
    _network,
    _consumer,
    _plugin,
    _store,
    _logins,
)
_INSIDE: tuple[Callable[[Site, sqlite3.Connection], Iterator[Finding]], ...] = (
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

THOROUGH: frozenset[object] = frozenset({_plugin, _store, _history, _integrity, _clock})
"""Checks that read all of ledger or store, or start programs."""
