"""Plugin check: says whether the installed plugin can work in the installed OpenCode."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from app.capture.targets import folder
from app.ledger import folders
from app.operations.finding import Finding
from app.sources.opencode import install
from app.sources.opencode.access import UNTRIED, StoreError
from app.sources.opencode.install import Found, InstallError, Project
from app.sources.opencode.program import Program
from app.sources.opencode.store import Store, store_file

AT_WORK_MS = 60_000
"""Of a session that was written to so short ago, the hook may not have said anything yet."""


TRIED_UP_TO = (1, 18)
"""The newest OpenCode that this was tried with."""
_SEE = "see that its sessions arrive"


def look(environ: Mapping[str, str], directory: Path, *, python: str, programs: Sequence[Program]) -> Iterator[Finding]:
    """The plugin everywhere and in this folder, and each OpenCode. `python` is this program's."""
    try:
        weak = install.findings(environ, directory)
        if weak:
            todo = "others could run code in your OpenCode"
            yield from (Finding("plugin", "problem", found, todo, "plugin-unsafe") for found in weak)
            return
        there = install.find(environ, directory, python=python)
    except (InstallError, OSError) as error:
        yield Finding("plugin", "problem", str(error), "then run install-plugin", "plugin-foreign")
        return
    for one in there:
        yield from _file(one, environ, programs)
    if not there:
        found = "not installed for this user, nor in this folder"
        yield Finding("plugin", "warning", found, "install-plugin --global", "plugin-missing")
    for program in programs:
        yield _program(program)
    if not programs:
        yield Finding("OpenCode", "ok", "not on PATH, nor in the usual places")


def _file(one: Found, environ: Mapping[str, str], programs: Sequence[Program]) -> Iterator[Finding]:
    flavour = one.flavour
    misfits = [each for each in programs if flavour and each.version and not install.fits(flavour, each.version)]
    if flavour is None:
        found = f"{one.path} was changed, or is of another version or installation"
        yield Finding("plugin", "warning", found, "install-plugin", "plugin-changed")
    elif not misfits:
        yield Finding("plugin", "ok", str(one.path))
    for program in misfits:
        found = f"{one.path} is not in the form that {program} loads"
        yield Finding("plugin", "problem", found, "install-plugin", "plugin-unfitting")
    if isinstance(one.scope, Project) and not _is_on_path(install.COMMAND_BY_PATH[0], environ):
        found = f"{one.path} starts {install.COMMAND_BY_PATH[0]}, which is not on PATH"
        todo = "start OpenCode with a PATH that has it, or install-plugin --global"
        yield Finding("plugin", "problem", found, todo, "command-not-on-path")


def _is_on_path(command: str, environ: Mapping[str, str]) -> bool:
    """As the plugin looks for it: relative folders, which would be the project's, do not count."""
    folders = [folder for folder in environ.get("PATH", "").split(os.pathsep) if folder.startswith("/")]
    return any(os.access(f"{folder}/{command}", os.X_OK) for folder in folders)


def _program(program: Program) -> Finding:
    if program.version is None:
        found = f"{program.path} does not say its version"
        return Finding("OpenCode", "warning", found, "see that `opencode --version` answers", "opencode-unknown")
    if program.version >= install.NEEDS_OBJECT_FROM:
        return Finding("OpenCode", "warning", f"{program}: {UNTRIED}", _SEE, "opencode-untried")
    if program.version[:2] > TRIED_UP_TO:
        found = f"{program} is newer than what was tried: {'.'.join(map(str, TRIED_UP_TO))}"
        return Finding("OpenCode", "warning", found, _SEE, "opencode-untried")
    return Finding("OpenCode", "ok", str(program))


def never_seen(
    db: sqlite3.Connection, environ: Mapping[str, str], directory: Path, *, python: str, now_ms: int
) -> Iterator[Finding]:
    """OpenCode wrote sessions although the plugin was there, and no hook ever said anything of their folders."""
    try:
        there = install.find(environ, directory, python=python)
        sessions = Store(store_file(environ)).roots() if there else []
    except (InstallError, OSError, StoreError):
        return  # said already
    since_ms = min((one.written_ms for one in there), default=now_ms)
    written = [one for one in sessions if since_ms < one.updated_ms < now_ms - AT_WORK_MS]
    if written and all(folders.captured_since_ms(db, folder(db, one.directory)) is None for one in written):
        found = f"OpenCode wrote {len(written)} session(s) since the plugin was installed, and no hook was ever seen"
        todo = "restart OpenCode; its log (opencode-helicone in ~/.local/share/opencode/log) says why; then backfill"
        yield Finding("hook", "problem", found, todo, "hook-never-seen")
