"""Destinations as settings: what a table may say, what becomes of what is wrong, and the settings towards each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.settings.destinations import everything, others, towards
from app.settings.layers import load
from app.settings.model import Settings, SettingsError
from app.settings.views import shown
from tests.support.servers import api_key

PHOENIX = """
[destinations.phoenix]
kind = "otlp"
endpoint = "http://127.0.0.1:6006/"
preset = "phoenix"
project = "mine"
headers = { Authorization = "PHOENIX_AUTHORIZATION" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def loaded(
    folder: Path, user: str, *, system: str | None = None, dotenv: str | None = None, **variables: str
) -> Settings:
    (folder / "config.toml").write_text(user, "utf-8")
    if system is not None:
        (folder / "system.toml").write_text(system, "utf-8")
    if dotenv is not None:
        (folder / ".env").write_text(dotenv, "utf-8")
    return load(
        environ={"HELICONE_API_KEY": "key-of-helicone", **variables},
        base=folder,
        dotenv=[folder / ".env"] if dotenv is not None else [],
        config_file=folder / "config.toml",
        system_file=folder / "system.toml" if system is not None else None,
    )


def problems(folder: Path, user: str, **more: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as raised:
        loaded(folder, user, **more)
    return raised.value.problems


def test_without_tables_the_settings_towards_helicone_are_the_settings(folder: Path) -> None:
    settings = loaded(folder, "")
    assert towards(settings, "helicone") is settings
    assert list(everything(settings)) == [settings]
    assert settings.credential == "key-of-helicone"


def test_a_table_is_a_destination_with_its_own_address_and_headers(folder: Path) -> None:
    key = api_key()
    (one,) = others(loaded(folder, PHOENIX, PHOENIX_AUTHORIZATION=f"Bearer {key}"))
    assert (one.destination, one.kind, one.endpoint) == ("phoenix", "otlp", "http://127.0.0.1:6006")
    assert (one.preset, one.project) == ("phoenix", "mine")
    assert one.headers == {"Authorization": f"Bearer {key}"}
    assert not one.takes_over


@pytest.mark.parametrize("place", ["environment", ".env", "file"])
def test_a_header_is_read_where_its_name_says(folder: Path, place: str) -> None:
    key = api_key()
    (folder / "key").write_text(f"Bearer {key}\n", "utf-8")
    text = PHOENIX.replace("PHOENIX_AUTHORIZATION", str(folder / "key")) if place == "file" else PHOENIX
    variables = {"PHOENIX_AUTHORIZATION": f"Bearer {key}"} if place == "environment" else {}
    dotenv = f'PHOENIX_AUTHORIZATION="Bearer {key}"\n' if place == ".env" else None
    (one,) = others(loaded(folder, text, dotenv=dotenv, **variables))
    assert one.headers == {"Authorization": f"Bearer {key}"}


def test_a_variable_that_is_not_set_keeps_that_destination_back_and_no_other(folder: Path) -> None:
    other = PHOENIX.replace("phoenix", "second").replace("6006", "6007").replace("PHOENIX_A", "SECOND_A")
    other = other.replace('"second"\nproject', '"phoenix"\nproject')
    settings = loaded(folder, PHOENIX + other, SECOND_AUTHORIZATION="Bearer abc")
    assert [one.destination for one in others(settings)] == ["second"]
    (complaint,) = settings.complaints
    assert "destinations.phoenix" in complaint.text
    assert "the variable that it names is not set" in complaint.text
    assert not complaint.holds
    with pytest.raises(SettingsError, match="gets nothing"):
        towards(settings, "phoenix")


def test_no_header_is_shown_and_none_is_taken_by_its_value(folder: Path) -> None:
    key = api_key()
    told = problems(folder, PHOENIX.replace("PHOENIX_AUTHORIZATION", f"Bearer {key}"))
    assert key not in str(told)
    assert "never a value" in str(told)
    settings = loaded(folder, PHOENIX, PHOENIX_AUTHORIZATION=f"Bearer {key}")
    (one,) = others(settings)
    for text in (repr(settings), repr(one), json.dumps([line.value for line in shown(settings)])):
        assert key not in text
    assert ["Authorization"] in [
        line.value["headers"] for line in shown(settings) if isinstance(line.value, dict) and "headers" in line.value
    ]


WRONG = {
    "kind": ('kind = "otlp"', 'kind = "zipkin"', "kind"),
    "no kind": ('kind = "otlp"', "", "kind"),
    "endpoint": ("http://127.0.0.1:6006/", "http://user:pass@host/", "endpoint"),
    "unprotected": ("http://127.0.0.1:6006/", "http://host.invalid/", "http:// shows headers"),
    "preset": ('preset = "phoenix"', 'preset = "jaeger"', "preset"),
    "project": ('preset = "phoenix"', "", "project"),
    "option": ("project =", "projekt =", "did you mean project?"),
    "name": ("[destinations.phoenix]", '[destinations."Phoenix 1"]', "a name (not shown)"),
    "no table": ("[destinations.phoenix]", "destinations = 3\n[x]", "should be tables"),
    "header of ours": ("{ Authorization", '{ "Content-Type"', "cannot be set"),
    "mode": ('project = "mine"', 'exportMode = "some"', "exportMode"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_table_is_told_with_its_place(folder: Path, name: str) -> None:
    there, instead, told = WRONG[name]
    assert there in PHOENIX
    found = problems(folder, PHOENIX.replace(there, instead), PHOENIX_AUTHORIZATION="Bearer abc")
    assert any(told in one and "config file" in one for one in found), found


def test_two_names_of_one_place_are_a_problem(folder: Path) -> None:
    found = problems(
        folder,
        PHOENIX + PHOENIX.replace("destinations.phoenix", "destinations.again"),
        PHOENIX_AUTHORIZATION="Bearer abc",
    )
    assert any("endpoint and the project of destinations.phoenix" in one for one in found)


def test_a_destination_gets_no_more_than_all_get_and_may_get_less(folder: Path) -> None:
    strict = PHOENIX + 'exportMode = "full"\nredactPatterns = ["own"]\n'
    settings = loaded(
        folder, 'exportMode = "metadata_only"\nredactPatterns = ["all"]\n' + strict, PHOENIX_AUTHORIZATION="x"
    )
    (one,) = others(settings)
    assert (one.export_mode, set(one.redact_patterns)) == ("metadata_only", {"all", "own"})
    assert settings.redact_patterns == ("all",)
    (one,) = others(loaded(folder, PHOENIX + 'exportMode = "metadata_only"\n', PHOENIX_AUTHORIZATION="x"))
    assert one.export_mode == "metadata_only"
    assert one.origins["export_mode"].source == "config file"


def test_helicone_is_switched_off_by_its_own_table_and_nothing_else_is(folder: Path) -> None:
    settings = loaded(folder, '[destinations.helicone]\nexportMode = "off"\n' + PHOENIX, PHOENIX_AUTHORIZATION="x")
    helicone = towards(settings, "helicone")
    assert (helicone.export_mode, settings.export_mode) == ("off", "full")
    assert [one.export_mode for one in others(helicone)] == ["full"]
    assert [one.destination for one in everything(helicone)] == ["phoenix"]
    assert problems(folder, '[destinations.helicone]\nendpoint = "https://elsewhere.invalid"\n')


def test_the_administrator_names_destinations_and_says_which_endpoints_are_allowed(folder: Path) -> None:
    system = PHOENIX.replace('"mine"', '"all"') + 'exportMode = "metadata_only"\n'
    settings = loaded(folder, PHOENIX + 'redactPatterns = ["own"]\n', system=system, PHOENIX_AUTHORIZATION="x")
    (one,) = others(settings)
    assert (one.project, one.export_mode, one.redact_patterns) == ("all", "metadata_only", ("own",))
    found = problems(
        folder, PHOENIX, system='allowedEndpoints = ["https://allowed.invalid"]\n', PHOENIX_AUTHORIZATION="x"
    )
    assert any("destinations.phoenix.endpoint" in one and "allows only" in one for one in found)


def test_a_destination_is_told_from_others_by_kind_endpoint_project_and_headers(folder: Path) -> None:
    (one,) = others(loaded(folder, PHOENIX, PHOENIX_AUTHORIZATION="x"))
    (renamed,) = others(
        loaded(folder, PHOENIX.replace("destinations.phoenix", "destinations.p"), PHOENIX_AUTHORIZATION="x")
    )
    assert one.credential == renamed.credential != ""
    for changed in (PHOENIX.replace("mine", "other"), PHOENIX.replace("Authorization", "X-Key")):
        (other,) = others(loaded(folder, changed, PHOENIX_AUTHORIZATION="x"))
        assert other.credential != one.credential
    (other,) = others(loaded(folder, PHOENIX, PHOENIX_AUTHORIZATION="y"))
    assert other.credential != one.credential


def test_the_variables_of_other_programs_are_not_read(folder: Path) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=x",
    }
    assert loaded(folder, "", **variables).destinations == {}


def test_a_path_prefix_is_no_part_of_what_leaves(folder: Path) -> None:
    settings = loaded(folder, 'sessionPathPrefix = "/mine"\n' + PHOENIX, PHOENIX_AUTHORIZATION="x")
    (one,) = others(settings)
    assert (settings.session_path_prefix, one.session_path_prefix) == ("/mine", "/opencode")
