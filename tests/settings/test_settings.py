from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from pathlib import Path

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from platformdirs.unix import Unix
from pydantic import SecretStr, ValidationError

from app.settings import names
from app.settings.layers import load
from app.settings.model import Settings, SettingsError
from app.settings.options import Options
from app.settings.places import config_folder
from app.settings.views import delivery_options, delivery_record, folder_record, shown
from tests.support.checkout import ROOT

KEY = "placeholder-for-a-key"
SOURCES = ("command line", "environment", ".env", "plugin", "config file")
"""Highest first."""


@dataclass(frozen=True, slots=True)
class Row:
    """A setting's names and two values that are not the default (a switch has one, and the default)."""

    field: str
    option: str
    variable: str
    value: object
    other: object
    default: object


SEED = (
    Row("enable", "enable", "OPENCODE_HELICONE_ENABLE", value=False, other=True, default=True),
    Row("flush_interval_ms", "flushInterval", "OPENCODE_HELICONE_FLUSH_INTERVAL", 1, 45_000, 30_000),
    Row("spool_directory", "spoolDirectory", "OPENCODE_HELICONE_SPOOL_DIRECTORY", "/spool/one", "/spool/two", None),
    Row("session_path_prefix", "sessionPathPrefix", "OPENCODE_HELICONE_SESSION_PATH_PREFIX", "/a", "/b/c", "/opencode"),
    Row("max_spool_bytes", "maxSpoolSize", "OPENCODE_HELICONE_MAX_SPOOL_SIZE", 1, 2_000_000, 52_428_800),
    Row("max_spool_age_ms", "maxSpoolAge", "OPENCODE_HELICONE_MAX_SPOOL_AGE", 1, 86_400_000, 604_800_000),
    Row("max_retries", "maxRetries", "OPENCODE_HELICONE_MAX_RETRIES", 0, 50, 5),
    Row("retry_base_delay_ms", "retryBaseDelay", "OPENCODE_HELICONE_RETRY_BASE_DELAY", 1, 250, 1000),
    Row("confirm", "confirm", "OPENCODE_HELICONE_CONFIRM", "on", "off", "auto"),
    Row("redact_patterns", "redactPatterns", "OPENCODE_HELICONE_REDACT_PATTERNS", ["a\\s{1,2}#", "é"], ["b"], ()),
)
WORKER = Row("worker", "worker", "OPENCODE_HELICONE_WORKER", "external", "auto", "auto")
NOT_PLUGIN = (
    Row("endpoint", "endpoint", "HELICONE_ENDPOINT", "http://[::1]:1", "https://b/c", "https://api.worker.helicone.ai"),
    Row("allow_http", "allowHttp", "OPENCODE_HELICONE_ALLOW_HTTP", value=True, other=False, default=False),
    Row("readback_url", "readbackUrl", "HELICONE_READBACK_URL", "http://[::1]:1", "https://b/c", None),
    Row("dashboard_url", "dashboardUrl", "HELICONE_DASHBOARD_URL", "http://host:3000", "https://b/c", None),
    Row("ca_file", "caFile", "OPENCODE_HELICONE_CA_FILE", "/a.pem", "/b.pem", None),
    Row("user_id", "userId", "OPENCODE_HELICONE_USER_ID", "one", "two", None),
)
MODE = Row("export_mode", "exportMode", "OPENCODE_HELICONE_EXPORT_MODE", "off", "metadata_only", "full")
SECRETS = Row(
    "redact_secrets", "redactSecrets", "OPENCODE_HELICONE_REDACT_SECRETS", value=True, other=True, default=True
)
ROWS = (*SEED, WORKER, *NOT_PLUGIN, MODE, SECRETS)
WHAT_MAY_LEAVE = ("enable", "exportMode", "redactPatterns", "redactSecrets")
"""Not of the highest source, but of all: see test_strictest."""


def sources_of(row: Row) -> tuple[str, ...]:
    return tuple(source for source in SOURCES if source != "plugin" or row not in NOT_PLUGIN)


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def as_held(row: Row, value: object) -> object:
    if row.field in {"spool_directory", "ca_file"}:
        return Path(str(value))
    return tuple(value) if isinstance(value, list) else value


def load_from(folder: Path, row: Row, values: Mapping[str, object]) -> Settings:
    """Load with `row` set to `values`, by source; the files are written into `folder`."""
    if ".env" in values:
        (folder / ".env").write_text(f"{row.variable}={as_text(values['.env'])}\n", encoding="utf-8")
    if "config file" in values:
        (folder / "config.toml").write_text(f"{row.option} = {json.dumps(values['config file'])}\n", encoding="utf-8")
    return load(
        environ={row.variable: as_text(values["environment"])} if "environment" in values else {},
        base=folder,
        command_line={row.field: values["command line"]} if "command line" in values else None,
        dotenv=(folder / ".env",) if ".env" in values else (),
        options=(of_user({row.option: values["plugin"]}),) if "plugin" in values else (),
        config_file=folder / "config.toml" if "config file" in values else None,
    )


def of_user(options: Mapping[str, object], origin: str = "opencode.json", **lines: int) -> Options:
    """Options in a file of OpenCode that is the user's own."""
    return Options(options, origin, "user", lines)


