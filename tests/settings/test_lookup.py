"""Which files, variables and records a process takes its settings from, for a project folder and without one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.capture.autostart import worker_signature
from app.settings.lookup import Sources
from app.settings.model import Settings
from app.settings.views import delivery_record, folder_record
from tests.support.processes import repository


class Machine:
    """One user's home with a repository in it, and one environment."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.project = home / "shop"
        self.own = home / "own"
        repository(self.project)
        self.own.mkdir()
        self.environ = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")}

    @property
    def sources(self) -> Sources:
        """As a hook has them, and the worker that it starts."""
        return Sources(self.environ, Path("/"), self.own)

    @property
    def typed(self) -> Sources:
        """As a command has them that is typed in the project."""
        return Sources(self.environ, self.project, self.own, self.project)

    def of_project(self, **options: object) -> None:
        configured(self.project / "opencode.json", options)

    def of_user(self, **options: object) -> None:
        configured(self.home / "config" / "opencode" / "opencode.json", options)

    def of_variable(self, **options: object) -> None:
        configured(self.home / "named.json", options)
        self.environ["OPENCODE_CONFIG"] = str(self.home / "named.json")

    def load(self, **handed: object) -> Settings:
        return self.sources.load(str(self.project), handed=handed)


def configured(path: Path, options: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"plugin": [["opencode-helicone", options]]}), "utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_options_in_opencodes_files_arrive_with_file_and_line(machine: Machine) -> None:
    machine.of_project(redactPatterns=["a"], sessionPathPrefix="/shop")
    machine.of_user(redactPatterns=["b"], flushInterval=7)
    settings = machine.load()
    shop, everywhere = machine.project / "opencode.json", machine.home / "config" / "opencode" / "opencode.json"
    assert settings.redact_patterns == ("a", "b")
    assert settings.origin("redact_patterns") == f"{shop} line 1; {everywhere} line 1"
    assert (settings.session_path_prefix, settings.flush_interval_ms) == ("/shop", 7)
    assert settings.origin("flush_interval_ms") == f"{everywhere} line 1"


def test_without_a_directory_no_file_of_a_project_counts_unless_a_command_is_typed_there(machine: Machine) -> None:
    machine.of_project(redactPatterns=["a"])
    machine.of_user(redactPatterns=["b"])
    assert machine.sources.load().redact_patterns == ("b",)
    assert machine.typed.load().redact_patterns == ("a", "b")
    # What only its hash is known of is not the folder where the command is typed.
    assert machine.typed.load(recorded={}).redact_patterns == ("b",)


def test_what_opencode_hands_over_counts_once(machine: Machine) -> None:
    machine.of_project(redactPatterns=["a"], maxRetries=1, nonsense=2)
    settings = machine.load(redactPatterns=["a"], maxRetries=1, nonsense=2)
    assert "plugin options" not in settings.origin("redact_patterns")
    assert len(settings.complaints) == 1
    # An entry that no file of this machine holds.
    settings = machine.load(redactPatterns=["b"], maxRetries=3)
    assert settings.redact_patterns == ("b", "a")
    assert folder_record(settings)["maxRetries"] == 3
    assert settings.max_retries == 5


def test_what_every_process_of_the_user_finds_is_not_recorded(machine: Machine) -> None:
    machine.of_user(redactPatterns=["everywhere"], maxSpoolAge=5, confirm="on")
    machine.of_project(redactPatterns=["project"], maxSpoolSize=6)
    settings = machine.load()
    assert folder_record(settings) == {"redactPatterns": ["project"], "redactSecrets": True, "maxSpoolSize": 6}
    assert delivery_record(settings) == {}
    assert (settings.max_spool_age_ms, settings.confirm) == (5, "on")


def test_what_only_this_environment_names_is_recorded(machine: Machine) -> None:
    """A later command may be typed where `OPENCODE_CONFIG` is not set."""
    machine.of_variable(redactPatterns=["named"], maxSpoolAge=5, exportMode="metadata_only")
    settings = machine.load()
    recorded = {"redactPatterns": ["named"], "exportMode": "metadata_only", "redactSecrets": True}
    assert folder_record(settings) == recorded
    assert delivery_record(settings) == {"maxSpoolAge": 5}


def test_a_problem_of_a_file_holds_and_is_told_with_and_without_its_folder(machine: Machine) -> None:
    path = machine.project / "opencode.json"
    path.write_text('{\n "plugin": ["opencode-helicone"')
    settings = machine.load()
    (complaint,) = settings.complaints
    assert complaint.text == f"{path} line 2: it is not JSON"
    assert settings.held == ("opencode.json line 2: it is not JSON",)
    path.write_text("{ nothing of ours")
    assert machine.load().held == ()


def test_the_basis_changes_with_each_file_that_counts_and_with_no_other(machine: Machine) -> None:
    seen = [machine.typed.basis(str(machine.project))]

    def is_new() -> bool:
        seen.append(machine.typed.basis(str(machine.project)))
        return seen[-1] not in seen[:-1]

    (machine.project / "other.json").write_text("{}")
    assert not is_new()
    machine.of_project(enable=True)
    assert is_new()
    machine.of_user(enable=True)
    assert is_new()
    for path in (machine.own / ".env", machine.own / "config.toml", machine.project / ".env"):
        path.touch()
        assert is_new()
    (machine.own / "config.toml").write_text("maxRetries = 1\n")
    assert is_new()


def test_a_relative_spool_is_in_the_folder_whose_settings_it_stands_in(machine: Machine) -> None:
    machine.of_project(spoolDirectory=".opencode/spool")
    assert machine.load().spool_directory == machine.project / ".opencode" / "spool"
    assert machine.typed.load().spool_directory == machine.project / ".opencode" / "spool"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(("project", "user", "variable", "environment", "own", "handed")), st.integers(1, 4))
)
def test_the_worker_that_a_hook_wants_is_the_one_that_it_starts(machine: Machine, said: dict[str, int]) -> None:
    """It has the hook's environment and record, and no directory: otherwise they would replace each other for ever."""
    machine.environ.pop("OPENCODE_CONFIG", None)
    machine.environ.pop("OPENCODE_HELICONE_FLUSH_INTERVAL", None)
    machine.of_project(**{"flushInterval": said["project"]} if "project" in said else {})
    machine.of_user(**{"flushInterval": said["user"], "maxRetries": 7} if "user" in said else {})
    if "variable" in said:
        machine.of_variable(flushInterval=said["variable"])
    if "environment" in said:
        machine.environ["OPENCODE_HELICONE_FLUSH_INTERVAL"] = str(said["environment"])
    text = f"flushInterval = {said['own']}\n" if "own" in said else ""
    (machine.own / "config.toml").write_text(text)
    hooks = machine.load(**{"flushInterval": said["handed"], "maxRetries": 2} if "handed" in said else {})
    workers = machine.sources.load(recorded=delivery_record(hooks))
    assert worker_signature(hooks) == worker_signature(workers)
