"""The worker's questions to an intake, what it keeps of the answers, and what it says beside a log."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from app.delivery.intake import ASK_MS, ASK_SOON_MS, Asking, Intake
from app.exporters.client import ReadBackError
from app.exporters.helicone.client import Client
from app.exporters.kinds import traits_of
from app.ledger import claims
from app.privacy.policy import Policy
from app.runtime.clock import Reading
from app.settings import heard
from app.settings.heard import Kept
from app.settings.intake import IDS_MAX, MACHINE_PATH, MODE_HEADER, STATES_PATH, TURN_HEADER, RecordState
from app.settings.model import Settings
from tests.support.ledger_bench import LedgerBench, version
from tests.support.said import StandIn, answer, stand_in, token
from tests.support.servers import nobody, ok, scripted

FULL = Policy("full", (), redact_secrets=True, prefix="/opencode").facts("")
NUMBERS = Policy("metadata_only", (), redact_secrets=True, prefix="/opencode").facts("")


@dataclass
class Asked:
    """A worker's asking, with a clock of its own."""

    intake: StandIn
    path: Path
    asking: Asking
    logged: list[str]
    now_ms: int = 1_000
    steady_ms: int = field(default=50)

    def step(self, after_ms: int = 0) -> bool:
        self.now_ms += after_ms
        self.steady_ms += after_ms
        return self.asking.step(Reading(self.now_ms, self.steady_ms))

    @property
    def kept(self) -> Kept:
        return heard.kept(self.path)

    @property
    def questions(self) -> int:
        return len(self.intake.of(MACHINE_PATH))


def settings(tmp_path: Path, endpoint: str) -> Settings:
    return Settings.model_validate({"api_key": token(), "endpoint": endpoint, "spool_directory": tmp_path})


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    with (
        stand_in(answer("full")) as intake,
        closing(Intake(settings(tmp_path, f"{intake.url}/custom/v1/log"))) as client,
    ):
        logged: list[str] = []
        yield Asked(
            intake, tmp_path / "intake-x.json", Asking(client, tmp_path / "intake-x.json", logged.append), logged
        )


