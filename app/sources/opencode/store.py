"""Reads OpenCode's own store, and never writes: all that its generations have left beside each other in one folder.

    opencode.db, opencode-<channel>.db    SQLite, one file for all projects: OpenCode 1.2 to 1.18, and 2
    storage/                              JSON files: OpenCode 1.0 and 1.1

A session is read from the first that holds it, SQLite before JSON: what was copied from there goes on here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from app.sources.opencode import turns as reading
from app.sources.opencode.access import AbsentError, StoreError
from app.sources.opencode.database import Database
from app.sources.opencode.export_files import File, parsed
from app.sources.opencode.folders import NAME, databases, store_file
from app.sources.opencode.json_files import JsonFiles
from app.sources.opencode.newer import NewerRows
from app.sources.opencode.rows import Head, Rows, Usage
from app.sources.opencode.turns import Outline
from app.transcript.model import Json, Transcript, TranscriptError

Source: TypeAlias = Database | JsonFiles
T = TypeVar("T")
__all__ = ["Store", "databases", "store_file"]


class Store:
    """All methods raise StoreError: also where one of several files cannot be read, and may hold what is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._databases: dict[Path, Database] = {}
        self._files = JsonFiles(path.parent / "storage", self._in_databases)

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep its files open, as `Access` has it."""
        with ExitStack() as stack:
            for database in self._known():
                stack.enter_context(database.kept_open())
            yield

    def is_there(self) -> bool:
        return bool(self._known()) or self._has_files()

    @property
    def place(self) -> Path:
        """What is there of it, or would be: the first of its files, or the folder of those in JSON."""
        known = self._known()
        return known[0].path if known else self._files.path if self._has_files() else self.path

    def is_newer(self) -> bool:
        """Whether it holds sessions of OpenCode 2, beside those of 1.x or alone."""
        return any(self._all(lambda rows: isinstance(rows, NewerRows)))

    def roots(self, directory: str | None = None, among: Collection[str] | None = None) -> list[Head]:
        """The sessions that no call of a parent's turn names: of all projects, or of `directory`; the oldest first.

        A subagent is one, too, whose parent or whose call is gone, or that a plugin has started without a call. Only
        those `among` others: to tell a subagent, all that was said in its parent is read.
        """
        found: dict[str, Head] = {}
        where = None if directory is None else _as_stored(directory)
        for heads in self._all(lambda rows: reading.roots(rows, where, among)):
            found = {head.id: head for head in heads} | found
        return sorted(found.values(), key=lambda head: (head.created_ms, head.id))

    def heads(self, among: Collection[str] | None = None) -> dict[str, Head]:
        """All sessions by their ids, or these; subagents too."""
        found: dict[str, Head] = {}
        for heads in self._all(lambda rows: rows.heads(among=among)):
            found = {head.id: head for head in heads} | found
        return found

    def head(self, session: str) -> Head | None:
        """None when it is not there."""
        return self._where(session, lambda rows: rows.head(session))

    def usage(self, since_ms: int, among: Collection[str] | None = None) -> list[Usage]:
        """What all calls, or those of these sessions, came to that began then or later, turn by turn.

        Copies of forks are left out.
        """
        found: list[Usage] = []
        seen: set[str] = set()
        are_several = len(self._sources()) > 1

        def used_in(rows: Rows) -> tuple[list[Head], list[Usage]]:
            return rows.heads() if are_several else [], [*rows.usage(since_ms, among)]

        for heads, used in self._all(used_in):
            found += [one for one in used if one.session not in seen]
            seen |= {head.id for head in heads}
        return found

    def directories(self) -> set[str]:
        """Directories that any session was started in."""
        return {head.directory for head in self.heads().values()}

    def changed_ms(self, session: str) -> int | None:
        """When anything of the session or of its subagents was written last; None when it is not there."""
        return self._where(session, lambda rows: reading.family_weight(rows, session)[1])

    def changes(self, directory: str | None = None) -> dict[str, int]:
        """`changed_ms` of all sessions, or of those that were started in a directory."""
        found: dict[str, int] = {}
        where = None if directory is None else _as_stored(directory)
        for changes in self._all(lambda rows: reading.changes(rows, where)):
            found = changes | found
        return found

    def files(self, session: str) -> list[File]:
        """A session and, after it, the subagents that its task calls name, each as `opencode export` would put it.

        In memory only. Raises StoreError when there is no such session.
        """
        try:
            found = self._where(session, lambda rows: reading.family(rows, session))
        except TranscriptError as error:
            raise StoreError(str(error)) from None
        if not found:
            raise StoreError(f"OpenCode's store {self.path} holds no session {session}")
        return [File(name, json.dumps(entry).encode()) for name, entry in found.items()]

    def root_of(self, session: str) -> str | None:
        """The session inside which it is shown: up to its parent as long as a call of that one's turns names it.

        Itself where nobody names it; None when it is not there.
        """
        return self._where(session, lambda rows: reading.root_of(rows, session))

    def outline(self, root: str, *, since: str | None = None, also: Collection[str] = ()) -> Outline | None:
        """Its turns from this one on (all, where that is not there), and these others; None when it is not there.

        Subagents count with the turn whose call has started them. No text is read for it.
        """
        return self._where(root, lambda rows: reading.outline(rows, root, since, also))

    def transcript(self, session: str, turns: Collection[str] | None = None) -> Transcript | None:
        """The session with its subagents, or only these of its turns, as the whole transcript has them.

        None when it is not there. Raises TranscriptError.
        """
        if turns is None:
            whole = self._where(session, lambda rows: reading.family(rows, session))
            return None if whole is None else parsed({"root": session, "sessions": [*whole.values()]})
        found = self._where(session, lambda rows: reading.excerpt(rows, session, turns))
        if found is None:
            return None
        entries, excerpt = found
        sessions: list[Json] = [*entries]
        read = parsed({"root": session, "sessions": sessions}, excerpt)
        return replace(
            read,
            turns=tuple(one for one in read.turns if one.id in turns),
            unreadable=tuple(one for one in read.unreadable if one.turn is None or one.turn in turns),
        )

    def turn(self, session: str, turn: str | None) -> Transcript | None:
        """The session with this one of its turns (None: its first), as the whole transcript has it.

        None when it is not there. Raises TranscriptError.
        """
        name = self._where(session, lambda rows: reading.first_turn(rows, session)) if turn is None else turn
        found = self.transcript(session, {name}) if name is not None else None
        return found if found is not None and found.turns else None

    def holds(self, session: str, turn: str | None) -> bool:
        """Whether the turn's user message, or an answer to it, is there (None: any turn). Looks into no text."""
        turns = self._where(session, lambda rows: set(rows.listed(session).values())) or set()
        return bool(turns) if turn is None else turn in turns

    def _known(self) -> list[Database]:
        """The files that are there."""
        paths = databases(self.path)
        self._databases |= {path: Database(path) for path in paths if path not in self._databases}
        return [self._databases[path] for path in paths]

    def _has_files(self) -> bool:
        return self.path.name == NAME and self._files.are_there()

    def _sources(self) -> list[Source]:
        known: list[Source] = [*self._known()]
        if self._has_files():
            known.append(self._files)
        return known or [Database(self.path)]  # which says that it is not there

    def left_in_files(self) -> set[str]:
        """Sessions in JSON files that no database has taken over, where there are databases."""
        if not (self._known() and self._has_files()):
            return set()
        return {head.id for head in self._files.ask(lambda rows: rows.heads()) if head.parent is None}

    def _in_databases(self) -> set[str]:
        return {head.id for database in self._known() for head in database.ask(lambda rows: rows.heads())}

    def _all(self, question: Callable[[Rows], T]) -> list[T]:
        """What each says that is there."""
        found: list[T] = []
        absent: AbsentError | None = None
        for source in self._sources():
            try:
                found.append(source.ask(question))
            except AbsentError as error:
                absent = absent or error
        if absent is not None and not found:
            raise absent
        return found

    def _where(self, session: str, question: Callable[[Rows], T]) -> T | None:
        """What the first says that holds the session."""

        def asked(rows: Rows) -> tuple[T] | None:
            return None if rows.head(session) is None else (question(rows),)

        failed: StoreError | None = None
        is_there = False
        for source in self._sources():
            try:
                answer = source.ask(asked)
            except StoreError as error:
                failed = error if failed is None or isinstance(failed, AbsentError) else failed
            else:
                is_there = True
                if answer is not None:
                    return answer[0]
        if failed is not None and not (is_there and isinstance(failed, AbsentError)):
            raise failed
        return None


def _as_stored(directory: str) -> str:
    """No store holds half a character."""
    return directory.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
