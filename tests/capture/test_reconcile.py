"""What OpenCode wrote and no notice led to: found in its store when a hook starts, and when it ends."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.capture import notices
from app.capture.daemon import Daemon
from app.capture.eviction import Eviction
from app.capture.export import split
from app.capture.handler import Hook
from app.capture.messages import Line
from app.capture.notices import AGAIN_S, FAILED_S
from app.capture.owed import GONE, OWED_MS_MAX
from app.capture.pipe_reader import PipeReader
from app.capture.process_notices import NoticeProcessor
from app.capture.reconcile import QUIET_MS, SETTLE_S, NextLook, next_look
from app.capture.session_reader import FAILURES_MAX, GONE_TURNS
from app.capture.targets import folder
from app.database.connection import Replaced
from app.database.open import open_ledger
from app.ledger import destinations, eviction, folders, history, incidents, job
from app.ledger import incidents as ledger_incidents
from app.ledger import notices as ledger_notices
from app.ledger.notices import Unread, unread_sessions
from app.runtime import clock
from app.runtime.liveness import Announced, read_hooks
from app.settings.lookup import Sources
from app.sources.opencode.access import StoreError
from app.sources.opencode.store import Store, store_file
from app.transcript.identity import Identity
from app.transcript.model import Transcript, key
from tests.support import json_store
from tests.support.fake_secrets import noise
from tests.support.servers import api_key
from tests.support.snapshots import CREATED_MS, Fields, assistant, entry, snapshot, task, text, unfinished, user
from tests.support.stores import WrittenStore, put
from tests.support.waiting import wait_until
from tests.system.test_policy_sweep import configure

HERE = "/home/dev/project"


def talk(
    name: str, *messages: Fields, directory: str = HERE, at_ms: int = CREATED_MS, parent: str | None = None
) -> Fields:
    """A session; its messages' ids are made its own."""
    told = json.loads(json.dumps(messages).replace('"msg_', f'"msg_{name}_').replace('"prt_', f'"prt_{name}_'))
    time = {"created": CREATED_MS, "updated": at_ms}
    return snapshot(entry(*told, id=f"ses_{name}", directory=directory, time=time, parentID=parent))


def asked_and_answered(at_ms: int = CREATED_MS) -> tuple[Fields, Fields]:
    return user("msg_1", at_ms + 10, text("why?")), assistant("msg_2", at_ms + 20, text("so!", "prt_a"))


def followed_up(at_ms: int) -> tuple[Fields, Fields]:
    return user("msg_3", at_ms), assistant("msg_4", at_ms + 10, parent="msg_3")


def cut_off() -> tuple[Fields, Fields]:
    return user("msg_1", CREATED_MS + 10, text("why?")), unfinished("msg_2", CREATED_MS + 20, text("", "prt_a"))


@dataclass
class Machine:
    """One person's spool and OpenCode store, and hooks in this very process, whose clocks are ours."""

    home: Path
    variables: dict[str, str] = field(default_factory=dict)
    hooks: list[Hook] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(self.home / "spool"),
            "OPENCODE_HELICONE_WORKER": "external",
            "HELICONE_ENDPOINT": "http://127.0.0.1:9",
            "HELICONE_API_KEY": api_key(),
            **self.variables,
        }

    @property
    def sources(self) -> Sources:
        return Sources(self.environ, self.home, self.home / "config")

    @property
    def store(self) -> Store:
        return Store(store_file(self.environ))

    def remember(self, wanted: Fields, *, written_ms: int | None = None) -> str:
        """Have OpenCode's store hold the session, as last written at that time (now, by the sessions' own clock)."""
        (info,) = [entry["info"] for entry in wanted["sessions"]]
        times = [message["info"]["time"]["created"] for entry in wanted["sessions"] for message in entry["messages"]]
        at_ms = max(info["time"]["updated"], *times) if written_ms is None else written_ms
        put(self.store.path, wanted, at_ms=at_ms, whole=True)
        if written_ms is not None:
            with closing(sqlite3.connect(self.store.path)) as db, db:
                db.execute("update session set time_updated = ? where id = ?", [written_ms, info["id"]])
        return str(wanted["root"])

    def forget(self, session: str) -> None:
        """OpenCode deletes the session."""
        with closing(WrittenStore(self.store.path)) as store:
            store.delete(session)

    def hook(self, session: str = "ses_own", directory: str = HERE, **options: object) -> Hook:
        """One whose OpenCode is at work in this session, looked at once."""
        line = notice(session, "busy", directory, **options)
        made = Hook(self.sources, line, self.sources.load(line.directory or None, handed=line.options))
        self.hooks.append(made)
        made.take(line)
        made.announce(0)
        look_for(made)
        return made

    def capture_since(self, since_ms: int) -> None:
        """As if the folder had been captured from then on."""
        self.end(self.hook())
        with closing(sqlite3.connect(self.home / "spool" / "ledger.db")) as db, db:
            db.execute("update folder set since_ms = ?", [since_ms])

    def end(self, one: Hook) -> None:
        """Its OpenCode ends."""
        one.finish()
        one.finish_reconciling()
        self.leave(one)

    def leave(self, one: Hook) -> None:
        """It is killed."""
        self.hooks.remove(one)
        one.close()

    def jobs(self) -> list[tuple[str, str, str]]:
        """(session, state, key) of all turns' versions, the oldest first."""
        with closing(open_ledger(self.home / "spool")) as db:
            rows = db.execute(
                "select s.name, j.state, j.key from job j join turn t on t.id = j.turn_id"
                " join session s on s.id = t.session_id where t.name <> ? order by j.id",
                [job.SESSION_RECORD],
            ).fetchall()
        return [tuple(row) for row in rows]

    def states(self) -> list[tuple[str, str]]:
        return [(session, state) for session, state, _ in self.jobs()]


@pytest.fixture
def machine(tmp_path: Path, migrated: Path) -> Iterator[Machine]:
    shutil.copytree(migrated, tmp_path / "spool")
    made = Machine(tmp_path)
    yield made
    for one in list(made.hooks):
        made.leave(one)


def notice(session: str, why: str = "busy", directory: str = HERE, **options: object) -> Line:
    return Line("notice", directory, options, session, why)


def look(one: Hook, now_s: float, now_ms: int = CREATED_MS + 1_000) -> None:
    """All of other sessions that is due at these times."""
    while one.opened.reconciling.is_due(now_s):
        ours = {*one._notices.owned(), *one._deleted}
        one.opened.reconciling.step(one.opened.captures.of, ours, now_s=now_s, now_ms=now_ms)


def stored_key(one: Hook, session: str) -> list[str]:
    """Of the session's turns, as anybody computes them from the store, all taken as over."""
    transcript = one.opened.store.transcript(session)
    (capturing,) = one.opened.captures.by_folder().values()
    assert transcript is not None
    assert capturing is not None
    made, _ = split(transcript, capturing, Identity(capturing.user_id), abandoned=True)
    policy = capturing.policy.digest(capturing.user_id)
    return [key(export.digest, policy) for export in made if export.turn != job.SESSION_RECORD]