def of_project(options: Mapping[str, object], origin: str = "opencode.json") -> Options:
    return Options(options, origin, "project")


def recorded(options: Mapping[str, object]) -> Options:
    return Options(options, "last seen for this folder", "recorded")


def complaints_about(*options: Options) -> tuple[str, ...]:
    """What is said of options that cannot be used, and which all hold."""
    settings = load(environ={}, base=Path("/base"), options=options)
    assert all(one.holds for one in settings.complaints)
    assert settings.held == tuple(one.short for one in settings.complaints)
    return tuple(one.text for one in settings.complaints)


def load_variables(**environ: str) -> Settings:
    return load(environ=environ, base=Path("/base"))


def problems_of(**sources: object) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refused:
        load(**{"environ": {}, "base": Path("/base")} | sources)  # type: ignore[arg-type]  # each test names its own
    assert str(refused.value) == "; ".join(refused.value.problems)
    return refused.value.problems


# Sources, precedence, origins


@pytest.mark.parametrize(
    ("row", "source"),
    [pytest.param(row, source, id=f"{row.option}-{source}") for row in ROWS for source in sources_of(row)],
)
def test_value_arrives_from_each_source_with_its_origin(tmp_path: Path, row: Row, source: str) -> None:
    settings = load_from(tmp_path, row, {source: row.value})
    assert getattr(settings, row.field) == as_held(row, row.value)
    assert (
        settings.origin(row.field)
        == {
            "command line": "command line",
            "environment": f"environment {row.variable}",
            ".env": f".env {tmp_path / '.env'}",
            "plugin": "opencode.json",
            "config file": f"config file {tmp_path / 'config.toml'}",
        }[source]
    )
    others = set(names.NAMES) - {row.field}
    assert {settings.origin(name) for name in others} == {"default"}


@pytest.mark.parametrize(
    ("row", "higher", "lower"),
    [
        pytest.param(row, higher, lower, id=f"{row.option}-{higher}-over-{lower}")
        for row in ROWS
        if row.option not in WHAT_MAY_LEAVE
        for higher, lower in combinations(sources_of(row), 2)
    ],
)
def test_higher_source_overrules_each_lower_one(tmp_path: Path, row: Row, higher: str, lower: str) -> None:
    settings = load_from(tmp_path, row, {higher: row.value, lower: row.other})
    assert getattr(settings, row.field) == as_held(row, row.value)
    turned = load_from(tmp_path, row, {higher: row.other, lower: row.value})
    assert getattr(turned, row.field) == as_held(row, row.other)
    assert settings.origin(row.field) == turned.origin(row.field)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.option) for row in ROWS])
def test_default_holds_when_no_source_speaks(row: Row) -> None:
    settings = load_variables()
    assert settings.origin(row.field) == "default"
    if row.field != "spool_directory":
        assert getattr(settings, row.field) == row.default


def test_default_spool_is_the_users_own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert load_variables().spool_directory == tmp_path / "opencode-helicone"


def test_process_environment_is_read_by_nobody_here(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_variables()
    for variable, value in {row.variable: as_text(row.value) for row in ROWS}.items():
        monkeypatch.setenv(variable, value)
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "1")
    monkeypatch.setenv("HELICONE_API_KEY", KEY)
    assert load_variables() == before
    assert Settings().api_key is None


@pytest.mark.parametrize("text", ["", "  "], ids=["empty", "blank"])
def test_empty_variable_counts_as_not_set(tmp_path: Path, text: str) -> None:
    (tmp_path / ".env").write_text("OPENCODE_HELICONE_USER_ID=lower\n")
    variables = {row.variable: text for row in ROWS} | {"HELICONE_API_KEY": text}
    settings = load(environ=variables, base=tmp_path, dotenv=(tmp_path / ".env",))
    assert settings.user_id == "lower"
    assert {settings.origin(row.field) for row in ROWS if row.field != "user_id"} == {"default"}


def test_none_on_command_line_or_in_options_counts_as_not_given() -> None:
    settings = load(environ={}, base=Path("/base"), command_line={"worker": None}, options=(of_user({"enable": None}),))
    assert (settings.origin("worker"), settings.origin("enable")) == ("default", "default")


def test_overruled_value_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("maxRetries = 'many'\n")
    variables = {"OPENCODE_HELICONE_MAX_RETRIES": "7"}
    assert load(environ=variables, base=tmp_path, config_file=tmp_path / "config.toml").max_retries == 7


def test_settings_cannot_be_changed() -> None:
    settings = load_variables()
    with pytest.raises(ValidationError, match="frozen"):
        settings.enable = False


def test_settings_made_directly_hold_what_they_are_given() -> None:
    settings = Settings(max_retries=9)
    assert (settings.max_retries, settings.enable, settings.origin("max_retries")) == (9, True, "default")


def test_origin_of_an_unknown_name_is_a_bug() -> None:
    with pytest.raises(KeyError):
        load_variables().origin("flushInterval")


# Options in OpenCode's files, and what was recorded of them


@pytest.mark.parametrize("row", [pytest.param(row, id=row.option) for row in NOT_PLUGIN])
def test_setting_that_is_no_plugin_option_holds_the_folder(row: Row) -> None:
    (complaint,) = complaints_about(of_user({row.option: row.value}))
    assert complaint == f'"{row.option}" from opencode.json: it cannot be set here; set {row.variable}'


