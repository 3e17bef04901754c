"""Where a spool may lie: whose it is, who may look into it, and which file system is below it."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from app.database.open import open_ledger
from app.runtime import filesystem
from app.runtime.filesystem import (
    PlaceError,
    default_spool,
    findings,
    identity,
    private_directory,
    private_file,
    private_spool,
    replace_file,
    shared_type,
)
from tests.support.mounts import MOUNTS, mounted
from tests.support.processes import Station


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the file system


REFUSED = ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "drvfs", "virtiofs", "fuse", "fuse.sshfs", "fuseblk", "lustre"]


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_system_that_others_write_to_is_recognised(kind: str) -> None:
    assert shared_type("/mnt/c/spool", mounted(("/mnt/c", kind))) == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "autofs", "fusectl", "nfsd"])
def test_a_file_system_of_this_machine_is_none_of_these(kind: str) -> None:
    assert shared_type("/mnt/c/spool", mounted(("/mnt/c", kind))) is None


@pytest.mark.parametrize(("path", "mounts", "kind"), MOUNTS.values(), ids=MOUNTS.keys())
def test_the_longest_mount_point_decides(path: str, mounts: list[tuple[str, str]], kind: str | None) -> None:
    assert shared_type(path, mounted(*mounts)) == kind


@pytest.mark.parametrize("text", ["", "\n\n", "1 2 3 - nfs x y\n", "no dash at all\n", "1 2 3 4 /\n"], ids=ascii)
def test_a_mountinfo_that_says_nothing_refuses_nothing(text: str) -> None:
    assert shared_type("/srv/x", text) is None


def test_this_very_machine_can_be_asked(tmp_path: Path) -> None:
    assert filesystem.shared_file_system(tmp_path / "not" / "there" / "yet") is None


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on NFS, by the word of the mountinfo that is read."""
    folder = tmp_path / "remote"
    folder.mkdir()
    (tmp_path / "mountinfo").write_text(mounted((str(folder), "nfs4")))
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "mountinfo")
    return folder


def test_an_explicit_spool_on_a_network_is_refused_before_anything_is_made_there(remote: Path) -> None:
    with pytest.raises(PlaceError, match=r"spool is on nfs4, .*OPENCODE_HELICONE_SPOOL_DIRECTORY"):
        open_ledger(remote / "spool")
    assert list(remote.iterdir()) == []


def test_a_symbolic_link_does_not_hide_the_network(remote: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(remote)
    with pytest.raises(PlaceError, match="nfs4"):
        open_ledger(tmp_path / "link" / "spool")


def test_the_default_moves_to_this_machine_only_where_it_must(remote: Path, tmp_path: Path) -> None:
    assert default_spool(tmp_path / "local" / "opencode-helicone") == tmp_path / "local" / "opencode-helicone"
    assert default_spool(remote / "opencode-helicone") == Path(
        f"/var/tmp/opencode-helicone-{os.geteuid()}"  # noqa: S108 - what it must be
    )


def test_a_system_without_mountinfo_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "MOUNTINFO", tmp_path / "missing")
    assert default_spool(tmp_path) == tmp_path


AS_ON = """
import sys
from pathlib import Path
from app.runtime import filesystem as place
place.MOUNTINFO = Path(sys.argv.pop(1))
from app.cli.main import main
main()
"""


@pytest.mark.slow
def test_commands_name_the_network_in_one_line(remote: Path, tmp_path: Path) -> None:
    station = Station(remote, "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", AS_ON, str(tmp_path / "mountinfo"), "status"],
        env=station.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"opencode-helicone: {station.spool} is on nfs4, ")
    assert done.stderr.count("\n") == 1
    assert not station.spool.exists()


# --- whose it is


def test_a_spool_that_is_a_symbolic_link_is_refused_and_what_it_names_left_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "spool").symlink_to(tmp_path / "real")
    with pytest.raises(PlaceError, match="spool is a symbolic link"):
        open_ledger(tmp_path / "spool")
    assert list((tmp_path / "real").iterdir()) == []
    assert mode(tmp_path / "real") == 0o755
    assert any("symbolic link" in one for one in findings(tmp_path / "spool"))