def test_turns_from_while_the_plugin_was_missing_are_exported_by_the_next_hook_and_once(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    for name in ("a", "b", "c"):
        machine.remember(talk(name, *asked_and_answered()))
    one = machine.hook()
    look(one, 0)
    assert machine.states() == [(f"ses_{name}", "pending") for name in ("a", "b", "c")]
    assert [job[2] for job in machine.jobs()] == [stored_key(one, f"ses_{name}")[0] for name in ("a", "b", "c")]
    machine.end(one)
    another = machine.hook()
    assert another.due_s() <= 0
    look(another, 0)
    assert another.opened.reconciling._ahead == {}
    assert len(machine.jobs()) == 3


def test_an_opencode_that_lives_shorter_than_the_looks_take_leaves_them_for_its_end(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    for name in ("a", "b"):
        machine.remember(talk(name, *asked_and_answered()))
    machine.end(machine.hook())
    assert machine.states() == [("ses_a", "pending"), ("ses_b", "pending")]


def test_a_new_key_or_endpoint_sends_nothing_again_that_went_to_another(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    session = machine.remember(talk("a", *asked_and_answered()))
    machine.end(machine.hook())
    assert machine.states() == [(session, "pending")]
    machine.variables["HELICONE_ENDPOINT"] = "http://127.0.0.1:10"
    machine.end(machine.hook())
    assert machine.states() == [(session, "pending")]


def test_what_was_written_before_capture_began_or_in_another_folder_is_left_alone(machine: Machine) -> None:
    machine.capture_since(CREATED_MS + 500)
    machine.remember(talk("old", *asked_and_answered()))
    machine.remember(talk("far", *asked_and_answered(), directory="/elsewhere", at_ms=CREATED_MS + 900))
    machine.remember(talk("new", *asked_and_answered(CREATED_MS + 600), at_ms=CREATED_MS + 900))
    machine.end(machine.hook())
    assert machine.states() == [("ses_new", "pending")]


def test_of_a_session_that_goes_on_only_what_was_written_since_capture_began_is_missed(machine: Machine) -> None:
    machine.capture_since(CREATED_MS + 500)
    both = talk("a", *asked_and_answered(), *followed_up(CREATED_MS + 600), at_ms=CREATED_MS + 900)
    session = machine.remember(both)
    one = machine.hook()
    wanted = stored_key(one, session)
    machine.end(one)
    assert [key for _, _, key in machine.jobs()] == [wanted[1]]


def test_a_notice_brings_the_whole_session_whenever_it_was_written_and_whatever_was_left_out(machine: Machine) -> None:
    machine.capture_since(CREATED_MS + 500)
    both = talk("a", *asked_and_answered(), *followed_up(CREATED_MS + 600), at_ms=CREATED_MS + 900)
    session = machine.remember(both)
    one = machine.hook()
    wanted = stored_key(one, session)
    look(one, 0)
    assert len(machine.jobs()) == 1
    show(one, session)
    assert sorted(key for _, _, key in machine.jobs()) == sorted(wanted)


def test_a_clock_that_was_ahead_hides_no_later_turn(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    ahead_ms = CREATED_MS + 10 * QUIET_MS
    session = machine.remember(talk("a", *asked_and_answered()), written_ms=ahead_ms)
    one = machine.hook()
    look(one, 0, ahead_ms)
    machine.leave(one)
    assert len(machine.jobs()) == 1
    # The clock is right again; what was written while it was ahead still is what was written last.
    now_ms = CREATED_MS + 900
    machine.remember(talk("a", *asked_and_answered(), *followed_up(now_ms - 300), at_ms=now_ms), written_ms=ahead_ms)
    one = machine.hook()
    look(one, 0, now_ms)
    assert len(machine.jobs()) == 2
    noted_ms = history.reconciled_ms(one.opened.db, one.opened.target.id, session)
    assert noted_ms is not None
    assert noted_ms < ahead_ms


def test_a_subagent_that_no_call_names_goes_as_a_session_until_one_does(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    child = machine.remember(talk("child", *asked_and_answered(), parent="ses_root"))
    machine.remember(talk("root", *asked_and_answered()))
    machine.end(machine.hook())
    assert sorted(machine.states()) == [(child, "pending"), ("ses_root", "pending")]
    calls = assistant("msg_4", CREATED_MS + 40, task(child), parent="msg_3")
    machine.remember(
        talk("root", *asked_and_answered(), user("msg_3", CREATED_MS + 30), calls), written_ms=CREATED_MS + 50
    )
    machine.end(machine.hook())
    assert sorted(machine.states()) == [(child, "superseded"), ("ses_root", "pending"), ("ses_root", "pending")]


def test_a_turn_that_was_killed_before_any_snapshot_is_interrupted_when_its_opencode_has_ended(
    machine: Machine,
) -> None:
    machine.capture_since(CREATED_MS)
    session = machine.remember(talk("a", *cut_off()))
    one = machine.hook(session)
    look(one, 0)
    assert machine.jobs() == []
    wanted = stored_key(one, session)
    machine.end(one)
    assert [(state, key) for _, state, key in machine.jobs()] == [("pending", wanted[0])]
    # The next start finds the same, and nothing to do.
    another = machine.hook()
    look(another, 0)
    look(another, SETTLE_S, CREATED_MS + QUIET_MS + 1_000)
    machine.end(another)
    assert len(machine.jobs()) == 1


def show(one: Hook, session: str, why: str = "idle") -> None:
    """Notice is given of the session, and looked for until the next one."""
    one.take(notice(session, why))
    look_for(one)


def look_for(one: Hook) -> None:
    """What notices named, until there is nothing to do before the next one, or it cannot be read."""
    while (due_s := one._notices.due_s()) is not None and due_s < FAILED_S:
        noticed = one._notices.next(due_s)
        assert noticed is not None
        one.opened.notice_processor.look(noticed, due_s, CREATED_MS + 1_000)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("missing", "OpenCode's store is not there"),
        ("rubbish", "OpenCode's store cannot be read"),
        ("another generation", "OpenCode's store cannot be read"),
    ],
)
def test_where_the_store_cannot_be_read_the_notice_waits_visibly(machine: Machine, spoil: str, reason: str) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook()
    path = machine.store.path
    whole = path.read_bytes()
    if spoil == "another generation":
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("drop table part")
    else:
        path.write_bytes(b"no database at all, however long it is" * 100)
    if spoil == "missing":
        path.unlink()
    one.take(notice("ses_a", "idle"))
    for due_s in (0.0, FAILED_S):
        noticed = one._notices.next(due_s)
        assert noticed is not None
        one.opened.notice_processor.look(noticed, due_s, CREATED_MS + 1_000)
    assert one._notices.next(FAILED_S + AGAIN_S - 1) is None
    assert [(each.reason, each.sessions) for each in ledger_notices.unread(one.opened.db) if each.reason] == [
        (reason, 1)
    ]
    assert "could not be read" in (machine.home / "spool" / "logs" / "hook.log").read_text()
    path.write_bytes(whole)
    show(one, "ses_a")
    assert machine.states() == [("ses_a", "pending")]
    assert [each.sessions for each in ledger_notices.unread(one.opened.db)] == [
        1
    ]  # its own session, which is not there


def test_what_opencode_keeps_in_memory_waits_with_that_reason_and_is_gone_with_it(machine: Machine) -> None:
    machine.variables["OPENCODE_DB"] = ":memory:"
    one = machine.hook()
    show(one, "ses_a")
    reason = "OpenCode keeps its store in memory, where nobody can read it"
    assert [(each.reason, each.sessions) for each in ledger_notices.unread(one.opened.db)] == [(reason, 2)]
    one.finish()
    assert ledger_notices.unread(one.opened.db) == []
    assert [(what, count) for what, count, _ in incidents.incidents(one.opened.db)] == [(GONE, 2)]


def test_a_session_that_another_opencode_has_open_is_never_interrupted(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    session = machine.remember(talk("a", *cut_off()))
    owner = machine.hook(session)
    one = machine.hook("ses_own")
    later_ms = CREATED_MS + 100 * QUIET_MS
    for at_s in (0.0, SETTLE_S, AGAIN_S, 10 * AGAIN_S, 20 * AGAIN_S):
        look(one, at_s, later_ms)
    machine.end(one)
    assert machine.jobs() == []
    machine.end(owner)
    assert machine.states() == [(session, "pending")]


def test_an_opencode_that_has_ended_leaves_a_turn_to_another_that_has_the_session_open(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    session = machine.remember(talk("a", *cut_off()))
    machine.hook(session)
    machine.end(machine.hook(session))
    assert machine.jobs() == []


def test_an_unowned_turn_is_interrupted_only_after_it_was_quiet_for_long_and_seen_unowned_twice(
    machine: Machine,
) -> None:
    """Its OpenCode may have no hook, or one that is just starting or making way for a newer version."""
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *cut_off()))
    one = machine.hook()
    quiet_ms = CREATED_MS + QUIET_MS + 1_000
    look(one, 0, quiet_ms)
    assert machine.jobs() == []
    look(one, SETTLE_S - 0.1, quiet_ms)
    assert machine.jobs() == []
    look(one, SETTLE_S, CREATED_MS + QUIET_MS - 1_000)
    assert machine.jobs() == []
    assert not one.opened.reconciling.is_due(SETTLE_S + AGAIN_S - 0.1)
    look(one, SETTLE_S + AGAIN_S, quiet_ms)
    assert machine.states() == [("ses_a", "pending")]
    assert one.opened.reconciling._ahead == {}


def test_an_owner_that_appears_between_two_looks_counts(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *cut_off()))
    one = machine.hook()
    quiet_ms = CREATED_MS + QUIET_MS + 1_000
    look(one, 0, quiet_ms)
    owner = Announced(one.spool.hooks)
    owner.say({"sessions": ["ses_a"]})
    look(one, SETTLE_S, quiet_ms)
    owner.withdraw()
    # From here on it counts anew.
    look(one, SETTLE_S + AGAIN_S, quiet_ms)
    assert machine.jobs() == []
    look(one, 2 * SETTLE_S + AGAIN_S, quiet_ms)
    assert machine.states() == [("ses_a", "pending")]


def test_an_owner_that_appears_while_the_store_is_read_counts(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *cut_off()))
    one = machine.hook()
    quiet_ms = CREATED_MS + QUIET_MS + 1_000
    look(one, 0, quiet_ms)
    owner = Announced(one.spool.hooks)
    taken = one.opened.reader._enqueue

    def take(*args: Any, **options: Any) -> Any:
        owner.say({"sessions": ["ses_a"]})
        return taken(*args, **options)

    one.opened.reader._enqueue = take  # type: ignore[method-assign]
    look(one, SETTLE_S, quiet_ms)
    owner.withdraw()
    assert machine.jobs() == []


def test_a_turn_that_goes_on_while_the_store_is_read_is_not_interrupted(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *cut_off()))
    one = machine.hook()
    quiet_ms = CREATED_MS + QUIET_MS + 1_000
    look(one, 0, quiet_ms)
    taken = one.opened.reader._enqueue

    def take(*args: Any, **options: Any) -> Any:
        asked, partly = cut_off()
        machine.remember(talk("a", asked, {**partly, "parts": [text("more", "prt_a")]}), written_ms=quiet_ms)
        return taken(*args, **options)

    one.opened.reader._enqueue = take  # type: ignore[method-assign]
    look(one, SETTLE_S, quiet_ms)
    assert machine.jobs() == []


