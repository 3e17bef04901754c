"""Places of the user's own configuration files, and how a file is read.

`.env` of the working directory is for commands that a person types; the hook and the worker that it starts run in
projects of others, whose `.env` must not redirect them.
"""

from __future__ import annotations

import sys
from os.path import isfile
from pathlib import Path

from platformdirs import user_config_path

from app.settings.model import PROGRAM

_FILE_BYTES_MAX = 1_000_000


SYSTEM_FILE = Path(
    "/Library/Application Support/opencode-helicone/config.toml"
    if sys.platform == "darwin"
    else "/etc/opencode-helicone/config.toml"
)
"""The administrator's, for all users. No variable can name another one: it may say what must not leave."""


def config_folder() -> Path:
    """The user's own folder of `config.toml` and `.env`."""
    return user_config_path(PROGRAM, appauthor=False)


def existing(path: Path) -> Path | None:
    return path if isfile(path) else None  # noqa: PTH113 - Path.is_file raises where the folder may not be read


def unless_absent(path: Path) -> Path | None:
    """The path, also where nobody can say whether there is something: then reading it is the problem to tell of."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass
    return path


def text_of(path: Path, problems: list[str]) -> str:
    """The file's text; what is not UTF-8 in it comes as Python gives such bytes in the environment."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        problems.append(f"{path}: it cannot be read: {error.strerror}")
        return ""
    if len(content) > _FILE_BYTES_MAX:
        problems.append(f"{path}: it is larger than {_FILE_BYTES_MAX} bytes")
        return ""
    return content.decode("utf-8-sig", "surrogateescape")