def test_where_an_answer_cannot_be_kept_it_is_asked_for_again_soon(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(heard, "keep", fail)
        with pytest.raises(OSError, match="no space"):
            asked.step()
    assert not asked.step(ASK_SOON_MS - 1)
    assert asked.step(1)
    assert asked.kept.answer == answer("full")


def test_it_is_asked_under_the_token_when_a_worker_starts_and_from_time_to_time(asked: Asked) -> None:
    assert asked.step()
    assert asked.kept == Kept(1_000, "", 1_000, answer("full"))
    assert asked.intake.of(MACHINE_PATH)[0].headers["authorization"] == f"Bearer {token()}"
    assert asked.intake.of(MACHINE_PATH)[0].line.startswith("GET ")
    assert not asked.step(ASK_MS - 1)
    assert asked.questions == 1
    assert not asked.step(1)
    assert asked.questions == 2
    assert (asked.kept.heard_ms, asked.logged) == (
        1_000 + ASK_MS,
        ["the intake says: export mode full, 0 redaction pattern(s)"],
    )


def test_a_log_that_was_refused_asks_at_once(asked: Asked) -> None:
    asked.step()
    asked.intake.says = answer("metadata_only", "a", "b")
    assert not asked.step(1_000)
    asked.asking.hurry()
    assert asked.step(1_000), "what is paused may be tried again"
    assert asked.logged[-1] == "the intake says: export mode metadata_only, 2 redaction pattern(s)"
    asked.asking.hurry()
    assert not asked.step(1_000), "nothing has changed: the pause takes its time"
    assert not asked.step(1_000)
    assert asked.questions == 3


def test_what_it_said_counts_while_it_does_not_answer(asked: Asked) -> None:
    asked.intake.says = answer("metadata_only", waiting=3)
    asked.step()
    asked.intake.says = None
    assert not asked.step(ASK_MS)
    assert asked.kept == Kept(1_000 + ASK_MS, "503", 1_000, answer("metadata_only", waiting=3))
    assert not asked.step(ASK_SOON_MS)
    assert asked.logged[1:] == ["the intake was asked in vain what may leave: 503"]
    asked.intake.says = answer("metadata_only", waiting=3)
    assert asked.step(ASK_SOON_MS), "it is there again: what is paused may be tried"
    assert asked.kept.failure == ""


def test_a_revoked_token_is_told(asked: Asked) -> None:
    asked.intake.is_revoked = True
    assert not asked.step()
    assert asked.kept.failure == "401: the token is revoked, or never was one"
    assert asked.kept.heard_ms is None


@pytest.mark.parametrize("text", [b"", b"<html>", b"[]", b"x" * 2_000_000])
def test_a_page_of_somebody_else_is_no_answer(asked: Asked, text: bytes) -> None:
    asked.step()
    asked.intake.says = text
    assert not asked.step(ASK_MS)
    assert asked.kept == Kept(1_000 + ASK_MS, "200: no answer of an intake", 1_000, answer("full"))


@pytest.mark.parametrize("text", [b"{}", b"{", b'{"export_mode": "less"}', b"{" + b" " * 2_000_000 + b"}"])
def test_what_is_not_understood_may_withhold_more(asked: Asked, text: bytes) -> None:
    asked.step()
    asked.intake.says = text
    assert asked.step(ASK_MS)
    assert asked.kept == Kept(1_000 + ASK_MS, "", 1_000 + ASK_MS, None)
    asked.intake.says = answer("full")
    assert asked.step(ASK_SOON_MS)
    assert asked.kept.answer == answer("full")


def test_nobody_there(tmp_path: Path) -> None:
    with nobody() as url, closing(Intake(settings(tmp_path, url))) as client:
        logged: list[str] = []
        assert not Asking(client, tmp_path / "intake-x.json", logged.append).step(Reading(1, 1))
        assert "ConnectError" in heard.kept(tmp_path / "intake-x.json").failure
        assert token() not in logged[0]


# --- what became of logs


def test_states_are_asked_by_request_id_and_what_is_not_known_has_none(tmp_path: Path) -> None:
    one, two, three = (uuid.uuid4() for _ in range(3))
    with stand_in(answer()) as intake, closing(Intake(settings(tmp_path, intake.url))) as client:
        intake.states = {str(one): RecordState("delivered", ""), str(two): RecordState("dead", "400: no")}
        assert client.states([one, two, three]) == {
            one: RecordState("delivered", ""),
            two: RecordState("dead", "400: no"),
        }
        many = [uuid.uuid4() for _ in range(IDS_MAX)]
        assert client.states([*many, one]) == {one: RecordState("delivered", "")}
        assert len(intake.of(STATES_PATH)) == 3
        assert client.states([]) == {}
        intake.is_revoked = True
        with pytest.raises(ReadBackError, match="401: the token is revoked"):
            client.states([one])


# --- beside a log


@pytest.mark.parametrize(("made_under", "mode"), [("", "full"), (FULL, "full"), (NUMBERS, "metadata_only")])
def test_a_log_says_under_which_mode_it_was_made_and_when_its_turn_was(
    bench: LedgerBench, asked: Asked, made_under: str, mode: str
) -> None:
    bench.put(replace(version(), policy=made_under, last_event_ms=1_234_567))
    claim = claims.claim(bench.db, bench.destination, version().key, worker="w", now_ms=bench.now_ms, lease_ms=1)
    assert claim is not None
    assert asked.asking.headers_of(claim) == {MODE_HEADER: mode, TURN_HEADER: "1234567"}


def test_nobody_else_hears_of_it() -> None:
    """Byte for byte: what is said to Helicone itself is what it was."""
    record = b'{"providerRequest": {"meta": {"Helicone-Request-Id": "a"}}}'
    with scripted(ok()) as server, closing(Client(token())) as client:
        client.post(f"{server.url}/custom/v1/log", record, "a", 0)
    assert server.requests[0].header_names == [
        "Host",
        "Authorization",
        "Content-Type",
        "User-Agent",
        "Content-Length",
    ]


@pytest.mark.parametrize("given", ["", "/", "/custom/v1/log"])
def test_an_intake_has_one_address_and_nothing_is_read_back(given: str) -> None:
    traits = traits_of("helicone", "intake")
    assert traits.routes(f"https://intake.example.com{given}") == ("https://intake.example.com/custom/v1/log",)
    for setting in ("auto", "on", "off"):
        plan = traits.read_back(setting, "https://intake.example.com", token(), "https://helicone.example.com")
        assert (plan.url, plan.off_reason) == (None, "the centre does it")
    assert traits.session_url("https://intake.example.com", token(), "https://d.example.com", "s", "n") is None