def test_unknown_option_is_named_with_its_line_and_without_its_value() -> None:
    (complaint,) = complaints_about(of_user({"flush\nInterv": KEY}, "/home/dev/opencode.json", **{"flush\nInterv": 3}))
    told = '"flush\\nInterv" from /home/dev/opencode.json line 3: there is no such setting; did you mean flushInterval?'
    assert complaint == told
    (complaint,) = complaints_about(of_user({"x": KEY}))
    assert complaint.startswith('"x" from opencode.json: there is no such setting; there are enable, ')
    assert "endpoint" not in complaint


@pytest.mark.parametrize("name", ["Xy7-ABCD-1234", "pass word", "a-secret-name"])
def test_a_name_that_is_like_none_is_not_shown(name: str) -> None:
    # A secret written in the wrong place, or `{env:SECRET}` filled in there.
    found = load(environ={}, base=Path("/"), options=[Options({name: True}, "opencode.json", "project")])
    (complaint,) = found.complaints
    assert complaint.holds
    assert name not in complaint.text + complaint.short


def test_what_is_told_holds_no_value_and_to_logs_and_ledger_no_folder() -> None:
    options = of_user({"exportMode": KEY, "maxRetries": KEY, "redactPatterns": [f"({KEY}"]}, "/home/dev/opencode.json")
    settings = load(environ={}, base=Path("/base"), options=(options,))
    assert len(settings.complaints) == 3
    for complaint in settings.complaints:
        assert "/home/dev" in complaint.text
        assert "/home/dev" not in complaint.short
        assert " from opencode.json: " in complaint.short
        assert KEY not in complaint.short + complaint.text


def test_bad_value_of_a_limit_is_named_and_the_next_lower_one_counts(tmp_path: Path) -> None:
    settings = load(environ={}, base=tmp_path, options=(of_user({"maxRetries": "many"}), of_user({"maxRetries": 9})))
    assert (settings.max_retries, settings.held) == (9, ())
    (complaint,) = settings.complaints
    assert complaint.text == "maxRetries from opencode.json: it should be a valid integer (retries)"
    assert load(environ={}, base=tmp_path, options=(of_user({"maxRetries": "many"}),)).max_retries == 5


@pytest.mark.parametrize("pattern", ["(", "a*", "(?=a)"], ids=["open", "nothing", "look-ahead"])
def test_pattern_that_cannot_be_used_holds_the_folder_and_is_not_shown(pattern: str) -> None:
    (complaint,) = complaints_about(of_user({"redactPatterns": ["fine", pattern]}, redactPatterns=7))
    assert complaint.startswith("redactPatterns from opencode.json line 7: redaction pattern 2 cannot be used")
    assert pattern not in complaint.partition("2 cannot be used")[2].replace("(at", "").replace("(as", "")


def test_limits_of_a_project_are_for_its_folder_alone(tmp_path: Path) -> None:
    limits: dict[str, object] = {"maxRetries": 1, "maxSpoolAge": 2, "maxSpoolSize": 3}
    users = of_user({"maxRetries": 9})
    settings = load(environ={}, base=tmp_path, options=(of_project({**limits, "flushInterval": 4}), users))
    assert (settings.max_retries, settings.origin("max_retries")) == (9, "opencode.json")
    assert (settings.max_spool_age_ms, settings.max_spool_bytes) == (604_800_000, 52_428_800)
    assert folder_record(settings) == limits | {"redactSecrets": True}
    assert delivery_record(settings) == {"flushInterval": 4}
    lines = {line.name: (line.value, line.origin) for line in shown(settings)}
    assert lines["maxRetries"] == (1, "opencode.json, for this folder's jobs alone")
    over = load(environ={"OPENCODE_HELICONE_MAX_RETRIES": "2"}, base=tmp_path, options=(of_project(limits),))
    assert over.max_retries == 2
    assert folder_record(over) == {"redactSecrets": True, "maxSpoolAge": 2, "maxSpoolSize": 3}


def test_recorded_options_stand_below_opencodes_files_and_above_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('userId = "low"\nsessionPathPrefix = "/low"\n')
    settings = load(
        environ={},
        base=tmp_path,
        options=(of_user({"sessionPathPrefix": "/high"}), recorded({"userId": "one", "sessionPathPrefix": "/old"})),
        config_file=tmp_path / "config.toml",
    )
    assert (settings.session_path_prefix, settings.user_id) == ("/high", "one")
    assert settings.origin("user_id") == "last seen for this folder"


@pytest.mark.parametrize("option", ["spoolDirectory", "worker", "endpoint", "apiKey"])
def test_recorded_options_hold_nothing_but_capture_and_delivery(option: str) -> None:
    (complaint,) = complaints_about(recorded({option: "/x"}))
    assert complaint.startswith(f'"{option}" from last seen for this folder: ')


def test_a_folder_that_was_held_is_held_for_those_who_know_only_its_record() -> None:
    seen = load(environ={}, base=Path("/base"), options=(of_project({"redactPattern": ["a"]}, "/a/b/opencode.json"),))
    (complaint,) = complaints_about(recorded(folder_record(seen)))
    assert complaint.startswith(
        '"redactPattern" from opencode.json: there is no such setting; did you mean redactPatterns'
    )


