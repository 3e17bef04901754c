"""The plugin's file: where it goes, what it says, and what is left alone."""

from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from app.sources.opencode.install import (
    FILE_NAME,
    MARKER,
    SOURCE,
    Global,
    InstallError,
    Project,
    config_directory,
    findings,
    flavour_for,
    install,
    render,
    uninstall,
)
from app.sources.opencode.program import programs

PYTHON = '/opt/a "quoted" venv/bin/python'


@pytest.fixture
def everywhere(tmp_path: Path) -> Global:
    return Global(tmp_path / "config" / "opencode")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    directory = tmp_path / "project"
    directory.mkdir()
    return Project(directory)


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def command_of(file: Path) -> list[str]:
    found = re.findall(r"^const INSTALLED = (.*)$", file.read_text(), re.MULTILINE)
    assert len(found) == 1
    command: list[str] = json.loads(found[0])["command"]
    return command


def test_global_install_starts_the_given_python_isolated(everywhere: Global) -> None:
    installed = install(everywhere, python=PYTHON)
    assert installed.path == everywhere.config_directory / "plugin" / FILE_NAME
    assert installed.changed
    assert command_of(installed.path) == [PYTHON, "-I", "-m", "app", "hook"]


def test_project_install_holds_no_absolute_path(project: Project) -> None:
    installed = install(project, python=PYTHON)
    assert installed.path == project.directory / ".opencode" / "plugin" / FILE_NAME
    assert command_of(installed.path) == ["opencode-helicone", "hook"]
    assert str(project.directory) not in installed.path.read_text()
    assert installed.path.read_text() == render(SOURCE.read_text(), ("opencode-helicone", "hook"))


def test_rendering_changes_one_line() -> None:
    source = SOURCE.read_text()
    rendered = render(source, ("x",), "function")
    changed = [(old, new) for old, new in zip(source.split("\n"), rendered.split("\n"), strict=True) if old != new]
    code = re.findall(r'"code": "([0-9a-f]{12})"', rendered)
    assert changed == [
        (
            'const INSTALLED = {"command": ["opencode-helicone", "hook"], "flavour": "object", "code": ""}',
            f'const INSTALLED = {{"command": ["x"], "flavour": "function", "code": "{code[0]}"}}',
        )
    ]


def test_code_is_named_by_what_it_is_and_not_by_what_it_starts() -> None:
    source = SOURCE.read_text()
    names = [
        render(*one).split('"code": "')[1][:12] for one in ((source, ("x",)), (source, ("y",)), (source + "\n", ("x",)))
    ]
    assert names[0] == names[1] != names[2]


def test_source_carries_the_marker() -> None:
    assert SOURCE.read_text().startswith(MARKER)


def test_second_install_changes_nothing(everywhere: Global) -> None:
    path = install(everywhere, python=PYTHON).path
    before = path.stat()
    assert not install(everywhere, python=PYTHON).changed
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_install_replaces_an_older_version_of_itself(everywhere: Global) -> None:
    path = install(everywhere, python=PYTHON).path
    path.write_text(f"{MARKER}, of another version\nconst INSTALLED = {{}}\n")
    assert install(everywhere, python=PYTHON).changed
    assert command_of(path)[0] == PYTHON


def test_install_leaves_no_temporary_file_and_a_readable_one(everywhere: Global) -> None:
    path = install(everywhere, python=PYTHON).path
    assert names_in(path.parent) == [FILE_NAME]
    assert path.stat().st_mode & 0o777 == 0o644


def test_failed_install_leaves_the_old_file_and_nothing_else(everywhere: Global) -> None:
    path = install(everywhere, python=PYTHON).path
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            install(everywhere, python="/another/python")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert names_in(path.parent) == [FILE_NAME]


