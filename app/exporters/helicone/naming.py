"""Names a session at Helicone, whose list groups by the name: `opencode: <project>`.

Not by the title: that changes, and a changed name splits the session in two. Nor by the directory of the day: `/move`
changes that in the middle.
"""

from __future__ import annotations

from collections.abc import Callable

from app.runtime.header_value import readable
from app.transcript.identity import Encoding, Identity
from app.transcript.model import Session, project_name

NAME = "opencode"
"""Of a session without a project."""


def session_name(directory: str | None, encoding: Encoding) -> str:
    project = project_name(directory)
    name = f"{NAME}: {project}" if project else NAME
    return readable(name) if encoding > 1 else name


def project_of(name: str) -> str | None:
    """Project that a session of encoding 2 is named after."""
    return name.removeprefix(NAME).removeprefix(": ") or None


def lasting_name(session: Session, shown: Session, identity: Identity, leave: Callable[[str], str]) -> str:
    """The name that was kept with the session's first record; where none was, the one to be kept."""
    kept, encoding = identity.session_name, identity.encoding
    is_moved = project_name(session.origin or session.directory) != project_name(session.directory)
    if encoding == 1 and (kept is None or not is_moved):
        return session_name(shown.directory, encoding)  # it follows `/move` as it did
    if kept is None:
        return session_name(shown.origin or shown.directory, encoding)
    for directory, left in ((session.origin, shown.origin), (session.directory, shown.directory)):
        # The rules see the whole path, of which the name is an end.
        if directory and session_name(directory, encoding) == kept:
            return session_name(left, encoding)
    return leave(kept) or NAME
