"""Lookup: finds the sources that hold for a process and a directory: arguments, variables, files."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.settings.destinations import towards
from app.settings.layers import load
from app.settings.model import HELICONE, Complaint, Settings, Source, standard_folder
from app.settings.names import HELD, HELD_BY_FILES, TOKEN_BEGINS
from app.settings.options import Options
from app.settings.places import SYSTEM_FILE, config_folder, existing, unless_absent
from app.sources.opencode import config
from app.sources.opencode.config import Configuration, Document, Entry, Problem


@dataclass(frozen=True, slots=True)
class Sources:
    """Which files there are is looked up at each load: one that is written while a process runs counts from then on."""

    environ: Mapping[str, str]
    base: Path
    own: Path
    """The user's own folder of `config.toml` and `.env`."""
    cwd: Path | None = None
    """Where a person typed a command."""
    env_file: Path | None = None
    """An `.env` file that the person named. It stands in for that of `cwd`, and counts whole."""
    command_line: Mapping[str, object] = field(default_factory=dict)
    system: Path = SYSTEM_FILE
    """The administrator's file, for all users of this machine."""
    destination: str = HELICONE
    """Towards which destination settings are loaded."""
    intake: Path | None = None
    """The file of what an intake says, where a change of it is looked for; see `watching`."""

    def load(
        self,
        directory: str | None = None,
        *,
        handed: Mapping[str, object] | None = None,
        recorded: Mapping[str, object] | None = None,
    ) -> Settings:
        """Load for a project folder; without one, for the command itself where it was typed. Raises SettingsError.

        `handed`: the options that OpenCode gave the plugin there. `recorded`: what a hook recorded of the folder. The
        worker, which knows folders as hashes, names no directory: then no project's file is read. A record of a folder
        that its files held says so no longer where they are right.
        """
        if directory is None and recorded is None and self.cwd is not None:
            directory = str(self.cwd)
        is_by_files = directory is not None and recorded is not None and HELD_BY_FILES in recorded
        if is_by_files and not self.everywhere().load(directory).held:
            recorded = {option: value for option, value in (recorded or {}).items() if option != HELD}
        found = config.read(self.environ, directory)
        is_place = directory is not None and Path(directory).is_absolute()
        loaded = load(
            environ=self.environ,
            base=Path(directory) if directory is not None and is_place else self.base,
            command_line=self.command_line,
            folder_dotenv=self._folder_dotenv(),
            dotenv=self._dotenv(),
            options=list(self._options(found, handed or {}, recorded or {}, is_folder_known=directory is not None)),
            complaints=[_complaint(problem) for problem in found.problems],
            config_file=existing(self.own / "config.toml"),
            system_file=unless_absent(self.system),
        )
        return towards(_with_heard(loaded), self.destination)

    def watching(self, settings: Settings) -> Sources:
        """The same, whose `basis` is another one when the intake of these settings says something else."""
        if not _may_be_intake(settings):
            return self
        from app.settings.heard import place  # noqa: PLC0415 - hardly anybody has an intake

        return replace(self, intake=place(settings))

    def everywhere(self) -> Sources:
        """What every process of this user finds, whatever its environment and whoever typed it."""
        home = {name: text for name, text in self.environ.items() if name == "HOME"}
        return replace(self, environ=home, cwd=None, env_file=None, command_line={})

    def is_held_by_files(self, directory: str | None, settings: Settings) -> bool:
        """Whether all that holds the folder stands in files that every process finds there. Raises SettingsError."""
        if not settings.held:
            return False
        found = {one.text for one in self.everywhere().load(directory).complaints}
        return all(one.text in found for one in settings.complaints if one.holds)

    def basis(self, directory: str | None = None) -> object:
        """What all files hold that `load` reads for the directory: equal for as long as nothing in them changes."""
        files = [*self._dotenv(), self._folder_dotenv(), existing(self.own / "config.toml"), self.system]
        texts = tuple((path, _text(path)) for path in files if path is not None)
        if self.intake is None:
            return texts, config.read(self.environ, directory).basis
        from app.settings.heard import basis  # noqa: PLC0415 - the same

        return texts, config.read(self.environ, directory).basis, basis(self.intake)

    def documents(self, directory: str | None) -> tuple[Document, ...]:
        """The configurations of OpenCode that are in force in a directory; without one, those that count everywhere."""
        return config.read(self.environ, directory).documents

    def _options(
        self,
        found: Configuration,
        handed: Mapping[str, object],
        recorded: Mapping[str, object],
        *,
        is_folder_known: bool,
    ) -> Iterator[Options]:
        """The highest first."""
        told = {option: value for option, value in handed.items() if not _is_said(found, option, value)}
        yield Options(told, "plugin options", "project")
        record = Options(recorded, "OpenCode's hook, last seen for this folder", "recorded")
        everywhere = self._origins_of_user()
        entries = [_of_entry(entry, everywhere) for entry in reversed(found.entries)]
        # The record was made with the folder's files. Where these can be read, they are as new or newer; elsewhere the
        # record stands for them, and like them above the user's own.
        yield from (*entries, record) if is_folder_known else (record, *entries)

    def _origins_of_user(self) -> set[str]:
        """Of entries that every process of this user finds: not those of files that OpenCode's environment names."""
        bare = {name: text for name, text in self.environ.items() if not name.startswith("OPENCODE_CONFIG")}
        return {entry.origin for entry in config.read(bare, None).entries}

    def _folder_dotenv(self) -> Path | None:
        return existing(self.cwd / ".env") if self.cwd is not None and self.env_file is None else None

    def _dotenv(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.env_file, existing(self.own / ".env")) if path is not None)


def _may_be_intake(settings: Settings) -> bool:
    return settings.api_key is not None and settings.api_key.get_secret_value().startswith(TOKEN_BEGINS)


def _with_heard(settings: Settings) -> Settings:
    if not _may_be_intake(settings):
        return settings
    from app.settings.heard import heard  # noqa: PLC0415 - the same

    return heard(settings)


def _of_entry(entry: Entry, everywhere: Container[str]) -> Options:
    of_user: Source = "user" if entry.origin in everywhere else "named"
    return Options(entry.options, entry.origin, "project" if entry.is_project else of_user, entry.lines)


def _is_said(found: Configuration, option: str, value: object) -> bool:
    """Whether a file says the same: then its own place is the one to name."""
    return any(option in entry.options and entry.options[option] == value for entry in found.entries)


def _complaint(problem: Problem) -> Complaint:
    short = replace(problem, origin=Path(problem.origin).name)
    return Complaint(str(problem), str(short), problem.may_tighten)


def _text(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def typed(
    environ: Mapping[str, str],
    cwd: Path,
    *,
    env_file: Path | None = None,
    command_line: Mapping[str, object] | None = None,
) -> Sources:
    """Sources of a command that a person typed in `cwd`: its `.env` counts. Raises SettingsError."""
    return Sources(environ, cwd, standard_folder(config_folder), cwd, env_file, command_line or {})


def unattended(environ: Mapping[str, str]) -> Sources:
    """Sources of the hook and its worker: they run in projects of others, whose `.env` is not ours to read.

    Raises SettingsError.
    """
    return Sources(environ, Path("/"), standard_folder(config_folder))
