"""Processes notices: has each session read that the plugin told of, and settles, postpones or gives up the notice."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from app.capture.messages import Line
from app.capture.notices import AGAIN_S, BUG, FAILED_S, Noticed, Notices, leave, look_again, postpone, settle
from app.capture.owed import Owed
from app.capture.projects import Captured, Captures
from app.capture.session_reader import FAILURES_MAX, Look, Reader, ReadRequest, reason_of
from app.database.schema import SchemaError
from app.errors import ExportError
from app.ledger.folders import NEVER_MS
from app.privacy.redact import PatternError
from app.privacy.terms import Capture
from app.runtime import failpoint, log
from app.settings.model import SettingsError
from app.sources.opencode.access import AbsentError, StoreError
from app.sources.opencode.store import Store
from app.transcript.model import TranscriptError

SETTINGS_S = 2.0
"""Between two looks at a session whose folder's settings cannot be used."""


class NoticeProcessor:
    """Reads what was noticed, of one spool and store. Raises sqlite3.Error, OSError, SchemaError: to be repeated."""

    def __init__(
        self,
        store: Store,
        captures: Captures,
        notices: Notices,
        owed: Owed,
        readers: Mapping[str, Reader],
        tell: Callable[[str], None],
    ) -> None:
        """`readers`: by destination; what the first one lacks keeps the others waiting, never the other way."""
        self._store = store
        self._captures = captures
        self._notices = notices
        self._owed = owed
        self._readers = readers
        self._tell = tell
        self._failures = 0
        """Of looks after OpenCode has ended, by the store's own fault."""

    def owe(self, line: Line, now_ms: int) -> None:
        """Note that a session is to be read."""
        added = self._notices.add(line, self._owed.note(line.session, line.directory, now_ms))
        failpoint.reach("notice.noted")
        root = added.root
        if line.why == "busy" and root is not None and all(one.is_known(root) for one in self._readers.values()):
            leave(added)  # it will say when it has done

    def owe_again(self, now_ms: int) -> None:
        """Note the same in a ledger that knows nothing of it."""
        for one in self._notices:
            if one.mark is not None:
                one.mark, one.due_s = self._owed.note(one.session, one.line.directory, now_ms), 0

    def forget(self, session: str, now_ms: int) -> None:
        """Drop a session that was deleted."""
        self._notices.drop(session)
        self._let_go()
        self._owed.give_up({session: NEVER_MS}, now_ms)

    @property
    def is_given_up(self) -> bool:
        """OpenCode has ended, and its store cannot be read: each try may wait for seconds. All is owed."""
        return self._failures >= FAILURES_MAX

    def end(self, now_s: float) -> None:
        """OpenCode has ended: one more look at each session, and what is unfinished then is interrupted."""
        self._notices.look_at_all(now_s)
        # What another OpenCode that had them open has left to this one.
        left = self._owed.all()
        for one in self._notices:
            one.mark, _ = left.get(one.session, (one.mark, ""))

    def look(self, one: Noticed, now_s: float, now_ms: int) -> None:
        """Read what a notice named, as far as one look goes."""
        if self._captures.seen(one.line.directory) is None:  # the spool is new
            with suppress(SettingsError, PatternError):
                self._captures.take(one.line)
        seen = self._captures.seen(one.line.directory)
        if seen is not None and not seen.settings.enable:
            self._let_go()
            self._settle([one])
        elif seen is None or seen.capture is None:
            self._wait([one], now_s, SETTINGS_S, "the settings of its folder cannot be used")
        else:
            self._look(one, seen, now_s, now_ms)

    def _let_go(self) -> None:
        for reader in self._readers.values():
            reader.let_go()

    def _look(self, one: Noticed, seen: Captured, now_s: float, now_ms: int) -> None:
        due = [one]
        try:
            one.root = root = self._store.root_of(one.session)
            if root not in (None, one.session) and self._notices.is_at_work(root) and not self._notices.has_ended:
                leave(one)  # what it is shown inside of says when that is done
                return
            due = self._notices.due_inside(one, now_s)
            look = None if root is None else self._read(root, due, seen, now_ms)
        except (sqlite3.Error, OSError, SchemaError):
            raise
        except AbsentError as error:
            self._fail(due, now_s, error)
            if self._notices.has_ended:
                self._give_up(due, now_ms)
        except (ExportError, TranscriptError) as error:
            self._fail(due, now_s, error)
        except Exception as error:  # noqa: BLE001 - a bug of ours may cost one session, never the others
            self._tell(f"{BUG} {type(error).__name__} at {log.where(error)}, while a session was read")
            self._wait(due, now_s, AGAIN_S, f"{BUG} {type(error).__name__}")
        else:
            self._conclude(look, one, due, now_s, now_ms)

    def _read(self, root: str, due: Sequence[Noticed], seen: Captured, now_ms: int) -> Look | None:
        """A look for each destination, as one."""
        looks = []
        for name, reader in self._readers.items():
            capturing = seen.towards(name)
            if capturing is not None:
                looks.append(reader.look(root, self._request(root, due, seen.folder, capturing, now_ms)))
        found = [look for look in looks if look is not None]
        return Look(any(one.has_more for one in found), any(one.is_waiting for one in found)) if found else None

    def _request(self, root: str, due: Sequence[Noticed], folder: str, capturing: Capture, now_ms: int) -> ReadRequest:
        has_ended = self._notices.has_ended
        # What is new of a subagent belongs to the turn that called it first, however old that is.
        inside = (each for each in self._notices.inside(root) if each.mark is not None)
        is_anywhere = any(each.is_anywhere or each.session != root for each in inside)
        return ReadRequest(
            folder,
            capturing,
            now_ms,
            changed_ms=self._store.changed_ms(root) if has_ended else None,
            whole=has_ended or is_anywhere,
            again=any(one.looks == 0 for one in due),
            is_over=has_ended,
        )

    def _conclude(self, look: Look | None, one: Noticed, due: Sequence[Noticed], now_s: float, now_ms: int) -> None:
        if look is not None and look.has_more:
            for each in due:
                each.due_s = now_s  # behind those that were noticed meanwhile
            return
        if look is not None and not look.is_waiting:
            self._settle(self._notices.inside(one.root))
            return
        for each in due:
            look_again(each, now_s)
        # A session at work may be about to be written for the first time.
        if look is None and one.due_s is None and (one.line.why != "busy" or self._notices.has_ended):
            self._give_up(due, now_ms)

    def _settle(self, those: Sequence[Noticed]) -> None:
        self._owed.settle(_marks(those))
        for one in those:
            settle(one)

    def _give_up(self, those: Sequence[Noticed], now_ms: int) -> None:
        """They are not there any more."""
        self._owed.give_up(_marks(those), now_ms)
        for one in those:
            self._notices.drop(one.session)

    def _fail(self, those: Sequence[Noticed], now_s: float, error: ExportError | TranscriptError) -> None:
        self._failures += self._notices.has_ended and isinstance(error, StoreError)
        self._tell(f"what OpenCode's store holds could not be read: {error}")
        self._wait(those, now_s, FAILED_S if those[0].looks == 0 else AGAIN_S, reason_of(error))

    def _wait(self, those: Sequence[Noticed], now_s: float, pause_s: float, reason: str) -> None:
        for one in those:
            postpone(one, now_s, pause_s)
        self._owed.wait([one.session for one in those], reason)


def _marks(those: Sequence[Noticed]) -> dict[str, int]:
    """By session what settles each of these notices."""
    return {one.session: one.mark for one in those if one.mark is not None}
