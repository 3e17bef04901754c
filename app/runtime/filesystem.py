"""Filesystem: checks where the spool may lie, and who may look into it.

    a folder of this user's own, mode 0700, no symbolic link    else refused, or tightened where it is only too open
    on a file system of this machine alone                      else refused, before SQLite tries its WAL there
    holding `.gitignore` with `*`                               what waits in it are transcripts

Only the spool and what is in it matter: a home directory, or `/tmp` on macOS, may be reached through a symbolic link.
Standard library only: the settings ask here for their default.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

PRIVATE_DIRECTORY = 0o700
PRIVATE_FILE = 0o600
MOUNTINFO = Path("/proc/self/mountinfo")
"""See proc_pid_mountinfo(5). Other systems have none: there nothing is recognised."""
LOOKED_AT_MAX = 1_000
"""Entries of a spool that `findings` looks at."""

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "ceph", "coda", "ncpfs", "glusterfs", "lustre", "gpfs"}
    | {"beegfs", "orangefs", "pvfs2", "ocfs2", "gfs2"}
)
"""File systems that several machines write to. WAL keeps its index in memory that these do not share."""
SHARED_WITH_HOST = re.compile(r"9p|drvfs|virtiofs|vboxsf|vmhgfs|prl_fs|fuse(blk)?(\..*)?")
"""A host's files seen from a guest (WSL's /mnt/c, Docker Desktop), and FUSE, behind which anything may be. Mounted at
`/` it is the only disk that this machine has, and nobody else's."""

_log = logging.getLogger("opencode-helicone")


class PlaceError(PermissionError):
    """The spool may not lie here, or is not ours. One line that says why and what to do."""


def private_spool(path: Path) -> Path:
    """Make the spool directory when it is missing and return it. Raises PlaceError and OSError."""
    _refuse_shared(path)
    private_directory(path)
    note = path / ".gitignore"
    if not note.exists():
        with suppress(OSError):  # the next process that opens the spool makes it
            replace_file(note, b"*\n", is_flushed=False)
    return path


def _refuse_shared(path: Path) -> None:
    shared = shared_file_system(path)
    if shared is not None:
        raise PlaceError(
            f"{path} is on {shared}, which other machines may write to, too; the queue needs a disk of this machine:"
            " set spoolDirectory (OPENCODE_HELICONE_SPOOL_DIRECTORY) to a folder on one"
        )


def refuse_place(path: Path) -> None:
    """Raises PlaceError where no spool can be made: others may write there, or a file is in the way."""
    _refuse_shared(path)
    obstacle = _obstacle(path)
    if obstacle is not None:
        raise PlaceError(obstacle)


def private_directory(path: Path) -> Path:
    """Make `path` (and the parents that are missing) with mode 0700, tighten it when it is looser, and return it.

    Raises PlaceError for a symbolic link, for another user's, and where a file is in the way.
    """
    try:
        if not path.parent.exists():
            private_directory(path.parent)
        if not path.is_symlink():
            path.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
        status = path.lstat()
    except (FileExistsError, NotADirectoryError):
        raise PlaceError(_obstacle(path) or f"{path} is no folder: name another one") from None
    if status.st_mode & stat.S_ISVTX:
        # Such as /tmp: to close it would lock everybody else out.
        raise PlaceError(f"{path} is shared by all users: name a folder of its own")
    _tighten(path, status, PRIVATE_DIRECTORY)
    return path


def private_file(path: Path) -> Path:
    """Make `path` with mode 0600 when it is not there, tighten it when it is looser, and return it.

    SQLite gives its WAL and shared-memory files the mode of the database, so this covers all three.
    A file that is there is never opened: closing any descriptor of it would drop the locks that SQLite holds on it
    for other connections of this process (https://sqlite.org/howtocorrupt.html, 2.2).
    Raises PlaceError for a symbolic link and for another user's.
    """
    if not os.path.lexists(path):
        draft = path.with_name(draft_name(path.name))
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, PRIVATE_FILE))
        try:
            with suppress(FileExistsError):  # somebody else was faster
                os.link(draft, path)
        finally:
            draft.unlink()
    _tighten(path, path.lstat(), PRIVATE_FILE)
    return path


def replace_file(path: Path, data: bytes, mode: int = PRIVATE_FILE, *, is_flushed: bool = True) -> None:
    """Write all of it or nothing: who reads the file meanwhile sees what was there before. Raises OSError.

    `is_flushed`: the disk is waited for, so that a power cut leaves no empty file.

    The draft beside it is hidden and has an ending that nobody looks for, so that it is not taken for such a file
    (OpenCode loads hidden `.js` files, too). A process that is killed leaves it there.
    """
    draft = path.with_name(draft_name(path.name))
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE), "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if is_flushed:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def draft_name(name: str) -> str:
    return f".{name.removeprefix('.')}.{uuid.uuid4().hex}"


