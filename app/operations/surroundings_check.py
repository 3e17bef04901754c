"""Checks around the ledger: settings, OpenCode's files and store, the spool's place, the machine; opens no ledger."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from app.capture.config import capture
from app.capture.keyring import Keyring
from app.database.connection import wal_reset_bug
from app.operations import network_check, plugin_check
from app.operations.centre import centre
from app.operations.finding import Finding, Level
from app.operations.site import Site
from app.operations.status import BYTES_BESIDE_BODIES_MAX
from app.privacy.user_patterns import PatternError
from app.runtime import filesystem
from app.runtime.terminal import span
from app.settings.model import HELICONE
from app.sources.opencode import config
from app.sources.opencode.access import UNTRIED, AbsentError, InMemoryError, StoreError
from app.sources.opencode.config import Document
from app.sources.opencode.program import programs
from app.sources.opencode.store import Store, store_file
from app.transcript.model import Json

# As Helicone itself asks of a key; one that somebody hosts may be less strict.
_KEY = re.compile(r"[sp]k(-helicone)?(-eu)?(-cp|-rl)?(-\w{7}){4}", re.ASCII)
_NAME_MAX = 60


def _key(site: Site) -> Iterator[Finding]:
    key, settings = site.settings.api_key, site.settings
    if settings.kind != HELICONE:
        yield Finding("key", "ok", f"the headers of {settings.destination}: {', '.join(settings.headers) or 'none'}")
    elif key is None and settings.common is not None and settings.export_mode == "off":
        yield Finding("key", "ok", "not set, and Helicone is switched off")
    elif key is None:
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


def _intake(site: Site) -> Iterator[Finding]:
    """What the intake has said, as far as a worker has asked it."""
    there = centre(site.settings)
    if there is None:
        return
    if there.is_refused:
        todo = "get a new token from whoever runs the centre, or correct the endpoint"
        yield Finding("intake", "problem", f"{there.intake}: {there.failure}", todo, "intake-refuses")
    elif there.heard_ms is None:
        found = f"{there.intake} has not said yet what may leave{f': {there.failure}' if there.failure else ''}"
        todo = "doctor --send asks it, and so does a worker"
        yield Finding("intake", "problem" if there.failure else "warning", found, todo, "intake-silent")
    elif not there.export_mode:
        found = f"what {there.intake} says of what may leave cannot be used here"
        todo = "update this program, or tell whoever runs the centre"
        yield Finding("intake", "problem", found, todo, "intake-unusable")
    else:
        age = span(site.now_ms - there.heard_ms)
        said = f"export mode {there.export_mode}, {there.patterns} redaction pattern(s), as of {age} ago"
        if there.failure:
            todo = "see that it can be reached; a worker asks again by itself"
            found = f"{there.intake} does not answer: {there.failure}; it said last: {said}"
            yield Finding("intake", "warning", found, todo, "intake-away")
        else:
            yield Finding("intake", "ok", f"{there.intake} says: {said}")
    if there.dead:
        found = f"{there.dead} log(s) of this machine are dead at the centre"
        yield Finding("intake", "warning", found, "whoever runs the centre tries them again", "dead-at-centre")


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


def _logins(site: Site) -> Iterator[Finding]:
    """Whether all that OpenCode logs in with is known, so that it is masked."""
    keyring = Keyring(site.sources.environ)
    keyring.look()
    for problem in keyring.problems:
        todo = "mend it: until then these may leave as a part of a transcript"
        yield Finding("logins", "problem", problem, todo, "logins-unreadable")


CHECKS: tuple[Callable[[Site], Iterator[Finding]], ...] = (
    _key,
    _intake,
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
"""In the order in which they are told."""

THOROUGH = frozenset({_plugin, _store})
"""Checks that read all of the store, or start programs."""
