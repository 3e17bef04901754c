"""What an intake has said counts as a setting, for what goes to it alone; and is kept so that nobody else reads it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.capture.config import capture
from app.database.open import open_ledger
from app.delivery.policy_check import PolicyCheck
from app.ledger.erasure import is_ours
from app.privacy.policy import Hold, Post, Recapture
from app.settings import heard
from app.settings.destinations import everything, others
from app.settings.heard import Kept
from app.settings.intake import TOKEN, IntakeAnswer
from app.settings.lookup import Sources
from app.settings.model import Settings
from app.settings.names import TOKEN_BEGINS
from app.settings.views import folder_record, shown
from tests.support.said import answer, token
from tests.support.servers import api_key

ENDPOINT = "https://intake.example.com/custom/v1/log"
ORIGIN = "the intake at https://intake.example.com"


class Machine:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.spool = home / "spool"
        self.spool.mkdir(mode=0o700)
        self.own = home / "own"
        self.own.mkdir()
        self.key = token()

    def sources(self, **variables: str) -> Sources:
        environ = {
            "HOME": str(self.home),
            "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(self.spool),
            "HELICONE_ENDPOINT": ENDPOINT,
            "HELICONE_API_KEY": self.key,
            **variables,
        }
        return Sources(environ, Path("/"), self.own, system=self.home / "system.toml")

    def load(self, **variables: str) -> Settings:
        return self.sources(**variables).load()

    def says(self, said: IntakeAnswer | None, *, heard_ms: int | None = 5, failure: str = "") -> None:
        heard.keep(heard.place(self.load()), Kept(9, failure, heard_ms, said))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --- which destination is an intake


def test_only_a_token_makes_an_intake(machine: Machine) -> None:
    assert TOKEN.fullmatch(token())
    assert token().startswith(TOKEN_BEGINS)
    assert machine.load().heard is not None
    for machine.key in (api_key(), token() + "x", token()[:-1], TOKEN_BEGINS, token().upper()):
        settings = machine.load()
        assert (settings.heard, settings.preset, settings.confirm) == (None, "none", "auto")


@pytest.mark.slow
def test_without_a_token_nothing_of_it_is_loaded() -> None:
    """A hook's start, and a worker's, take no longer for what hardly anybody has."""
    program = (
        "import sys; from pathlib import Path; import app.worker, app.capture.handler;"
        "from app.settings.lookup import Sources;"
        "s = Sources({'HOME': '/nowhere', 'HELICONE_API_KEY': sys.argv[1]}, Path('/'), Path('/nowhere'));"
        "s.watching(s.load()).basis();"
        "print(*sorted(set(sys.modules) & {'app.settings.intake', 'app.settings.heard', 'app.delivery.intake'}))"
    )
    for key, loaded in ((api_key(), ""), (token(), "app.settings.heard app.settings.intake")):
        done = subprocess.run([sys.executable, "-c", program, key], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == loaded


# --- what it says counts


def test_confirm_is_off_whatever_is_set(machine: Machine) -> None:
    settings = machine.load(OPENCODE_HELICONE_CONFIRM="on")
    assert (settings.confirm, settings.origin("confirm")) == ("off", ORIGIN)


def test_it_makes_stricter_and_never_looser(machine: Machine) -> None:
    machine.says(answer("metadata_only", "intern-[0-9]+"))
    settings = machine.load(OPENCODE_HELICONE_REDACT_PATTERNS='["mine"]')
    assert (settings.export_mode, settings.origin("export_mode")) == ("metadata_only", ORIGIN)
    assert settings.redact_patterns == ("mine", "intern-[0-9]+")
    assert settings.origin("redact_patterns").endswith(f"; {ORIGIN}")
    machine.says(answer("full"))
    settings = machine.load(OPENCODE_HELICONE_EXPORT_MODE="metadata_only", OPENCODE_HELICONE_REDACT_PATTERNS='["mine"]')
    assert (settings.export_mode, settings.redact_patterns) == ("metadata_only", ("mine",))
    assert settings.origin("export_mode") == "environment OPENCODE_HELICONE_EXPORT_MODE"


def test_config_show_names_it_and_a_hook_records_nothing_of_it(machine: Machine) -> None:
    machine.says(answer("metadata_only"))
    assert ("exportMode", "metadata_only", ORIGIN, "") in [
        (one.name, one.value, one.origin, one.unit) for one in shown(machine.load())
    ]
    assert "exportMode" not in folder_record(machine.load())


def test_what_goes_elsewhere_is_none_of_its_business(machine: Machine) -> None:
    (machine.own / "config.toml").write_text(
        '[destinations.phoenix]\nkind = "otlp"\nendpoint = "http://127.0.0.1:6006"\n[destinations.helicone]\n'
        'redactPatterns = ["ours"]\n',
        "utf-8",
    )
    machine.says(answer("metadata_only", "theirs"))
    settings = machine.load()
    assert settings.redact_patterns == ("ours", "theirs")
    (phoenix,) = others(settings)
    assert (phoenix.export_mode, phoenix.redact_patterns, phoenix.confirm) == ("full", (), "auto")
    assert (phoenix.silence, phoenix.heard, phoenix.preset) == ("", None, "none")
    assert [one.export_mode for one in everything(settings)] == ["metadata_only", "full"]
    there = replace(machine.sources(), destination="phoenix").load()
    assert (there.export_mode, there.silence) == ("full", "")


def test_of_another_token_or_address_nothing_is_known(machine: Machine) -> None:
    machine.says(answer("metadata_only"))
    assert machine.load(HELICONE_ENDPOINT="https://intake.example.com").export_mode == "metadata_only"
    assert machine.load(HELICONE_ENDPOINT="https://other.example.com").silence == heard.SILENT
    machine.key = token("u")
    assert machine.load().silence == heard.SILENT


# --- what is delivered meanwhile


def permits(machine: Machine, check: PolicyCheck) -> object:
    made_under = capture(machine.load(), ()).policy.facts("")
    full = replace(capture(machine.load(), ()).policy, mode="full", patterns=()).facts("")
    with closing(open_ledger(machine.spool)) as db:
        return check.permit(db, "place", made_under), check.permit(db, "place", full)


def test_while_nothing_is_known_all_is_captured_and_nothing_is_delivered(machine: Machine) -> None:
    settings = machine.load()
    assert capture(settings, ()).policy.mode == "full"
    check = PolicyCheck(machine.sources().watching(settings))
    assert permits(machine, check) == (Hold(heard.SILENT), Hold(heard.SILENT))
    machine.says(None, heard_ms=None, failure="503")
    assert permits(machine, check) == (Hold(heard.SILENT), Hold(heard.SILENT))
    machine.says(answer("full"))
    assert permits(machine, check) == (Post(), Post())
    machine.says(answer("metadata_only"))
    assert permits(machine, check) == (Post(), Recapture())


@pytest.mark.parametrize("patterns", [("(",), ("",), ("a*",), ("\\1",)])
def test_patterns_that_cannot_be_used_here_hold_what_waits(machine: Machine, patterns: tuple[str, ...]) -> None:
    machine.says(answer("full", "fine", *patterns))
    settings = machine.load()
    assert (settings.silence, settings.redact_patterns) == (heard.UNUSABLE, ())
    check = PolicyCheck(machine.sources().watching(settings))
    assert permits(machine, check) == (Hold(heard.UNUSABLE), Hold(heard.UNUSABLE))


def test_an_answer_that_is_not_understood_holds_what_waits(machine: Machine) -> None:
    """A newer intake may withhold in a way of which this program knows nothing."""
    machine.says(None)
    assert machine.load().silence == heard.UNUSABLE


def test_the_last_one_counts_while_the_intake_is_away(machine: Machine) -> None:
    machine.says(answer("metadata_only"), failure="ConnectError")
    settings = machine.load()
    assert (settings.silence, settings.export_mode) == ("", "metadata_only")


def test_only_what_decides_what_may_leave_is_a_change(machine: Machine) -> None:
    machine.says(answer("full", waiting=1))
    sources = machine.sources().watching(machine.load())
    before = sources.basis()
    machine.says(answer("full", waiting=2, dead=3))
    assert sources.basis() == before
    machine.says(answer("full", "new"))
    assert sources.basis() != before
    assert machine.sources().watching(machine.load(HELICONE_API_KEY=api_key())).intake is None


# --- how it is kept


def test_it_is_kept_for_nobody_else_and_without_the_token(machine: Machine) -> None:
    machine.says(answer("full", "a pattern"))
    (file,) = machine.spool.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert token().encode() not in file.read_bytes()
    assert token()[-7:] not in file.name
    assert is_ours(file.name)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"x" * 3_000_000, b'{"heard_ms": 1}'])
def test_a_file_that_is_damaged_says_nothing(machine: Machine, text: bytes) -> None:
    machine.says(answer("full"))
    heard.place(machine.load()).write_bytes(text)
    assert machine.load().silence == heard.SILENT