def is_draft(name: str) -> bool:
    """Whether a draft would be called so.

    >>> is_draft(draft_name(".env")), is_draft(".env.local")
    (True, False)
    """
    return re.fullmatch(r"\..+\.[0-9a-f]{32}", name) is not None


def _tighten(path: Path, status: os.stat_result, mode: int) -> None:
    wrong = _foreign(path, status)
    if wrong is not None:
        raise PlaceError(wrong)
    if _is_open(status):
        path.chmod(mode)
        was = f"{stat.S_IMODE(status.st_mode):04o}"
        _log.warning(f"{path} had mode {was}, open to other users: now {mode:04o}")


def _foreign(path: Path, status: os.stat_result) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return f"{path} is a symbolic link: name what it points to, or put the thing itself there"
    if status.st_uid != os.geteuid():
        return f"{path} belongs to another user (uid {status.st_uid}, not {os.geteuid()}): name a folder of your own"
    return None


def _obstacle(path: Path) -> str | None:
    """What stands where a folder should be, if something does."""
    for one in (path, *path.parents):
        if os.path.lexists(one):
            return None if one.is_dir() else f"{one} is a file: name a folder, or move the file away"
    return None


def _is_open(status: os.stat_result) -> bool:
    return status.st_mode & 0o077 != 0


def identity(path: Path) -> tuple[int, int] | None:
    """Which file this is, whatever its name: one that was replaced has another. None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


# --- the file system below a path


def default_spool(usual: Path) -> Path:
    """`usual`, or where that is on a file system shared with others, a folder of this machine that survives reboots."""
    return usual if shared_file_system(usual) is None else Path(f"/var/tmp/opencode-helicone-{os.geteuid()}")  # noqa: S108 - its owner and mode are checked


def shared_file_system(path: Path) -> str | None:
    """The type of the file system of `path`, which need not exist yet, if others may write to it, too."""
    try:
        mountinfo = MOUNTINFO.read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    return shared_type(os.path.realpath(path), mountinfo)


def shared_type(real_path: str, mountinfo: str) -> str | None:
    """Type of file system by the text of `mountinfo`. The last line of the longest mount point is what the path shows.

    >>> shared_type("/mnt/x/spool", "2 1 0:9 / /mnt rw shared:1 - nfs4 server:/ rw")
    'nfs4'
    """
    found, found_type = "", ""
    for line in mountinfo.split("\n"):
        fields, dash, described = line.partition(" - ")
        if not dash or len(fields.split(" ")) < 6:  # noqa: PLR2004 - id, parent, device, root, mount point, options
            continue
        point = _unescaped(fields.split(" ")[4])
        is_above = real_path == point or real_path.startswith(point.rstrip("/") + "/")
        if is_above and len(point) >= len(found):
            found, found_type = point, described.split(" ")[0]
    is_shared = found_type in NETWORK or (SHARED_WITH_HOST.fullmatch(found_type) and found != "/")
    return found_type if is_shared else None


def _unescaped(text: str) -> str:
    """mountinfo writes blanks, line ends and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


# --- for a person who asks


def findings(spool: Path) -> list[str]:
    """What is wrong with this spool's place, one sentence each; changes nothing. [] for one that is not there yet.

    Ask before the spool is opened: opening tightens modes.
    """
    if (obstacle := _obstacle(spool)) is not None:
        return [obstacle]
    found = []
    shared = shared_file_system(spool)
    if shared is not None:
        found.append(f"{spool} is on {shared}, which other machines may write to, too: choose a folder on a local disk")
    for path in (spool, *islice(_inside(spool), LOOKED_AT_MAX)):
        with suppress(OSError):  # gone meanwhile, or not for us to see
            status = path.lstat()
            found += filter(None, [_foreign(path, status), _openness(path, status)])
    return found


def _inside(spool: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(spool):  # does not follow links
        yield from (Path(folder) / name for name in sorted((*folders, *files)))


def _openness(path: Path, status: os.stat_result) -> str | None:
    if not _is_open(status) or stat.S_ISLNK(status.st_mode):
        return None
    return f"{path} has mode {stat.S_IMODE(status.st_mode):04o}, open to other users: the next start closes it"


def close(spool: Path) -> list[Path]:
    """Take this user's files in the spool, and itself, away from others' eyes; those that were open to them."""
    closed = []
    for path in (spool, *_inside(spool)):
        with suppress(OSError):
            status = path.lstat()
            if _foreign(path, status) is None and _is_open(status):
                path.chmod(PRIVATE_DIRECTORY if stat.S_ISDIR(status.st_mode) else PRIVATE_FILE)
                closed.append(path)
    return closed
