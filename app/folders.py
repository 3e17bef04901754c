"""What was recorded of the plugin's options, applied to what a command does in a project folder.

Later commands must not be looser than live capture was: the options that a folder's plugin brought last count for all
sessions of that folder, wherever the command is typed. One session that a person names may be captured otherwise, by
what stands on the command line; not whole histories.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from app import destination
from app.capture import capture, secrets_of_this_machine
from app.enqueue import Capture
from app.install import FILE_NAME, InstallError, config_directory
from app.permit import tightest
from app.settings import DEFAULT, Recorded, Settings, load
from app.sources import Sources
from app.spool import find_target, folder

_PLUGIN = FILE_NAME.removesuffix(".js")
_CONFIGURATIONS = ("opencode.json", "opencode.jsonc")


class Folders:
    """How each project folder is captured. Found out once for each."""

    def __init__(self, db: sqlite3.Connection, sources: Sources, *, never_looser: bool = False) -> None:
        """`never_looser`: also what stands on the command line counts only where it is stricter than the options."""
        self._db = db
        self._never_looser = never_looser
        self._sources = sources
        self._secrets = secrets_of_this_machine(sources.environ)
        self._found: dict[str, tuple[Settings, Capture | None]] = {}

    def find(self, directory: str | None) -> tuple[Settings, Capture | None]:
        """Its settings, and its capture unless `enable` is false. Raises SettingsError, PatternError."""
        name = folder(self._db, directory)
        if name not in self._found:
            options = destination.folder_options(self._db, name)
            recorded = Recorded(options, "plugin options, last seen for this folder") if options else None
            settings = self._sources.load(recorded)
            if options is not None and self._never_looser:
                settings = tightest(settings, load(environ={}, base=Path("/"), plugin=recorded))
                settings = tightest(settings, self._unattended(recorded))
            self._found[name] = (settings, capture(settings, self._secrets) if settings.enable else None)
        return self._found[name]

    def _unattended(self, recorded: Recorded | None) -> Settings:
        """As the folder's hook has it, without what this command was given: its environment is recorded."""
        bare = replace(self._sources, environ={}, command_line={}, cwd=None, env_file=None)
        found = bare.load(recorded)
        return found.model_copy(update={"origins": {"redact_secrets": DEFAULT, **found.origins}})

    def unseen(self, directory: str) -> str | None:
        """What configures the plugin there, where no hook has told what options that gives; else None."""
        if destination.folder_options(self._db, folder(self._db, directory)) is not None:
            return None
        return next(_configurations(directory, self._sources.environ), None)


def _configurations(directory: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Files, and variables, of OpenCode that load the plugin in a folder, and may bring options.

    As OpenCode looks for them, up to the root of the repository. A folder that is gone configures nothing; the user's
    own file counts everywhere.
    """
    here = Path(directory)
    for above in (here, *here.parents) if here.is_absolute() and here.is_dir() else ():
        for base in (above, above / ".opencode"):
            yield from (str(path) for name in _CONFIGURATIONS if _names_us(path := base / name))
        for name in ("plugin", "plugins"):
            path = above / ".opencode" / name / FILE_NAME
            if path.exists():
                yield str(path)
        if (above / ".git").exists():
            break
    with suppress(InstallError):
        base = config_directory(environ)
        yield from (str(path) for name in _CONFIGURATIONS if _names_us(path := base / name))
    own = environ.get("OPENCODE_CONFIG")
    if own and _names_us(here / own):
        yield own
    if _PLUGIN in environ.get("OPENCODE_CONFIG_CONTENT", ""):
        yield "OPENCODE_CONFIG_CONTENT"


def _names_us(path: Path) -> bool:
    """Whether the file may name the plugin: one that cannot be read may."""
    try:
        return _PLUGIN.encode() in path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def effective(db: sqlite3.Connection, sources: Sources, directory: Path) -> Settings:
    """The settings for work in `directory`, with its capture options and its destination's delivery options."""
    ours = find_target(db, sources.load())
    options = {
        **(ours.delivery_options if ours else {}),
        **(destination.folder_options(db, folder(db, str(directory))) or {}),
    }
    return sources.load(Recorded(options, "plugin options, recorded by its hook") if options else None)
