"""The turns of a stored session, looked at and read one by one."""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from app.sources.opencode.rows import Memory
from app.sources.opencode.store import Store
from app.sources.opencode.tables import TableRows
from app.sources.opencode.turns import Outline
from app.transcript.model import Json, TranscriptError, Turn
from app.transcript.parse import parse
from tests.sources.opencode.test_store import built
from tests.support import snapshots
from tests.support.recorded import export, exported
from tests.support.snapshots import CREATED_MS, Fields

STEP_MS = 1_000


def minted(kind: str, at_ms: int, tail: int) -> str:
    return f"{kind}_{at_ms % 2**36:09x}{tail % 4096:03x}{tail:014}"


class Random:
    """Sessions as OpenCode might leave them, and odder ones."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - no secret
        self.now_ms = CREATED_MS
        self.count = 0

    def tick(self) -> int:
        self.now_ms += self.dice.choice((0, 1, 1, STEP_MS))
        self.count += 1
        return self.now_ms

    def family(self) -> Fields:
        entries: list[Fields] = []
        self.session(entries, None, depth=0)
        root, *others = entries
        return {"root": root["info"]["id"], "sessions": [root, *others]}

    def session(self, entries: list[Fields], parent: str | None, depth: int) -> str:
        began_ms = self.tick()
        name = minted("ses", began_ms, self.count)
        at = len(entries)
        entries.append({})
        messages: list[Fields] = []
        if depth == 0 and self.dice.random() < 0.3:
            messages += [self.copied(began_ms, age_ms) for age_ms in (9_000, 8_000)]
        turns: list[str] = []
        children: list[str] = []
        for _ in range(self.dice.randint(1, 6 if depth == 0 else 2)):
            created_ms = self.tick()
            turns.append(minted("msg", created_ms, self.count))
            messages.append(snapshots.user(turns[-1], created_ms, snapshots.text(f"asked {self.count}", self.part())))
            for _ in range(self.dice.randint(0, 3)):
                turn = turns[-1] if self.dice.random() < 0.9 else self.dice.choice([*turns, "msg_gone"])
                messages.append(self.answer(entries, name, turn, children, depth))
        info: Fields = {"id": name, "time": {"created": began_ms, "updated": self.now_ms}}
        if parent is not None:
            info["parentID"] = parent
        if depth == 0 and self.dice.random() < 0.3:
            info["revert"] = {"messageID": self.dice.choice(messages)["info"]["id"]}
        entries[at] = snapshots.entry(*messages, **info)
        return name

    def copied(self, began_ms: int, age_ms: int) -> Fields:
        name = minted("msg", began_ms, self.count)
        self.count += 1
        return snapshots.user(name, began_ms - age_ms, snapshots.text("of the fork's origin", self.part()))

    def answer(self, entries: list[Fields], session: str, turn: str, children: list[str], depth: int) -> Fields:
        created_ms = self.tick()
        name = minted("msg", created_ms, self.count)
        parts = [snapshots.text(f"answer {self.count}", self.part())]
        if depth < 2 and self.dice.random() < 0.4:
            if not children or self.dice.random() < 0.7:
                children.append(self.session(entries, session, depth + 1))
            call = snapshots.tool(self.part(), "task", metadata={"sessionId": self.dice.choice(children)})
            parts.append(call)
        if self.dice.random() < 0.1:
            parts.append({"id": self.part(), "type": "tool", "state": "none"})
        facts: Fields = {"path": {"cwd": self.dice.choice(("/home/dev/project", "/home/dev/moved"))}}
        if self.dice.random() < 0.1:
            facts["role"] = "nobody"
        made = snapshots.unfinished if self.dice.random() < 0.2 else snapshots.assistant
        return made(name, created_ms, *parts, parent=turn, **facts)

    def part(self) -> str:
        return minted("prt", self.tick(), self.count)


def told(turns: Iterable[Turn]) -> list[str]:
    """All there is to a turn, but where in what was read a fault stands."""
    return [re.sub(r"(sessions|messages)\[\d+\]", "", repr(turn)) for turn in turns]


def stored(path: Path, *families: Fields) -> Store:
    store = Store(built(path / "opencode.db", *families))
    reverts = {one["info"]["id"]: one["info"].get("revert") for family in families for one in family["sessions"]}
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("alter table session add column revert text")
        told = [(json.dumps(revert), session) for session, revert in reverts.items() if revert is not None]
        db.executemany("update session set revert = ? where id = ?", told)
    return store


@pytest.mark.parametrize("seed", range(150))
def test_turns_read_apart_are_those_of_the_whole(tmp_path: Path, seed: int) -> None:
    made = Random(seed)
    wanted = [made.family() for _ in range(2)]
    store = stored(tmp_path, *wanted)
    for one in wanted:
        whole = store.transcript(one["root"])
        assert whole is not None
        assert [(turn.id, turn.digest) for turn in whole.turns] == [(turn.id, turn.digest) for turn in parse(one).turns]
        names = [turn.id for turn in whole.turns]
        chosen = [{name} for name in names] + [{name for name in names if made.dice.random() < 0.5} for _ in range(3)]
        for turns in chosen:
            found = store.transcript(one["root"], turns)
            assert found is not None
            assert found.session == whole.session
            assert told(found.turns) == told(turn for turn in whole.turns if turn.id in turns)
        outline = store.outline(one["root"])
        assert outline is not None
        assert set(names) <= {turn.turn for turn in outline.turns}


TIMES = (None, "", "soon", 1, CREATED_MS - 10 * 86_400_000, CREATED_MS + 10 * 86_400_000)
"""That a message might say, none of them when it was made."""


@pytest.mark.parametrize("seed", range(40))
def test_turns_without_times_read_apart_are_those_of_the_whole(tmp_path: Path, seed: int) -> None:
    """What does not say when it was made is taken to be of when what stands beside it was."""
    made = Random(seed)
    wanted = made.family()
    entry = wanted["sessions"][0]
    for message in made.dice.sample(entry["messages"], min(2, len(entry["messages"]))):
        message["info"]["time"]["created"] = made.dice.choice(TIMES)
    store = stored(tmp_path, wanted)
    if made.dice.random() < 0.5:
        with closing(sqlite3.connect(store.path)) as db, db:
            db.execute("update session set time_created = '{' where id = ?", (wanted["root"],))
    whole = store.transcript(wanted["root"])
    assert whole is not None
    for name in [turn.id for turn in whole.turns]:
        found = store.transcript(wanted["root"], {name})
        assert found is not None
        assert found.session == whole.session
        assert told(found.turns) == told(turn for turn in whole.turns if turn.id == name)


@pytest.mark.parametrize("name", exported())
def test_of_a_session_no_more_is_read_than_the_turn_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wanted = export(name)
    store, read = stored(tmp_path, wanted), set[str]()
    messages = TableRows.messages

    def counted(rows: TableRows, session: str, names: list[str]) -> list[Json]:
        read.update(names)
        return messages(rows, session, names)

    monkeypatch.setattr(TableRows, "messages", counted)
    whole = store.transcript(wanted["root"])
    assert whole is not None
    own = {message["info"]["id"] for message in wanted["sessions"][0]["messages"]}
    for turn in whole.turns:
        read.clear()
        assert store.transcript(wanted["root"], {turn.id}) is not None
        assert read & own == {message.id for message in turn.messages}


@pytest.mark.parametrize("name", exported())
def test_the_outline_counts_all_rows_of_a_recording(tmp_path: Path, name: str) -> None:
    wanted = export(name)
    store = Store(built(tmp_path / "opencode.db", wanted))
    outline = store.outline(wanted["root"])
    assert outline is not None
    assert [one.turn for one in outline.turns] == [turn.id for turn in parse(wanted).turns]
    rows = sum(1 + len(message["parts"]) for one in wanted["sessions"] for message in one["messages"])
    assert sum(one.rows for one in outline.turns) == rows + len(wanted["sessions"]) - 1
    assert max(one.updated_ms for one in outline.turns) <= (store.changed_ms(wanted["root"]) or 0)


@pytest.mark.parametrize("seed", range(30))
def test_a_few_turns_are_outlined_as_in_the_whole(tmp_path: Path, seed: int) -> None:
    wanted = Random(seed).family()
    store = stored(tmp_path, wanted)
    whole = store.outline(wanted["root"])
    assert whole is not None
    for at, turn in enumerate(whole.turns):
        for fresh in (store, Store(store.path)):
            found = fresh.outline(wanted["root"], since=turn.turn, also={whole.turns[0].turn})
            assert found == Outline(whole.session, whole.updated_ms, whole.turns[:1] + whole.turns[max(at, 1) :])
    assert store.outline(wanted["root"], since="msg_nowhere") == whole


CHANGES = {
    "another part": "insert into part select 'prt_z', :m, session_id, 0, 0, '{}' from message where id = :m",
    "a part written": "update part set time_updated = 4102444800000 where message_id = :m",
    "a part gone": "delete from part where message_id = :m",
    "the message written": "update message set time_updated = 4102444800000 where id = :m",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("whose", ["its own", "its subagent's"])
def test_whatever_is_written_of_a_turn_shows_in_its_outline(tmp_path: Path, change: str, whose: str) -> None:
    wanted = export("f_subagent")
    store = Store(built(tmp_path / "opencode.db", wanted))
    before = store.outline(wanted["root"])
    message = wanted["sessions"][0 if whose == "its own" else 1]["messages"][-1]["info"]["id"]
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute(CHANGES[change], {"m": message})
    after = store.outline(wanted["root"])
    assert before is not None
    assert after is not None
    assert [one for one in after.turns if one not in before.turns]


def test_an_undo_shows_in_the_outline_of_the_turns_that_it_takes_back(tmp_path: Path) -> None:
    wanted = export("i_long_session")
    store = Store(built(tmp_path / "opencode.db", wanted))
    before = store.outline(wanted["root"])
    assert before is not None
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("alter table session add column revert text")
        db.execute("update session set revert = ?", (json.dumps({"messageID": before.turns[-2].turn}),))
    after = store.outline(wanted["root"])
    assert after is not None
    assert [one.turn for one in after.turns if one not in before.turns] == [one.turn for one in before.turns[-2:]]


ODD = (
    "null", "-1", "1.5", "4611686018427387904", "9e999", "''", "'soon'", "'a/b'", "'session'", "x''", "x'ff'",
    *(f"cast(x'{raw}' as text)" for raw in ("00", "610062", "ff", "eda080")),
)  # fmt: skip
"""What a column may hold: also bytes, texts with a NUL in them, and texts that are not UTF-8."""
COLUMNS = {
    "session": ("id", "parent_id", "directory", "title", "version", "time_created", "time_updated", "time_archived"),
    "message": ("id", "time_created", "time_updated", "data"),
    "part": ("id", "time_created", "time_updated", "data"),
}


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("table", COLUMNS)
def test_an_odd_row_costs_its_own_turn_at_most(tmp_path: Path, table: str, value: str) -> None:
    wanted = export("f_subagent")
    asked = [snapshots.user(f"msg_{n}", CREATED_MS + n, snapshots.text("asked", f"prt_{n}")) for n in (1, 3)]
    said = [
        snapshots.assistant(
            f"msg_{n + 1}", CREATED_MS + n + 1, snapshots.text("said", f"prt_{n + 1}"), parent=f"msg_{n}"
        )
        for n in (1, 3)
    ]
    other = snapshots.snapshot(snapshots.entry(asked[0], said[0], asked[1], said[1]))
    for column in COLUMNS[table]:
        path = tmp_path / column
        path.mkdir()
        store = stored(path, wanted, other)
        whole = parse(other)
        owner = "id" if table == "session" else "session_id"
        with closing(sqlite3.connect(store.path)) as db, db:
            (last,) = db.execute(f"select max(rowid) from {table} where {owner} = ?", (other["root"],)).fetchone()  # noqa: S608
            db.execute(f"update {table} set {column} = {value} where rowid = ?", (last,))  # noqa: S608
        assert store.transcript(wanted["root"]) == parse(wanted)
        assert wanted["root"] in {root.id for root in store.roots()}
        assert wanted["root"] in store.changes(wanted["sessions"][0]["info"]["directory"])
        root = next((root.id for root in store.roots() if root.id != wanted["root"]), other["root"])
        store.root_of(root)
        if table == "session" and column == "id":
            with suppress(TranscriptError):
                store.transcript(root)
            continue
        outline, found = store.outline(root), store.transcript(root)
        assert store.changed_ms(root) is not None
        assert outline is not None
        assert found is not None
        assert table == "session" or whole.turns[:-1] == found.turns[: len(whole.turns) - 1]
        assert {turn.id for turn in found.turns} <= {turn.turn for turn in outline.turns}
        for turn in outline.turns:
            apart = store.transcript(root, {turn.turn})
            assert apart is not None
            assert told(apart.turns) == told(one for one in found.turns if one.id == turn.turn)
            assert store.outline(root, since=turn.turn) is not None
        store.turn(root, None)
        assert store.files(root)


@pytest.mark.parametrize(
    "parent", [5, ["x"], "", "a/b", "session", "a\0b", "\ud800", "x" * 600, None, {"a": 1}], ids=ascii
)
def test_an_answer_belongs_to_the_same_turn_in_all_that_is_read(tmp_path: Path, parent: object) -> None:
    wanted = export("a_simple")
    wanted["sessions"][0]["messages"][-1]["info"]["parentID"] = parent
    store = stored(tmp_path, wanted)
    whole, outline = parse(wanted), store.outline(wanted["root"])
    assert outline is not None
    assert {one.turn for one in outline.turns} == {turn.id for turn in whole.turns}
    for turn in whole.turns:
        apart = store.transcript(wanted["root"], {turn.id})
        assert apart is not None
        assert told(apart.turns) == told([turn])


ELSEWHERE = {
    "one gone in the middle": "delete from message where id = (select id from message order by id limit 1 offset 3)",
    "the last one gone": "delete from message where id = (select max(id) from message)",
    "the last one replaced": "update message set id = 'msg_zz' where id = (select max(id) from message)",
    "one more at the end": "insert into message select 'msg_zz', session_id, 9e15, 0, '{}' from message limit 1",
    "one more in the middle": "insert into message select 'msg_aa', session_id, 0, 0, '{}' from message limit 1",
    "an undo and another turn": "delete from message where id > (select id from message order by id limit 1 offset 3);"
    "insert into message select id || 'z', session_id, 9e15, 0, data from message",
    "all gone": "delete from message",
}


@pytest.mark.parametrize("change", ELSEWHERE)
def test_messages_that_come_and_go_are_listed_as_they_are(tmp_path: Path, change: str) -> None:
    wanted = export("i_long_session")
    store = stored(tmp_path, wanted)
    before = store.outline(wanted["root"])
    assert before == store.outline(wanted["root"])
    with closing(sqlite3.connect(store.path)) as db, db:
        db.executescript(ELSEWHERE[change])
    assert store.outline(wanted["root"]) == Store(store.path).outline(wanted["root"]) != before
    assert store.transcript(wanted["root"]) == Store(store.path).transcript(wanted["root"])


def test_of_a_session_that_is_known_only_what_is_new_is_listed(tmp_path: Path) -> None:
    wanted = export("i_long_session")
    said: list[str] = []
    with closing(sqlite3.connect(stored(tmp_path, wanted).path)) as db:
        db.row_factory = sqlite3.Row
        rows = TableRows(db, Memory())
        whole = rows.listed(wanted["root"])
        db.execute("insert into message select 'msg_zz', session_id, 9e15, 0, '{}' from message limit 1")
        db.set_trace_callback(said.append)
        assert list(rows.listed(wanted["root"])) == [*whole, "msg_zz"]
    assert not [one for one in said if "order by" in one and ">=" not in one]


def test_a_subagent_is_shown_inside_of_the_session_whose_call_names_it(tmp_path: Path) -> None:
    wanted = export("f_subagent")
    store = Store(built(tmp_path / "opencode.db", wanted))
    (child,) = [one["info"]["id"] for one in wanted["sessions"] if one["info"].get("parentID")]
    assert (store.root_of(child), store.root_of(wanted["root"])) == (wanted["root"], wanted["root"])
    assert store.root_of("ses_nowhere") is None
    assert store.outline("ses_nowhere") is None
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("delete from message where session_id = ?", (wanted["root"],))
    assert (store.root_of(child), Store(store.path).root_of(child)) == (child, child)


def test_sessions_that_are_each_others_parent_have_a_root_nevertheless(tmp_path: Path) -> None:
    wanted = export("f_subagent")
    store = Store(built(tmp_path / "opencode.db", wanted))
    (child,) = [one["info"]["id"] for one in wanted["sessions"] if one["info"].get("parentID")]
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("update session set parent_id = ? where id = ?", (child, wanted["root"]))
    assert store.root_of(child) == wanted["root"]


def test_a_call_that_names_its_subagent_only_later_is_found_then(tmp_path: Path) -> None:
    wanted = export("f_subagent")
    root, child = (one["info"]["id"] for one in wanted["sessions"])
    store = Store(built(tmp_path / "opencode.db", wanted))
    with closing(sqlite3.connect(store.path)) as db, db:
        (part, message, whole) = db.execute(
            "select p.id, m.id, m.data from part p join message m on m.id = p.message_id"
            " where p.session_id = ? and p.data like '%sessionId%'",
            (root,),
        ).fetchone()
        (named,) = db.execute("select data from part where id = ?", (part,)).fetchone()
        db.execute("update part set data = replace(data, 'sessionId', 'session') where id = ?", (part,))
        db.execute("update message set data = json_remove(data, '$.time.completed') where id = ?", (message,))
    before = store.outline(root)
    assert store.root_of(child) == child
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("update part set data = ? where id = ?", (named, part))
        db.execute("update message set data = ? where id = ?", (whole, message))
    after = store.outline(root)
    assert before is not None
    assert after is not None
    assert sum(one.rows for one in after.turns) > sum(one.rows for one in before.turns)
    assert store.root_of(child) == root
    assert store.transcript(root, {after.turns[0].turn}) == store.transcript(root)
