"""The administrator's file for all users, and the file that holds the key."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from app.capture.config import capture
from app.database.open import open_ledger
from app.delivery.policy_check import PolicyCheck
from app.privacy.policy import Hold, Post, Recapture
from app.settings.layers import load
from app.settings.lookup import Sources
from app.settings.model import Settings, SettingsError
from tests.support.servers import api_key


class Machine:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.file = home / "etc" / "config.toml"
        self.own = home / "own"
        self.own.mkdir()
        self.file.parent.mkdir()

    def pin(self, text: str) -> Machine:
        self.file.write_text(text, "utf-8")
        return self

    def sources(self, **environ: str) -> Sources:
        environ = {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / "config")} | environ
        return Sources(environ, Path("/"), self.own, system=self.file)

    def load(self, **environ: str) -> Settings:
        return self.sources(**environ).load()

    def refused(self, **environ: str) -> str:
        with pytest.raises(SettingsError) as refused:
            self.load(**environ)
        return str(refused.value)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_what_it_says_of_what_may_leave_no_user_can_loosen(machine: Machine) -> None:
    machine.pin('exportMode = "metadata_only"\nredactPatterns = ["acme-[0-9]+"]\nredactSecrets = true\nenable = false')
    settings = machine.load(
        OPENCODE_HELICONE_EXPORT_MODE="full",
        OPENCODE_HELICONE_REDACT_PATTERNS='["mine"]',
        OPENCODE_HELICONE_REDACT_SECRETS="false",
        OPENCODE_HELICONE_ENABLE="true",
    )
    assert (settings.export_mode, settings.redact_secrets, settings.enable) == ("metadata_only", True, False)
    assert set(settings.redact_patterns) == {"mine", "acme-[0-9]+"}
    assert settings.origin("export_mode") == f"system file {machine.file}"


def test_a_user_may_be_stricter(machine: Machine) -> None:
    machine.pin('exportMode = "metadata_only"')
    assert machine.load(OPENCODE_HELICONE_EXPORT_MODE="off").export_mode == "off"


@pytest.mark.parametrize(
    "text",
    [
        "exportMode = ",
        'exportMod = "off"',
        'exportMode = "none"',
        'endpoint = "https://a"',
        "allowedEndpoints = []",
        'allowedEndpoints = "https://a"',
        'allowedEndpoints = ["a"]',
        "\x00",
    ],
)
def test_one_that_cannot_be_understood_refuses_all_settings(machine: Machine, text: str) -> None:
    assert str(machine.pin(text).file) in machine.refused()


def test_one_that_cannot_be_read_refuses_all_settings(machine: Machine) -> None:
    machine.file.mkdir()
    assert "it cannot be read" in machine.refused()


def test_one_that_may_not_be_looked_at_refuses_all_settings(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, *_: object, **_named: object) -> object:
        raise PermissionError(13, "Permission denied")

    machine.pin("enable = true")
    monkeypatch.setattr(Path, "lstat", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    assert str(machine.file) in machine.refused()


def test_none_is_no_problem(machine: Machine) -> None:
    assert machine.load().enable
    machine.file.parent.rmdir()
    assert machine.load().enable


@pytest.mark.parametrize(
    ("endpoint", "is_allowed"),
    [
        ("https://logs.example.com:8443", True),
        ("https://LOGS.example.com:8443/", True),
        ("https://logs.example.com:8443/v1/trace/custom/log", True),
        ("https://logs.example.com:8444", False),
        ("https://logs.example.com.test:8443", False),
        ("https://logs.example.com", False),
        ("https://api.worker.helicone.ai", False),
    ],
)
def test_only_allowed_endpoints_are_sent_to(machine: Machine, endpoint: str, *, is_allowed: bool) -> None:
    machine.pin('allowedEndpoints = ["https://logs.example.com:8443"]')
    if is_allowed:
        assert machine.load(HELICONE_ENDPOINT=endpoint).endpoint.startswith("https://logs.example.com:8443")
    else:
        assert "allows only https://logs.example.com:8443" in machine.refused(HELICONE_ENDPOINT=endpoint)
        told = machine.refused(HELICONE_ENDPOINT="https://logs.example.com:8443", HELICONE_READBACK_URL=endpoint)
        assert "readbackUrl" in told


def test_the_first_allowed_endpoint_is_that_of_who_chooses_none(machine: Machine) -> None:
    settings = machine.pin('allowedEndpoints = ["https://one.example.com", "https://two.example.com"]').load()
    assert settings.endpoint == "https://one.example.com"
    assert settings.origin("endpoint") == f"system file {machine.file}"


def test_one_that_is_written_or_changed_counts_for_running_processes(machine: Machine) -> None:
    sources = machine.sources()
    before = sources.basis()
    machine.pin("enable = false")
    written = sources.basis()
    machine.pin("enable = true")
    assert len({repr(one) for one in (before, written, sources.basis())}) == 3


def test_a_running_worker_holds_what_waits_while_it_cannot_be_understood(machine: Machine) -> None:
    settings = machine.load()
    check = PolicyCheck(machine.sources())
    made_under = capture(settings, ()).policy.facts("")
    with closing(open_ledger(machine.home / "spool")) as db:
        assert check.permit(db, "place", made_under) == Post()
        machine.pin("exportMode = ")
        assert isinstance(check.permit(db, "place", made_under), Hold)
        machine.pin('exportMode = "metadata_only"')
        assert check.permit(db, "place", made_under) == Recapture()
        machine.pin("enable = true")
        assert check.permit(db, "place", made_under) == Post()


def test_the_key_is_read_from_the_named_file(machine: Machine) -> None:
    file = machine.home / "key"
    file.write_text(f"{api_key()}\n", "utf-8")
    settings = machine.load(HELICONE_API_KEY_FILE=str(file))
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == api_key()
    assert settings.origin("api_key") == f"{file}, environment HELICONE_API_KEY_FILE"
    assert settings.takes_over


def test_a_key_above_overrules_the_file_unseen(machine: Machine) -> None:
    (machine.own / "config.toml").write_text('apiKeyFile = "/nowhere"', "utf-8")
    settings = machine.load(HELICONE_API_KEY=api_key())
    assert settings.origin("api_key") == "environment HELICONE_API_KEY"


def test_both_in_one_place_are_refused(machine: Machine) -> None:
    assert "set only one" in machine.refused(HELICONE_API_KEY=api_key(), HELICONE_API_KEY_FILE="/nowhere")


@pytest.mark.parametrize(
    ("text", "why"), [(None, "cannot be read"), ("", "it holds no key"), ("two words", "(not shown)")]
)
def test_a_file_without_a_key_is_a_problem(machine: Machine, text: str | None, why: str) -> None:
    file = machine.home / "key"
    if text is not None:
        file.write_text(text, "utf-8")
    told = machine.refused(HELICONE_API_KEY_FILE=str(file))
    assert why in told
    assert not text or text not in told


def test_a_relative_file_is_refused(machine: Machine) -> None:
    assert "absolute path of a file" in machine.refused(HELICONE_API_KEY_FILE="key")


def test_the_env_file_of_somebody_elses_folder_names_no_file(tmp_path: Path) -> None:
    """What it names would be sent to the endpoint beside it."""
    secret = tmp_path / "secret"
    secret.write_text("a-password", "utf-8")
    folder = tmp_path / ".env"
    folder.write_text(f"HELICONE_API_KEY_FILE={secret}\nHELICONE_ENDPOINT=https://elsewhere\n", "utf-8")
    settings = load(environ={}, base=tmp_path, folder_dotenv=folder)
    assert settings.api_key is None
    assert "elsewhere" not in settings.endpoint
    assert len(settings.complaints) == 2
