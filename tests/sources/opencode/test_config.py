"""OpenCode's configuration as it reads it itself, and every way in which our plugin is configured in one."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.sources.opencode.config import Configuration, Entry, read
from app.sources.opencode.config_files import FILE_BYTES_MAX, FILLED_CHARACTERS_MAX
from app.sources.opencode.install import MARKER
from app.sources.opencode.jsonc import NotJsonError, parse
from app.transcript.model import Json
from tests.support.opencode import RUN_S_MAX, OpenCode, Server, install_opencode, isolated

pytest_plugins = ["tests.support.opencode"]

OPTIONS: dict[str, Json] = {"redactPatterns": ["x+"], "enable": False}
WRITTEN = json.dumps(OPTIONS)
NOT_JSON = "it is not JSON"
OPENCODE_BINARY = os.environ.get("OPENCODE_HELICONE_TEST_BINARY")
"""Another OpenCode than the suite's, to judge."""


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def repository(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "init", "-q", path], check=True)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """As much of a repository as tells its root."""
    for name in ("objects", "refs"):
        (tmp_path / "project" / ".git" / name).mkdir(parents=True)
    write(tmp_path / "project" / ".git" / "HEAD", "ref: refs/heads/main\n")
    return tmp_path / "project"


def at_home(home: Path, **more: str) -> dict[str, str]:
    """An environment in which nothing of this machine's counts."""
    return {"HOME": str(home), "OPENCODE_TEST_MANAGED_CONFIG_DIR": str(home / "nothing"), **more}


def of_text(project: Path, home: Path, text: str | bytes, **more: str) -> Configuration:
    write(project / "opencode.json", text)
    return read(at_home(home, **more), str(project))


def options(found: Configuration) -> list[Mapping[str, Any]]:
    return [entry.options for entry in found.entries]


# ---- our entry, in every form ---------------------------------------------------------------------------------------

OURS = {
    "npm name": "opencode-helicone",
    "npm name and version": "opencode-helicone@0.2.0",
    "npm prefix": "npm:opencode-helicone@^1",
    "the one before": "opencode-helicone-async-telemetry@latest",
    "relative": "./.opencode/plugin/opencode-helicone.js",
    "relative, further up": "../x/opencode-helicone.js",
    "without a dot": ".opencode/plugin/opencode-helicone.js",
    "absolute": "/somewhere/plugin/opencode-helicone.js",
    "from home": "~/.config/opencode/plugin/opencode-helicone.js",
    "file URL": "file:///some%20where/opencode-helicone.js",
    "TypeScript": "./opencode-helicone.ts",
    "folder": "./tools/opencode-helicone",
    "folder with a slash": "./tools/opencode-helicone/",
    "copy under another name": "./copy.js",
    "copy, absolute": "{env:PROJECT}/copy.js",
    "copy, file URL": "file://{env:PROJECT}/copy.js",
    "folder with our index": "./indexed",
    "link to a copy": "./link.js",
}
FOREIGN = {
    "another package": "opencode-wakatime",
    "our name begins it": "opencode-helicone-viewer",
    "our name ends it": "my-opencode-helicone",
    "scoped": "@me/opencode-helicone",
    "in a folder of our name": "/src/opencode-helicone/other.js",
    "our name is part of its file": "./opencode-helicone.test.js",
    "file URL": "file:///src/opencode-helicone/other.js",
    "query": "./other.js?opencode-helicone.js=1",
    "not there": "./nothing.js",
    "another's file": "./other.js",
    "a folder without ours": "./foreign",
    "no path at all": "./\\u0000.js",
    "endless": "./" + "x" * 5000,
    "nothing": "",
}
FORMS = {
    "plugin": ("plugin", '["%s", {options}]'),
    "plugins": ("plugins", '["%s", {options}]'),
    "package": ("plugins", '{"package": "%s", "options": {options}}'),
    "package in plugin": ("plugin", '{"options": {options}, "package": "%s"}'),
}


