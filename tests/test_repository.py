"""What is committed: no secrets, nothing of one machine, and what people read says what the program does."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from importlib import resources
from pathlib import Path

import pytest

from app.privacy.redact import REDACTED, Redaction
from app.privacy.vendors import UNCHECKED, VENDORS
from app.transcript.attachments import strip_blobs
from tests.support.checkout import ROOT
from tests.support.fake_secrets import KEYS, Sample

MADE_BY_OTHERS = ("tests/data/recordings/", "tests/data/golden/", "requirements.lock")
"""What a program wrote."""

PICTURES = {".png"}
KNOWN_HOSTS = re.compile(
    r"(.+\.)?(helicone\.ai|opentelemetry\.io|opencode\.ai|sqlite\.org|semver\.org|keepachangelog\.com|www\.w3\.org"
    r"|slack\.com|ahelicone\.ai"
    r"|example\.(com|org)|invalid|test|localhost)"
)
"""Public ones that a reader or the program needs, and reserved names."""


@cache
def texts() -> dict[str, str]:
    """By path, what is committed and what would be with the next commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    files = [path for path in paths if path.is_file() and not path.is_symlink() and path.suffix not in PICTURES]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in files}


def found(pattern: str, *, besides: tuple[str, ...] = ()) -> list[str]:
    """`path: what` for each match in a file that is not `besides`."""
    compiled = re.compile(pattern)
    return [
        f"{name}: {match[0]}"
        for name, text in texts().items()
        if not name.startswith(besides)
        for match in compiled.finditer(text)
    ]


# --- secrets ---------------------------------------------------------------------------------------------------------

RULES = Redaction.compile(())
RUN = re.compile(r"[A-Za-z0-9+_-]{16,}")


def is_random(value: str) -> bool:
    """Long letters and digits: neither a word, a variable nor a pattern stands where a secret would."""
    return any(re.search("[0-9]", run) and re.search("[A-Za-z]", run) for run in RUN.findall(value))


def secrets_in(text: str) -> list[str]:
    """What the program's own rules take out of a text, as far as it looks like the real thing."""
    data = strip_blobs(text.replace(REDACTED, "[-]"))
    first, *pieces = RULES.text(data).split(REDACTED)
    taken = []
    at = len(first)
    for piece in pieces:
        start = data.index(piece, at) if piece else len(data)
        taken.append(data[at:start])
        at = start + len(piece)
    return [value for value in taken if is_random(value)]


def test_no_file_holds_what_looks_like_a_secret() -> None:
    assert len(texts()) > 100
    assert {name: secrets for name, text in texts().items() if (secrets := secrets_in(text))} == {}


@pytest.mark.parametrize("sample", KEYS, ids=lambda sample: sample.id)
def test_that_scan_would_find_a_key(sample: Sample) -> None:
    assert secrets_in(f"def f():\n    return {sample.text!r}\n")


def test_no_env_file_is_committed() -> None:
    assert [name for name in texts() if Path(name).name == ".env"] == []


# --- one machine -----------------------------------------------------------------------------------------------------


def test_no_path_of_anybodys_machine_is_named() -> None:
    assert found(r"(?<![\w.$}])/(home|Users)/(?!(dev|me|alice|bob)\b)[\w.-]+|/root/\w+") == []
    if len(ROOT.parts) > 2:  # a checkout right under / has the name of a word
        assert found(rf"{re.escape(str(ROOT))}\b") == []


def test_no_package_index_is_named() -> None:
    assert found(r"--(extra-index-url|index-url|find-links|registry)[ =]") == []
    assert "://" not in texts()["requirements.lock"]


def test_every_host_is_a_known_one() -> None:
    # The table of vendors' keys names the hosts whose addresses are secrets.
    hosts = {
        match.lower()
        for name, text in texts().items()
        for match in re.findall(r"[a-z]+://([\w-]+(?:\.[\w-]+)+)", text)
        if name != "app/privacy/vendors.py"
    }
    named = {host for host in hosts if not re.fullmatch(r"[\d.]+", host)}
    assert {host for host in named if not KNOWN_HOSTS.fullmatch(host)} == set()


