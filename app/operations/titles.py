"""Titles: what OpenCode's store says of the sessions that the ledger knows by their ids alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import PurePath
from typing import NoReturn

from app.errors import AppError
from app.sources.opencode.access import StoreError
from app.sources.opencode.rows import Head
from app.sources.opencode.store import Store

KNOWN_MAX = 20
MANY = 100
"""For more sessions than this the store is asked for all that it has, once."""


class Titles:
    """Where the store cannot be read nothing is known, and `problem` says why."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.problem = ""

    def of(self, sessions: Collection[str]) -> dict[str, Head]:
        """Those of these that are there."""
        if len(sessions) > MANY:
            return {name: head for name, head in self.all().items() if name in sessions}
        found: dict[str, Head] = {}
        try:
            with self._store.kept_open():
                for session in sessions:
                    head = self._store.head(session)
                    if head is not None:
                        found[session] = head
        except StoreError as error:
            self.problem = str(error)
        return found

    def all(self) -> dict[str, Head]:
        """All sessions that are there."""
        try:
            return self._store.heads()
        except StoreError as error:
            self.problem = str(error)
            return {}


def titled(heads: Iterable[Head], text: str) -> list[Head]:
    """Those whose title holds the text, in whatever case."""
    return [head for head in heads if text.casefold() in head.title.casefold()]


def directories_of(heads: Iterable[Head], project: str) -> set[str]:
    """The folders of these that are this project: by the whole path, or by the end of it."""
    found = {head.directory for head in heads}
    wanted = PurePath(project).parts
    return {one for one in found if wanted and PurePath(one).parts[-len(wanted) :] == wanted}


class UnknownProjectError(AppError):
    """OpenCode's store has no session of a folder of this name."""


def unknown_project(heads: Iterable[Head], project: str) -> NoReturn:
    """Raises UnknownProjectError, with the projects that there are."""
    known = sorted({project_name(head.directory) for head in heads if head.directory})
    more = f" and {len(known) - KNOWN_MAX} more" if len(known) > KNOWN_MAX else ""
    told = f"there are {', '.join(known[:KNOWN_MAX])}{more}" if known else "it has none"
    raise UnknownProjectError(f"OpenCode's store has no session of a project {project}: {told}")


def project_name(directory: str) -> str:
    """As people call a folder: by its last part."""
    return PurePath(directory).name or directory
