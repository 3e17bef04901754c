"""What was broken somehow: lines for a hook, rows in OpenCode's store, files for `import`; what must become of them.

`make fuzz` (`fuzz.py`) feeds 50,000 of them, `test_mutants.py` a few.

Nothing may vanish: of every line it is known beforehand which refusal is counted for it, or which jobs are there of the
session that it names.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from app.capture.config import capture
from app.capture.export import split
from app.capture.messages import LineError, read_line
from app.capture.pipe_reader import LINE_BYTES_MAX
from app.errors import ExportError
from app.exporters.helicone.body import BODY_BYTES_MAX
from app.ledger import job as ledger_job
from app.ledger.destinations import destinations
from app.ledger.job import SESSION_RECORD
from app.privacy.redact import PatternError
from app.privacy.terms import Capture
from app.settings.lookup import Sources
from app.settings.model import SettingsError
from app.sources.opencode.export_files import File, examine, snapshot
from app.sources.opencode.store import Store
from app.transcript.identity import Identity
from app.transcript.model import Transcript, TranscriptError, key
from app.transcript.parse import parse
from tests.support import recorded
from tests.support.processes import PROJECT
from tests.support.stores import put

Steps: TypeAlias = tuple[str | int, ...]

LARGE_BYTES = 60_000
LARGE_SHARE = 0.005
"""How often a large recording is the one: they take most of the time and break no other way."""

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 3.0, 2**53, -(2**53), 2**63, 10**400, "", [], {}, [[]], [None], {"": None},
    "session", "user", "assistant", "tool", "task", "completed", "12", ".", "..", "../../etc/passwd", "a/b", "/", "%2F",
    "\r\nX-Injected: yes", "%0d%0a", "a\0b", "\u2028\u2029\x85", "\ud800", "\udfff\ud800", "日本\U0001f30d",
    "x" * 600, "y" * 70_000, "data:image/png;base64," + "A" * 5_000, "{" * 300, "[REDACTED]", "\x1b[2J", "\ufeff",
)  # fmt: skip
IDS = ("session", "user", "assistant", "a/b", "/", "..", "nobody")
"""Of those that an id must not be, or might be."""
RAW = (
    "1e999", "-1e999", "NaN", "Infinity", "-0", "1E400", "9" * 5_000, "1.0000000000000000000001", "0x10", "'x'",
    "[" * 150 + "]" * 150, "[" * 3_000 + "]" * 3_000, '{"a":' * 101 + "1" + "}" * 101, '{"a":1,"a":{"a":2}}',
    '"\\ud83c"', '"\\u0000"',
)  # fmt: skip
"""JSON texts, and some that are none, which Python's own writer would not write."""
BYTES = (
    b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\0", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\r", b"\t",
    b"\n", b"\\", b'"', b"{", b"]", b"\\u", b"\x1b[2J", b'"id":"ses_x",', b'"time":{},',
)  # fmt: skip


# --- how a recording is broken ---------------------------------------------------------------------------------------


