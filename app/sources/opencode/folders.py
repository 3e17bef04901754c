"""Finds the folders in which OpenCode keeps a user's files."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from app.sources.opencode.access import may_be

NAME = "opencode.db"
"""What lies beside a file of this name is read with it. One of another name stands alone."""


def home(environ: Mapping[str, str]) -> Path:
    """HOME, or the home folder that the system has for this user, as OpenCode's runtime asks for it."""
    if environ.get("HOME"):
        return Path(environ["HOME"])
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path("/")


def data_folder(environ: Mapping[str, str]) -> Path:
    """OpenCode's own folder for its store and `auth.json`."""
    share = environ.get("XDG_DATA_HOME")
    return (Path(share) if share else home(environ) / ".local" / "share") / "opencode"


def store_file(environ: Mapping[str, str]) -> Path:
    """Where OpenCode keeps it, unless told otherwise by OPENCODE_DB."""
    named = environ.get("OPENCODE_DB")
    if named and Path(named).is_absolute():
        return Path(named)
    return data_folder(environ) / (named or NAME)


def databases(path: Path) -> list[Path]:
    """The SQLite files that are there of a store."""
    beside: list[Path] = []
    if path.name == NAME:
        with suppress(OSError):
            names = os.listdir(path.parent)  # noqa: PTH208 - asked before each question, and a third of what glob takes
            beside = sorted(path.parent / one for one in names if one.startswith("opencode-") and one.endswith(".db"))
    return [one for one in (path, *beside) if may_be(one, S_ISREG)]
