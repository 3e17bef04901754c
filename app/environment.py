"""Which variables a process sees, told without any value: the hook says it, and `doctor` compares it with the shell's.

OpenCode need not run in the environment of the shell: its service has that of whoever started it first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from app import destination
from app.finding import Finding
from app.opencode.folders import home
from app.settings.names import VARIABLES
from app.settings.places import existing
from app.settings.variables import dotenv_variables

_STANDARD = {"HOME": "", "XDG_CONFIG_HOME": ".config", "XDG_DATA_HOME": ".local/share"}
"""Below the home folder: said or not, it is the same."""
_SETTINGS = [variable for variable, _, _ in VARIABLES]
_CHARACTERS = 8


def fingerprints(db: sqlite3.Connection, environ: Mapping[str, str]) -> dict[str, str]:
    """By the name of each variable that is set and matters here."""
    texts = {name: environ.get(name, "").strip() for name in (*_SETTINGS, "OPENCODE_DB")}
    texts |= {name: environ.get(name) or str(home(environ) / below) for name, below in _STANDARD.items()}
    return {name: destination.fingerprint(db, text)[:_CHARACTERS] for name, text in texts.items() if text}


def differences(
    db: sqlite3.Connection, environ: Mapping[str, str], own: Path, hooks: Sequence[Mapping[str, str]]
) -> Iterator[Finding]:
    """What the shell and the hooks see differently; `own` is the configuration folder, which both read.

    `hooks`: what each said of its environment.
    """
    dotenv = existing(own / ".env")
    both = fingerprints(db, {} if dotenv is None else dotenv_variables(dotenv, []))
    both = {name: text for name, text in both.items() if name in _SETTINGS}
    here = both | fingerprints(db, environ)
    for name in (*_SETTINGS, "OPENCODE_DB", *_STANDARD):
        there = {hook.get(name, both.get(name)) for hook in hooks}
        if there <= {here.get(name)}:
            continue
        if name not in here:
            found = f"{name} is set where OpenCode was started, and not here"
        elif None in there:
            found = f"{name} is set here, and not where OpenCode was started"
        else:
            found = f"{name} is not the same here as where OpenCode was started"
        todo = "start OpenCode, or its service, anew with the value that commands have"
        if name in _SETTINGS:
            todo = f"put it into {own / '.env'}, which OpenCode's service reads too, and start OpenCode anew"
        yield Finding("environment", "warning", found, todo)