def test_however_much_is_wrong_the_ledger_holds_a_few_words_of_it() -> None:
    lines = {f"nonsense{number}": number for number in range(1000)}
    options = Options(dict.fromkeys(lines, 1), "opencode.json", "user", lines)
    settings = load(environ={}, base=Path("/base"), options=(options,))
    assert len(settings.held) == 1000
    assert settings.held_because.endswith("; and 997 more")
    assert folder_record(settings)["held"] == settings.held_because
    assert len(settings.held_because) < 2000


def test_what_is_recorded_gives_the_same_options_later() -> None:
    options: dict[str, object] = {
        "redactPatterns": ["a{1,2}"],
        "sessionPathPrefix": "/p/q/",
        "enable": True,
        "flushInterval": 5,
        "retryBaseDelay": 6,
        "confirm": "on",
    }
    variables = {
        "OPENCODE_HELICONE_EXPORT_MODE": "metadata_only",
        "OPENCODE_HELICONE_REDACT_SECRETS": "false",
        "OPENCODE_HELICONE_USER_ID": "one",
        "OPENCODE_HELICONE_MAX_RETRIES": "0",
    }
    seen = load(environ=variables, base=Path("/base"), options=(of_project(options),))
    line = json.dumps(folder_record(seen) | delivery_record(seen))
    later = load(environ={}, base=Path("/base"), options=(recorded(json.loads(line)),))
    assert folder_record(later) == folder_record(seen)
    assert delivery_options(later) == delivery_options(seen)
    assert folder_record(seen) == {
        "enable": True,
        "exportMode": "metadata_only",
        "redactPatterns": ["a{1,2}"],
        "redactSecrets": False,
        "sessionPathPrefix": "/p/q",
        "userId": "one",
    }


def test_what_a_later_process_finds_by_itself_is_not_recorded(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('userId = "one"\nmaxRetries = 1\n')
    (tmp_path / ".env").write_text("OPENCODE_HELICONE_EXPORT_MODE=off\nOPENCODE_HELICONE_REDACT_SECRETS=false\n")
    users = of_user({"redactPatterns": ["a"], "maxSpoolSize": 4})
    seen = load(environ={}, base=tmp_path, dotenv=(tmp_path / ".env",), options=(users,), config_file=config)
    assert (folder_record(seen), delivery_record(seen)) == ({}, {})
    both = load(environ={}, base=tmp_path, options=(of_project({"redactPatterns": ["b"]}), users))
    assert both.redact_patterns == ("b", "a")
    # What nobody says is told as well: the environment of a later command must not switch it off.
    assert folder_record(both) == {"redactPatterns": ["b"], "redactSecrets": True}


# The `.env` of the folder where a command is typed


def load_here(folder: Path, text: str, **environ: str) -> Settings:
    (folder / ".env").write_text(text)
    return load(environ=environ, base=folder, folder_dotenv=folder / ".env")


def test_the_key_of_the_folders_env_file_counts_with_an_endpoint_beside_it(tmp_path: Path) -> None:
    settings = load_here(tmp_path, f"HELICONE_API_KEY={KEY}\nHELICONE_ENDPOINT=https://a\n")
    assert (settings.api_key, settings.endpoint) == (SecretStr(KEY), "https://a")
    assert settings.origin("api_key") == f".env {tmp_path / '.env'}"
    assert (settings.complaints, settings.takes_over) == ((), False)


@pytest.mark.parametrize("environ", [{}, {"HELICONE_API_KEY": KEY}], ids=["no key", "a key of the environment"])
def test_an_endpoint_there_gets_no_other_key_than_the_one_beside_it(tmp_path: Path, environ: dict[str, str]) -> None:
    own = f"HELICONE_API_KEY={KEY}2\n" if environ else ""
    settings = load_here(tmp_path, f"{own}HELICONE_ENDPOINT=https://a\n", **environ)
    assert settings.endpoint == "https://api.worker.helicone.ai"
    assert settings.takes_over
    (complaint,) = settings.complaints
    path = tmp_path / ".env"
    told = f"HELICONE_ENDPOINT from .env {path}: it does not count there without a key that is used beside it"
    assert (complaint.text, complaint.holds) == (told, False)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.option) for row in ROWS if row.option not in WHAT_MAY_LEAVE])
def test_nothing_else_counts_there_but_what_withholds_more(tmp_path: Path, row: Row) -> None:
    settings = load_here(tmp_path, f"{row.variable}={as_text(row.value)}\n")
    assert settings.origin(row.field) == "default"
    (complaint,) = settings.complaints
    assert complaint.text.startswith(f"{row.variable} from .env {tmp_path / '.env'}: it does not count there")