def test_a_spool_below_a_symbolic_link_is_taken(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to(tmp_path / "real")
    open_ledger(tmp_path / "home" / "spool").close()
    assert findings(tmp_path / "home" / "spool") == []


@pytest.mark.parametrize("name", ["ledger.db", "queue.db"])
def test_a_database_that_is_a_symbolic_link_is_refused(tmp_path: Path, name: str) -> None:
    private_directory(tmp_path / "spool")
    path = tmp_path / "spool" / name
    path.symlink_to(tmp_path / "elsewhere")
    for _ in ("dangling", "to a file"):
        with pytest.raises(PlaceError, match=f"{name} is a symbolic link"):
            private_file(path)
        assert findings(tmp_path / "spool")[0].startswith(f"{path} is a symbolic link")
        (tmp_path / "elsewhere").write_text("kept")
    assert (tmp_path / "elsewhere").read_text() == "kept"


NOBODY = 65_534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", [".", "ledger.db", "hooks"])
def test_what_belongs_to_another_user_is_refused_and_left_alone(spool: Path, what: str) -> None:
    open_ledger(spool).close()
    private_directory(spool / "hooks")
    os.chown(spool / what, NOBODY, NOBODY)
    (spool / what).chmod(0o755)
    with pytest.raises(PlaceError, match=f"belongs to another user .uid {NOBODY}, not 0"):
        private_directory(spool / what) if what == "hooks" else open_ledger(spool)
    assert mode(spool / what) == 0o755
    assert any(f"uid {NOBODY}" in one for one in findings(spool))


def test_root_too_does_not_take_another_users(monkeypatch: pytest.MonkeyPatch, spool: Path) -> None:
    open_ledger(spool).close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # the same, where the test is not root
    with pytest.raises(PlaceError, match="another user"):
        open_ledger(spool)


# --- who may look into it


def test_what_is_open_to_others_is_closed_with_a_warning(spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_ledger(spool).close()
    assert findings(spool) == []
    spool.chmod(0o755)
    (spool / "ledger.db").chmod(0o640)
    assert [one.split(" has mode ")[1][:4] for one in findings(spool)] == ["0755", "0640"]
    with caplog.at_level(logging.WARNING):
        open_ledger(spool).close()
    assert (mode(spool), mode(spool / "ledger.db")) == (0o700, 0o600)
    assert [record.getMessage() for record in caplog.records] == [
        f"{spool} had mode 0755, open to other users: now 0700",
        f"{spool / 'ledger.db'} had mode 0640, open to other users: now 0600",
    ]
    assert findings(spool) == []


def test_findings_change_nothing_and_make_nothing(spool: Path) -> None:
    assert findings(spool) == []
    assert not spool.exists()
    open_ledger(spool).close()
    spool.chmod(0o755)
    findings(spool)
    assert mode(spool) == 0o755


@pytest.mark.slow
def test_a_command_warns_on_standard_error(tmp_path: Path) -> None:
    station = Station(tmp_path, "http://127.0.0.1:9")
    open_ledger(station.spool).close()
    station.spool.chmod(0o755)
    done = station.run("status", "--json")
    assert done.returncode == 0
    assert done.stderr == f"opencode-helicone: {station.spool} had mode 0755, open to other users: now 0700\n"


def test_the_spool_keeps_itself_out_of_git(spool: Path) -> None:
    subprocess.run(["git", "init", "-q", str(spool.parent)], check=True)
    with closing(open_ledger(spool)):
        listed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=all"],
            cwd=spool.parent,
            capture_output=True,
            text=True,
            check=True,
        )
    assert listed.stdout == ""
    (spool / ".gitignore").write_text("mine\n")
    private_spool(spool)
    assert (spool / ".gitignore").read_text() == "mine\n"


def test_a_file_that_was_replaced_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert identity(path) is None
    path.write_text("")
    before = identity(path)
    assert before is not None
    assert identity(path) == before
    (tmp_path / "other").write_text("")
    (tmp_path / "other").replace(path)
    assert identity(path) != before


# --- a file that is replaced


@pytest.mark.parametrize("name", ["intake-1.json", ".env", "opencode-helicone.js"])
def test_the_draft_of_a_file_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A worker that is killed leaves one."""

    def killed(_: Path, __: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / name, b"new")
    (draft,) = tmp_path.iterdir()
    assert (draft.read_bytes(), mode(draft)) == (b"new", 0o600)
    assert draft.name.startswith(".")
    assert draft.suffix not in {".json", ".env", ".js"}


def test_a_file_that_cannot_be_replaced_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "taken", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


def test_a_file_is_replaced_with_the_mode_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "numbers.prom"
    path.write_bytes(b"old")
    replace_file(path, b"new", 0o644)
    assert (path.read_bytes(), mode(path)) == (b"new", 0o644)
