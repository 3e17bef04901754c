"""What was recorded of the plugin's options, applied to what a command does in a project folder.

Later commands must not be looser than live capture was: the options that a folder's plugin brought last count for all
sessions of that folder, wherever the command is typed. One session that a person names may be captured otherwise, by
what stands on the command line; not whole histories.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from app import destination
from app.capture import capture, secrets_of_this_machine
from app.enqueue import Capture
from app.install import FILE_NAME, InstallError, config_directory
from app.permit import tightest
from app.settings import Recorded, Settings, load
from app.sources import Sources
from app.spool import find_target, folder

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
            if recorded is not None and self._never_looser:
                settings = tightest(settings, load(environ={}, base=Path("/"), plugin=recorded))
            self._found[name] = (settings, capture(settings, self._secrets) if settings.enable else None)
        return self._found[name]

    def unseen(self, directory: str) -> Path | None:
        """The file that configures the plugin there, where no hook has told what options that gives; else None."""
        if destination.folder_options(self._db, folder(self._db, directory)) is not None:
            return None
        return next(_configurations(directory, self._sources.environ), None)


def _configurations(directory: str, environ: Mapping[str, str]) -> Iterator[Path]:
    """Files of OpenCode that load the plugin in a folder, and may bring options.

    As OpenCode looks for them, up to the root of the repository. A folder that is gone configures nothing; the user's
    own file counts everywhere.
    """
    here = Path(directory)
    for above in (here, *here.parents) if here.is_absolute() and here.is_dir() else ():
        for base in (above, above / ".opencode"):
            yield from (path for name in _CONFIGURATIONS if _names_us(path := base / name))
        for name in ("plugin", "plugins"):
            path = above / ".opencode" / name / FILE_NAME
            if path.exists():
                yield path
        if (above / ".git").exists():
            break
    with suppress(InstallError):
        base = config_directory(environ)
        yield from (path for name in _CONFIGURATIONS if _names_us(path := base / name))


def _names_us(path: Path) -> bool:
    """Whether the file may name the plugin: one that cannot be read may."""
    try:
        return FILE_NAME.removesuffix(".js").encode() in path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def effective(db: sqlite3.Connection, sources: Sources, directory: Path) -> Settings:
    """The settings for work in `directory`, with its capture options and its destination's delivery options."""
    ours = find_target(db, sources.load())
    options = dict(destination.folder_options(db, folder(db, str(directory))) or {})
    options.update(ours.delivery_options if ours else {})
    return sources.load(Recorded(options, "plugin options, recorded by its hook") if options else None)