# Names that are none


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("OPENCODE_HELICONE_EXPROT_MODE", "OPENCODE_HELICONE_EXPORT_MODE"),
        ("OPENCODE_HELICONE_REDACT_PATTERN", "OPENCODE_HELICONE_REDACT_PATTERNS"),
        ("OPENCODE_HELICONE_ENABLED", "OPENCODE_HELICONE_ENABLE"),
    ],
)
def test_a_variable_of_ours_that_is_none_is_refused_and_the_nearest_is_named(
    tmp_path: Path, wrong: str, right: str
) -> None:
    assert problems_of(environ={wrong: "off"}) == (
        f"{wrong} from environment: there is no such variable; did you mean {right}?",
    )
    path = tmp_path / ".env"
    path.write_text(f"{wrong}=off\n")
    told = (f"{wrong} from .env {path}: there is no such variable; did you mean {right}?",)
    assert problems_of(dotenv=(path,)) == problems_of(folder_dotenv=path) == told


@pytest.mark.parametrize("name", [*names.FOR_TESTS, "HELICONE_BASE_URL", "HELICONE_API_KEYS", "OPENCODE_HELICON"])
def test_variables_of_others_are_not_ours_to_judge(name: str) -> None:
    assert load_variables(**{name: "anything"}).origins == {}


def test_an_unknown_variable_that_is_empty_counts_as_not_set() -> None:
    assert load_variables(OPENCODE_HELICONE_NONSENSE=" ").origins == {}


# What is refused, and in which words


INVALID = {
    "interval in words": ({"OPENCODE_HELICONE_FLUSH_INTERVAL": "30s"}, 'flushInterval = "30s" from environment '),
    "interval with a fraction": ({"OPENCODE_HELICONE_FLUSH_INTERVAL": "30000.5"}, 'flushInterval = "30000.5" from '),
    "interval of nothing": ({"OPENCODE_HELICONE_FLUSH_INTERVAL": "0"}, "flushInterval = 0 from "),
    "interval of eleven years": ({"OPENCODE_HELICONE_FLUSH_INTERVAL": "347000000000"}, "flushInterval = 347000000000"),
    "number of many digits": ({"OPENCODE_HELICONE_MAX_RETRIES": "9" * 5000}, 'maxRetries = "9999'),
    "retries below none": ({"OPENCODE_HELICONE_MAX_RETRIES": "-1"}, "maxRetries = -1 from "),
    "size of nothing": ({"OPENCODE_HELICONE_MAX_SPOOL_SIZE": "0"}, "maxSpoolSize = 0 from "),
    "switch that is none": ({"OPENCODE_HELICONE_ENABLE": "maybe"}, 'enable = "maybe" from '),
    "mode that is none": ({"OPENCODE_HELICONE_EXPORT_MODE": "FULL"}, 'exportMode = "FULL" from '),
    "worker that is none": ({"OPENCODE_HELICONE_WORKER": "manual"}, 'worker = "manual" from '),
    "prefix without a slash": ({"OPENCODE_HELICONE_SESSION_PATH_PREFIX": "opencode"}, 'sessionPathPrefix = "opencode"'),
    "prefix of slashes": ({"OPENCODE_HELICONE_SESSION_PATH_PREFIX": "//"}, 'sessionPathPrefix = "//"'),
    "prefix with a line end": ({"OPENCODE_HELICONE_SESSION_PATH_PREFIX": "/a\r\nb"}, 'sessionPathPrefix = "/a\\r\\nb"'),
    "user with a line end": ({"OPENCODE_HELICONE_USER_ID": "a\nb"}, 'userId = "a\\nb" from '),
    "user that is no Unicode": ({"OPENCODE_HELICONE_USER_ID": "a\udcff"}, 'userId = "a\\udcff" from '),
    "patterns as one text": ({"OPENCODE_HELICONE_REDACT_PATTERNS": "a,b"}, 'redactPatterns = "a,b" from '),
    "pattern that is a number": ({"OPENCODE_HELICONE_REDACT_PATTERNS": '["a", 1]'}, 'redactPatterns = ["a", 1] from '),
    "pattern that is empty": ({"OPENCODE_HELICONE_REDACT_PATTERNS": '[""]'}, 'redactPatterns = [""] from '),
    "alias cut short": ({"OPENCODE_HELICONE_REDACT_REGEX": '["a", "b"'}, 'redactPatterns = "[\\"a\\", \\"b\\"" from '),
    "alias with a comma of its own": ({"OPENCODE_HELICONE_REDACT_REGEX": "a{2,4},b"}, 'redactPatterns = "a{2,4},b"'),
    "folder with a line end": ({"OPENCODE_HELICONE_SPOOL_DIRECTORY": "/a\nb"}, 'spoolDirectory = "/a\\nb" from '),
    "folder of nobody": (
        {"OPENCODE_HELICONE_SPOOL_DIRECTORY": "~no-such-user/a"},
        'spoolDirectory = "~no-such-user/a"',
    ),
}


@pytest.mark.parametrize(("environ", "beginning"), INVALID.values(), ids=INVALID.keys())
def test_invalid_value_is_named_with_setting_and_origin(environ: dict[str, str], beginning: str) -> None:
    (problem,) = problems_of(environ=environ)
    assert problem.startswith(beginning)
    assert f"from environment {next(iter(environ))}: " in problem
    assert "\n" not in problem
    assert len(problem) < 300


