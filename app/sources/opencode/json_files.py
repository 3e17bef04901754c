"""Reads the JSON files of OpenCode 1.0 and 1.1, of which a newer one may have left some where it found them.

    storage/session/<project>/<session>.json    what `opencode export` prints as a session's `info`
    storage/message/<session>/<message>.json    a message's `info`
    storage/part/<message>/<part>.json          a part

OpenCode writes a file anew as a whole, and not at once: one that is not JSON is read again a moment later, and is
unreadable as it is where it stays so. When something was written is the time of its file.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR
from typing import TypeVar

from app.sources.opencode.access import StoreError, may_be
from app.sources.opencode.rows import Head, Memory, Rows, Usage, is_settled, subagent
from app.sources.opencode.usage import usage_of_messages
from app.transcript.fields import Place
from app.transcript.model import Json

TORN_S = 10.0
"""A file that is not JSON and was written so recently is being written."""
_NAME = re.compile(r"\w{1,250}", re.ASCII)
"""With an ending it is a file's name."""
_SHOWN = ("id", "title", "directory", "version", "parentID", "revert")
T = TypeVar("T")


class JsonFiles:
    """The store in a folder."""

    def __init__(self, path: Path, copied: Callable[[], Collection[str]]) -> None:
        """`copied`: the sessions that a newer OpenCode holds."""
        self.path = path
        self._copied = copied
        self._memory = Memory()
        self._parents: dict[str, str | None] = {}

    def are_there(self) -> bool:
        return may_be(self.path / "session", S_ISDIR)

    def ask(self, question: Callable[[Rows], T]) -> T:
        """Raises StoreError, and what the question raises."""
        try:
            return question(JsonRows(self.path, self._memory, self._parents, self._copied, time.time()))
        except OSError as error:
            raise StoreError(f"OpenCode's store {self.path} cannot be read: {error.strerror}") from None