def test_an_interrupted_turn_that_turns_out_complete_is_superseded(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *cut_off()))
    one = machine.hook()
    quiet_ms = CREATED_MS + QUIET_MS + 1_000
    for at_s in (0, SETTLE_S):
        look(one, at_s, quiet_ms)
    machine.end(one)
    # An OpenCode without a hook was still at it.
    machine.remember(talk("a", *asked_and_answered(), at_ms=quiet_ms + 5))
    another = machine.hook()
    look(another, 0)
    assert machine.states() == [("ses_a", "superseded"), ("ses_a", "pending")]
    assert machine.jobs()[1][2] == stored_key(another, "ses_a")[0]


def test_another_policy_sends_nothing_again_of_what_the_ledger_has_as_new(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    session = machine.remember(talk("a", *asked_and_answered()))
    machine.end(machine.hook())
    follow_up = (user("msg_3", CREATED_MS + 200), assistant("msg_4", CREATED_MS + 210, parent="msg_3"))
    machine.remember(talk("a", *asked_and_answered(), *follow_up, at_ms=CREATED_MS + 400))
    one = machine.hook(redactPatterns=["swordfish"])
    look(one, 0)
    states = machine.states()
    assert states == [(session, "pending")] * 2
    # The new turn is there under the new policy.
    assert machine.jobs()[1][2] == stored_key(one, session)[1]


@pytest.mark.parametrize("mode", [{"enable": False}, {"exportMode": "off"}], ids=["enable false", "off"])
def test_what_happened_while_capture_was_switched_off_is_not_missed(machine: Machine, mode: dict[str, Any]) -> None:
    machine.capture_since(CREATED_MS)
    one = machine.hook()
    configure(machine.home / "config", **mode)
    one.take(notice("ses_own"))
    machine.remember(talk("a", *asked_and_answered()))
    look(one, 0)
    machine.end(one)
    configure(machine.home / "config")
    another = machine.hook()
    look(another, 0)
    machine.end(another)
    assert machine.jobs() == []
    with closing(open_ledger(machine.home / "spool")) as db:
        since_ms = folders.captured_since_ms(db, destinations.fingerprint(db, HERE))
    assert since_ms is not None
    assert CREATED_MS < since_ms < folders.NEVER_MS
    # Of a session that goes on, too.
    session = machine.remember(talk("a", *asked_and_answered(), *followed_up(since_ms + 1), at_ms=since_ms + 1))
    one = machine.hook()
    wanted = stored_key(one, session)
    machine.end(one)
    assert [key for _, _, key in machine.jobs()] == [wanted[1]]


def test_another_opencode_that_is_switched_off_in_the_same_folder_hides_no_turn_of_this_one(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook()
    folders.stop_capture(one.opened.db, destinations.fingerprint(one.opened.db, HERE))
    show(one, "ses_a")
    assert len(machine.jobs()) == 1


def test_a_session_of_which_only_a_part_was_missed_is_still_one_for_backfill(machine: Machine) -> None:
    machine.capture_since(CREATED_MS + 400)
    changed_ms = CREATED_MS + 550
    later = followed_up(CREATED_MS + 500)
    session = machine.remember(talk("a", *asked_and_answered(), *later), written_ms=changed_ms)
    one = machine.hook()
    look(one, 0)
    assert len(machine.jobs()) == 1
    (capturing,) = one.opened.captures.by_folder().values()
    assert capturing is not None
    assert history.reconciled_ms(one.opened.db, one.opened.target.id, session) == changed_ms
    assert not history.is_whole(
        one.opened.db,
        one.opened.target.id,
        session,
        changed_ms=changed_ms,
        now_ms=changed_ms,
        policy=capturing.policy.facts,
    )
    # It was compared, though: nobody reads it again before it changes.
    look(machine.hook(), 0)
    assert len(machine.jobs()) == 1


def test_metadata_only_is_reconciled_without_a_text(machine: Machine) -> None:
    machine.variables["OPENCODE_HELICONE_EXPORT_MODE"] = "metadata_only"
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", user("msg_1", CREATED_MS + 10, text("swordfish")), asked_and_answered()[1]))
    one = machine.hook()
    look(one, 0)
    jobs = one.opened.db.execute("select id, key from job").fetchall()
    bodies = b"".join(body.body for row in jobs for body in job.bodies(one.opened.db, row["id"], row["key"]))
    assert bodies
    assert b"swordfish" not in bodies


def test_while_export_is_off_a_session_of_its_own_is_noted_whenever_it_was_written(machine: Machine) -> None:
    configure(machine.home / "config", exportMode="off")
    session = machine.remember(talk("a", *asked_and_answered()))
    machine.end(machine.hook(session))
    assert machine.states() == [(session, "dropped")]


def test_sessions_that_cannot_be_read_keep_no_other_from_the_last_looks(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    for name in ("a", "b", "c"):
        machine.remember(talk(name, *asked_and_answered()))
    with closing(sqlite3.connect(machine.store.path)) as db, db:
        db.execute("update message set data = '{'")
    machine.remember(talk("z", *asked_and_answered()))
    machine.end(machine.hook())
    assert machine.states() == [("ses_z", "pending")]


def test_a_time_in_the_future_keeps_no_turn_from_being_interrupted(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    session = machine.remember(talk("a", *cut_off()), written_ms=CREATED_MS + 100 * QUIET_MS)
    one = machine.hook()
    look(one, 0)
    look(one, SETTLE_S)
    assert machine.states() == [(session, "pending")]


def test_a_turn_that_was_changed_without_a_later_time_is_a_newer_version(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    asked, answered = asked_and_answered()
    session = machine.remember(talk("a", asked, answered))
    machine.end(machine.hook())
    edited = {**answered, "parts": [text("otherwise", "prt_a")]}
    machine.remember(talk("a", asked, edited), written_ms=CREATED_MS + 50)
    machine.end(machine.hook())
    assert machine.states() == [(session, "superseded"), (session, "pending")]


def test_a_session_deleted_here_is_not_taken_from_the_store(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    session = machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook()
    one.take(notice(session, "deleted"))
    look(one, 0)
    machine.forget(session)
    show(one, session)  # it was on its way
    assert session not in unread_sessions(one.opened.db)
    machine.end(one)
    assert machine.jobs() == []


def test_a_session_that_is_there_again_after_it_was_deleted_is_taken_with_its_next_notice(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    session = machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook()
    machine.forget(session)
    one.take(notice(session, "deleted"))
    away = machine.store.path.rename(machine.store.path.with_name("away.db"))
    show(one, session)
    away.rename(machine.store.path)
    machine.remember(talk("a", *asked_and_answered()))
    look(one, 0)
    assert machine.jobs() == []
    show(one, session)
    assert machine.states() == [(session, "pending")]


def test_what_a_hook_remembers_of_deleted_sessions_and_oddities_is_bounded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "OWNED_MAX", 3)
    one = machine.hook()
    for number in range(5):
        one.take(notice(f"ses_{number}", "deleted"))
        one._log_once(f"odd in ses_{number}")
    one.take(notice("ses_2", "deleted"))
    assert [line.session for line in one.pending_messages() if line.why == "deleted"] == ["ses_3", "ses_4", "ses_2"]
    assert list(one._logged) == ["odd in ses_2", "odd in ses_3", "odd in ses_4"]


def test_a_store_that_cannot_be_read_costs_one_look_in_a_while_and_breaks_nothing(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    for name in ("a", "b"):
        machine.remember(talk(name, *asked_and_answered()))
    one = machine.hook()
    one.opened.reconciling.step(one.opened.captures.of, (), now_s=0, now_ms=CREATED_MS + 1_000)  # the list
    away = machine.store.path.rename(machine.store.path.with_name("away.db"))
    look(one, 1e9)
    assert machine.jobs() == []
    assert not one.opened.reconciling.is_due(1e9 + AGAIN_S - 1)
    away.rename(machine.store.path)
    look(one, 1e9 + AGAIN_S)
    assert len(machine.jobs()) == 2


def test_a_ledger_that_cannot_be_written_is_tried_again(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook()
    one.opened.db.execute("pragma query_only = on")
    one.catch_up()
    with pytest.raises(sqlite3.OperationalError):
        one.catch_up()
    assert one.due_s() > 0
    one.opened.db.execute("pragma query_only = off")
    look(one, 1e9)
    assert machine.states() == [("ses_a", "pending")]


def held_without_bodies(machine: Machine, one: Hook) -> set[str]:
    """Their sessions, after all of them had to give their bodies up and were held for this hook."""
    Eviction(machine.store.path).make(one.opened.db, CREATED_MS + 1_000, 0)
    one.opened.db.execute("update job set hold_reason = 'other text'")
    return evicted(one)


def evicted(one: Hook) -> set[str]:
    found = eviction.evicted(one.opened.db, one.opened.target.id, tuple(one.opened.captures.by_folder()))
    return {wanted.session for wanted in found}


def test_what_is_held_without_bodies_is_filled_one_session_at_a_time_and_once(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    for name in "abc":
        machine.remember(talk(name, *asked_and_answered()))
    one = machine.hook()
    look(one, 0)
    assert held_without_bodies(machine, one) == {"ses_a", "ses_b", "ses_c"}
    one._cared_s = 0.0
    one.care()
    assert len(evicted(one)) == 3
    for left in (2, 1, 0):
        assert one.due_s() <= 0
        one.catch_up()
        assert len(evicted(one)) == left
    one.catch_up()
    assert one.due_s() > 0
    # Given up once more, in an outage: not filled and given up by turns.
    assert len(held_without_bodies(machine, one)) == 3
    one._cared_s = 0.0
    one.care()
    one.catch_up()
    assert one.due_s() > 0
    assert len(evicted(one)) == 3


def test_the_desk_takes_lines_that_wait_before_it_looks_into_the_store(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    for name in ("a", *"1234"):
        machine.remember(talk(name, *asked_and_answered()))
    lines = [notice(f"ses_{name}", "idle").as_bytes() for name in "1234"]
    reader, writer = os.pipe()
    os.write(writer, b"".join(line + b"\n" for line in lines))
    os.close(writer)
    pipe_reader = PipeReader(reader)
    wait_until(lambda: pipe_reader.ended)
    Daemon(pipe_reader, machine.sources).serve()
    os.close(reader)
    assert [session for session, _ in machine.states()] == ["ses_1", "ses_2", "ses_3", "ses_4", "ses_a"]


def test_a_hook_that_has_nothing_else_to_do_looks_into_the_store_at_once(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    for name in "abc":
        machine.remember(talk(name, *asked_and_answered()))
    reader, writer = os.pipe()
    os.write(writer, notice("ses_own").as_bytes() + b"\n")
    hook_daemon = Daemon(PipeReader(reader), machine.sources)
    serving = threading.Thread(target=hook_daemon.serve)
    serving.start()
    wait_until(lambda: len(machine.jobs()) == 3)
    os.close(writer)
    serving.join(20)
    os.close(reader)


# --- forks, and what no call names


def minted(kind: str, at_ms: int) -> str:
    return f"{kind}_{at_ms % 2**36:09x}001{'0' * 14}"


FORKED_MS = CREATED_MS + 5_000


def fork_of(told: tuple[Fields, Fields]) -> Fields:
    """What OpenCode makes of a session that is forked: copies with new ids and their old times."""
    asked, answered = json.loads(json.dumps(told))
    asked["info"]["id"] = answered["info"]["parentID"] = minted("msg", FORKED_MS + 10)
    answered["info"]["id"] = minted("msg", FORKED_MS + 11)
    time = {"created": FORKED_MS, "updated": FORKED_MS}
    return snapshot(entry(asked, answered, id="ses_fork", directory=HERE, time=time))


def test_a_fork_exports_what_its_origin_took_along_when_it_was_deleted(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    origin = talk("a", *asked_and_answered())
    machine.remember(origin)
    machine.remember(fork_of(asked_and_answered()))
    one = machine.hook()
    show(one, "ses_a")
    look(one, 0)
    assert {session for session, state in machine.states() if state == "pending"} == {"ses_a"}
    with closing(sqlite3.connect(machine.store.path)) as db, db:
        db.execute("delete from session where id = 'ses_a'")
    one.take(notice("ses_a", "deleted"))
    machine.end(one)
    assert {session for session, state in machine.states() if state == "pending"} == {"ses_fork"}


def test_a_subagent_that_no_call_names_gives_notice_of_its_own(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook("ses_a")
    machine.remember(talk("b", *asked_and_answered(CREATED_MS + 100), parent="ses_a"))
    show(one, "ses_b")
    assert machine.states() == [("ses_a", "pending"), ("ses_b", "pending")]
    machine.end(one)


def test_a_subagent_is_read_with_its_root_when_that_has_done(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    asked, answered = asked_and_answered()
    calls = {**answered, "parts": [task("ses_b", "prt_a", status="running")]}
    machine.remember(talk("b", *asked_and_answered(CREATED_MS + 30), parent="ses_a"))
    machine.remember(talk("a", asked, calls))
    one = machine.hook("ses_a")
    show(one, "ses_b")
    assert machine.jobs() == []
    assert [each.sessions for each in ledger_notices.unread(one.opened.db)] == [2]
    machine.remember(talk("a", asked, {**answered, "parts": [task("ses_b", "prt_a")]}))
    show(one, "ses_a")
    assert machine.states() == [("ses_a", "pending")]
    assert ledger_notices.unread(one.opened.db) == []
    assert one._notices.owned() == ["ses_a", "ses_b"]


def test_a_subagent_that_no_call_names_is_cut_off_with_its_opencode(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook("ses_a")
    machine.remember(talk("b", *cut_off(), parent="ses_a"))
    show(one, "ses_b", "busy")
    machine.end(one)
    assert ("ses_b", "pending") in machine.states()


def test_a_turn_waits_for_its_background_subagent_when_the_person_goes_on(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    asked = user("msg_1", CREATED_MS + 10, text("look around"))
    called = assistant("msg_2", CREATED_MS + 20, task("ses_b"))
    root = talk("a", asked, called, *followed_up(CREATED_MS + 1_000))
    child = talk("b", *cut_off(), parent="ses_a")
    machine.remember(root)
    machine.remember(child)
    one = machine.hook()
    show(one, "ses_a")
    assert turns_of(machine) == {"session", "msg_a_3"}
    machine.remember(talk("b", *asked_and_answered(), parent="ses_a"))
    show(one, "ses_b")
    assert turns_of(machine) == {"session", "msg_a_1", "msg_a_3"}
    machine.end(one)


def test_a_background_subagent_is_cut_off_with_its_opencode(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    called = assistant("msg_2", CREATED_MS + 20, task("ses_b"))
    root = talk("a", user("msg_1", CREATED_MS + 10), called, *followed_up(CREATED_MS + 1_000))
    machine.remember(root)
    machine.remember(talk("b", *cut_off(), parent="ses_a"))
    one = machine.hook("ses_a")
    machine.end(one)
    assert turns_of(machine) == {"session", "msg_a_1", "msg_a_3"}


def turns_of(machine: Machine) -> set[str]:
    with closing(open_ledger(machine.home / "spool")) as db:
        return {row["name"] for row in db.execute("select t.name from turn t join job j on j.turn_id = t.id")}


def deleted_meanwhile(machine: Machine, patch: pytest.MonkeyPatch, session: str, left: Fields | None) -> None:
    """Of the session only this is left when it is read, after it was looked through."""
    read = Store.transcript

    def transcript(store: Store, root: str, turns: Collection[str] | None = None) -> Transcript | None:
        if root == session:
            machine.forget(session) if left is None else machine.remember(left)
        return read(store, root, turns)

    patch.setattr(Store, "transcript", transcript)


def incidents_of(one: Hook) -> dict[str, int]:
    return {what: count for what, count, _ in incidents.incidents(one.opened.db)}


def test_a_turn_that_is_deleted_before_it_is_read_is_counted_as_gone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.capture_since(CREATED_MS)
    first = asked_and_answered()
    machine.remember(talk("a", *first, *followed_up(CREATED_MS + 300)))
    one = machine.hook()
    deleted_meanwhile(machine, monkeypatch, "ses_a", talk("a", *first))
    before = incidents_of(one)
    show(one, "ses_a")
    assert turns_of(machine) == {"session", "msg_a_1"}
    assert unread(one) == [(None, 1)]  # its own
    assert incidents_of(one) == before | {GONE_TURNS: 1}
    show(one, "ses_a")
    assert incidents_of(one) == before | {GONE_TURNS: 1}


@pytest.mark.parametrize("by_notice", [True, False], ids=["notice", "owed"])
def test_a_session_that_is_deleted_before_it_is_read_is_counted_as_gone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, *, by_notice: bool
) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook()
    deleted_meanwhile(machine, monkeypatch, "ses_a", None)
    before = incidents_of(one).get(GONE, 0)
    if by_notice:
        show(one, "ses_a")
    else:
        one.opened.owed.note("ses_a", HERE, CREATED_MS)
        one.opened.reconciling.begin(HERE, folder(one.opened.db, HERE))
        for at_s in (0.0, AGAIN_S):
            look(one, at_s)
    assert machine.jobs() == []
    assert unread(one) == [(None, 1)]
    assert incidents_of(one)[GONE] == before + 1


def test_an_unreadable_message_is_told_once_however_often_it_is_seen(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    odd = talk("a", *asked_and_answered(), *followed_up(CREATED_MS + 1_000))
    odd["sessions"][0]["messages"][2]["info"]["role"] = "oddity"
    machine.remember(odd)
    one = machine.hook()
    show(one, "ses_a")
    show(one, "ses_a")
    show(one, "ses_a", "reverted")
    machine.end(one)
    assert turns_of(machine) == {"session", "msg_a_1"}
    told = (machine.home / "spool" / "logs" / "hook.log").read_text()
    assert told.count("odd in ses_a: sessions[0].messages[2].info.role: neither user nor assistant") == 1
    with closing(open_ledger(machine.home / "spool")) as db:
        incidents = {what: count for what, count, _ in ledger_incidents.incidents(db)}
    assert incidents["turns that could not be read of session ses_a"] == 1
    assert incidents[GONE] == 2  # the own sessions of its two hooks, which nobody has written


def test_a_session_that_is_not_there_costs_the_others_nothing(machine: Machine) -> None:
    for name in ("a", "b", "c"):
        machine.remember(talk(name, *asked_and_answered()))
    one = machine.hook()
    for session, why in (("ses_gone", "idle"), ("ses_a", "idle"), ("ses_b", "idle"), ("ses_c", "busy")):
        one.take(notice(session, why))
    look_for(one)
    assert {session for session, _ in machine.states()} == {"ses_a", "ses_b", "ses_c"}
    assert {what: count for what, count, _ in incidents.incidents(one.opened.db)} == {GONE: 1}
    assert one._notices.owned() == ["ses_a", "ses_b", "ses_c", "ses_own"]


def versions_of(machine: Machine, turn: str) -> int:
    with closing(open_ledger(machine.home / "spool")) as db:
        row = db.execute("select count(*) from job j join turn t on t.id = j.turn_id where t.name = ?", [turn])
        return int(row.fetchone()[0])


def test_a_subagent_that_is_resumed_in_a_later_turn_is_read_with_the_turn_that_it_belongs_to(machine: Machine) -> None:
    asked, answered = asked_and_answered()
    first = asked, {**answered, "parts": [task("ses_b", "prt_a")]}
    machine.remember(talk("b", *asked_and_answered(CREATED_MS + 12), parent="ses_a"))
    machine.remember(talk("a", *first))
    one = machine.hook("ses_a")
    show(one, "ses_a")
    machine.remember(talk("a", *first, *followed_up(CREATED_MS + 300)))
    show(one, "ses_a")
    assert versions_of(machine, "msg_a_1") == 1
    for session in ("ses_a", "ses_b"):
        show(one, session, "busy")
    told = (*asked_and_answered(CREATED_MS + 12), *followed_up(CREATED_MS + 510))
    machine.remember(talk("b", *told, parent="ses_a"))
    resumed = user("msg_5", CREATED_MS + 500), assistant("msg_6", CREATED_MS + 505, task("ses_b"), parent="msg_5")
    machine.remember(talk("a", *first, *followed_up(CREATED_MS + 300), *resumed))
    show(one, "ses_b")
    show(one, "ses_a")
    assert versions_of(machine, "msg_a_1") == 2
    assert ledger_notices.unread(one.opened.db) == []


def test_what_is_late_in_a_subagent_of_an_old_turn_is_read_when_its_root_has_done(machine: Machine) -> None:
    asked, answered = asked_and_answered()
    first = asked, {**answered, "parts": [task("ses_b", "prt_a")]}
    machine.remember(talk("b", *asked_and_answered(CREATED_MS + 12), parent="ses_a"))
    machine.remember(talk("a", *first, user("msg_3", CREATED_MS + 300)))
    one = machine.hook("ses_a")
    show(one, "ses_b", "late")
    assert versions_of(machine, "msg_a_1") == 1
    show(one, "ses_a", "busy")
    asked, answered = asked_and_answered(CREATED_MS + 12)
    late = {**answered, "parts": [text("late", "prt_a")]}
    machine.remember(talk("b", asked, late, parent="ses_a"), written_ms=CREATED_MS + 305)
    show(one, "ses_b", "late")
    machine.remember(talk("a", *first, *followed_up(CREATED_MS + 300)))
    show(one, "ses_a")
    assert versions_of(machine, "msg_a_1") == 2
    assert ledger_notices.unread(one.opened.db) == []


def test_a_long_session_is_outlined_once_before_and_once_after_it_is_read(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    outlined = []
    ask = Store.outline

    def outline(store: Store, root: str, **asked: Any) -> Any:
        outlined.append(root)
        return ask(store, root, **asked)

    monkeypatch.setattr(Store, "outline", outline)
    told = list[Fields]()
    for number in range(0, 300, 2):
        told.append(user(f"msg_{number:03}", CREATED_MS + number, text("why?", f"prt_{number}")))
        answer = text("so!", f"prt_{number + 1}")
        told.append(assistant(f"msg_{number + 1:03}", CREATED_MS + number + 1, answer, parent=f"msg_{number:03}"))
    machine.remember(talk("a", *told))
    one = machine.hook()
    outlined.clear()
    one.take(notice("ses_a", "idle"))
    noticed = one._notices.next(0)
    assert noticed is not None
    one.opened.notice_processor.look(noticed, 0, CREATED_MS + 1_000)
    assert 0 < len(turns_of(machine)) < 100
    told[1]["parts"][0]["text"] = "changed meanwhile"
    machine.remember(talk("a", *told), written_ms=CREATED_MS + 900)
    one.take(notice("ses_a", "late"))
    look_for(one)
    assert len(turns_of(machine)) == 1 + 150
    assert versions_of(machine, "msg_a_000") == 2
    assert outlined == ["ses_a"] * 2
    assert ledger_notices.unread(one.opened.db) == [
        Unread(None, 1, ledger_notices.unread(one.opened.db)[0].oldest_ms)
    ]  # its own session


def long_one(name: str) -> Fields:
    told = list[Fields]()
    for number in range(100, 400, 2):
        told.append(user(f"msg_{number}", CREATED_MS + number, text("why?", f"prt_{number}")))
        answer = text("so!", f"prt_{number + 1}")
        told.append(assistant(f"msg_{number + 1}", CREATED_MS + number + 1, answer, parent=f"msg_{number}"))
    return talk(name, *told)


LARGE = 1 << 15


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large, and a step in it, is so much smaller that no test takes long."""
    monkeypatch.setattr("app.capture.redact_ahead.LARGE_CHARACTERS_MIN", LARGE)
    monkeypatch.setattr("app.capture.redact_ahead.STEP_COST", 2 * LARGE)


def large_one(name: str, said: str = "words ") -> Fields:
    asked, answered = asked_and_answered()
    answered["parts"][0]["text"] = said * (LARGE // len(said) + 1)
    return talk(name, asked, answered)


def look_once(one: Hook, now_s: float) -> str:
    """At the session that was looked at."""
    noticed = one._notices.next(now_s)
    assert noticed is not None
    one.opened.notice_processor.look(noticed, now_s, CREATED_MS + 1_000)
    return noticed.session


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(("make", "turns"), [(long_one, 150), (large_one, 1)])
def test_others_are_read_between_the_looks_at_a_session(
    machine: Machine, make: Callable[[str], Fields], turns: int
) -> None:
    machine.remember(make("a"))
    machine.remember(talk("b", *asked_and_answered()))
    one = machine.hook()
    one.take(notice("ses_a", "idle"))
    assert look_once(one, 0.1) == "ses_a"
    one.take(notice("ses_b", "idle"))
    assert look_once(one, 0.2) == "ses_b"
    assert machine.states().count(("ses_b", "pending")) == 1
    assert machine.states().count(("ses_a", "pending")) < turns
    look_for(one)
    assert machine.states().count(("ses_a", "pending")) == turns
    assert one._notices.acknowledged() is None


@pytest.mark.usefixtures("large")
def test_of_two_large_sessions_one_is_held_and_both_are_taken(machine: Machine) -> None:
    for name in ("a", "b"):
        machine.remember(large_one(name))
    one = machine.hook()
    for name in ("a", "b"):
        one.take(notice(f"ses_{name}", "idle"))
    looks = list[str]()
    while (due_s := one._notices.due_s()) is not None:
        looks.append(look_once(one, max(due_s, (len(looks) + 1) / 10)))
        assert len(looks) < 10
    assert machine.states() == [("ses_b", "pending"), ("ses_a", "pending")]
    assert one.opened.reader._being_redacted is None


@pytest.mark.usefixtures("large")
def test_a_large_session_that_is_deleted_once_it_is_read_is_not_exported(machine: Machine) -> None:
    machine.remember(large_one("a"))
    one = machine.hook()
    one.take(notice("ses_a", "idle"))
    look_once(one, 0.1)
    reader = one.opened.reader
    held = [reader._being_redacted is not None]
    one.take(notice("ses_a", "deleted"))
    held.append(reader._being_redacted is not None)
    assert held == [True, False]
    look_for(one)
    assert machine.jobs() == []


@pytest.mark.usefixtures("large")
def test_a_large_session_that_changes_once_it_is_read_is_taken_as_it_is_then(machine: Machine) -> None:
    machine.remember(large_one("a"))
    one = machine.hook()
    one.take(notice("ses_a", "idle"))
    look_once(one, 0.1)
    machine.remember(large_one("a", "other words "), written_ms=CREATED_MS + 900)
    look_for(one)
    assert machine.states() == [("ses_a", "superseded"), ("ses_a", "pending")]
    assert machine.jobs()[-1][2] == stored_key(one, "ses_a")[0]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("mode", ["full", "metadata_only"])
def test_a_large_turn_becomes_the_same_records_as_one_that_is_taken_at_once(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    (tmp_path / "other").mkdir()
    other, made = Machine(tmp_path / "other"), []
    word = noise("some", "abcdefgh23456789", 20)
    said = f"words, password = {word}, \\u0070assword: {word}\n"
    for one in (machine, other):
        configure(one.home / "config", exportMode=mode)
        one.remember(large_one("a", said))
        taking = one.hook()
        taking.take(notice("ses_a", "idle"))
        assert look_once(taking, 0.1) == "ses_a"
        assert (taking.opened.reader._being_redacted is None) == (one is other)
        look_for(taking)
        with closing(open_ledger(one.home / "spool")) as db:
            asked = "select request_id, digest, key from record r join job j on j.id = job_id order by j.id, position"
            made.append([tuple(row) for row in db.execute(asked)])
        monkeypatch.setattr("app.capture.redact_ahead.LARGE_CHARACTERS_MIN", 1 << 40)
        one.end(taking)
    assert made[0] == made[1]
    assert len(made[0]) == 3


@pytest.mark.usefixtures("large")
def test_a_large_turn_is_taken_under_the_settings_of_when_it_is_taken(machine: Machine) -> None:
    machine.remember(large_one("a"))
    one = machine.hook()
    one.take(notice("ses_a", "idle"))
    look_once(one, 0.1)
    configure(machine.home / "config", redactPatterns=["words"])
    one.opened.captures.refresh()
    look_for(one)
    ((_, _, stored),) = machine.jobs()
    assert stored == stored_key(one, "ses_a")[0]
    with closing(open_ledger(machine.home / "spool")) as db:
        bodies = [row["bodies"] for row in db.execute("select bodies from bundle order by length(bodies)")]
    assert b"[REDACTED]" in lzma.decompress(bodies[-1])
    assert b"words" not in lzma.decompress(bodies[-1])


def unread(one: Hook) -> list[tuple[str | None, int]]:
    return [(each.reason, each.sessions) for each in ledger_notices.unread(one.opened.db)]


@pytest.mark.parametrize("has_looked", [True, False])
def test_what_a_dead_hook_owed_waits_visibly_until_the_store_can_be_read(machine: Machine, *, has_looked: bool) -> None:
    machine.capture_since(CREATED_MS)
    for name in ("a", "b"):
        machine.remember(talk(name, *asked_and_answered()))
    dead = machine.hook("ses_a")
    dead.take(notice("ses_b", "idle"))
    away = machine.store.path.rename(machine.store.path.with_name("away.db"))
    if has_looked:
        look_for(dead)
    machine.leave(dead)
    one = machine.hook()
    look(one, 0)
    assert unread(one) == [("OpenCode's store is not there", 2)]
    assert not one.opened.reconciling.is_due(AGAIN_S - 1)
    away.rename(machine.store.path)
    look(one, AGAIN_S)
    assert {session for session, _ in machine.states()} == {"ses_a", "ses_b"}
    assert unread(one) == [("OpenCode's store is not there", 1)]  # its own, which it has not looked at again


def test_a_session_that_could_not_be_compared_is_tried_again_after_the_others(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    for name in ("a", "b"):
        machine.remember(talk(name, *asked_and_answered()))
    dead = machine.hook()
    dead.take(notice("ses_a", "idle"))
    machine.leave(dead)
    one = machine.hook()
    one.opened.reconciling.step(one.opened.captures.of, {"ses_own"}, now_s=0, now_ms=CREATED_MS + 1_000)  # the list
    away = machine.store.path.rename(machine.store.path.with_name("away.db"))
    look(one, 0)
    assert ("OpenCode's store is not there", 1) in unread(one)
    away.rename(machine.store.path)
    look(one, AGAIN_S)
    assert machine.states() == [("ses_b", "pending"), ("ses_a", "pending")]
    assert unread(one) == [(None, 1)]


def test_a_json_file_that_is_being_written_holds_up_nothing_else_that_a_dead_hook_owed(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    above = talk("p", user("msg_1", CREATED_MS + 10), assistant("msg_2", CREATED_MS + 20, task("ses_c")))
    below = talk("c", *asked_and_answered(CREATED_MS + 15), parent="ses_p")
    json_store.put(machine.store.path.parent, talk("a", *asked_and_answered()), above, below)
    part = machine.store.path.parent / "storage" / "part" / "msg_p_2" / "prt_p_task.json"
    whole = part.read_bytes()
    part.write_bytes(b"")
    one = machine.hook()
    now_ms = clock.now_ms()
    for name in ("ses_a", "ses_c"):
        one.opened.owed.note(name, HERE, now_ms)
    one.opened.reconciling.begin(HERE, folder(one.opened.db, HERE))
    for at_s in (0.0, 2 * AGAIN_S, 3 * AGAIN_S):
        look(one, at_s, now_ms)
    assert machine.states() == [("ses_a", "pending")]
    assert [(each.reason, each.sessions) for each in ledger_notices.unread(one.opened.db) if each.reason] == [
        ("OpenCode's store cannot be read", 1)
    ]
    part.write_bytes(whole)
    for at_s in (5 * AGAIN_S, 7 * AGAIN_S, 9 * AGAIN_S):
        look(one, at_s, now_ms)
    assert {session for session, _ in machine.states()} == {"ses_a", "ses_p"}
    assert unread(one) == [(None, 1)]  # its own


def test_what_a_dead_hook_owed_of_a_subagent_is_settled_with_its_root_that_is_open_again(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    called = assistant("msg_2", CREATED_MS + 20, task("ses_b"), finish=None, time={"created": CREATED_MS + 20})
    machine.remember(talk("a", user("msg_1", CREATED_MS + 10), called))
    machine.remember(talk("b", *asked_and_answered(), parent="ses_a"))
    dead = machine.hook("ses_a")
    show(dead, "ses_b", "busy")
    machine.leave(dead)
    one = machine.hook("ses_a")
    look(one, 0)
    assert unread(one) == [(None, 2)]
    assert one._notices.owned() == ["ses_a", "ses_b"]
    machine.remember(talk("a", user("msg_1", CREATED_MS + 10), assistant("msg_2", CREATED_MS + 20, task("ses_b"))))
    show(one, "ses_a")
    assert turns_of(machine) == {"session", "msg_a_1"}
    assert unread(one) == []


def test_a_session_that_is_about_to_be_written_for_the_first_time_is_not_gone(machine: Machine) -> None:
    machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook("ses_new")
    look(one, 0)
    assert unread(one) == [(None, 1)]
    assert incidents.incidents(one.opened.db) == []


def test_who_waits_for_hooks_waits_for_the_last_looks_of_one_that_ends(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = machine.remember(talk("a", *cut_off()))
    one = machine.hook(session)
    seen = []
    look_at = NoticeProcessor.look

    def look(*asked: Any) -> None:
        seen.append([(hook.sessions, hook.backlog) for hook in read_hooks(one.spool)])
        look_at(*asked)

    monkeypatch.setattr(NoticeProcessor, "look", look)
    one.finish()
    assert seen == [[(0, 1)]]


def test_who_ends_last_settles_what_another_left_to_it(machine: Machine) -> None:
    session = machine.remember(talk("a", *cut_off()))
    one, another = machine.hook(session), machine.hook(session)
    look(one, 0)
    machine.end(another)
    machine.end(one)
    assert machine.states() == [(session, "pending")]
    assert unread(machine.hook("ses_later")) == [(None, 1)]


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_is_owed_when_the_spool_is_removed_is_read_into_the_new_one(machine: Machine, *, goes_on: bool) -> None:
    session = machine.remember(talk("a", *cut_off()))
    one = machine.hook(session)
    show(one, session)
    shutil.rmtree(machine.home / "spool")
    if goes_on:
        machine.remember(talk("a", *asked_and_answered()))
        one.catch_up()
        look_for(one)
        assert unread(one) == []
        assert machine.states() == [(session, "pending")]
    machine.end(one)
    assert machine.states() == [(session, "pending")]


def test_jobs_that_were_lost_with_a_spool_are_counted_also_where_a_write_finds_it_gone(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    session = machine.remember(talk("a", *asked_and_answered()))
    one = machine.hook(session)
    show(one, session)
    look_for(one)
    assert machine.states() == [(session, "pending")]
    shutil.rmtree(machine.home / "spool")
    with pytest.raises(Replaced) as found:
        one.opened.introduce()
    one.recover_after(found.value)
    with closing(open_ledger(machine.home / "spool")) as db:
        told = [(what, count) for what, count, _ in incidents.incidents(db)]
    lost = sum(count for what, count in told if what == "jobs lost with a spool that was removed")
    assert lost > 0, told
    machine.end(one)


def test_what_was_said_in_another_folder_than_the_sessions_own_is_settled_with_it(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *asked_and_answered()))
    dead = machine.hook(directory="/elsewhere")
    dead.take(notice("ses_a", "idle", "/elsewhere"))
    machine.leave(dead)
    one = machine.hook()
    look(one, 0)
    assert machine.states() == [("ses_a", "pending")]
    assert unread(one) == [(None, 1)]


def test_what_was_owed_for_long_is_looked_for_and_not_forgotten(machine: Machine) -> None:
    machine.capture_since(CREATED_MS)
    machine.remember(talk("a", *asked_and_answered()))
    dead = machine.hook()
    dead.take(notice("ses_a", "idle"))
    machine.leave(dead)
    one = machine.hook()
    one.opened.db.execute("update notice set noticed_ms = noticed_ms - ? where session = 'ses_a'", [2 * OWED_MS_MAX])
    before = incidents.incidents(one.opened.db)
    look(one, 0, clock.now_ms())
    assert machine.states() == [("ses_a", "pending")]
    assert incidents.incidents(one.opened.db) == before


def test_a_store_that_cannot_be_read_when_opencode_has_ended_is_tried_a_few_times(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine.hook()
    for number in range(10):
        one.take(notice(f"ses_{number}", "idle"))
    tried = []

    def root_of(_: Store, session: str) -> str:
        tried.append(session)
        raise StoreError("it is locked")

    monkeypatch.setattr(Store, "root_of", root_of)
    machine.end(one)
    assert len(tried) == FAILURES_MAX
    assert sum(count for _, count in unread(machine.hook())) == 11


# --- when a session is looked at next


@pytest.mark.parametrize(
    ("before", "is_owned", "expected"),
    [
        (NextLook(0), True, NextLook(10 + AGAIN_S)),
        (NextLook(0), False, NextLook(10 + SETTLE_S, 10)),
        (NextLook(0, 4), False, NextLook(10 + AGAIN_S, 4)),
        (NextLook(0, 4), True, NextLook(10 + AGAIN_S)),
    ],
    ids=["somebody has it open", "nobody has, for the first time", "nobody has, still", "somebody has come back"],
)
def test_when_a_session_is_looked_at_next(before: NextLook, *, is_owned: bool, expected: NextLook) -> None:
    assert next_look(before, is_owned=is_owned, now_s=10) == expected


def test_a_session_without_an_owner_is_settled_after_a_while() -> None:
    look = next_look(NextLook(0), is_owned=False, now_s=10)
    assert [look.is_settled(now_s) for now_s in (10, 10 + SETTLE_S - 0.1, 10 + SETTLE_S)] == [False, False, True]
    assert not next_look(look, is_owned=True, now_s=99).is_settled(99 + SETTLE_S)