TYPED = {
    "number as text": ("maxRetries", "5"),
    "number as truth": ("maxRetries", True),
    "number with a fraction": ("flushInterval", 30_000.5),
    "number as a float": ("flushInterval", 30_000.0),
    "truth as text": ("enable", "true"),
    "truth as a number": ("enable", 1),
    "patterns as text": ("redactPatterns", "a"),
    "prefix as a number": ("sessionPathPrefix", 1),
    "folder as a list": ("spoolDirectory", ["/a"]),
    "folder as nothing": ("spoolDirectory", ""),
    "worker as an object": ("worker", {"auto": True}),
}


@pytest.mark.parametrize(("option", "value"), TYPED.values(), ids=TYPED.keys())
def test_option_of_the_wrong_type_is_refused(option: str, value: object) -> None:
    settings = load(environ={}, base=Path("/base"), options=(of_user({option: value}),))
    (complaint,) = settings.complaints
    assert complaint.text.startswith(f"{option} from opencode.json: it should ")
    assert complaint.holds == (option in WHAT_MAY_LEAVE)
    assert settings.origins == {}


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("maxRetries = -1\nbogus = 2\n")
    problems = problems_of(
        environ={"OPENCODE_HELICONE_ENABLE": "?", "OPENCODE_HELICONE_WORKER": "?"},
        config_file=tmp_path / "config.toml",
        dotenv=(tmp_path / "missing",),
    )
    told = ("worker", "missing", "bogus", "enable", "maxRetries")
    assert len(problems) == len(told)
    assert all(any(name in problem for problem in problems) for name in told)


@pytest.mark.parametrize("text", ["true", "YES", "on", "1"])
def test_switch_is_read_in_the_usual_words(text: str) -> None:
    assert load_variables(OPENCODE_HELICONE_ENABLE=text).enable is True
    opposite = {"true": "false", "YES": "NO", "on": "off", "1": "0"}[text]
    assert load_variables(OPENCODE_HELICONE_ENABLE=opposite).enable is False


ENDPOINTS = {
    "cloud": ("https://api.worker.helicone.ai", "https://api.worker.helicone.ai"),
    "slash at the end": ("https://api.worker.helicone.ai/", "https://api.worker.helicone.ai"),
    "capital letters": ("HTTPS://EU.Api.Helicone.AI/Path/", "https://eu.api.helicone.ai/Path"),
    "loopback": ("http://127.0.0.1:8585", "http://127.0.0.1:8585"),
    "IPv6": ("http://[::1]:8585/", "http://[::1]:8585"),
    "log URL": ("https://host:8585/v1/trace/custom/log", "https://host:8585/v1/trace/custom/log"),
}


@pytest.mark.parametrize(("text", "held"), ENDPOINTS.values(), ids=ENDPOINTS.keys())
def test_endpoint_is_held_in_one_spelling(text: str, held: str) -> None:
    assert load_variables(HELICONE_ENDPOINT=text).endpoint == held


@pytest.mark.parametrize(
    "text",
    [
        "helicone.ai",
        "ftp://helicone.ai",
        "https://",
        "https:///path",
        "https://host:port",
        "https://host:0",
        "https://host:99999",
        "http://[::1",
        "https://user@host",
        "https://user:word@host",
        "https://host?a=b",
        "https://host/#a",
        "https://ho st",
        "https://h\u00f6st",
        "https://a..b",
        "https://host\t/a",
        "https://host\\@other",
        "file:///etc/passwd",
    ],
)
def test_endpoint_that_is_no_plain_http_url_is_refused(text: str) -> None:
    (problem,) = problems_of(environ={"HELICONE_ENDPOINT": text})
    assert problem.startswith("endpoint = ")
    assert "from environment HELICONE_ENDPOINT: it should be http(s)://host[:port][/path]" in problem
    assert "word" not in problem.split(": it should")[0]


@pytest.mark.parametrize("variable", ["HELICONE_ENDPOINT", "HELICONE_READBACK_URL"])
@pytest.mark.parametrize("url", ["http://host:8585", "http://10.0.0.7", "http://localhost.example.org/a"])
def test_plain_http_to_another_machine_needs_to_be_allowed(url: str, variable: str) -> None:
    (problem,) = problems_of(environ={variable: url})
    assert f' = "{url}" from environment {variable}: ' in problem
    assert problem.endswith("use https://, or allow it with OPENCODE_HELICONE_ALLOW_HTTP=true")
    allowed = load_variables(**{variable: url, "OPENCODE_HELICONE_ALLOW_HTTP": "true"})
    assert allowed.allow_http
    assert url in {allowed.endpoint, allowed.readback_url}


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1", "http://127.9.9.9", "http://[::1]:8585", "http://localhost"]
)
def test_plain_http_within_this_machine_is_always_allowed(endpoint: str) -> None:
    assert load_variables(HELICONE_ENDPOINT=endpoint).endpoint == endpoint


def test_alias_takes_the_predecessors_commas_and_json() -> None:
    alias = "OPENCODE_HELICONE_REDACT_REGEX"
    assert load_variables(**{alias: r" sk-\w+ , [0-9]{4},, "}).redact_patterns == (r"sk-\w+", "[0-9]{4}")
    assert load_variables(**{alias: "[0-9]+"}).redact_patterns == ("[0-9]+",)
    assert load_variables(**{alias: '[ "a{1,2}", "b" ]'}).redact_patterns == ("a{1,2}", "b")
    settings = load_variables(**{alias: "[]"})
    assert settings.redact_patterns == ()
    assert settings.origin("redact_patterns") == f"environment {alias}"


