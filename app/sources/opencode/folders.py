"""Finds the folders in which OpenCode keeps a user's files."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path


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
