"""Backfill: turns what OpenCode's store holds into export jobs, at most half of maxSpoolSize at a time.

    roots, the oldest first ─ plan ─▶ sessions with something new ─ queue ▶ ledger ─▶ worker
                                                                      ▲                 │
                                                                      └─ Admission ◀────┘

One session is in memory at a time. A session that is queued whole is not read again until it changes, or is captured
otherwise: so a run that was stopped anywhere is taken up by the next one.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from os.path import isdir
from pathlib import Path

from app.capture.config import why_nothing
from app.capture.enqueue import Place, Request, decisions_on, enqueue
from app.capture.folders import Folders
from app.capture.reconcile import is_quiet
from app.capture.targets import folder
from app.database.connection import Ledger, flushed_together
from app.database.open import open_if_made, open_whole
from app.errors import AppError, ExportError
from app.ledger import history
from app.ledger.counts import is_pending
from app.ledger.decision import BACKFILL, WANTED, Decision, Reopen
from app.ledger.destinations import Destination
from app.ledger.eviction import held_bytes
from app.ledger.history import note_reconciled
from app.ledger.job import SESSION_RECORD
from app.privacy.terms import Capture
from app.runtime import clock
from app.runtime.liveness import open_sessions, read_workers
from app.runtime.spool import Spool
from app.settings.lookup import Sources
from app.sources.opencode.access import StoreError
from app.sources.opencode.rows import Head
from app.sources.opencode.store import Store
from app.transcript.model import Transcript, TranscriptError

AGE_MS_MAX = 90 * 24 * 3_600_000
"""Helicone keeps bodies for so long, counted from when the turn happened: it would blank those of older ones."""
NOWHERE = 0
"""No destination has this number."""
LOOK_S = 0.2
WORKER_S = 2.0
"""How long nobody may be seen delivering: a worker that makes way for a newer one is gone for less."""


class NoRoomError(AppError):
    """There is no room, and nobody makes any. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which sessions, and what of them."""

    since_ms: int | None = None
    """Sessions that changed since then; None: within AGE_MS_MAX."""
    sessions: tuple[str, ...] = ()
    """Of any age; () for all."""
    directory: Path | None = None
    """Those that were started there; None for all."""
    reopen: Reopen = BACKFILL


@dataclass(slots=True)
class Project:
    """What would be sent of one project folder."""

    directory: str
    is_gone: bool
    """There is no such folder any more: its own files cannot say what may be sent."""
    logs: int = 0
    turns: int = 0
    replaced: int = 0
    """Of these turns: they are known in an earlier version, or under other settings, which they replace."""
    sessions: int = 0
    shut: int = 0
    """Turns that are not taken: captured while export was off, deleted, or recalled."""
    left_out: int = 0
    """Sessions of which nothing may be sent; `reason` says why."""
    reason: str = ""
    is_refused: bool = False
    """Left out, because it is not known what may be sent: the folder's configuration cannot be used."""


