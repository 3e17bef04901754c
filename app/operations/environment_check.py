"""Environment check: whether the shell and OpenCode's hooks see the same variables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from app.capture.environment import SETTINGS, STANDARD, fingerprints
from app.operations.finding import Finding
from app.settings.places import existing
from app.settings.variables import dotenv_variables


def differences(
    db: sqlite3.Connection, environ: Mapping[str, str], own: Path, hooks: Sequence[Mapping[str, str]]
) -> Iterator[Finding]:
    """What the shell and the hooks see differently; `own` is the configuration folder, which both read.

    `hooks`: what each said of its environment.
    """
    dotenv = existing(own / ".env")
    both = fingerprints(db, {} if dotenv is None else dotenv_variables(dotenv, []))
    both = {name: text for name, text in both.items() if name in SETTINGS}
    here = both | fingerprints(db, environ)
    for name in (*SETTINGS, "OPENCODE_DB", *STANDARD):
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
        if name in SETTINGS:
            todo = f"put it into {own / '.env'}, which OpenCode's service reads too, and start OpenCode anew"
        yield Finding("environment", "warning", found, todo, "environment-differs")