def test_no_comment_needs_a_tracker_to_be_understood() -> None:
    assert found(r"(?i)\bissues?[ #]*\d+", besides=MADE_BY_OTHERS) == []


# --- what people read ------------------------------------------------------------------------------------------------


def test_what_a_checkout_must_have_is_there() -> None:
    for name in (
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "AGENTS.md",
        "docs/privacy.md",
        "Makefile",
        "Procfile",
        ".env.example",
        ".ci/run",
    ):
        assert name in texts(), name
    assert texts()["LICENSE"].startswith("MIT License")
    assert re.fullmatch(r"worker: huey_consumer app\.worker\.huey [^\n]*\n", texts()["Procfile"])


def test_migrations_are_inside_the_package() -> None:
    inside = sorted(item.name for item in (resources.files("app") / "migrations").iterdir())
    assert inside == sorted(path.name for path in (ROOT / "migrations").iterdir())
    assert (ROOT / "app" / "migrations").readlink() == Path("../migrations")


def test_the_table_of_vendors_has_as_many_rows_as_the_page_says() -> None:
    page = texts()["docs/privacy.md"]
    (vendors,) = re.findall(r"keys of (\d+) vendors", page)
    ((rows, unchecked),) = re.findall(r"Of the table's (\d+) rows, (\d+) are marked `unchecked`", page)
    assert int(vendors) == len({row.name for row in VENDORS})
    assert (int(rows), int(unchecked)) == (len(VENDORS), sum(row.source == UNCHECKED for row in VENDORS))


def test_the_map_of_the_modules_names_each_of_them() -> None:
    rows = dict(re.findall(r"^\| `([\w/]+)` \| (.*)$", texts()["docs/design.md"], re.MULTILINE))
    missing = set()
    for path in (ROOT / "app").rglob("*.py"):
        folder = path.parent.relative_to(ROOT / "app")
        if path.stem not in {"__init__", "__main__"}:
            is_there = f"`{path.stem}`" in (rows.get(f"{folder}/", "") if folder.parts else texts()["docs/design.md"])
            missing |= set() if is_there else {str(path)}
    assert missing == set()


def test_every_file_and_target_that_a_page_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", texts()["Makefile"], re.MULTILINE))
    missing = []
    for name, text in texts().items():
        if not name.endswith(".md") or name == "CHANGELOG.md":
            continue
        quoted = re.findall(r"`((?:app|tests|docs|benchmarks|migrations|\.ci|\.github)/[\w./-]*)", text)
        linked = [(Path(name).parent / link).as_posix() for link in re.findall(r"\]\(([\w./-]+)\)", text)]
        paths = [path for path in (*quoted, *linked) if not re.search("NAME|NNNN", path)]
        missing += [f"{name}: {path}" for path in paths if not (ROOT / path).exists()]
        missing += [f"{name}: make {made}" for made in re.findall(r"`make ([a-z]+)", text) if made not in targets]
    assert missing == []


LINES_MAX, PARAMETERS_MAX = 50, 7
LONG = {
    "app/capture/enqueue.py enqueue": "the documented API",
    "app/settings/layers.py load": "one parameter for each kind of source",
    "app/cli/backfill.py _backfill": "one parameter for each option",
    "app/cli/jobs.py _list": "one parameter for each option",
    "app/cli/verify.py _verify": "one parameter for each option",
    "app/cli/recall.py _recall": "one parameter for each option",
    "app/cli/fleet_tenant.py _add": "one parameter for each option",
    "app/cli/fleet_tenant.py _set": "one parameter for each option",
    "app/cli/setup.py _setup": "one parameter for each option",
}
"""Functions that are longer, or take more, and why. Constructors may."""


def test_functions_are_short_and_take_few_parameters() -> None:
    long = set()
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                taken = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                parameters = len(taken) - (taken[:1] in (["self"], ["cls"]))
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LINES_MAX or parameters > PARAMETERS_MAX:
                    long.add(f"{path.relative_to(ROOT).as_posix()} {node.name}")
    assert long == set(LONG)