@pytest.fixture
def around(project: Path) -> Path:
    """A project with copies of our plugin, and with others."""
    for path in ("copy.js", "indexed/index.js"):
        write(project / path, f"{MARKER}, written by somebody\n")
    (project / "link.js").symlink_to(project / "copy.js")
    write(project / "other.js", "// beside opencode-helicone plugin\n")
    write(project / "foreign" / "index.js", "export default {}\n")
    return project


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("spec", OURS.values(), ids=OURS)
def test_our_entry_is_found_with_its_options(around: Path, home: Path, spec: str, form: tuple[str, str]) -> None:
    key, element = form
    text = f'{{"{key}": ["other", {element.replace("{options}", WRITTEN) % spec}]}}'
    found = of_text(around, home, text, PROJECT=str(around))
    assert found.problems == ()
    assert found.entries == (
        Entry(OPTIONS, str(around / "opencode.json"), {"redactPatterns": 1, "enable": 1}, 1, is_project=True),
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("spec", FOREIGN.values(), ids=FOREIGN)
def test_another_plugin_is_not_ours(around: Path, home: Path, spec: str, form: tuple[str, str]) -> None:
    key, element = form
    found = of_text(around, home, f'{{"{key}": [{element.replace("{options}", WRITTEN) % spec}]}}')
    assert (found.entries, found.problems) == ((), ())


@pytest.mark.parametrize(
    "element", ['"opencode-helicone"', '["opencode-helicone"]', '{"package": "opencode-helicone"}']
)
def test_an_entry_without_options_is_an_entry(project: Path, home: Path, element: str) -> None:
    found = of_text(project, home, f'{{"plugin": [{element}]}}')
    assert options(found) == [{}]
    assert found.problems == ()


@pytest.mark.parametrize("name", ["opencode-helicone", "opencode-helicone-async-telemetry"])
def test_the_block_of_the_plugin_before_this_one_counts(project: Path, home: Path, name: str) -> None:
    text = f'{{\n  "plugins": {{\n    "{name}": {{\n      "enable": false,\n      "maxRetries": 1e1\n}}, "other": 1}}}}'
    found = of_text(project, home, text)
    assert found.problems == ()
    (entry,) = found.entries
    assert entry.options == {"enable": False, "maxRetries": 10}
    assert entry.lines == {"enable": 4, "maxRetries": 5}


def test_several_entries_count_in_the_order_in_which_opencode_merges(project: Path, home: Path) -> None:
    places = {
        home / ".config" / "opencode" / "opencode.json": 1,
        project / "opencode.json": 2,
        project / ".opencode" / "opencode.jsonc": 3,
    }
    for path, number in places.items():
        write(path, f'{{"plugin": [["opencode-helicone", {{"maxRetries": {number}}}]]}}')
    content = '{"plugins": {"opencode-helicone": {"maxRetries": 4}}}'
    found = read(at_home(home, OPENCODE_CONFIG_CONTENT=content), str(project))
    assert [(entry.options, entry.origin, entry.is_project) for entry in found.entries] == [
        ({"maxRetries": 1}, str(home / ".config" / "opencode" / "opencode.json"), False),
        ({"maxRetries": 2}, str(project / "opencode.json"), True),
        ({"maxRetries": 3}, str(project / ".opencode" / "opencode.jsonc"), True),
        ({"maxRetries": 4}, "OPENCODE_CONFIG_CONTENT", False),
    ]
    everywhere = read(at_home(home, OPENCODE_CONFIG_CONTENT=content), None)
    assert options(everywhere) == [{"maxRetries": 1}, {"maxRetries": 4}]


# ---- what cannot be used --------------------------------------------------------------------------------------------

NAME = '"opencode-helicone"'
UNUSABLE: dict[str, tuple[str | bytes, str, int, bool]] = {
    "cut off": (f'{{\n"plugin": [[{NAME}, {{"redactPatterns": [', NOT_JSON, 2, True),
    "cut off, about others": ('{\n"plugin": [["other", {', NOT_JSON, 2, False),
    "no value": (f'{{"plugin": [\n{NAME},\n,]}}', NOT_JSON, 3, True),
    "more after it": (f"{{{NAME}: 1}}\n}}", NOT_JSON, 2, True),
    "blanks alone": ("\n \n", NOT_JSON, 3, False),
    "list": (f"[{NAME}]", "it is JSON, but no object", 1, True),
    "null": ("null", "it is JSON, but no object", 1, False),
    "plugin is a string": (f'{{\n"plugin": {NAME}}}', "plugin is not a list", 2, True),
    "plugin is an object": (f'{{\n"plugin": {{{NAME}: {{"enable": false}}}}}}', "plugin is not a list", 2, True),
    "plugin of others is an object": ('{"plugin": {"other": {}}}', "plugin is not a list", 1, False),
    "plugins is a number": ('{"plugins": 3}', "plugins is not a list", 1, False),
    "options are a list": (
        f'{{"plugin": [\n[{NAME},\n[]]]}}',
        "the options of opencode-helicone are not an object",
        3,
        True,
    ),
    "options are null": (
        f'{{"plugin": [[{NAME}, null]]}}',
        "the options of opencode-helicone are not an object",
        1,
        True,
    ),
    "a block that is false": (
        f'{{"plugins": {{\n{NAME}: false}}}}',
        "the options of opencode-helicone are not an object",
        2,
        True,
    ),
    "three elements": (
        f'{{"plugin": [\n[{NAME}, {{}}, {{}}]]}}',
        "OpenCode knows no such form of a plugin with options",
        2,
        True,
    ),
    "options beside the package": (
        f'{{"plugins": [\n{{"package": {NAME}, "enable": false}}]}}',
        "OpenCode knows no such form of a plugin with options",
        2,
        True,
    ),
    "brackets forgotten": (
        f'{{"plugin": [{NAME},\n{{"enable": false}}]}}',
        "OpenCode knows no such form of a plugin with options",
        2,
        True,
    ),
    "an option twice": (
        f'{{"plugin": [[{NAME}, {{"enable": false,\n"enable": true}}]]}}',
        "an option of opencode-helicone, or all of them, stand here again",
        2,
        True,
    ),
    "a block twice": (
        f'{{"plugins": {{{NAME}: {{"enable": false}},\n{NAME}: {{}}}}}}',
        "an option of opencode-helicone, or all of them, stand here again",
        2,
        True,
    ),
    "plugin twice": (
        f'{{"plugin": [[{NAME}, {{"enable": false}}]],\n"plugin": []}}',
        "plugin stands here again",
        2,
        True,
    ),
    "plugin of others twice": ('{"plugin": ["other"], "plugin": []}', "plugin stands here again", 1, False),
    "a file that is not there": (
        f'{{"plugin": [[{NAME},\n{{"redactPatterns": ["{{file:nothing}}"]}}]]}}',
        "a {file:…} in it has no text to give: there is no such file",
        2,
        True,
    ),
    "a file that is a folder": (
        '{"username": "{file:.}"}',
        "a {file:…} in it has no text to give: it cannot be read: Is a directory",
        1,
        False,
    ),
    "a variable with a quotation mark": (f'{{"plugin": [{NAME}],\n"username": "{{env:QUOTED}}"}}', NOT_JSON, 2, True),
    "too deep": (f"{{{NAME}: {'[' * 300}{']' * 300}}}", NOT_JSON, 1, True),
}


@pytest.mark.parametrize(("text", "what", "line", "may_tighten"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_used_is_told_with_its_line(
    project: Path, home: Path, text: str, what: str, line: int, *, may_tighten: bool
) -> None:
    (problem,) = of_text(project, home, text, QUOTED='a"b').problems
    assert (problem.what, problem.line, problem.may_tighten) == (what, line, may_tighten)
    assert problem.origin == str(project / "opencode.json")
    assert str(problem) == f"{project / 'opencode.json'} line {line}: {what}"


def test_what_a_configuration_takes_in_is_bounded_however_often_it_names_it(project: Path, home: Path) -> None:
    write(project / "big", b"x" * FILE_BYTES_MAX)
    fits = FILLED_CHARACTERS_MAX // FILE_BYTES_MAX
    files, variables = ('{"a": "helicone ' + part * fits + '%s"}' for part in ("{file:big}", "{env:BIG}"))
    for text in (files, variables):
        assert of_text(project, home, text % "", BIG="x" * FILE_BYTES_MAX).problems == ()
        (problem,) = of_text(project, home, text % "{file:big}", BIG="x" * FILE_BYTES_MAX).problems
        assert problem.what == f"it takes in more than {FILLED_CHARACTERS_MAX} characters"
        assert problem.may_tighten


def unreadable(path: Path) -> None:
    path.mkdir()


def too_large(path: Path) -> None:
    path.write_bytes(b" " * (FILE_BYTES_MAX + 1))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def circle(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [unreadable, too_large, pipe, circle])
def test_a_file_that_cannot_be_read_may_have_been_meant_to_withhold(project: Path, home: Path, make: Any) -> None:
    make(project / "opencode.json")
    (problem,) = read(at_home(home), str(project)).problems
    assert problem.may_tighten
    assert problem.line is None
    assert str(problem).startswith(f"{project / 'opencode.json'}: it ")


@pytest.mark.slow
@given(
    before=st.text(alphabet='{}[]":,/*\\\n truefalse0123', max_size=40),
    secret=st.from_regex("[k-z]{12,20}", fullmatch=True),
    form=st.sampled_from(
        [
            '{{"plugin": [["opencode-helicone", "{0}"]]}}',
            '{{"{0}": ',
            '["{0}"]',
            '"{{file:{0}}}"',
            '{{"plugin": "{0}"}}',
        ]
    ),
)
def test_no_problem_holds_text_of_the_file(before: str, secret: str, form: str) -> None:
    content = before + form.format(secret)
    found = read({"HOME": "/nothing", "OPENCODE_CONFIG_CONTENT": content}, "/nothing")
    assert not any(secret in str(problem) for problem in found.problems)


@given(st.text(max_size=200) | st.text(alphabet='{}[]":,/*\\\n truefalsenull01.e-', max_size=200))
def test_what_is_json_to_python_is_the_same_to_us_and_nothing_else_raises(text: str) -> None:
    try:
        expected = json.loads(text, parse_int=float, parse_constant=int)
    except ValueError:
        expected = None
    try:
        found = parse(text).value
    except NotJsonError as error:
        refused_at = error.line
    else:
        assert expected is None or found == expected
        return
    assert expected is None
    assert 1 <= refused_at <= text.count("\n") + 1


# ---- what is filled in, and what is seen ----------------------------------------------------------------------------


def test_each_key_has_its_line(project: Path, home: Path) -> None:
    text = """// one
{
  /* three
  four */ "plugin": [
    ["opencode-helicone", {
      "enable": false, // six

      "maxRetries": 3,
    },],
  ],
}
"""
    (entry,) = of_text(project, home, text).entries
    assert entry.options == {"enable": False, "maxRetries": 3}
    assert entry.lines == {"enable": 6, "maxRetries": 8}


def test_files_and_variables_are_filled_in(project: Path, home: Path) -> None:
    write(project / "pattern.txt", ' sk-"\\w+ {env:WORD}\n')
    text = '{"plugin": [["opencode-helicone", {"redactPatterns": ["{file:./pattern.txt}", "{env:WORD}"]}]]}'
    found = of_text(project, home, text, WORD="secret")
    assert options(found) == [{"redactPatterns": ['sk-"\\w+ {env:WORD}', "secret"]}]


def test_what_is_relative_to_a_directory_counts_where_it_is_known(project: Path, home: Path) -> None:
    write(project / "pattern.txt", "x")
    content = '{"plugin": [["opencode-helicone", {"redactPatterns": ["{file:pattern.txt}"]}]]}'
    environ = at_home(home, OPENCODE_CONFIG_CONTENT=content, OPENCODE_CONFIG="opencode.json")
    assert options(read(environ, str(project))) == [{"redactPatterns": ["x"]}]
    everywhere = read(environ, None)
    assert (everywhere.entries, everywhere.problems) == ((), ())


def test_the_basis_changes_with_what_was_read_and_with_what_appears(project: Path, home: Path) -> None:
    environ = at_home(home, WORD="a")
    seen = [read(environ, str(project)).basis]

    def changed(what: object = None) -> bool:
        assert what is None or what
        seen.append(read(environ, str(project)).basis)
        return seen[-1] != seen[-2]

    assert not changed()
    assert changed(write(project / "opencode.json", '{"username": "{env:WORD}{file:x.txt}"}'))
    assert not changed()
    assert changed(write(project / "x.txt", "1"))
    assert changed(write(project / "x.txt", "2"))
    assert changed(write(home / ".config" / "opencode" / "config.json", "{}"))
    environ["WORD"] = "b"
    assert changed()
    environ["OPENCODE_CONFIG_CONTENT"] = "{}"
    assert changed()
    (project / "x.txt").unlink()
    assert changed()
    assert not changed()


def test_no_directory_is_too_odd_to_be_looked_at(home: Path) -> None:
    for directory in (None, "", "relative", "/nothing/here", "/\0", "/dev/null", "/" + "x" * 5000, "/\ud800"):
        found = read(at_home(home), directory)
        assert (found.entries, found.problems) == ((), ())


# ---- the real OpenCode ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where configurations lie; each path is below the folder of the test."""

    files: tuple[str, ...]
    directory: str = "repo/sub"
    environ: Mapping[str, str] = field(default_factory=dict)
    """`{0}` is the folder of the test."""
    content: bool = False


UPWARDS = tuple(f"{place}/opencode.{ending}" for place in ("repo/sub", "repo", ".") for ending in ("json", "jsonc"))
FOLDERS = tuple(
    f"{place}/.opencode/opencode.{ending}" for place in ("repo/sub", "repo", ".") for ending in ("json", "jsonc")
)
GLOBAL = tuple(f"home/.config/opencode/{name}" for name in ("config.json", "opencode.json", "opencode.jsonc"))
HOME = ("home/.opencode/opencode.json", "home/.opencode/opencode.jsonc")
NAMED = ("named/opencode.json", "named/opencode.jsonc", "named/config.json")
SYSTEM = ("system/opencode.json", "system/opencode.jsonc")
VARIABLES = {
    "OPENCODE_CONFIG": "{0}/x.json",
    "OPENCODE_CONFIG_DIR": "{0}/named",
    "OPENCODE_TEST_MANAGED_CONFIG_DIR": "{0}/system",
}
ALL = (*UPWARDS, *FOLDERS, *GLOBAL, *HOME, *NAMED, *SYSTEM, "x.json")

ARRANGEMENTS = {
    "up to the repository's root": Arrangement(UPWARDS),
    "without a repository": Arrangement(tuple(one.replace("repo", "bare") for one in (*UPWARDS, *FOLDERS)), "bare/sub"),
    "linked work tree": Arrangement(("linked/opencode.json", "linked/sub/opencode.json", *UPWARDS), "linked/sub"),
    "an empty .git on the way": Arrangement((*UPWARDS, "repo/void/opencode.json"), "repo/void"),
    "a .git that points nowhere": Arrangement(("lost/opencode.json", "opencode.json"), "lost"),
    "through a symbolic link": Arrangement(("links/opencode.json", *UPWARDS), "links/repo/sub"),
    "below the home directory": Arrangement((*HOME, "home/opencode.json", "home/p/.opencode/opencode.json"), "home/p"),
    "a file named by a variable": Arrangement((*GLOBAL, "x.json", "repo/opencode.json"), environ=VARIABLES),
    "a file named from where one is": Arrangement(("repo/x.json",), environ={"OPENCODE_CONFIG": "../x.json"}),
    "a folder named by a variable": Arrangement((*NAMED, *FOLDERS), environ=VARIABLES),
    "the project's folder named by a variable": Arrangement(
        FOLDERS, environ={"OPENCODE_CONFIG_DIR": "{0}/repo/sub/.opencode"}
    ),
    "the global folder named by a variable": Arrangement(
        (*GLOBAL, *FOLDERS), environ={"OPENCODE_CONFIG_DIR": "{0}/home/.config/opencode"}
    ),
    "a text in a variable": Arrangement((*UPWARDS, *FOLDERS, *NAMED), environ=VARIABLES, content=True),
    "the project's are not wanted": Arrangement(
        ALL, environ={**VARIABLES, "OPENCODE_DISABLE_PROJECT_CONFIG": "1"}, content=True
    ),
    "all": Arrangement(ALL, environ=VARIABLES, content=True),
}


def pair(one: str, other: str) -> str:
    return " ".join(sorted((one, other)))


def numbered(origin: str, origins: Iterable[str]) -> str:
    """A configuration after which everybody can tell which of two came later."""
    return json.dumps({"$schema": "x", "command": {pair(origin, other): {"template": origin} for other in origins}})


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    repository(tmp_path / "repo")
    commit = ["git", "-c", "user.email=dev@example.com", "-c", "user.name=dev", "commit", "-qm", "x", "--allow-empty"]
    for command in (commit, ["git", "worktree", "add", "-q", "../linked"]):
        subprocess.run(command, cwd=tmp_path / "repo", check=True)
    for folder in ("repo/sub", "repo/void/.git", "linked/sub", "bare/sub", "links", "lost", "home/p"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    write(tmp_path / "lost" / ".git", "gitdir: ../nowhere\n")
    (tmp_path / "links" / "repo").symlink_to(tmp_path / "repo")
    return tmp_path


QUICK = {"up to the repository's root", "a folder named by a variable", "all"}


@pytest.mark.opencode
@pytest.mark.parametrize(
    "arrangement",
    [
        pytest.param(one, id=name, marks=[] if name in QUICK else pytest.mark.matrix)
        for name, one in ARRANGEMENTS.items()
    ],
)
def test_opencode_merges_the_same_texts_in_the_same_order(laid_out: Path, arrangement: Arrangement) -> None:
    """`opencode debug config` is the judge."""
    variables = {name: value.format(laid_out) for name, value in arrangement.environ.items()}
    environ = {**at_home(laid_out / "home"), **isolated(laid_out / "home"), **variables}
    origins = [str(laid_out / path) for path in arrangement.files]
    origins += ["OPENCODE_CONFIG_CONTENT"] if arrangement.content else []
    for path in arrangement.files:
        write(laid_out / path, numbered(str(laid_out / path), origins))
    if arrangement.content:
        environ["OPENCODE_CONFIG_CONTENT"] = numbered("OPENCODE_CONFIG_CONTENT", origins)
    directory = laid_out / arrangement.directory

    found = read(environ, str(directory))

    assert found.problems == ()
    merged: dict[str, Any] = {}
    for document in found.documents:
        command = document.value["command"]
        assert isinstance(command, dict)
        merged |= command
    with (laid_out / "judged").open("w") as output:  # a pipe would get 64 KiB of it
        subprocess.run(
            [OPENCODE_BINARY or install_opencode(), "debug", "config"],
            cwd=directory,
            env={**environ, "PWD": str(directory)},
            stdout=output,
            timeout=RUN_S_MAX,
            check=True,
        )
    judged = (laid_out / "judged").read_text()
    command = json.loads(judged[judged.index("{") :])["command"]
    assert {name: value["template"] for name, value in command.items()} == {
        name: value["template"] for name, value in merged.items()
    }
    assert merged


TEXTS: dict[str, str | bytes] = {
    "plain": '{"username": "a"}',
    "comments": '// one\n{/* two\n*/"username"/**/: "a" // {file:nothing}\n, // three\n}// four',
    "a comment alone on its line names no file": '{\n  // {file:nothing}\n"username": "a"}',
    "a comment elsewhere does": '{"username": "a", // {file:nothing}\n}',
    "a block comment does": '{"username": "a" /* {file:nothing} */}',
    "trailing commas": '{"username": "a", "instructions": ["x",],}',
    "two trailing commas": '{"username": "a",,}',
    "a comma first": '{,"username": "a"}',
    "no comma": '{"username": "a" "model": "b"}',
    "byte order mark": b'\xef\xbb\xbf{"username": "a"}',
    "not UTF-8": b'{"username": "caf\xe9"}',
    "Windows": '{\r\n// x\r\n"username": "a"\r\n}\r\n',
    "carriage returns": '{\r// x\r"username": "a"}',
    "no-break space": '{\u00a0"username": "a"}',
    "vertical tab": '{\v"username": "a"}',
    "tab in a string": '{"username": "a\tb"}',
    "line in a string": '{"username": "a\nb"}',
    "escapes": '{"username": "\\u0041\\n\\/\\ud83d\\ude00"}',
    "unknown escape": '{"username": "\\x41"}',
    "single quotes": "{'username': 'a'}",
    "no quotes": '{username: "a"}',
    "a key twice": '{"username": "a", "username": "b"}',
    "comment without end": '{"username": "a"} /* ',
    "more after it": '{"username": "a"} 1',
    "cut off": '{"username": "a"',
    "nothing": "",
    "blanks": " \n",
    "a comment alone": "// x",
    "number with a zero first": '{"subagent_depth": 01, "username": "a"}',
    "number with a fraction": '{"subagent_depth": 1.0e0, "username": "a"}',
    "a word too long": '{"autoupdate": truex, "username": "a"}',
    "list": "[]",
    "null": "null",
    "plugin is no list": '{"plugin": {"a": {}}}',
    "a variable": '{"username": "{env:WORD} [{env:NOTHING_OF_THIS_NAME}]"}',
    "a variable with blanks": '{"username": "[{env: WORD }]"}',
    "a variable with an escape": '{"username": "{env:ESCAPED}"}',
    "a variable with a quotation mark": '{"username": "{env:QUOTED}"}',
    "a variable with a line": '{"username": "{env:LINES}"}',
    "a number from a variable": '{"subagent_depth": {env:NUMBER}, "username": "a"}',
    "small letters count": '{"username": "{ENV:WORD}"}',
    "a file": '{"username": "{file:word.txt} {file:./word.txt}"}',
    "a file of the home directory": '{"username": "{file:~/word.txt}"}',
    "a file further up": '{"username": "{file:../up.txt}"}',
    "a file named by a variable": '{"username": "{file:{env:FILE}}"}',
    "a variable that names a file": '{"username": "{env:REFERENCE}"}',
    "a file with blanks before its name": '{"username": "{file: word.txt}"}',
    "a file that is not there": '{"username": "{file:nothing}"}',
    "a folder": '{"username": "{file:.}"}',
    "a file of anything": '{"username": "{file:bytes}"}',
}
WORDS = {
    "WORD": "some word",
    "ESCAPED": "a\\tb",
    "QUOTED": 'a"b',
    "LINES": "a\nb",
    "NUMBER": "3",
    "FILE": "word.txt",
    "REFERENCE": "{file:word.txt}",
}


@dataclass(frozen=True, slots=True)
class Judge:
    server: Server
    environ: Mapping[str, str]
    folder: Path

    def username(self, directory: Path) -> str | None:
        """As OpenCode has it; None where it refuses the configuration."""
        try:
            found: str = self.server.request("GET", "/config", directory=directory)["username"]
        except urllib.error.HTTPError:
            return None
        return found


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, opencode: OpenCode) -> Iterator[Judge]:
    folder = tmp_path_factory.mktemp("texts")
    home = folder / "home"
    write(home / "word.txt", "at home")
    write(home / ".config" / "opencode" / "opencode.json", '{"$schema": "x", "username": "nobody"}')
    opencode.spare_installation(home / ".config" / "opencode")
    write(folder / "up.txt", "further up")
    environ = {**isolated(home), **WORDS}
    binary = Path(OPENCODE_BINARY) if OPENCODE_BINARY else opencode.binary
    with replace(opencode, binary=binary, home=home, environ=environ).serve(folder) as server:
        yield Judge(server, environ, folder)


@pytest.mark.opencode
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_opencode_reads_the_same_in_a_text(judge: Judge, request: pytest.FixtureRequest, text: str | bytes) -> None:
    directory = repository(judge.folder / f"text-{list(TEXTS.values()).index(text)}")
    write(directory / "word.txt", '\ufeff  from "a file"\\ \n\u00a0\n')
    write(directory / "bytes", b"a\xffb\x00c\xe2\x80\xa8d\x1f")
    write(directory / "opencode.json", text)

    found = read(judge.environ, str(directory))

    names = [document.value["username"] for document in found.documents if "username" in document.value]
    ours = None if any(problem.origin == str(directory / "opencode.json") for problem in found.problems) else names[-1]
    assert ours == judge.username(directory), request.node.name
