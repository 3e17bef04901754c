"""What the system says is mounted, as text."""

from __future__ import annotations


def mounted(*mounts: tuple[str, str]) -> str:
    """A mountinfo of these (mount point as it stands there, type), below an ext4 root."""
    lines = [
        f"{36 + number} 35 98:{number} / {point} rw,noatime shared:{number} master:1 - {kind} /dev/a b rw,c - d\n"
        for number, (point, kind) in enumerate((("/", "ext4"), *mounts))
    ]
    return "".join(lines)


MOUNTS: dict[str, tuple[str, list[tuple[str, str]], str | None]] = {
    "the mount point itself": ("/srv", [("/srv", "nfs")], "nfs"),
    "only the beginning of a name": ("/srvs/x", [("/srv", "nfs")], None),
    "a local one inside of it": ("/srv/me/x", [("/srv", "nfs"), ("/srv/me", "ext4")], None),
    "in any order": ("/srv/me/x", [("/srv/me", "ext4"), ("/srv", "nfs")], None),
    "the later of two at one point": ("/srv/x", [("/srv", "autofs"), ("/srv", "nfs4")], "nfs4"),
    "a blank in it": ("/mnt/my disk/x", [(r"/mnt/my\040disk", "cifs")], "cifs"),
    "a tab, a line end, a backslash": ("/a\tb\nc\\d/x", [(r"/a\011b\012c\134d", "cifs")], "cifs"),
    "no escape": (r"/mnt/my\040disk/x", [(r"/mnt/my\040disk", "cifs")], None),
    "a guest whose only disk is the host's": ("/srv/x", [("/", "virtiofs")], None),
    "a container on FUSE": ("/srv/x", [("/", "fuse.fuse-overlayfs")], None),
    "a machine without a disk": ("/srv/x", [("/", "nfs4")], "nfs4"),
}
"""A path, what is mounted, and the type of file system for which no spool may lie there."""
