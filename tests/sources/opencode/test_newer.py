"""Stores of OpenCode 2, fresh and migrated, as its public description has them: OpenCode 2 itself was not tried."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from app.sources.opencode.access import StoreError
from app.sources.opencode.export_files import File, examine, families, snapshot
from app.sources.opencode.store import Store
from app.transcript.model import (
    Assistant,
    Other,
    Reasoning,
    Text,
    Tokens,
    Tool,
    Transcript,
    TranscriptError,
    Turn,
    User,
)
from app.transcript.parse import parse
from tests.sources.opencode.test_turns import ODD, told
from tests.support import snapshots
from tests.support.newer_store import BEGAN_MS, DIRECTORY, NewerStore, reasoning, text, tool
from tests.support.recorded import export, exported
from tests.support.snapshots import Fields

SESSION, CHILD = "ses_newer", "ses_child"


@pytest.fixture
def newer(tmp_path: Path) -> NewerStore:
    """A fresh one with a session that has no messages."""
    made = NewerStore(tmp_path / "opencode.db")
    made.session(SESSION, title="a title")
    return made


def read(store: NewerStore, session: str = SESSION) -> Transcript:
    found = Store(store.path).transcript(session)
    assert found is not None
    return found


def turns(store: NewerStore, session: str = SESSION) -> tuple[Turn, ...]:
    return read(store, session).turns


def imported(store: NewerStore, *sessions: str) -> Transcript:
    """What is made of the files of `opencode session export`."""
    files = [File(name, json.dumps(store.export(name)).encode()) for name in sessions]
    (family,) = families([examine(file) for file in files])
    return parse(snapshot(family))


def keys(found: tuple[Turn, ...]) -> dict[str, str]:
    return {turn.id: turn.digest for turn in found}


# --- what is made of its rows


def test_a_question_and_its_answers_are_a_turn(newer: NewerStore) -> None:
    picture = {"data": "iVBORw0KGgo=", "mime": "image/png", "source": {"type": "inline"}, "name": "shot.png"}
    asked = newer.user(SESSION, "run the tests", files=[picture], agents=[{"name": "general"}])
    failing = tool("read", output=None, status="error", error={"type": "tool.execution", "message": "no such file"})
    ran = tool("shell", output="1 failed", metadata={"exit": 3, "truncated": True})
    called = newer.assistant(SESSION, reasoning("hm"), ran, failing, finish="tool-calls")
    said = newer.assistant(SESSION, text("One test fails."))
    newer.idle(SESSION)
    (turn,) = turns(newer)
    assert (turn.id, turn.final, turn.faults) == (asked, True, ())
    user, first, last = turn.messages
    assert isinstance(user, User)
    assert (user.index, user.agent) == (0, "build")
    assert [type(part).__name__ for part in user.parts] == ["Text", "File", "Other"]
    assert isinstance(first, Assistant)
    assert (first.id, first.finish, first.parent_id, first.mode) == (called, "tool-calls", asked, "build")
    assert (first.provider_id, first.model_id, first.cost_usd) == ("fake", "fake-large", 0.5)
    assert first.tokens == Tokens(1000, 34, 6, 200, 0)
    thought, shell, missing = first.parts
    assert isinstance(thought, Reasoning)
    assert (thought.start_ms, thought.end_ms) == (BEGAN_MS, BEGAN_MS + 5)
    assert isinstance(shell, Tool)
    assert (shell.name, shell.status, shell.output) == ("shell", "completed", "1 failed")
    assert (shell.exit_code, shell.truncated, shell.call_id) == (3, True, "call/1")
    assert (shell.start_ms, shell.end_ms) == (BEGAN_MS + 2, BEGAN_MS + 9)
    assert isinstance(missing, Tool)
    assert (missing.status, missing.error) == ("error", "no such file")
    assert isinstance(last, Assistant)
    assert (last.id, last.index) == (said, 2)
    held = json.loads(newer.db.execute("select data from session_message where id = ?", (said,)).fetchone()[0])
    assert last.completed_ms == held["time"]["streamed"]


def test_parts_stand_in_the_order_of_their_content(newer: NewerStore) -> None:
    newer.user(SESSION, "count")
    newer.assistant(SESSION, *(text(str(number)) for number in range(12)))
    (turn,) = turns(newer)
    assert [part.text for part in turn.messages[1].parts if isinstance(part, Text)] == list(map(str, range(12)))


def test_a_failure_is_told_without_what_the_provider_sent(newer: NewerStore) -> None:
    newer.user(SESSION, "hello")
    error = {"type": "provider.auth", "message": "wrong key", "status": 401, "response": {"body": "CANARY"}}
    newer.assistant(SESSION, finish="error", error=error)
    newer.idle(SESSION, "failed")
    (turn,) = turns(newer)
    failed = turn.messages[1]
    assert isinstance(failed, Assistant)
    assert failed.failure is not None
    assert (failed.failure.name, failed.failure.message, failed.failure.status) == ("provider.auth", "wrong key", 401)
    assert turn.final
    assert "CANARY" not in repr(turn)


@pytest.mark.parametrize("is_running", [False, True], ids=["by itself", "while it answers"])
def test_a_shell_command_and_a_compaction_belong_to_what_runs_or_to_themselves(
    newer: NewerStore, *, is_running: bool
) -> None:
    asked = newer.user(SESSION, "hello")
    newer.assistant(SESSION, text("hello"))
    if not is_running:
        newer.idle(SESSION)
    (before,) = turns(newer)
    output = {"output": "clean", "cursor": 5, "size": 5, "truncated": False}
    ended = {"status": "exited", "exit": 0, "output": output, "time": {"completed": newer.now_ms + 30}}
    shell = newer.row(SESSION, "shell", shellID="shl_1", command="git status", **ended)
    folded = newer.row(
        SESSION, "compaction", status="completed", summary="we said hello", recent="CANARY", reason="auto"
    )
    found = {message.id: turn.id for turn in turns(newer) for message in turn.messages}
    assert (found[shell], found[folded]) == ((asked, asked) if is_running else (shell, folded))
    by_id = {message.id: message for turn in turns(newer) for message in turn.messages}
    summary, command = by_id[folded], by_id[shell]
    assert isinstance(summary, Assistant)
    assert summary.summary
    (said,) = summary.parts
    assert isinstance(said, Text)
    assert said.text == "we said hello"
    (ran,) = command.parts
    assert isinstance(ran, Tool)
    assert (ran.name, ran.input, ran.output, ran.exit_code) == ("shell", {"command": "git status"}, "clean", 0)
    assert all(turn.final for turn in turns(newer)) is not is_running
    assert (before in turns(newer)) is not is_running
    assert "CANARY" not in repr(turns(newer))


def test_a_synthetic_text_belongs_to_what_runs_or_begins_a_turn(newer: NewerStore) -> None:
    asked = newer.user(SESSION, "hello")
    newer.row(SESSION, "synthetic", text="the server restarted")
    newer.assistant(SESSION, text("hello"))
    newer.idle(SESSION)
    woken = newer.row(SESSION, "synthetic", text="the subagent is done")
    newer.assistant(SESSION, text("thanks"))
    newer.idle(SESSION)
    first, second = turns(newer)
    assert (first.id, second.id) == (asked, woken)
    assert [(part.text, part.synthetic) for part in first.messages[0].parts if isinstance(part, Text)] == [
        ("hello", False),
        ("the server restarted", True),
    ]
    assert len(second.messages) == 2


def test_rows_that_say_nothing_leave_nothing_and_those_of_an_unknown_kind_their_kind(newer: NewerStore) -> None:
    asked = newer.user(SESSION, "hello")
    for kind in ("system", "skill", "agent-switched", "model-switched", "location-switched"):
        newer.row(SESSION, kind, text="CANARY", name="CANARY")
    (before,) = turns(newer)
    newer.row(SESSION, "hologram", text="CANARY")
    newer.assistant(SESSION, {"type": "smell", "text": "CANARY"})
    (turn,) = turns(newer)
    assert [type(part).__name__ for part in before.messages[0].parts] == ["Text"]
    assert [part.type for message in turn.messages for part in message.parts if isinstance(part, Other)] == [
        "hologram",
        "smell",
    ]
    assert (turn.id, turn.faults, "CANARY" in repr(turn)) == (asked, (), False)


CHANGES: dict[str, Any] = {
    "seq": "update session_message set seq = seq + 100",
    "when it was written": "update session_message set time_updated = time_updated + 1",
    "native": {"native": {"id": 1}},
    "snapshot": {"snapshot": {"start": "0" * 40}},
    "rawFinish": {"rawFinish": "done"},
    "when it was seen": "update session_v2 set time_idle = 1, cost = 9, time_suspended = null",
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_of_a_turn_has_nothing_to_do_with(newer: NewerStore, change: str) -> None:
    newer.user(SESSION, "hello")
    said = newer.assistant(SESSION, text("hello"))
    newer.idle(SESSION)
    before = keys(turns(newer))
    what = CHANGES[change]
    if isinstance(what, str):
        newer.db.execute(what)
    else:
        newer.change(said, **what)
    assert keys(turns(newer)) == before


def test_a_turn_is_final_when_opencode_lets_go_of_it(newer: NewerStore) -> None:
    newer.user(SESSION, "hello")
    assert not turns(newer)[-1].final
    said = newer.assistant(SESSION, finish=None)
    assert not turns(newer)[-1].final
    newer.change(said, finish="tool-calls", time={"created": BEGAN_MS, "completed": BEGAN_MS + 5})
    newer.db.execute("update session_v2 set time_suspended = null")
    assert not turns(newer)[-1].final
    newer.assistant(SESSION, text("hello"))
    assert turns(newer)[-1].final
    newer.db.execute("update session_v2 set time_suspended = 1")
    assert not turns(newer)[-1].final
    outline = Store(newer.path).outline(SESSION)
    newer.idle(SESSION)
    assert turns(newer)[-1].final
    assert outline != Store(newer.path).outline(SESSION)


def test_what_another_question_followed_is_over(newer: NewerStore) -> None:
    first = newer.user(SESSION, "hello")
    newer.assistant(SESSION, text("hello"), finish="tool-calls")
    newer.user(SESSION, "and?")
    assert {turn.id: turn.final for turn in turns(newer)}[first]


# --- sessions


def with_subagent(newer: NewerStore) -> str:
    asked = newer.user(SESSION, "look around")
    newer.session(CHILD, parent_id=SESSION, title="Look around")
    newer.turn(CHILD, "list the files", "README only.")
    newer.assistant(SESSION, tool("subagent", output="README only.", metadata={"sessionID": CHILD}))
    newer.idle(SESSION)
    return asked


def test_a_subagent_is_shown_under_its_call(newer: NewerStore) -> None:
    asked = with_subagent(newer)
    other = newer.turn(SESSION, "and?", "nothing")
    store = Store(newer.path)
    assert [root.id for root in store.roots()] == [SESSION]
    assert (store.root_of(CHILD), store.root_of(SESSION)) == (SESSION, SESSION)
    first, second = turns(newer)
    assert (first.id, second.id) == (asked, other)
    (call,) = (part for message in first.messages for part in message.parts if isinstance(part, Tool))
    assert call.child is not None
    assert (call.child.session.id, len(call.child.turns)) == (CHILD, 1)
    before = store.outline(SESSION)
    newer.turn(CHILD, "once more", "still README only.")
    after = store.outline(SESSION)
    assert before is not None
    assert after is not None
    assert [one.turn for one in after.turns if one not in before.turns] == [asked]
    assert store.changed_ms(SESSION) == newer.now_ms
    assert store.changes(DIRECTORY)[SESSION] == newer.now_ms


def test_a_staged_revert_marks_what_it_takes_back_and_a_committed_one_takes_it_away(newer: NewerStore) -> None:
    first, second = newer.turn(SESSION, "one", "1"), newer.turn(SESSION, "two", "2")
    newer.db.execute("update session_v2 set revert = ?", (json.dumps({"messageID": second}),))
    assert [(turn.id, turn.is_undone) for turn in turns(newer)] == [(first, False), (second, True)]
    newer.revert(SESSION, second)
    newer.db.execute("update session_v2 set revert = null")
    assert [turn.id for turn in turns(newer)] == [first]
    assert not Store(newer.path).holds(SESSION, second)


COLUMNS = {
    "session_v2": ("id", "parent_id", "directory", "title", "version", "agent", "revert", "time_created"),
    "session_message": ("id", "session_id", "type", "time_created", "time_updated", "data"),
    "kv": ("value", "time_updated"),
}


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("table", COLUMNS)
def test_an_odd_row_is_no_error_and_costs_no_other_turn(newer: NewerStore, table: str, value: str) -> None:
    asked = newer.user(SESSION, "first")
    newer.assistant(SESSION, text("said"))
    newer.user(SESSION, "second")
    last = newer.assistant(SESSION, text("said"))
    whole = turns(newer)
    for column in COLUMNS[table]:
        store = Store(newer.path)
        with closing(sqlite3.connect(newer.path, isolation_level=None)) as db:
            db.execute(f"create table kept as select * from {table}")  # noqa: S608
            with suppress(sqlite3.IntegrityError):
                where = f"id = '{last}'" if table == "session_message" else "true"
                db.execute(f"update {table} set {column} = {value} where {where}")  # noqa: S608
        names = [root.id for root in store.roots()] if table == "session_v2" else [SESSION]
        for name in names:
            with suppress(TranscriptError):
                found, outline = store.transcript(name), store.outline(name)
                assert table == "session_v2" or (found and whole[0].digest in keys(found.turns).values())
                store.turn(name, asked)
                assert outline is None or store.transcript(name, {one.turn for one in outline.turns}) is not None
                assert store.changed_ms(name) is not None or found is None
        with closing(sqlite3.connect(newer.path)) as db, db:
            db.executescript(f"delete from {table}; insert into {table} select * from kept; drop table kept")  # noqa: S608


def test_what_a_fork_has_copied_is_a_copy(newer: NewerStore) -> None:
    newer.turn(SESSION, "one", "1")
    rows = newer.db.execute("select * from session_message where session_id = ? order by seq", (SESSION,)).fetchall()
    stem = newer.id()
    newer.session("ses_fork", fork_session_id=SESSION)
    for row in rows:
        newer._insert("session_message", {**dict(row), "id": f"{stem}_{row['seq']}", "session_id": "ses_fork"})
    newer.turn("ses_fork", "another", "2")
    assert [turn.is_copy for turn in turns(newer, "ses_fork")] == [True, False]
    assert Store(newer.path).turn("ses_fork", None) == Store(newer.path).transcript(
        "ses_fork", {turns(newer, "ses_fork")[1].id}
    )


def test_an_export_gives_the_keys_of_the_store(newer: NewerStore) -> None:
    with_subagent(newer)
    newer.turn(SESSION, "and?", "nothing")
    newer.row(SESSION, "shell", shellID="shl_1", command="git status", status="exited", exit=0)
    found, stored = imported(newer, SESSION, CHILD), read(newer)
    assert keys(found.turns) == keys(stored.turns)
    assert told(found.turns) == [one.replace("version='2.0.32'", "version=None") for one in told(stored.turns)]
    assert found.session.title == "a title"


def random_session(newer: NewerStore, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - no secret
    newer.session(CHILD, parent_id=SESSION)
    newer.turn(CHILD, "sub", "agent")
    for number in range(dice.randint(3, 25)):
        match dice.choice(["user", "assistant", "assistant", "idle", "shell", "compaction", "synthetic", "system"]):
            case "user":
                newer.user(SESSION, f"asked {number}")
            case "assistant":
                content = [text(f"answer {number}")]
                if dice.random() < 0.3:
                    content.append(tool("subagent", metadata={"sessionID": CHILD}))
                newer.assistant(SESSION, *content, finish=dice.choice(["stop", "tool-calls", None]))
            case "idle":
                newer.idle(SESSION)
            case "shell":
                newer.row(SESSION, "shell", shellID=f"shl_{number}", command="ls", status="exited")
            case kind:
                newer.row(SESSION, kind, text=f"text {number}", summary="summary", status="completed")
    if dice.random() < 0.3 and (found := turns(newer)):
        newer.db.execute("update session_v2 set revert = ?", (json.dumps({"messageID": dice.choice(found).id}),))


@pytest.mark.parametrize("seed", range(60))
def test_turns_read_apart_are_those_of_the_whole(newer: NewerStore, seed: int) -> None:
    random_session(newer, seed)
    store, whole = Store(newer.path), read(newer)
    outline = store.outline(SESSION)
    assert outline is not None
    assert [one.turn for one in outline.turns] == [turn.id for turn in whole.turns]
    for at, turn in enumerate(whole.turns):
        found = store.transcript(SESSION, {turn.id})
        assert found is not None
        assert (found.session, told(found.turns)) == (whole.session, told([turn]))
        part = store.outline(SESSION, since=turn.id)
        assert part is not None
        assert part.turns == outline.turns[at:]
    assert not whole.unreadable
    assert not [fault for turn in whole.turns for fault in turn.faults]


# --- migrated


@pytest.mark.parametrize("name", exported())
def test_what_opencode_1_wrote_has_the_same_keys_after_the_migration(tmp_path: Path, name: str) -> None:
    wanted = export(name)
    newer = NewerStore(tmp_path / "opencode.db", wanted)
    newer.now_ms = max(times_of(wanted))
    before = parse(wanted)
    newer.migrate()
    store = Store(newer.path)
    after = store.transcript(wanted["root"])
    assert after is not None
    assert (after.turns, after.unreadable) == (before.turns, before.unreadable)
    asked = newer.turn(wanted["root"], "and now, in 2.x?", "still a README")
    again = store.transcript(wanted["root"])
    assert again is not None
    assert keys(again.turns).items() >= keys(before.turns).items()
    assert [turn.id for turn in again.turns if turn.id not in keys(before.turns)] == [asked]
    for turn in again.turns[-3:]:
        found = store.transcript(wanted["root"], {turn.id})
        assert found is not None
        assert told(found.turns) == told([turn])
    assert {root.id for root in store.roots()} == {
        one["info"]["id"] for one in wanted["sessions"] if not one["info"].get("parentID")
    }


def times_of(value: Any) -> list[int]:
    if isinstance(value, dict):
        own = [ms for ms in value.values() if isinstance(ms, int) and 10**12 < ms < 10**13]
        return own + [ms for inner in value.values() for ms in times_of(inner)]
    return [ms for inner in value for ms in times_of(inner)] if isinstance(value, list) else []


OLD_MS = BEGAN_MS - 86_400_000


def old(session: str, *names: str, at_ms: int = OLD_MS, synthetic: str | None = None) -> Fields:
    """A session of OpenCode 1 with these turns."""
    messages = []
    for at, name in enumerate(names):
        parts = [snapshots.text(f"asked {name}", f"prt_{name}_1")]
        if synthetic:
            parts.append(snapshots.text(synthetic, f"prt_{name}_2", synthetic=True))
        asked_ms = at_ms + 1_000 * (at + 1)
        messages.append(snapshots.user(f"msg_{name}", asked_ms, *parts))
        answer = snapshots.text(f"answered {name}", f"prt_{name}_3")
        messages.append(snapshots.assistant(f"msg_{name}_a", asked_ms + 100, answer, parent=f"msg_{name}"))
    info = {"id": session, "directory": DIRECTORY, "time": {"created": at_ms, "updated": at_ms}}
    return snapshots.snapshot(snapshots.entry(*messages, **info))


def found_in(newer: NewerStore) -> dict[str, list[str]]:
    store = Store(newer.path)
    return {root.id: [turn.id for turn in turns(newer, root.id)] for root in store.roots()}


def test_what_the_migration_adds_and_what_was_deleted_or_taken_back_since_is_not_shown(tmp_path: Path) -> None:
    kept, gone = old("ses_kept", "a", "b", "c", synthetic="read README"), old("ses_gone", "d")
    newer = NewerStore(tmp_path / "opencode.db", kept, gone)
    newer.migrate()
    added = newer.row("ses_kept", "synthetic", text="tools have other names now")
    newer.db.execute("update session_message set time_created = ? where id = ?", (OLD_MS, added))
    newer.delete("ses_gone")
    newer.db.execute("delete from session_message where id in ('msg_c', 'msg_c_a')")
    asked = newer.turn("ses_kept", "now", "then")
    late = old("ses_late", "e", at_ms=newer.now_ms + 1_000)
    more = old("ses_kept", "f", at_ms=newer.now_ms + 2_000)
    newer.use_version_1(late, more)
    assert found_in(newer) == {"ses_kept": ["msg_a", "msg_b", asked, "msg_f"], "ses_late": ["msg_e"]}
    store = Store(newer.path)
    assert store.root_of("ses_gone") is None
    assert store.transcript("ses_gone") is None
    assert not store.holds("ses_kept", "msg_c")
    assert set(store.changes(DIRECTORY)) == {"ses_kept", "ses_late"}


def test_a_turn_that_the_migration_left_out_is_there_where_one_after_it_is(tmp_path: Path) -> None:
    newer = NewerStore(tmp_path / "opencode.db", old("ses_kept", "a", "b", "c"))
    newer.migrate()
    newer.db.execute("delete from session_message where id in ('msg_b', 'msg_b_a')")  # as of a failed compaction
    assert found_in(newer) == {"ses_kept": ["msg_a", "msg_b", "msg_c"]}


def test_a_migration_that_is_not_over_hides_nothing_and_adds_nothing(tmp_path: Path) -> None:
    newer = NewerStore(tmp_path / "opencode.db", old("ses_kept", "a", synthetic="read README"), old("ses_gone", "d"))
    newer.migrate(phase="sessions")
    newer.delete("ses_gone")  # or not there yet
    assert found_in(newer) == {"ses_gone": ["msg_d"], "ses_kept": ["msg_a"]}


def test_a_turn_that_was_cut_by_the_upgrade_is_one_turn(tmp_path: Path) -> None:
    cut = old("ses_kept", "a")
    cut["sessions"][0]["messages"].pop()
    newer = NewerStore(tmp_path / "opencode.db", cut)
    newer.migrate()
    answer = newer.assistant("ses_kept", text("at last"))
    newer.idle("ses_kept")
    (turn,) = turns(newer, "ses_kept")
    assert (turn.id, [message.id for message in turn.messages], turn.final) == ("msg_a", ["msg_a", answer], True)
    outline = Store(newer.path).outline("ses_kept")
    assert outline is not None
    assert [(one.turn, one.rows, one.updated_ms) for one in outline.turns] == [("msg_a", 4, newer.now_ms)]


def test_title_and_archiving_are_those_of_opencode_2(tmp_path: Path) -> None:
    newer = NewerStore(tmp_path / "opencode.db", old("ses_kept", "a"))
    newer.migrate()
    newer.db.execute("update session_v2 set title = 'renamed', time_archived = 7, directory = '/moved'")
    session = read(newer, "ses_kept").session
    assert (session.title, session.archived_ms, session.directory, session.version) == (
        "renamed",
        7,
        "/moved",
        "1.18.33",
    )


# --- other schemas


@pytest.mark.parametrize(
    "change",
    [
        "alter table session_v2 rename column time_suspended to suspended",
        "alter table session_message rename column seq to position",
        "alter table session_message rename to messages",
        "drop table kv",
    ],
)
def test_a_schema_that_is_not_known_is_a_problem_and_no_silence(newer: NewerStore, change: str) -> None:
    newer.turn(SESSION, "one", "1")
    newer.db.execute(change)
    store = Store(newer.path)
    for ask in (store.roots, lambda: store.transcript(SESSION), lambda: store.root_of(SESSION), store.is_newer):
        with pytest.raises(StoreError, match="no store of OpenCode 2 as far as that is known"):
            ask()


def test_some_sessions_are_asked_for_alone(newer: NewerStore) -> None:
    newer.session("ses_other", title="another")
    for session in (SESSION, "ses_other"):
        newer.turn(session, "hello", "hi")
    store = Store(newer.path)
    for session in (SESSION, "ses_other"):
        assert [*store.heads({session})] == [session]
        assert {one.session for one in store.usage(0, {session})} == {session}
