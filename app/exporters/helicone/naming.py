"""What a session is called at Helicone, whose list groups by it: `opencode: <project>`.

Not by the title: that changes, and a changed name splits the session in two. Nor by the directory of the day: `/move`
changes that in the middle.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from app.runtime.header_value import readable
from app.transcript.identity import Encoding, Identity
from app.transcript.model import Session

NAME = "opencode"
"""Of a session without a project."""


def project_name(directory: str | None) -> str | None:
    """The last element of a session's directory; None when there is none, or it was withheld."""
    return re.split(r"[/\\]", (directory or "").rstrip("/\\"))[-1] or None


def session_name(directory: str | None, encoding: Encoding) -> str:
    project = project_name(directory)
    name = f"{NAME}: {project}" if project else NAME
    return readable(name) if encoding > 1 else name


def project_of(name: str) -> str | None:
    """Of a session of encoding 2: what it is named after."""
    return name.removeprefix(NAME).removeprefix(": ") or None


def first_name(shown: Session, encoding: Encoding) -> str:
    """The name to be kept. `shown` is what may leave of the session; one of encoding 1 follows `/move` as it did."""
    return session_name(shown.directory if encoding == 1 else shown.origin or shown.directory, encoding)


def lasting_name(session: Session, shown: Session, identity: Identity, leave: Callable[[str], str]) -> str:
    """The name that is kept, under what is withheld today: `shown` of the session, and by `leave` of any text."""
    kept, encoding = identity.session_name, identity.encoding
    is_moved = project_name(session.origin or session.directory) != project_name(session.directory)
    if kept is None or (encoding == 1 and not is_moved):
        return first_name(shown, encoding)
    for directory, left in ((session.origin, shown.origin), (session.directory, shown.directory)):
        # The rules see the whole path, of which the name is an end.
        if directory and session_name(directory, encoding) == kept:
            return session_name(left, encoding)
    return leave(kept)