def test_patterns_set_under_both_names_are_refused() -> None:
    (problem,) = problems_of(
        environ={"OPENCODE_HELICONE_REDACT_PATTERNS": '["a"]', "OPENCODE_HELICONE_REDACT_REGEX": "b"}
    )
    assert problem.startswith("OPENCODE_HELICONE_REDACT_PATTERNS and OPENCODE_HELICONE_REDACT_REGEX from environment ")


def test_home_and_relative_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_variables(OPENCODE_HELICONE_SPOOL_DIRECTORY="~/a").spool_directory == tmp_path / "home" / "a"
    assert load_variables(OPENCODE_HELICONE_SPOOL_DIRECTORY=".o/b").spool_directory == Path("/base/.o/b")


# The API key


def test_key_comes_from_the_environment_or_an_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"HELICONE_API_KEY='{KEY}'\n")
    settings = load(environ={}, base=tmp_path, dotenv=(tmp_path / ".env",))
    assert settings.api_key == SecretStr(KEY)
    assert settings.origin("api_key") == f".env {tmp_path / '.env'}"
    over = load(environ={"HELICONE_API_KEY": f" {KEY}2\n"}, base=tmp_path, dotenv=(tmp_path / ".env",))
    assert over.api_key == SecretStr(f"{KEY}2")
    assert over.origin("api_key") == "environment HELICONE_API_KEY"


