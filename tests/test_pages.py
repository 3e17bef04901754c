"""README and the pages of `docs/`: short, and true of the program.

Their commands are checked here, and those of the README run by `tests/system/test_readme.py`; each figure is compared
with the script that proves it, or with what that has written.
"""

from __future__ import annotations

import csv
import re
import shlex
import tomllib
from typing import Any

import pytest

from app.operations.status import BYTES_BESIDE_BODIES_MAX
from app.settings.model import Settings
from app.settings.names import ALLOWED_ENDPOINTS, CENTRAL, IN_SYSTEM_FILE, NAMES, VARIABLES
from app.settings.places import SYSTEM_FILE
from benchmarks import latency, notice
from tests import settings_page
from tests.stress import hammer
from tests.support.checkout import ROOT
from tests.system.test_cli import commands
from tests.system.test_opencode_versions import VERSIONS

README = (ROOT / "README.md").read_text("utf-8")
WORDS_MAX = 900
PAGES = {path.name: path.read_text("utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
PROGRAM = "opencode-helicone"
PROMISES = " ".join(README.split("## Three promises")[1].split("\n## ")[0].split())


# --- commands --------------------------------------------------------------------------------------------------------


def lines_of(text: str) -> list[str]:
    """What a page has people type: lines behind `$` in blocks, without their comments, and whatever stands in code."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    typed = [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [re.sub(r"\s+#.*", "", line) for line in (*typed, *quoted)]


def wrong_in(line: str, known: dict[str, Any]) -> str:
    """What this command line names that the program has not; nothing where it is no command line of ours."""
    try:
        words = shlex.split(line)
    except ValueError:
        return ""
    is_named = PROGRAM in words
    words = words[words.index(PROGRAM) + 1 :] if is_named else words
    if not words or words[0].startswith("-"):
        return ""
    families = {name.split(" ")[0] for name in known}
    if words[0] not in families:
        return f"there is no {words[0]}" if is_named and re.fullmatch("[a-z-]+", words[0]) else ""
    name = next((one for length in (3, 2, 1) if (one := " ".join(words[:length])) in known), None)
    if name is None:
        return f"there is no {' '.join(words[:2])}" if is_named and len(words) > 1 else ""
    options = {one for param in known[name].params for one in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}
    named = {word.split("=")[0] for word in words if re.match("-{1,2}[a-z]", word)}
    return "".join(f"{name} has no {option} " for option in sorted(named - options))


@pytest.mark.parametrize("page", sorted(PAGES))
def test_each_command_and_option_that_a_page_names_is_there(page: str) -> None:
    known = commands()
    assert {line: wrong for line in lines_of(PAGES[page]) if (wrong := wrong_in(line, known))} == {}


@pytest.mark.parametrize(
    "line",
    ["opencode-helicone statsu", "flush --now", "opencode-helicone dead bury", "fleet tenant list -q", "flush -q"],
)
def test_a_command_that_is_not_there_would_be_seen(line: str) -> None:
    assert wrong_in(line, commands())


def test_each_command_stands_in_the_list_at_the_head_of_their_page() -> None:
    page = PAGES["commands.md"]
    listed = re.findall(r"`([a-z-]+(?: [a-z]+)*)", page.split("## All of them\n")[1].split("\n## ")[0])
    assert set(commands()) - {"hook", "ready"} - set(listed) == set()


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["operations.md", "network.md", "self-hosting.md"])
def test_what_a_page_quotes_is_what_the_program_says(page: str) -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "app").rglob("*.py"))
    source = re.sub(r"\{[^{}]*\}", "407", source)  # what a message is filled with
    quoted = re.findall(r'"([a-z][^"|\n]+?)[.:]?"', re.sub("`[^`]*`", "", PAGES[page]), re.IGNORECASE)
    assert len(quoted) >= 1
    assert [one for one in quoted if one not in source] == []


# --- settings --------------------------------------------------------------------------------------------------------


def test_the_table_of_settings_is_current() -> None:
    assert PAGES["settings.md"] == settings_page.page(PAGES["settings.md"]), "python -m tests.settings_page writes it"


def test_each_setting_is_explained() -> None:
    assert set(NAMES) - set(settings_page.MEANINGS) == set()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_each_variable_of_ours_that_a_page_names_is_a_setting(page: str) -> None:
    named = set(re.findall(r"\b(?:OPENCODE_HELICONE|HELICONE)_[A-Z_]+[A-Z]\b", PAGES[page]))
    assert named - {variable for variable, _, _ in VARIABLES} - set(CENTRAL) == set()


def test_what_the_page_says_of_the_file_for_all_users() -> None:
    page = PAGES["settings.md"].split("## For all users of a machine")[1].split("\n## ")[0]
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert set(tomllib.loads(example)) <= {*IN_SYSTEM_FILE, ALLOWED_ENDPOINTS}
    assert all(f"`{option}`" in page for option in (*IN_SYSTEM_FILE, ALLOWED_ENDPOINTS, str(SYSTEM_FILE)))


# --- README ----------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= WORDS_MAX


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\(docs/(\w[\w-]*\.md)\)", README))
    led_on = {"architecture.md"}  # from design.md
    assert set(PAGES) - {"README.md"} - linked == led_on


def numbers(text: str) -> list[int]:
    return [int(one.replace(",", "")) for one in re.findall(r"\b\d[\d,]*\b", text)]


def test_the_first_promise_has_the_bound_of_its_benchmark() -> None:
    (told,) = re.findall(r"pauses at most (\d+) ms\s+longer", PROMISES)
    (messages,) = re.findall(r"session of ([\d,]+) messages", PROMISES)
    assert (int(told), numbers(messages)) == (notice.STALL_MS_MAX, [max(notice.SIZES)])


def test_the_second_promise_has_the_numbers_of_its_script() -> None:
    told = PROMISES.split("2. ")[1].split("3. ")[0]
    plan = hammer.Plan()
    assert round(1 / hammer.FAULTY) == 5
    assert numbers(told.split("killed at random")[0]) == [plan.turns, plan.consumer_kills, plan.enqueuer_kills]
    assert numbers(told.split("fails above")[1]) == [latency.GOAL_MEDIAN_MS, latency.GOAL_P99_MS]
    measured = numbers(re.split(r"\(`make bench`", told.split("it took")[1])[0])
    assert measured[0] < latency.GOAL_MEDIAN_MS


def test_the_third_promise_has_the_numbers_of_the_table_that_its_script_wrote() -> None:
    with (ROOT / "docs" / "secrets.tsv").open(encoding="utf-8") as file:
        rules = list(csv.DictReader(file, delimiter="\t"))
    own = [one for one in rules if one["beginning"] == "yes"]
    masked = sum(one["assignment"] == one["samples"] for one in rules)
    in_prose = sum(one["prose"] == one["samples"] for one in own)
    assert numbers(PROMISES.split("3. ")[1]) == [len(rules), masked, in_prose, len(own)]


def test_what_it_was_tried_with_is_what_the_tests_try() -> None:
    row = next(line for line in README.splitlines() if line.startswith("| OpenCode |"))
    oldest, newest = VERSIONS[0], VERSIONS[-1].rsplit(".", 1)[0]
    assert f"{oldest} to {newest}" in row
    assert f"OpenCode {oldest} to {newest}" in PAGES["install.md"]
    (commit,) = re.findall(r"commit `([0-9a-f]{7,})`", README)
    assert f"`{commit}`" in PAGES["self-hosting.md"]
    assert "never contacted: its sign-up is closed" in README
    assert re.search(r"\| macOS, Windows \| not tried", README)


def test_its_limits_are_those_of_the_program() -> None:
    limits = README.split("## Limits")[1].split("\n## ")[0]
    settings = Settings()
    assert f"{BYTES_BESIDE_BODIES_MAX // 1_000_000} MB and the {settings.max_spool_bytes // 1024**2} MB" in limits
    assert settings.max_spool_age_ms == 7 * 24 * 60 * 60 * 1000
    assert "seven days" in limits
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    least, first_too_new = re.findall(r"3\.(\d+)", needed)
    assert f"Python 3.{least} to 3.{int(first_too_new) - 1};" in limits
    assert all(f"--python '{needed}'" in page for page in (README, PAGES["install.md"], PAGES["several-users.md"]))