def places(value: Any, path: Steps = ()) -> Iterator[Steps]:
    """All paths into a JSON value."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield (*path, step)
        yield from places(inner, (*path, step))


def _parent(value: Any, path: Steps) -> Any:
    for step in path[:-1]:
        value = value[step]
    return value


def _somewhere(dice: random.Random, value: Any, wanted: Callable[[Steps, Any], bool]) -> tuple[Any, Any] | None:
    """(what holds it, key or position) of one of the places that are wanted."""
    found = [path for path in places(value) if wanted(path, _parent(value, path)[path[-1]])]
    if not found:
        return None
    path = dice.choice(found)
    return _parent(value, path), path[-1]


def _is_id(path: Steps, value: Any) -> bool:
    return isinstance(value, str) and str(path[-1]).lower().endswith(("id", "root", "session"))


def _odd(dice: random.Random) -> Any:
    return f"@RAW{dice.randrange(len(RAW))}@" if dice.random() < 0.25 else dice.choice(ODD)


def _change(wanted: Callable[[Steps, Any], bool]) -> Callable[[random.Random, Any], None]:
    def change(dice: random.Random, value: Any) -> None:
        spot = _somewhere(dice, value, wanted)
        if spot is not None:
            spot[0][spot[1]] = _odd(dice)

    return change


def _rename_one(dice: random.Random, value: Any) -> None:
    spot = _somewhere(dice, value, _is_id)
    if spot is not None:
        spot[0][spot[1]] = dice.choice(IDS)


def _remove(dice: random.Random, value: Any) -> None:
    spot = _somewhere(dice, value, lambda *_: True)
    if spot is not None:
        del spot[0][spot[1]]


def _rename(dice: random.Random, value: Any) -> None:
    spot = _somewhere(dice, value, lambda path, _: isinstance(path[-1], str))
    if spot is not None:
        name = str(spot[1])
        spot[0][dice.choice((name.upper(), name + " ", name[:-1], "", "id", "type", "time"))] = spot[0].pop(name)


def _double(dice: random.Random, value: Any) -> None:
    spot = _somewhere(dice, value, lambda path, _: isinstance(path[-1], int))
    if spot is not None:
        spot[0].insert(dice.randrange(len(spot[0]) + 1), json.loads(json.dumps(spot[0][spot[1]])))


def _swap_ids(dice: random.Random, value: Any) -> None:
    """An id of one thing in place of another's: parents that are children, calls that start their own session."""
    one, other = _somewhere(dice, value, _is_id), _somewhere(dice, value, _is_id)
    if one is not None and other is not None:
        one[0][one[1]] = other[0][other[1]]


def _transplant(dice: random.Random, value: Any) -> None:
    one, other = _somewhere(dice, value, lambda *_: True), _somewhere(dice, value, lambda *_: True)
    if one is not None and other is not None:
        other[0][other[1]] = json.loads(json.dumps(one[0][one[1]]))


def _shuffle(dice: random.Random, value: Any) -> None:
    spot = _somewhere(dice, value, lambda _, inner: isinstance(inner, list))
    if spot is not None:
        dice.shuffle(spot[0][spot[1]])


def _call_a_session(dice: random.Random, value: Any) -> None:
    """Any session under any tool call: loops of children, children of two parents."""
    calls = [path for path in places(value) if path[-1] == "state" and isinstance(_parent(value, path)["state"], dict)]
    sessions = [session["info"]["id"] for session in value.get("sessions", [value])]
    if calls:
        path = dice.choice(calls)
        _parent(value, path)["state"]["metadata"] = {"sessionId": dice.choice(sessions)}
    dice.choice(value.get("sessions", [value]))["info"]["parentID"] = dice.choice(sessions)


TREE_MUTATIONS: tuple[Callable[[random.Random, Any], None], ...] = (
    _change(lambda *_: True),
    _change(lambda path, _: "time" in path),
    _change(_is_id),
    _rename_one,
    _remove,
    _rename,
    _double,
    _swap_ids,
    _transplant,
    _shuffle,
    _call_a_session,
)


def _flip_bit(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]