@pytest.mark.parametrize("name", ["apiKey", "api_key", "HELICONE_API_KEY", "helicone-api-key"])
def test_key_is_refused_everywhere_else_with_the_advice(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.toml").write_text(f"{name} = '{KEY}'\n")
    problems = problems_of(config_file=tmp_path / "config.toml", command_line={name: KEY})
    assert len(problems) == 2
    for problem in (*problems, *complaints_about(of_user({name: KEY}))):
        assert "the API key is read from HELICONE_API_KEY alone" in problem
        assert KEY not in problem


def test_key_appears_in_no_text_made_of_the_settings() -> None:
    settings = load_variables(HELICONE_API_KEY=KEY)
    options = [folder_record(settings), delivery_record(settings), delivery_options(settings), settings.origins]
    texts = [repr(settings), str(settings), repr(shown(settings)), repr(options), settings.model_dump_json()]
    assert all(KEY not in text for text in texts)
    assert ("apiKey", "set") in [(line.name, line.value) for line in shown(settings)]
    assert ("apiKey", "not set") in [(line.name, line.value) for line in shown(load_variables())]


@pytest.mark.parametrize(
    "spoiled", [f"{KEY} {KEY}", f"{KEY}\x00", f"{KEY}é", KEY * 100], ids=["space", "nul", "é", "long"]
)
def test_unusable_key_is_refused_without_showing_it(spoiled: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_variables(HELICONE_API_KEY=spoiled)
    (problem,) = refused.value.problems
    assert problem.startswith("apiKey = (not shown) from environment HELICONE_API_KEY: it should be at most 1000 ")
    assert refused.value.__context__ is None


@pytest.mark.parametrize("row", [pytest.param(row, id=row.option) for row in ROWS])
def test_key_pasted_into_another_setting_is_not_shown(row: Row) -> None:
    environ = {"HELICONE_API_KEY": KEY, row.variable: f"{KEY}\n{KEY}"}
    try:
        load(environ=environ, base=Path("/base"))
    except SettingsError as refused:
        assert KEY not in str(refused)  # noqa: PT017 - a pattern or a folder may be any text
        assert "(not shown)" in str(refused)  # noqa: PT017


# Files


def test_env_file_is_read_as_shells_write_it(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(
        b"\xef\xbb\xbfexport HELICONE_ENDPOINT=https://a # local\r\n# comment\r\n"
        b"OTHER=caf\xe9\nOPENCODE_HELICONE_USER_ID='one'\nOPENCODE_HELICONE_USER_ID=\"two\"\n"
    )
    settings = load(environ={}, base=tmp_path, dotenv=(path,))
    assert (settings.endpoint, settings.user_id) == ("https://a", "two")


def test_env_file_fills_in_nothing_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING", "secret")
    path = tmp_path / ".env"
    path.write_text("OPENCODE_HELICONE_USER_ID=${SOMETHING}\n")
    problems = problems_of(dotenv=(path,))
    assert problems == (
        f"line 1 of {path}: ${{…}} is not filled in here; write the value of OPENCODE_HELICONE_USER_ID out",
    )
    path.write_text('OPENCODE_HELICONE_REDACT_PATTERNS=["${SOMETHING}"]\n')
    assert load(environ={}, base=tmp_path, dotenv=(path,)).redact_patterns == ("${SOMETHING}",)


def test_broken_line_of_an_env_file_counts_only_when_it_is_ours(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(f"THEIRS=\"open\n\nHELICONE_API_KEY='{KEY}\nOPENCODE_HELICONE_USER_ID=one\n")
    problems = problems_of(dotenv=(path,))
    assert problems == (f"line 3 of {path}: it is not of the form NAME=value",)
    path.write_text("THEIRS='open\nOPENCODE_HELICONE_USER_ID=one\n")
    assert load(environ={}, base=tmp_path, dotenv=(path,)).user_id == "one"


def test_config_file_that_is_not_toml_is_refused_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"HELICONE_API_KEY={KEY}\n")
    (problem,) = problems_of(config_file=path)
    assert problem.startswith(f"config file {path}: it is not TOML: ")
    assert "line 1" in problem
    assert KEY not in problem


def test_config_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbfmaxRetries = 7\r\n")
    assert load(environ={}, base=tmp_path, config_file=path).max_retries == 7


def test_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"#" * 1_000_001)
    problems = problems_of(dotenv=(tmp_path / "missing", large), config_file=tmp_path)
    assert problems == (
        f"{tmp_path / 'missing'}: it cannot be read: No such file or directory",
        f"{large}: it is larger than 1000000 bytes",
        f"{tmp_path}: it cannot be read: Is a directory",
    )


def test_first_env_file_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("OPENCODE_HELICONE_USER_ID=one\n")
    second.write_text("OPENCODE_HELICONE_USER_ID=two\nOPENCODE_HELICONE_WORKER=external\n")
    settings = load(environ={}, base=tmp_path, dotenv=(first, second))
    assert (settings.user_id, settings.worker) == ("one", "external")
    assert settings.origin("worker") == f".env {second}"


def test_config_folder_is_where_the_user_has_put_such_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_folder() == tmp_path / "opencode-helicone"


# Everything at once


def test_every_setting_is_shown_with_unit_and_origin() -> None:
    settings = load_variables(OPENCODE_HELICONE_MAX_SPOOL_SIZE="7", OPENCODE_HELICONE_REDACT_REGEX="a")
    lines = {line.name: (line.value, line.origin, line.unit) for line in shown(settings)}
    assert set(lines) == {row.option for row in ROWS} | {"apiKey", "apiKeyFile"}
    assert lines["maxSpoolSize"] == (7, "environment OPENCODE_HELICONE_MAX_SPOOL_SIZE", "bytes")
    assert lines["redactPatterns"] == (["a"], "environment OPENCODE_HELICONE_REDACT_REGEX", "")
    assert lines["flushInterval"] == (30_000, "default", "milliseconds")
    json.dumps([line.value for line in shown(settings)])


def test_every_field_has_its_names() -> None:
    of_one_destination = {"destination", "kind", "headers", "preset", "project", "heard", "common"}
    beside = {"origins", "folder_limits", "unseen", "complaints", "destinations"}
    assert set(Settings.model_fields) - set(names.NAMES) == beside | of_one_destination
    assert {row.field for row in ROWS} | {"api_key", "api_key_file"} == set(names.NAMES)


def test_example_file_has_every_variable_with_default_and_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    paragraphs = [paragraph for paragraph in text.split("\n\n") if re.search("^(# )?[A-Z_]+=", paragraph, re.MULTILINE)]
    assigned = re.sub("^# ([A-Z_]+=)", r"\1", text, flags=re.MULTILINE)
    example = {name: value or "" for name, value in dotenv_values(stream=StringIO(assigned)).items()}
    assert sorted(example) == sorted({variable for variable, _, _ in names.VARIABLES})

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    linux_spool = Unix("opencode-helicone", appauthor=False).user_data_path
    settings, defaults = load_variables(**example), load_variables()
    for name in names.NAMES:
        default = linux_spool if name == "spool_directory" else getattr(defaults, name)
        assert getattr(settings, name) == default, name
        is_set = default is not None
        assert (settings.origin(name) == f"environment {names.NAMES[name].variable}") is is_set, name
    for setting in names.NAMES.values():
        (paragraph,) = (text for text in paragraphs if f"{setting.variable}=" in text)
        assert setting.unit in paragraph


@pytest.mark.slow
def test_import_is_light() -> None:
    code = "import sys, app.settings; print(*{'httpx', 'rich', 'starlette', 'huey', 'typer'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""


odd_text = st.text(st.characters(exclude_categories=())) | st.sampled_from(["\udc80", "\x00", "[" * 5000, "~", "a{,}"])
odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@examples(deadline=None, derandomize=True)
@given(
    environ=st.dictionaries(st.sampled_from([row.variable for row in ROWS]), odd_text, max_size=5),
    options=st.dictionaries(st.sampled_from([row.option for row in ROWS]) | odd_text, odd_json, max_size=5),
)
def test_anything_gives_settings_or_one_line_that_says_why_not(
    environ: dict[str, str], options: dict[str, object]
) -> None:
    try:
        settings = load(environ=environ, base=Path("/base"), options=(of_project(options),))
    except SettingsError as refused:
        assert refused.problems  # noqa: PT017 - either way is right
        assert len(str(refused).splitlines()) == 1  # noqa: PT017
        assert len(str(refused)) < 400 * len(refused.problems)  # noqa: PT017
    else:
        assert settings.spool_directory.is_absolute()
        assert all(len(one.text.splitlines()) == 1 and len(one.text) < 400 for one in settings.complaints)
        later = load(environ={}, base=Path("/base"), options=(recorded(folder_record(settings)),))
        assert later.redact_patterns == settings.redact_patterns
        assert bool(later.held) == bool(settings.held)
