"""Mend: does what `doctor --fix` may do: it is safe, it is ours, and it can be done again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path

from app.capture.targets import find_target
from app.database.open import open_ledger
from app.ledger.erasure import erase
from app.operations.finding import FAULTS, Finding
from app.queue import Queue
from app.runtime import filesystem
from app.settings.lookup import Sources
from app.sources.opencode import install
from app.sources.opencode.program import programs


def mend(sources: Sources, directory: Path, found: Iterable[Finding]) -> list[str]:
    """What was done, one line each. Raises what the commands raise that do the same."""
    names = dict.fromkeys(one.name for one in found if one.level != "ok")
    done: dict[Callable[[Sources, Path], list[str]], None] = {
        _MENDING[name]: None for name in names if name and FAULTS[name].is_mended
    }
    return [line for each in done for line in each(sources, directory)]


def _close_spool(sources: Sources, _: Path) -> list[str]:
    return [f"closed to other users: {path}" for path in filesystem.close(sources.load().spool_directory)]


def _write_plugin(sources: Sources, directory: Path) -> list[str]:
    flavour = install.flavour_for(programs(sources.environ))
    done = [
        install.install(one.scope, python=sys.executable, flavour=flavour)
        for one in install.find(sources.environ, directory, python=sys.executable)
    ]
    return [f"written anew: {one.path}; start OpenCode anew" for one in done if one.changed]


def _make_queue(sources: Sources, _: Path) -> list[str]:
    settings = sources.load()
    with closing(open_ledger(settings.spool_directory)) as db:
        ours = find_target(db, settings)
    Queue(settings.spool_directory, 0 if ours is None else ours.id).close()  # who opens it makes it anew
    return [f"made anew: {settings.spool_directory / 'queue.db'}"]


def _erase(sources: Sources, _: Path) -> list[str]:
    with closing(open_ledger(sources.load().spool_directory)) as db:
        left = erase(db)
    return left or ["rewritten without what was purged: ledger.db"]


_MENDING: Mapping[str, Callable[[Sources, Path], list[str]]] = {
    "spool-open": _close_spool,
    "plugin-changed": _write_plugin,
    "plugin-unfitting": _write_plugin,
    "queue-damaged": _make_queue,
    "unerased": _erase,
}