class JsonRows:
    """`Rows` of JSON files."""

    def __init__(
        self,
        path: Path,
        memory: Memory,
        parents: dict[str, str | None],
        copied: Callable[[], Collection[str]],
        now_s: float,
    ) -> None:
        self._path = path
        self._copied = copied
        self._memory = memory
        self._parents = parents
        """By session; what they are does not change."""
        self._now_s = now_s

    def heads(self, directory: str | None = None, among: Collection[str] | None = None) -> list[Head]:
        """Where a newer OpenCode has copied them, what is not older than that: it has deleted the others since."""
        heads = [head for path in self._sessions() if (head := self._listed_head(path)) is not None]
        copied = self._copied()
        copied_ms = max((head.created_ms for head in heads if head.id in copied), default=-1)
        found = [head for head in heads if head.created_ms > copied_ms and directory in (None, head.directory)]
        found = [head for head in found if among is None or head.id in among]
        return sorted(found, key=lambda head: (head.created_ms, head.id))

    def head(self, session: str) -> Head | None:
        path = self._file(session)
        head = None if path is None else self._head(path)
        is_shown = head is not None and (not self._copied() or session in {one.id for one in self.heads()})
        return head if is_shown else None

    def below(self, session: str) -> list[str]:
        path = self._file(session)
        found = []
        for other in _inside(path.parent) if path is not None else ():
            if other.stem not in self._parents:
                with suppress(StoreError):  # it costs itself
                    self._parents[other.stem] = _text(self._fields(other), "parentID")
            if self._parents.get(other.stem) == session:
                found.append(other.stem)
        return sorted(found)

    def info(self, session: str) -> dict[str, Json]:
        path = self._file(session)
        told = (self._fields(path) if path is not None else None) or {}
        times = told.get("time")
        return {name: told[name] for name in _SHOWN if told.get(name) is not None} | {
            "id": session,
            "time": {name: ms for name, ms in times.items() if ms is not None} if isinstance(times, dict) else {},
        }

    def listed(self, session: str) -> dict[str, str]:
        known = self._memory.of(session)
        found = {}
        for path in _inside(self._path / "message" / session):
            if path.stem not in known.created_ms or path.stem in known.unreadable:
                told = self._fields(path)
                if told is not None:
                    known.learn(path.stem, told, _written_ms(path))
            if path.stem in known.created_ms:
                found[path.stem] = known.created_ms[path.stem]
        ordered = sorted(found, key=lambda name: (found[name], name))
        return {name: known.turn_of[name] for name in ordered}

    def unreadable(self, session: str) -> Collection[str]:
        return self._memory.of(session).unreadable

    def undated(self, session: str) -> Collection[str]:
        return self._memory.of(session).undated

    def messages(self, session: str, names: list[str]) -> list[Json]:
        found: list[Json] = []
        for name in names:
            told = self._fields(self._message(session, name))
            if told is None:
                continue
            ids: dict[str, Json] = {"messageID": name, "sessionID": session}
            parts: list[Json] = []
            for path in sorted(self._parts(name)):
                part = self._fields(path)
                if part is not None:
                    parts.append({**part, "id": path.stem, **ids})
            found.append({"info": {**told, "id": name, "sessionID": session}, "parts": parts})
        return found

    def calls(self, session: str, messages: Collection[str]) -> dict[str, tuple[str, ...]]:
        known = self._memory.of(session).calls
        found = {}
        for name in messages:
            if name not in known:
                found[name] = tuple(self._named(name))
                if is_settled(self._fields(self._message(session, name)) or {}):
                    known[name] = found[name]
        return {name: found[name] if name in found else known[name] for name in messages}

    def answers(self, session: str) -> Iterable[tuple[str, int, str]]:
        return self._memory.of(session).answers(self.listed(session))

    def created_ms(self, session: str) -> dict[str, int]:
        known = self._memory.of(session).created_ms
        return {name: known[name] for name in self.listed(session)}

    def weighed(self, session: str, messages: list[str]) -> Iterable[tuple[str, int, int]]:
        for name in messages:
            files = [self._message(session, name), *self._parts(name)]
            yield name, len(files), max(map(_written_ms, files))

    def weights(self, sessions: Collection[str]) -> dict[str, tuple[int, int]]:
        return {session: self._weight(session) for session in sessions}

    def _weight(self, session: str) -> tuple[int, int]:
        path = self._file(session)
        names = [one.stem for one in _inside(self._path / "message" / session)]
        found = list(self.weighed(session, names))
        written_ms = [updated_ms for _, _, updated_ms in found]
        count = 1 + sum(rows for _, rows, _ in found)
        return count, max([_written_ms(path) if path is not None else 0, *written_ms])

    def usage(self, since_ms: int, among: Collection[str] | None = None) -> Iterable[Usage]:
        return usage_of_messages(self, since_ms, among)

    def _file(self, session: str) -> Path | None:
        if _NAME.fullmatch(session) is None:
            return None
        return next((path for one in self._projects() if (path := one / f"{session}.json").exists()), None)

    def _message(self, session: str, name: str) -> Path:
        return self._path / "message" / session / f"{name}.json"

    def _parts(self, message: str) -> list[Path]:
        return _inside(self._path / "part" / message)

    def _projects(self) -> list[Path]:
        return _inside(self._path / "session", "")

    def _sessions(self) -> list[Path]:
        return [path for one in self._projects() for path in _inside(one) if path.name.startswith("ses_")]

    def _listed_head(self, path: Path) -> Head | None:
        """Of one that cannot be read only that it is there: whoever asks for it is told why."""
        try:
            return self._head(path)
        except StoreError:
            return Head(path.stem, None, "", 0, _written_ms(path))

    def _head(self, path: Path) -> Head | None:
        told = self._fields(path)
        if told is None:
            return None
        time = Place("", told).object("time")
        created_ms, updated_ms = time.moment("created"), time.moment("updated")
        written_ms = _written_ms(path)
        parent = _text(told, "parentID")
        return Head(
            path.stem,
            parent if _NAME.fullmatch(parent or "") and (path.parent / f"{parent}.json").exists() else None,
            _text(told, "directory") or "",
            written_ms if created_ms is None else created_ms,
            written_ms if updated_ms is None else updated_ms,
            _text(told, "title") or "",
        )

    def _named(self, message: str) -> Iterator[str]:
        for path in sorted(self._parts(message)):
            data = _bytes(path).rstrip()
            if b'"sessionId"' not in data and data.endswith(b"}"):  # a torn one may be about to name one
                continue
            name = subagent(self._fields(path))
            if name is not None:
                yield name

    def _fields(self, path: Path) -> dict[str, Json] | None:
        """What a file holds: None when it is gone, nothing where it is not what it should be. Raises StoreError."""
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"OpenCode's store {self._path} cannot be read: {path.name}: {error.strerror}") from None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) and abs(self._now_s - _written_ms(path) / 1000) < TORN_S:
            raise StoreError(f"OpenCode's store {self._path} cannot be read: {path.name} is being written")
        return value if isinstance(value, dict) else {}


def _inside(folder: Path, ending: str = ".json") -> list[Path]:
    """Unlike a glob it says where a folder may not be read."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return [path for path in folder.iterdir() if path.name.endswith(ending)]
    return []


def _bytes(path: Path) -> bytes:
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _written_ms(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns // 1_000_000
    return 0


def _text(fields: dict[str, Json] | None, name: str) -> str | None:
    value = fields.get(name) if fields is not None else None
    return value if isinstance(value, str) else None
