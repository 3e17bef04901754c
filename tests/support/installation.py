"""A second installation of this program, over which another version can be installed while it runs."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from app import __version__
from app.database.schema import migrations
from tests.support.checkout import ROOT

NEXT_VERSION = f"{__version__}.1"
NEXT_SCHEMA = len(migrations()) + 1
MAPPING = '"mapping": 2'
"""Stands in every user message's record of the next version, and in none of this one's."""


@dataclass(frozen=True, slots=True)
class Installation:
    """An environment with a Python of its own; its dependencies are those of the tests."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def package(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages" / "app"

    def begin(self, package: Path) -> None:
        """What an installer has done when it is half way through: the old files are gone, half of the new ones here."""
        self.package.rename(self.package.with_name("~pp"))
        names = files(package)
        for name in names[: len(names) // 2]:
            put(package / name, self.package / name)

    def finish(self, package: Path) -> None:
        for name in files(package):
            if not (self.package / name).exists():
                put(package / name, self.package / name)
        shutil.rmtree(self.package.with_name("~pp"))


def files(package: Path) -> list[Path]:
    return sorted(path.relative_to(package) for path in package.rglob("*") if path.is_file())


def put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)  # with its time: what is compiled already stays so


def installed(folder: Path) -> Installation:
    """The present version, in `folder`."""
    venv.create(folder, symlinks=True)
    installation = Installation(folder)
    copy(installation.package)
    # The editable installation that lies there is not found this way: its own .pth is not read.
    (installation.package.parent / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return installation


def copy(package: Path) -> None:
    shutil.copytree(ROOT / "app", package)


def next_version(package: Path) -> Path:
    """The program with another version number, another schema, and other bytes for the same turn."""
    copy(package)
    replace(package / "__init__.py", f'"{__version__}"', f'"{NEXT_VERSION}"')
    replace(
        package / "exporters" / "helicone" / "chat.py", '"agent": message.agent,', f'"agent": message.agent, {MAPPING},'
    )
    script = f"alter table job add column next_{NEXT_SCHEMA} text;\n"
    (package / "migrations" / f"{NEXT_SCHEMA:04}_next.sql").write_text(script, "utf-8")
    return package


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), "utf-8")
