"""Uninstall: says what is there of this program, and takes it away.

    plugin, receiver                          always
    queue, configuration, the receiver's store    only when they are to be purged

Nothing is removed that this program does not write: what else lies in its folders stays, and so do they.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from app.database.open import read_ledger
from app.database.schema import SchemaError
from app.errors import AppError
from app.ledger import counts
from app.ledger.erasure import is_ours
from app.runtime.filesystem import is_draft
from app.runtime.liveness import is_taken, read_hooks, read_workers
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.settings.model import PROGRAM, SettingsError
from app.sources.opencode import config, install

END_S_MAX = 30.0
LOOK_S = 0.1
CONFIGURATION = (".env", "config.toml")


class InUseError(AppError):
    """Something still runs that would write what is to be removed."""


@dataclass(frozen=True, slots=True)
class Site:
    """What there is."""

    plugins: tuple[install.Found, ...]
    """Of this user, and of the project where it was typed."""
    spool: Path | None
    """None where there is none, or nobody can say where."""
    waiting: int
    """Jobs that were not delivered, of all destinations."""
    configuration: tuple[Path, ...]
    receiver: Path | None
    """The folder of its store."""
    named: tuple[str, ...]
    """Places in OpenCode's files that name the plugin, of this user and of the project: a person wrote them."""
    problem: str
    """Why the settings cannot be used; then the spool is not known."""


def look(sources: Sources, receiver_store: Path) -> Site:
    """Changes nothing. Raises InstallError and OSError."""
    problem, spool, waiting = "", None, 0
    try:
        spool = sources.load().spool_directory
    except SettingsError as error:
        problem = str(error)
    if spool is not None and not spool.is_dir():
        spool = None
    if spool is not None:
        with suppress(OSError, sqlite3.Error, SchemaError), closing(read_ledger(spool)) as db:
            waiting = counts.counts(db).pending
    return Site(
        plugins=tuple(install.find(sources.environ, sources.cwd or sources.base, python=sys.executable)),
        spool=spool,
        waiting=waiting,
        configuration=tuple(path for name in CONFIGURATION if (path := sources.own / name).exists()),
        receiver=receiver_store.parent if receiver_store.parent.is_dir() else None,
        named=tuple(_named(sources)),
        problem=problem,
    )


def _named(sources: Sources) -> Iterator[str]:
    for one in config.read(sources.environ, str(sources.cwd or sources.base)).entries:
        yield f"{one.origin} line {one.line}"


def remove_plugins(site: Site) -> list[Path]:
    """Raises InstallError and OSError."""
    return [install.uninstall(one.scope).path for one in site.plugins]


def purge(site: Site, sleep: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Remove queue, configuration and what the receiver keeps; what had to stay, one line each.

    The plugin must be gone. Raises InUseError and OSError.
    """
    if site.spool is not None:
        _end_workers(Spool(site.spool), sleep)
        yield from _clear(site.spool, lambda name: is_ours(name) or name.startswith("ledger.db"))
    for path in site.configuration:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in site.configuration}:
        yield from _clear(folder, is_draft)  # of `.env`, by a process that was killed: with a key in it
    if site.receiver is not None:
        yield from _clear(site.receiver, lambda name: name.startswith(("store.db", ".store.db")))


def _end_workers(spool: Spool, sleep: Callable[[float], None]) -> None:
    """Automatic ones end when they see that their sign is gone."""
    if read_hooks(spool):
        raise InUseError("an OpenCode that was started with the plugin still runs: quit it, then type the same again")
    if not all(worker.automatic for worker in read_workers(spool)):
        raise InUseError("a worker runs that you started: stop it, then type the same again")
    for sign in spool.workers.glob("*.lock"):
        sign.unlink(missing_ok=True)
    end_s = time.monotonic() + END_S_MAX
    while any(is_taken(lock) for lock in spool.path.glob("worker-*.lock")):
        if time.monotonic() > end_s:
            raise InUseError("a worker is still posting: type the same again in a minute")
        sleep(LOOK_S)


def _clear(folder: Path, is_removed: Callable[[str], bool]) -> Iterator[str]:
    """Remove these, and the folder when nothing else is in it."""
    for one in sorted(folder.iterdir()):
        if not is_removed(one.name):
            yield f"{one} stays: it is not of this program"
        elif one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        else:
            one.unlink()
    with suppress(OSError):
        folder.rmdir()


def command_for_the_rest(prefix: Path) -> str:
    """What removes the program itself, by the folder in which its Python lies."""
    parts = prefix.parts
    if "uv" in parts and "tools" in parts:
        return f"uv tool uninstall {PROGRAM}"
    if "pipx" in parts:
        return f"pipx uninstall {PROGRAM}"
    return f"{prefix}/bin/python -m pip uninstall {PROGRAM}"