# --- who else can write to it


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o757], ids=oct)
def test_a_folder_that_others_can_write_to_is_refused(everywhere: Global, mode: int) -> None:
    folder = everywhere.config_directory / "plugin"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(
        InstallError, match=f"can be written by other users .mode 0{mode:o}.: chmod go-w {folder}, then"
    ):
        install(everywhere, python=PYTHON)
    assert names_in(folder) == []
    folder.chmod(0o755)
    assert install(everywhere, python=PYTHON).changed


def test_a_plugin_that_others_can_write_to_is_refused_and_found(everywhere: Global, project: Project) -> None:
    environ = {"OPENCODE_CONFIG_DIR": str(everywhere.config_directory)}
    assert findings(environ, project.directory) == []
    paths = [install(scope, python=PYTHON).path for scope in (everywhere, project)]
    assert findings(environ, project.directory) == []
    for path in paths:
        path.chmod(0o664)
    with pytest.raises(InstallError, match="mode 0664"):
        install(project, python=PYTHON)
    assert findings(environ, project.directory) == [
        f"{path} can be written by other users (mode 0664): chmod go-w {path}" for path in paths
    ]
    assert uninstall(project).changed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_plugin_of_another_user_is_refused_and_found(everywhere: Global, tmp_path: Path) -> None:
    path = install(everywhere, python=PYTHON).path
    os.chown(path, 65_534, 65_534)
    with pytest.raises(InstallError, match=r"another user \(uid 65534\)"):
        install(everywhere, python=PYTHON)
    assert len(findings({"OPENCODE_CONFIG_DIR": str(everywhere.config_directory)}, tmp_path)) == 1


def test_the_folder_is_made_for_its_owner_alone_to_write(everywhere: Global) -> None:
    before = os.umask(0)
    try:
        path = install(everywhere, python=PYTHON).path
    finally:
        os.umask(before)
    assert path.parent.stat().st_mode & 0o777 == 0o755


def install_here(scope: Global | Project) -> None:
    install(scope, python=PYTHON)


def uninstall_here(scope: Global | Project) -> None:
    uninstall(scope)


@pytest.mark.parametrize("act", [install_here, uninstall_here], ids=["install", "uninstall"])
@pytest.mark.parametrize("content", [b"export default {}\n", b"", b"\xff\xfe"], ids=["plugin", "empty", "binary"])
def test_foreign_file_is_refused_and_kept(
    project: Project, act: Callable[[Global | Project], None], content: bytes
) -> None:
    path = project.directory / ".opencode" / "plugin" / FILE_NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(InstallError, match=r"opencode-helicone\.js was not written by opencode-helicone"):
        act(project)
    assert path.read_bytes() == content


@pytest.mark.parametrize("link", [".opencode", ".opencode/plugin", f".opencode/plugin/{FILE_NAME}"])
def test_symbolic_link_in_a_project_is_refused(project: Project, tmp_path: Path, link: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    path = project.directory / link
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        elsewhere.write_text(f"{MARKER}\n")
    else:
        elsewhere.mkdir()
    path.symlink_to(elsewhere)
    with pytest.raises(InstallError, match="symbolic link"):
        install(project, python=PYTHON)
    with pytest.raises(InstallError, match="symbolic link"):
        uninstall(project)
    assert path.is_symlink()
    assert elsewhere.read_text() == f"{MARKER}\n" if elsewhere.is_file() else not names_in(elsewhere)


def test_linked_configuration_directory_is_followed(tmp_path: Path) -> None:
    """People keep their configuration in a repository and link it."""
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "opencode").symlink_to(tmp_path / "dotfiles")
    assert install(Global(tmp_path / "opencode"), python=PYTHON).changed
    assert (tmp_path / "dotfiles" / "plugin" / FILE_NAME).is_file()


def test_directory_in_the_files_place_is_refused(everywhere: Global) -> None:
    (everywhere.config_directory / "plugin" / FILE_NAME).mkdir(parents=True)
    with pytest.raises(InstallError, match="is a directory"):
        install(everywhere, python=PYTHON)