def _replace_byte(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + dice.randbytes(1) + data[at + 1 :]


def _cut(dice: random.Random, data: bytes) -> bytes:
    return data[: dice.randrange(len(data))]


def _put_in(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + dice.choice(BYTES) + data[at:]


def _take_out(dice: random.Random, data: bytes) -> bytes:
    at = dice.randrange(len(data))
    return data[:at] + data[at + dice.choice((1, 2, 50)) :]


def _double_key(dice: random.Random, data: bytes) -> bytes:
    """The same key twice in one object: the last one counts."""
    at = data.find(b"{", dice.randrange(len(data))) + 1
    name, value = dice.choice(("id", "role", "time", "sessionID", "type", "info", "parts", "state")), dice.choice(ODD)
    return data[:at] + json.dumps({name: value})[1:-1].encode() + b"," + data[at:]


def _windows(_: random.Random, data: bytes) -> bytes:
    return data + b"\r"


def _in_pieces(dice: random.Random, data: bytes) -> bytes:
    """Two writers whose bytes have mixed."""
    at = dice.randrange(len(data))
    return data[:at] + data[: dice.randrange(len(data))] + data[at:]


TEXT_MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip_bit, _replace_byte, _cut, _put_in, _take_out, _double_key, _windows, _in_pieces,
)  # fmt: skip


def broken(dice: random.Random, value: Any) -> bytes:
    """`value`, which is changed, as JSON that has one to four things wrong with it; now and then nothing."""
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
        # What an earlier change made of it may be nothing that the next one can work on.
        try:
            dice.choice(TREE_MUTATIONS)(dice, value)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError):
            continue
    data = json.dumps(value, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    for number, raw in enumerate(RAW):
        data = data.replace(f'"@RAW{number}@"'.encode(), raw.encode())
    for _ in range(dice.choice((0, 0, 0, 1))):
        data = dice.choice(TEXT_MUTATIONS)(dice, data) or b" "
    return data


# --- what a hook is told and finds -----------------------------------------------------------------------------------


@cache
def recordings() -> tuple[list[str], list[str]]:
    """The snapshots of all recordings as JSON: small ones, large ones."""
    told = [json.dumps(snapshot) for name in recorded.names() for snapshot in recorded.replayed(name).values()]
    return [one for one in told if len(one) < LARGE_BYTES], [one for one in told if len(one) >= LARGE_BYTES]


def _recording(dice: random.Random, *, own: float = 0.5) -> Any:
    """A snapshot; every other one, or as many as wanted, of a session that nothing else is about."""
    small, large = recordings()
    text = dice.choice(large if dice.random() < LARGE_SHARE else small)
    if dice.random() < own:
        mark = f"{dice.randrange(2**32):08x}"
        text = re.sub(r'"((?:ses|msg|prt)_\w+)"', rf'"\g<1>{mark}"', text)
    return json.loads(text)


def stored(dice: random.Random, path: Path) -> str:
    """Write a recording to OpenCode's store, and break some of its rows; the root's id."""
    snapshot = _recording(dice, own=1)
    sessions = [one["info"]["id"] for one in snapshot["sessions"]]
    put(path, snapshot)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.row_factory = sqlite3.Row
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
            _break_a_row(dice, db, sessions)
    return str(snapshot["root"])


def _break_a_row(dice: random.Random, db: sqlite3.Connection, sessions: list[str]) -> None:
    table, owner = dice.choice((("session", "id"), *[("message", "session_id"), ("part", "session_id")] * 3))
    rows = db.execute(f"select rowid as place, * from {table} where {owner} = ?", (dice.choice(sessions),)).fetchall()  # noqa: S608
    if not rows:
        return
    row = dice.choice(rows)
    value: object
    if table != "session" and dice.random() < 0.7:
        column, value = "data", broken(dice, json.loads(row["data"]) if _is_json(row["data"]) else {})
    else:
        told = [name for name in row.keys() if name != "place"]  # noqa: SIM118 - a row is no mapping
        column = dice.choice([name for name in told if not name.startswith(("cost", "tokens", "summary"))])
        value = dice.choice((*sessions, "x", "", -1, 0, 2**62, 1.5, "[]", "{", b"\xff", "\0", "a/b", "日本"))
    # As text, even if it is none.
    wanted = f"update {table} set {column} = iif(typeof(?1) = 'blob', cast(?1 as text), ?1) where rowid = ?2"  # noqa: S608
    with suppress(sqlite3.IntegrityError):  # an id that another row has
        db.execute(wanted, (value, row["place"]))


def _is_json(data: object) -> bool:
    try:
        json.loads(str(data))
    except (ValueError, RecursionError):
        return False
    return True


def line(dice: random.Random, sessions: Sequence[str]) -> bytes:
    """What a plugin wrote, or what became of it. May hold line ends: then it is several lines."""
    head: dict[str, Any] = {"v": 2, "n": dice.randrange(9), "directory": PROJECT, "options": {}}
    session = dice.choice(sessions)
    said = {**head, "type": "notice", "session": session, "why": dice.choice(("idle", "busy", "error", "late"))}
    first = {**head, "v": 1, "session": session}
    match dice.randrange(40):
        case 0:
            return dice.choice((b"", dice.randbytes(dice.randrange(1, 200))))
        case 1 | 2:
            said = {**first, "type": "open", "spool": None}
        case 3:
            said = {**said, "session": f"{session}gone", "why": "deleted"}
        case 4:
            said = {**first, "type": "refused", "reason": "too large"}
        case 5:
            options = {"redactPatterns": ["abc", "d+"], "maxRetries": 3, "sessionPathPrefix": "/x", "flushInterval": 5}
            said = {**said, "options": options}
        case 6 | 7:
            said = {**first, "type": "snapshot", **_recording(dice)}
        case 8:
            said = {**head, "type": "trouble", "session": "", "reason": "hook ended: exit code 1"}
    return broken(dice, said)


def giant(dice: random.Random) -> bytes:
    """More than a line may have."""
    return b'{"v":1,"type":"snapshot","x":"' + b"x" * (LINE_BYTES_MAX + dice.randrange(1_000_000)) + b'"}'


def export_file(dice: random.Random) -> bytes:
    """A file of `opencode export`, or what became of it."""
    snapshot = _recording(dice)
    entry = dice.choice(snapshot["sessions"])
    if dice.randrange(40) == 0:
        return dice.choice((b"", b" ", b"\n", b"[]", b"null", dice.randbytes(100)))
    return broken(dice, {"info": entry["info"], "messages": entry["messages"]})


# --- what must become of it ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Expected:
    """Of the lines that a hook was fed: refusals by reason, sessions that are gone, and the jobs of what it noticed."""

    store: Store
    """As it stays while they are fed."""
    refusals: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    notices: int = 0
    others: int = 0
    """Lines that are fine and bring no turns."""
    turns: set[tuple[str, str]] = field(default_factory=set)
    """(Root session, digest) of what must be there, under any policy that a line brought: a stricter one stays."""
    policies: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    """Sessions that cannot be read."""
    waiting: set[str] = field(default_factory=set)
    """Sessions with a turn that goes on: nobody gives it up before ten minutes."""
    deleted: set[str] = field(default_factory=set)
    _transcripts: dict[str, Transcript | None] = field(default_factory=dict)

    def feed(self, data: bytes, sources: Sources) -> None:
        """Note what a hook that has its spool already must make of these bytes and a line end."""
        for one in data.split(b"\n"):
            self.lines += 1
            try:
                self._take(one, sources)
            except LineError as error:
                self.refusals[str(error)] += 1
            except (SettingsError, PatternError) as error:
                self.refusals[type(error).__name__] += 1

    def _take(self, data: bytes, sources: Sources) -> None:
        if len(data) > LINE_BYTES_MAX:
            raise LineError("too long")
        said = read_line(data)
        if said.type == "refused" and not said.session:
            raise LineError("unknown")
        if said.type == "trouble" or said.why == "deleted":
            self.others += 1
            self.deleted |= {said.session} if said.type == "notice" else set()
            return
        settings = sources.load(said.directory or None, handed=said.options)
        capturing = None if settings.held else capture(settings, ())
        self.notices += 1
        # Where an option was broken nothing is taken, and nothing refused.
        if capturing is not None and settings.enable and said.session:
            self.policies.add(capturing.policy.digest(""))
            self._notice(said.session, capturing)

    def _notice(self, session: str, capturing: Capture) -> None:
        transcript = self._transcript(session)
        if transcript is None:
            return
        told, going_on = split(transcript, capturing, Identity(""), abandoned=False)
        self.waiting |= {session, transcript.session.id} if going_on else set()
        # What a fork has copied is left to its origin, should that be among the sessions.
        copies = {turn.digest for turn in transcript.turns if turn.is_copy}
        # A session's own record goes with its first turn that has ended, or once the session is given up.
        is_told = not copies and any(turn.final for turn in transcript.turns)
        for one in told:
            if one.digest not in copies and (one.turn != SESSION_RECORD or is_told):
                self.turns.add((transcript.session.id, one.digest))

    def _transcript(self, session: str) -> Transcript | None:
        if session not in self._transcripts:
            self._transcripts[session] = None
            try:
                root = self.store.root_of(session)
                self._transcripts[session] = None if root is None else self.store.transcript(root)
            except (ExportError, TranscriptError):
                if self._has_turns(session):
                    self.unread.add(session)
        return self._transcripts[session]

    def _has_turns(self, session: str) -> bool:
        with suppress(ExportError):
            outline = self.store.outline(session)
            return outline is not None and outline.turns != ()
        return True

    def missing(self, db: Any) -> list[str]:
        """Turns of which the ledger has no version, though it should."""
        have = {row["key"] for row in db.execute("select key from job")}
        under = {row["name"] for row in db.execute("select name from session where root_name <> name")}
        lost = [root for root, digest in self.turns if not any(key(digest, policy) in have for policy in self.policies)]
        return [root for root in lost if root not in self.deleted | under]


def audit(db: Any) -> Counter[str]:
    """Check that every job in the ledger is whole and that nothing else is there. Counts what was seen."""
    assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
    assert db.execute("pragma foreign_key_check").fetchall() == []
    assert db.execute("select count(*) from record where job_id not in (select id from job)").fetchone()[0] == 0
    seen: Counter[str] = Counter()
    for job in db.execute("select * from job").fetchall():
        bodies = list(ledger_job.bodies(db, job["id"], job["key"]))  # checks each body against its checksum
        seen[job["state"]] += 1
        seen["records"] += len(bodies)
        if job["state"] != "pending":
            assert bodies == [], job["key"]
            continue
        assert len(bodies) == job["record_count"] > 0, job["key"]
        ids = [check_body(body.body) for body in bodies]
        assert ids == [body.request_id for body in bodies]
        assert len(set(ids)) == len(ids), f"two records of {job['key']} have one request id"
    doubled = db.execute("select turn_id from job where state <> 'superseded' group by turn_id having count(*) > 1")
    assert doubled.fetchall() == []
    assert [one.key_fingerprint != "" for one in destinations(db)] == [True]
    return seen


def check_body(data: bytes) -> uuid.UUID:
    """Helicone's envelope, with nothing in its headers that could be two; the request id."""
    assert len(data) <= BODY_BYTES_MAX
    body = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    told, meta = body["providerRequest"]["json"], body["providerRequest"]["meta"]
    assert {name: body[name] for name in told} == told
    assert set(body) - set(told) == {"providerRequest", "providerResponse", "timing", "provider"}
    assert (body["provider"], set(body["providerRequest"])) == ("CUSTOM", {"url", "json", "meta"})
    assert set(body["providerResponse"]) == {"status", "headers", "json"}
    for moment in (body["timing"]["startTime"], body["timing"]["endTime"]):
        assert all(isinstance(moment[unit], int) and moment[unit] >= 0 for unit in ("seconds", "milliseconds"))
    check_meta(meta)
    return uuid.UUID(meta["Helicone-Request-Id"])


def check_meta(meta: dict[str, Any]) -> None:
    for name, value in meta.items():
        assert name.isascii(), name
        assert isinstance(value, str), name
        assert 0 < len(value) <= 1024, name
        assert all(" " <= character <= "~" or "\xa0" <= character <= "\xff" for character in value), (name, value)


def _refuse_constant(name: str) -> None:
    raise AssertionError(name)


def turns_of_file(data: bytes) -> Transcript:
    """Raises what `import` calls a failure."""
    return parse(snapshot([examine(File("", data))]))