@dataclass(slots=True)
class Plan:
    """What there is to do. Logs are counted as they are: some may be at Helicone already, and are not sent again."""

    sessions: list[Head] = field(default_factory=list)
    """Those with something to send; the oldest first."""
    projects: dict[str, Project] = field(default_factory=dict)
    too_old: int = 0
    """Sessions left out, because nobody asked for them."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Sessions that cannot be read, or of which some turns cannot, and why."""

    @property
    def logs(self) -> int:
        return sum(project.logs for project in self.projects.values())

    @property
    def turns(self) -> int:
        return sum(project.turns for project in self.projects.values())

    @property
    def replaced(self) -> int:
        return sum(project.replaced for project in self.projects.values())

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing from it that was asked for."""
        return not self.unreadable and not any(project.is_refused for project in self.projects.values())


@dataclass(slots=True)
class Queued:
    """Result of queueing, in numbers of jobs: one for each turn and one for each session itself."""

    new: int = 0
    known: int = 0
    unfinished: int = 0
    """Turns that a live OpenCode is at: it brings them itself."""


@contextmanager
def opened(spool: Path, *, dry_run: bool) -> Iterator[Ledger]:
    """The ledger; for a dry run, where there is none, an empty one that is gone afterwards."""
    with closing(open_if_made(spool) if dry_run else open_whole(spool)) as db:
        yield db


class Backfill:
    """Backfill from one store to one destination."""

    def __init__(self, db: Ledger, sources: Sources, ours: Destination | None, store: Store, choice: Choice) -> None:
        """`ours` is None where nothing was ever captured for the present settings: then it only plans."""
        settings = sources.load()
        self._db = db
        self._destination_id = NOWHERE if ours is None else ours.id
        self._store = store
        self._spool = Spool(settings.spool_directory)
        self._bytes_max = settings.max_spool_bytes
        self._choice = choice
        self._folders = Folders(db, sources)

    def chosen(self, now_ms: int) -> tuple[list[tuple[Head, int]], int]:
        """What is meant, the oldest first, each with when it was changed; how many sessions are left out for their age.

        Raises StoreError.
        """
        choice = self._choice
        roots = self._store.roots()
        missing = sorted(set(choice.sessions) - {root.id for root in roots})
        if missing:
            told = "(a subagent's goes with the session that started it)"
            raise StoreError(f"OpenCode's store {self._store.path} holds no session {', '.join(missing)} {told}")
        if choice.sessions:
            roots = [root for root in roots if root.id in choice.sessions]
        if choice.directory is not None:
            names = {str(choice.directory), str(choice.directory.resolve())}
            roots = [root for root in roots if root.directory in names]
            if not roots:
                raise StoreError(
                    f"OpenCode's store {self._store.path} holds no such session that was started in {choice.directory}"
                )
        since_ms = now_ms - AGE_MS_MAX if choice.since_ms is None else choice.since_ms
        changes = self._store.changes()
        found = [(root, changes.get(root.id, 0)) for root in roots]
        recent = [one for one in found if choice.sessions or one[1] >= since_ms]
        return recent, len(found) - len(recent) if choice.since_ms is None else 0

    def plan(self, now_ms: int, on_session: Callable[[int, int], None] = lambda _done, _total: None) -> Plan:
        """Look through all of it. Raises StoreError, SettingsError, PatternError, sqlite3.Error."""
        chosen, too_old = self.chosen(now_ms)
        plan = Plan(too_old=too_old)
        for done, (session, changed_ms) in enumerate(chosen):
            on_session(done, len(chosen))
            self._examine(plan, session, changed_ms)
        return plan

    def _examine(self, plan: Plan, session: Head, changed_ms: int) -> None:
        directory = session.directory
        is_gone = bool(directory) and not isdir(directory)  # noqa: PTH112 - Path.is_dir raises where it may not be looked at
        project = plan.projects.setdefault(directory, Project(directory, is_gone))
        capturing = self._capture(project)
        if capturing is None:
            project.left_out += 1
            return
        # Of a session that was named nothing is taken on trust: its times may be from a clock that was wrong.
        if not self._choice.sessions and history.is_whole(
            self._db,
            self._destination_id,
            session.id,
            changed_ms=changed_ms,
            now_ms=clock.now_ms(),
            policy=capturing.policy.facts,
            reopen=self._choice.reopen,
        ):
            return
        transcript = self._read(session, plan.unreadable)
        if transcript is None:
            return
        if transcript.unreadable:
            plan.unreadable[session.id] = f"{len(transcript.unreadable)} message(s): {transcript.unreadable[0].why}"
        found = list(
            decisions_on(
                self._db,
                transcript,
                capturing,
                self._place(session),
                Request(abandoned=self._is_over(session, changed_ms), reopen=self._choice.reopen),
            )
        )
        project.shut += sum(decision is Decision.REFUSED for _, decision in found)
        wanted = [export for export, decision in found if decision in WANTED]
        if wanted:
            plan.sessions.append(session)
            project.sessions += 1
            project.logs += sum(export.record_count for export in wanted)
            turns = {export.turn for export in wanted} - {SESSION_RECORD}
            known = history.exported(self._db, self._destination_id, session.id, with_identities=False)
            project.turns += len(turns)
            project.replaced += len(turns & {one.turn for one in known if one.state != "dropped"})

    def _is_over(self, session: Head, changed_ms: int) -> bool:
        """Whether nobody will complete what is unfinished: an OpenCode without a hook may be at it, too."""
        return session.id not in open_sessions(self._spool.hooks) and is_quiet(changed_ms, clock.now_ms())

    def _capture(self, project: Project) -> Capture | None:
        """How the project is captured; None where nothing of it may be sent, which it then says."""
        settings, capturing = self._folders.find(project.directory, to_redact=False)
        project.reason = why_nothing(settings)
        project.is_refused = bool(settings.held)
        return None if project.reason else capturing

    def _read(self, session: Head, unreadable: dict[str, str]) -> Transcript | None:
        """None where it is not there any more, or cannot be read, which is noted."""
        try:
            return self._store.transcript(session.id)
        except StoreError:
            raise
        except (ExportError, TranscriptError) as error:
            unreadable[session.id] = str(error)
            return None

    def _place(self, session: Head) -> Place:
        return Place(self._destination_id, folder(self._db, session.directory))

    def queue(
        self,
        ours: Destination,
        sessions: Sequence[Head],
        queued: Queued,
        on_session: Callable[[int, int], None],
        on_wait: Callable[[], None],
    ) -> None:
        """Queue them for `ours`, and count in `queued`. Nobody is woken: a worker takes them behind what is live.

        `on_wait` is called while there is no room. Raises NoRoomError, StoreError, sqlite3.Error.
        """
        admission = Admission(self._db, self._spool, ours, self._bytes_max, on_wait)
        for position, session in enumerate(sessions, 1):
            # Before it is read: what is written after that is not known.
            changed_ms = self._store.changed_ms(session.id)
            transcript = self._read(session, {})
            # After it was read: a secret that stands in it is known by then.
            _, capturing = self._folders.find(session.directory)
            if capturing is not None and transcript is not None:
                with flushed_together(self._db):
                    done = enqueue(
                        self._db,
                        transcript,
                        capturing,
                        self._place(session),
                        now_ms=clock.now_ms(),
                        wake=lambda _: None,
                        request=Request(
                            abandoned=self._is_over(session, changed_ms or 0),
                            reopen=self._choice.reopen,
                            is_history=True,
                        ),
                        admit=admission.admit,
                    )
                queued.new += done.new
                queued.known += done.known
                queued.unfinished += len(done.waiting)
                if changed_ms is not None and not done.waiting:
                    noted_ms = min(changed_ms, clock.now_ms())
                    note_reconciled(self._db, self._destination_id, session.id, noted_ms)
            on_session(position, len(sessions))


class Admission:
    """Half of `maxSpoolSize`: the other half is for what is live, so that nothing has to be dropped."""

    def __init__(
        self,
        db: sqlite3.Connection,
        spool: Spool,
        ours: Destination,
        bytes_max: int,
        on_wait: Callable[[], None],
    ) -> None:
        self._db = db
        self._spool = spool
        self._ours = ours
        self._half_bytes = bytes_max // 2
        self._on_wait = on_wait
        self._left_bytes = 0
        """At least so much is left: what came since the last look counts as if nothing could be compressed."""

    def admit(self, size_bytes: int) -> None:
        """Wait until the half is not full. Raises NoRoomError where nobody makes room."""
        if size_bytes > self._left_bytes:
            seen_s = time.monotonic()
            while (left := self._half_bytes - held_bytes(self._db)) <= 0:
                if self._is_served():
                    seen_s = time.monotonic()
                elif time.monotonic() - seen_s >= WORKER_S:
                    raise NoRoomError(self._why_nobody())
                self._on_wait()
                time.sleep(LOOK_S)
            self._left_bytes = left
        self._left_bytes -= size_bytes

    def _is_served(self) -> bool:
        """Whether somebody delivers, and something that can be delivered takes the room."""
        is_wanted = bool(self._ours.key_fingerprint) and is_pending(self._db, self._ours.id)
        return is_wanted and any(worker.destination == self._ours.id for worker in read_workers(self._spool))

    def _why_nobody(self) -> str:
        again = "what is queued stays; the same backfill again goes on from there"
        half = "half of maxSpoolSize is in use"
        if not self._ours.key_fingerprint:
            return f"{half}, and without HELICONE_API_KEY nothing leaves: {again}"
        if not is_pending(self._db, self._ours.id):
            return f"{half} by dead letters or for another destination: see dead list and status; {again}"
        return f"{half}, and no worker runs: let flush or worker deliver it; {again}"