def test_dry_run_says_what_would_change_and_writes_nothing(everywhere: Global, tmp_path: Path) -> None:
    assert install(everywhere, python=PYTHON, dry_run=True).changed
    assert not list(tmp_path.iterdir())
    install(everywhere, python=PYTHON)
    assert not install(everywhere, python=PYTHON, dry_run=True).changed
    gone = uninstall(everywhere, dry_run=True)
    assert gone.changed
    assert gone.path.exists()


def test_uninstall_removes_the_file_once(everywhere: Global) -> None:
    path = install(everywhere, python=PYTHON).path
    assert uninstall(everywhere).changed
    assert not path.exists()
    assert not uninstall(everywhere).changed


def test_relative_python_is_refused(everywhere: Global) -> None:
    with pytest.raises(InstallError, match="'bin/python': an absolute path is needed"):
        install(everywhere, python="bin/python")


def test_missing_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="is not a directory"):
        install(Project(tmp_path / "missing"), python=PYTHON)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/me"}, "/home/me/.config/opencode"),
        ({"HOME": "/home/me", "XDG_CONFIG_HOME": "/x"}, "/x/opencode"),
        ({"HOME": "/home/me", "XDG_CONFIG_HOME": "/x", "OPENCODE_CONFIG_DIR": "/oc"}, "/oc"),
        ({"HOME": "/home/me", "XDG_CONFIG_HOME": "", "OPENCODE_CONFIG_DIR": ""}, "/home/me/.config/opencode"),
    ],
    ids=["home", "xdg", "opencode", "empty"],
)
def test_config_directory_is_the_one_that_opencode_reads(environ: dict[str, str], expected: str) -> None:
    assert config_directory(environ) == Path(expected)


@pytest.mark.parametrize("environ", [{}, {"OPENCODE_CONFIG_DIR": "oc"}, {"XDG_CONFIG_HOME": "x"}], ids=str)
def test_config_directory_that_is_not_absolute_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(InstallError, match="absolute path"):
        config_directory(environ)


# --- which form


def opencode(folder: Path, says: str) -> Path:
    """A program that says it is this version."""
    folder.mkdir(parents=True)
    (folder / "opencode").write_text(f"#!/bin/sh\n{says}\n")
    (folder / "opencode").chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("versions", "flavour"),
    [
        ((), "object"),
        (("1.18.33",), "object"),
        (("1.14.0",), "object"),
        (("1.3.2",), "function"),
        (("1.0.185",), "function"),
        (("1.18.33", "1.2.4"), "function"),
        (("2.1.0",), "object"),
        (("unknown",), "object"),
        (("0.0.0-dev",), "object"),
    ],
    ids=str,
)
def test_the_oldest_opencode_that_is_installed_decides(tmp_path: Path, versions: Sequence[str], flavour: str) -> None:
    folders = [opencode(tmp_path / str(number), f"echo {version}") for number, version in enumerate(versions)]
    found = programs({"PATH": ":".join(map(str, folders)), "HOME": str(tmp_path / "home")}, in_system=())
    assert len(found) == len(versions)
    assert flavour_for(found) == flavour


@pytest.mark.slow
def test_an_opencode_outside_of_path_is_found_and_none_of_the_project_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opencode(tmp_path / "bin", "touch tricked; echo 1.18.33")
    own = opencode(tmp_path / "home" / ".opencode" / "bin", "echo 1.3.2; echo noise >&2")
    (found,) = programs({"PATH": "bin::.", "HOME": str(tmp_path / "home")}, in_system=())
    assert (found.path, found.version) == (own / "opencode", (1, 3, 2))
    assert not list(tmp_path.rglob("tricked"))


@pytest.mark.slow
def test_an_opencode_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    folder = opencode(tmp_path / "bin", "exec sleep 600")
    (found,) = programs({"PATH": f"{folder}:/bin:/usr/bin", "HOME": ""}, in_system=(), ask_s_max=0.2)
    assert found.version is None
