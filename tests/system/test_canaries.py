"""Canaries in place of everything that a person, a tool or a model wrote: none of them may be found again.

Each is unique. Where they are looked for: in every body that would leave, in every byte of the spool directory, in
logs, refusals and what a command prints.
"""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, cycle
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.capture.enqueue import Place, Request, enqueue
from app.database.open import open_ledger
from app.exporters.encoder import Frame, Record
from app.exporters.helicone.records import encode_session, encode_turn
from app.ledger import destinations, incidents, notices
from app.ledger import job as ledger_job
from app.privacy.metadata_only import withhold_session, withhold_turn
from app.privacy.policy import Policy
from app.privacy.redact import Redaction
from app.privacy.terms import Capture
from app.sources.opencode.translated import exported
from app.transcript.model import Transcript, TranscriptError
from app.transcript.parse import parse
from tests.support import recorded
from tests.support.processes import Station, hook
from tests.support.recorded import Snapshot

FOUND = re.compile(rb"CANARY[0-9]|41704170417[0-9]", re.IGNORECASE)
PATTERNS = ["CANARY[0-9]+", "41704170417[0-9]+"]
RECORDS = 297
"""Of all exports; the events tell of one session more."""
NUMBER = 4_170_417_041_700_000

# What stays, because OpenCode itself writes it and metadata_only lets it leave, or because nothing can be read
# without it. Numbers that OpenCode counts (times, tokens, cost, exit status) stay with it.
IDENTITY = {
    "session": {"id", "parentID"},
    "message": {"id", "role", "parentID", "providerID", "modelID"},
    "part": {"id", "type", "tool", "callID"},
    "state": {"status"},
    "metadata": {"sessionId", "exit", "truncated"},
    "error": {"data"},
    "error data": {"statusCode"},
}
# One word each, which metadata_only lets leave: here they become more than that, and must not.
NAMES = {"message": {"agent", "mode", "finish"}, "error": {"name"}}
NAME_CHARACTERS_MAX = 160
COUNTED = {"time", "tokens", "cost"}


@dataclass(slots=True)
class CanaryWriter:
    """Puts canaries into snapshots, each with a text around it."""

    around: Iterator[tuple[str, str]] = field(default_factory=lambda: cycle([("", "")]))
    keep_text: bool = False
    """Plant a canary into what was written instead of in place of it."""
    count: int = 0

    def text(self, before: str = "", characters_max: int = 100_000) -> str:
        self.count += 1
        head, tail = next(self.around)
        planted = f"{head[:characters_max]}CANARY{self.count:06d}{tail[:characters_max]}"
        if not self.keep_text:
            return planted
        middle = len(before) // 2
        return f"{before[:middle]}{planted}{before[middle:]}{planted}"

    def name(self, before: str) -> str:
        """Not so long that it would be refused."""
        return self.text(before, NAME_CHARACTERS_MAX // 2)

    def anything(self, value: Any) -> Any:
        """Keys and values, recursively."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.anything(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.anything(inner) for inner in value]
        if isinstance(value, bool) or value is None:
            return value
        self.count += 1
        return NUMBER + self.count

    def fields(self, kind: str, told: dict[str, Any], **inner: Callable[[Any], Any]) -> dict[str, Any]:
        """OpenCode's own keys, with what is behind them replaced; and one key that OpenCode does not have yet."""
        made: dict[str, Any] = {}
        for key, value in told.items():
            if key in inner:
                made[key] = inner[key](value)
            elif key in IDENTITY.get(kind, ()) or (key in COUNTED and kind not in {"input", "metadata"}):
                made[key] = value
            elif key in NAMES.get(kind, ()):
                made[key] = f"{self.name(value)} ."
            elif key == "version":
                made[key] = self.name(value)
            else:
                made[key] = self.anything(value)
        return {**made, self.text(): self.text()}

    def snapshot(self, snapshot: Snapshot) -> Snapshot:
        return {"root": snapshot["root"], "sessions": [self.entry(entry) for entry in snapshot["sessions"]]}

    def entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Of a snapshot, and of a file of `opencode export`."""
        return {
            "info": self.fields("session", entry["info"]),
            "messages": [
                {
                    "info": self.fields("message", message["info"], error=self.error),
                    "parts": [self.fields("part", part, state=self.state) for part in message["parts"]],
                }
                for message in entry["messages"]
            ],
        }

    def state(self, state: dict[str, Any]) -> dict[str, Any]:
        return self.fields("state", state, metadata=lambda told: self.fields("metadata", told))

    def error(self, error: dict[str, Any]) -> dict[str, Any]:
        return self.fields("error", error, data=lambda told: self.fields("error data", told))


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy under which no canary may leave."""

    variables: dict[str, str]
    capture: Capture
    keep_text: bool

    def sower(self, around: Iterator[tuple[str, str]] | None = None) -> CanaryWriter:
        return CanaryWriter(around or cycle([("", "")]), keep_text=self.keep_text)


NO_TEXT = Policy("metadata_only", (), redact_secrets=True, prefix="/opencode")
PATTERNS_ON = Policy("full", tuple(PATTERNS), redact_secrets=True, prefix="/opencode")
RULES = {
    "metadata_only": Rule(
        {"OPENCODE_HELICONE_EXPORT_MODE": "metadata_only"},
        Capture(NO_TEXT, Redaction.compile(()), user_id=""),
        keep_text=False,
    ),
    "user patterns": Rule(
        {"OPENCODE_HELICONE_REDACT_PATTERNS": json.dumps(PATTERNS)},
        Capture(PATTERNS_ON, Redaction.compile(PATTERNS), user_id=""),
        keep_text=True,
    ),
}
rules = pytest.mark.parametrize("rule_name", RULES)


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9")


def bodies(spool: Path) -> list[bytes]:
    """What would leave."""
    with closing(open_ledger(spool)) as db:
        jobs = db.execute("select id, key from job").fetchall()
        return [body.body for job in jobs for body in ledger_job.bodies(db, job["id"], job["key"])]


def every_byte(spool: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in spool.rglob("*") if path.is_file())


def canaries(*texts: bytes) -> list[bytes]:
    """Those found, with some of what stands around them."""
    return [text[max(0, at.start() - 40) : at.end() + 20] for text in texts for at in FOUND.finditer(text)]


def recordings() -> Iterator[Snapshot]:
    for name in recorded.names():
        yield from recorded.replayed(name).values()


# --- whole processes -------------------------------------------------------------------------------------------------


@rules
def test_no_canary_of_any_recording_gets_through_a_hook(station: Station, rule_name: str) -> None:
    rule = RULES[rule_name]
    station = replace(station, variables=rule.variables)
    sower = rule.sower()
    with hook(station) as process:
        for snapshot in recordings():
            process.show(sower.snapshot(snapshot), directory=f"/home/{sower.text()}/project")
        process.wait_for_ack()
        # The hook is alive and its connection open: what it wrote is still in the WAL.
        assert (station.spool / "ledger.db-wal").stat().st_size > 0
        assert canaries(every_byte(station.spool)) == []
        assert process.end() == 0
    leaving = bodies(station.spool)
    assert len(leaving) >= RECORDS
    assert sower.count > 3000
    assert canaries(every_byte(station.spool), *leaving) == []


@rules
def test_no_canary_of_any_export_gets_through_an_import(station: Station, rule_name: str, tmp_path: Path) -> None:
    rule = RULES[rule_name]
    station = replace(station, variables=rule.variables)
    sower = rule.sower()
    files = []
    for path in sorted(recorded.FOLDER.glob("*.export.json")):
        files.append(tmp_path / path.name)
        files[-1].write_text(json.dumps(sower.entry(json.loads(path.read_text("utf-8")))), "utf-8")
    done = station.run("import", *map(str, files))
    assert done.returncode == 0, done.stderr
    leaving = bodies(station.spool)
    assert len(leaving) >= RECORDS
    assert canaries(every_byte(station.spool), *leaving, done.stdout.encode(), done.stderr.encode()) == []


# --- whatever the texts are ------------------------------------------------------------------------------------------

SHAPES = {
    name: next(iter(recorded.replayed(name).values()))
    for name in ("a_simple", "b_tools", "d_error_401", "f_subagent", "k_attachment", "l_reasoning", "m_badargs")
}
ODD = ["\x00", "\x1b[31m", "\u2028", "\ud800", "\udc00", "\r\n", "%", "\\", "\\u00", '"', "/", "1: ", "+", "a" * 70]
ODD += ["data:text/plain;base64,", "password=", "http://u:", "Ab1" * 2000, "\U0001f600", "\u202e", "\u0130", "[REDACT"]
some_text = st.one_of(st.just(""), st.text(st.characters(), max_size=12), st.sampled_from(ODD))
surroundings = st.lists(st.tuples(some_text, some_text), min_size=1, max_size=12)


@rules
@given(name=st.sampled_from(sorted(SHAPES)), around=surroundings)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_no_canary_gets_through_whatever_stands_around_it(
    migrated: Path, rule_name: str, name: str, around: list[tuple[str, str]]
) -> None:
    rule = RULES[rule_name]
    snapshot = rule.sower(cycle(around)).snapshot(SHAPES[name])
    with tempfile.TemporaryDirectory() as folder:
        spool = copytree(migrated, Path(folder) / "spool")
        with closing(open_ledger(spool)) as db:
            place = Place(destinations.destination(db, "http://127.0.0.1:9", "", 0).id, "")
            whole = Request(abandoned=True)
            done = enqueue(db, parse(snapshot), rule.capture, place, now_ms=0, wake=lambda _: None, request=whole)
            leaving = bodies(spool)
            assert done.new
            assert canaries(every_byte(spool), *leaving) == []


# --- and what is left ------------------------------------------------------------------------------------------------

ALLOWED = {
    "request": "_type toolName model agent flag parent archived_ms parts.* messages input",
    "response": "_type toolName status id object model choices parts.* error.type error.message error.heliconeMessage"
    " metadata.call_id metadata.exit metadata.truncated metadata.duration_ms usage.cost usage.prompt_tokens"
    " usage.completion_tokens usage.total_tokens usage.prompt_tokens_details.cached_tokens"
    " usage.prompt_tokens_details.cache_write_tokens",
    "meta": "Helicone-Request-Id Helicone-Session-Id Helicone-Session-Name Helicone-Session-Path"
    " Helicone-Property-agent Helicone-Property-mode Helicone-Property-finish Helicone-Property-flag"
    " Helicone-Property-message_id",
    "timing": "startTime.seconds startTime.milliseconds endTime.seconds endTime.milliseconds timeToFirstToken",
}


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all values that hold no others, with the names of part types as `*`."""
    inside = value.items() if isinstance(value, dict) else [("[]", inner) for inner in value]
    for key, inner in inside:
        at = f"{path}{'*' if path == 'parts.' else key}"
        if isinstance(inner, dict | list) and inner:
            yield from leaves(inner, f"{at}.")
        elif inner != {} or at != "parts":
            yield at


def test_under_metadata_only_a_body_has_the_allowed_fields_and_no_others() -> None:
    found: dict[str, set[str]] = {side: set() for side in ALLOWED}
    for snapshot in recordings():
        transcript = parse(snapshot)
        for record in records(
            Transcript(withhold_session(transcript.session), tuple(map(withhold_turn, transcript.turns)))
        ):
            body = json.loads(record.body)
            request, response = body.pop("providerRequest"), body.pop("providerResponse")
            sides = {"request": request["json"], "response": response["json"], "meta": request["meta"]}
            for side, told in {**sides, "timing": body.pop("timing")}.items():
                found[side].update(leaves(told))
            assert body.pop("provider") == "CUSTOM"
            assert body == request["json"]
    assert found == {side: set(names.split()) for side, names in ALLOWED.items()}


# --- what is broken --------------------------------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside, but the session's own id: that is printed, whatever it is."""
    if at and at != ("root",) and (at[0], at[2:]) != ("sessions", ("info", "id")):
        yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from places(inner, (*at, key))


@contextmanager
def damaged(snapshot: Snapshot, at: tuple[Any, ...], damage: Any) -> Iterator[Snapshot]:
    """The snapshot with one value replaced, for a while."""
    holder: Any = snapshot
    for step in at[:-1]:
        holder = holder[step]
    before = holder[at[-1]]
    holder[at[-1]] = damage
    yield snapshot
    holder[at[-1]] = before


DAMAGES = {
    "text": "CANARY1",
    "long text": "CANARY1 " * 100,
    "half a character": "CANARY1 \ud800",
    "list": ["CANARY1"],
    "object": {"CANARY1": "CANARY1"},
    "number": NUMBER,
    "fraction": -0.5,
    "null": None,
    "deep": json.loads('{"CANARY1":' * 120 + "1" + "}" * 120),
}


def refusal(snapshot: Snapshot) -> str:
    """Why it is refused, or what is odd in it; then it can be encoded."""
    try:
        transcript = parse(snapshot)
    except TranscriptError as error:
        return str(error)
    assert records(transcript)
    for turn in transcript.turns:
        assert turn.id.encode()  # a column of the ledger
    faults = [*transcript.faults, *(fault for turn in transcript.turns for fault in turn.faults)]
    return "\n".join([*faults, *(one.why for one in transcript.unreadable)])


def records(transcript: Transcript) -> list[Record]:
    frame = Frame(transcript.session.id, "opencode", "/opencode", "", interrupted=True, encoding=2)
    turns = [encode_turn(turn, frame) for turn in transcript.turns]
    return [encode_session(transcript.session, frame), *chain(*turns)]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_snapshot_is_refused_without_quoting_it_or_can_be_encoded(damage: Any) -> None:
    refusals = []
    for name in ("m_badargs", "d_error_401", "k_attachment"):
        whole = CanaryWriter().snapshot(SHAPES[name])
        for at in list(places(whole)):
            with damaged(whole, at, damage) as snapshot:
                refusals.append(refusal(snapshot))
    assert len(list(filter(None, refusals))) > 10
    assert canaries(*(text.encode() for text in refusals)) == []


def broken() -> list[Snapshot]:
    """Some of them, spread over all places."""
    whole = CanaryWriter().snapshot(SHAPES["b_tools"])
    made = []
    for at, damage in list(zip(places(whole), cycle(DAMAGES.values()), strict=False))[::7]:
        with damaged(whole, at, damage) as snapshot:
            made.append(json.loads(json.dumps(snapshot)))
    return made


def test_neither_the_hooks_log_nor_its_ledger_quote_a_damaged_line_or_row(station: Station) -> None:
    snapshots = broken()
    stored = 0
    with hook(station) as process:
        for snapshot in snapshots:
            process.say("snapshot", **snapshot)
            process.raw(json.dumps({"v": 1, "type": "snapshot", "directory": "/p", **snapshot}).encode()[:-3])
            process.say("CANARY1", **snapshot)
            process.say("refused", session="", reason="CANARY1", bytes="CANARY1")
            with suppress(KeyError, TypeError, AttributeError, sqlite3.Error):  # no store holds such a session
                process.show(snapshot)
                process.wait_for_ack()
                stored += 1
        assert process.end() == 0
    assert stored > len(snapshots) // 2
    logs = station.text("hook.log")
    assert "refused a line" in logs
    assert "odd in " in logs
    with station.ledger() as db:
        assert sum(count for _, count, _ in incidents.refusals(db)) >= 3 * len(snapshots)
        told = str([*incidents.refusals(db), *incidents.incidents(db), *notices.unread(db)])
    assert "internal error" not in told
    assert canaries(logs.encode(), told.encode()) == []


def test_an_import_quotes_nothing_of_a_damaged_file(station: Station, tmp_path: Path) -> None:
    files = []
    for number, snapshot in enumerate(broken()):
        whole = json.dumps(snapshot["sessions"][0] if isinstance(snapshot["sessions"], list) else snapshot)
        for kind, text in (("whole", whole), ("cut", whole[:-3])):
            files.append(tmp_path / f"{number}-{kind}.json")
            files[-1].write_text(text, "utf-8")
    done = station.run("import", *map(str, files))
    assert done.returncode == 1
    assert done.stderr.count("failed") > len(files) // 2
    assert "internal error" not in done.stderr
    assert canaries(done.stdout.encode(), done.stderr.encode()) == []
    for log in ("hook.log", "worker.log"):
        assert canaries(station.text(log).encode()) == []


# --- what OpenCode 2 adds --------------------------------------------------------------------------------------------
#
# A file's data is described, a compaction's `recent`, `native`, a response's body, the texts of rows that are no
# messages and the calls inside of a call are left out, and the rest is redacted as text is.

CARRIERS: dict[str, tuple[str, Any]] = {
    "a file's data": ("user", {"files": [{"data": "@", "mime": "text/plain", "source": {"type": "inline"}}]}),
    "a compaction's recent": ("compaction", {"status": "completed", "summary": "s", "recent": "@"}),
    "a system text": ("system", {"text": "@"}),
    "a skill's text": ("skill", {"skill": "s", "name": "n", "text": "@"}),
    "a response's body": (
        "assistant",
        {"error": {"type": "provider.error", "message": "m", "response": {"body": "@"}}},
    ),
    "native": ("assistant", {"native": {"id": "@"}}),
    "the URI of a tool's file": ("assistant", {"content": [{"type": "tool", "state": {"content": [{"uri": "@"}]}}]}),
    "calls inside a call": (
        "assistant",
        {"content": [{"type": "tool", "state": {"metadata": {"toolCalls": [{"input": "@"}]}}}]},
    ),
    "a shell's output": ("shell", {"command": "@", "status": "exited", "output": {"output": "@"}}),
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_opencode_2_carries_beside_what_was_said_is_not_even_read(carrier: str) -> None:
    kind, data = CARRIERS[carrier]
    rows: list[dict[str, Any]] = [
        {"id": "msg_0", "type": "user", "text": "hello"},
        {"id": "msg_1", "type": kind, **json.loads(json.dumps(data).replace("@", "CANARY1"))},
    ]
    messages = [{**row, "time": {"created": at, "completed": at + 1}} for at, row in enumerate(rows, 1)]
    told: dict[str, Any] = {"info": {"id": "ses_1", "location": {"directory": "/d"}}, "messages": messages}
    found = parse({"root": "ses_1", "sessions": [exported(told)]})
    assert found.turns[0].id == "msg_0"
    is_said = carrier == "a shell's output"  # as that of a tool, which is redacted
    assert ("CANARY1" in repr(found)) is is_said


@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_opencode_2_carries_is_ignored_in_a_message_of_1(carrier: str) -> None:
    """As a mixed turn may have it one day: a key that this version does not know tells it nothing."""
    _, data = CARRIERS[carrier]
    snapshot = json.loads(json.dumps(SHAPES["b_tools"]))
    planted = json.loads(json.dumps(data).replace("@", "CANARY1"))
    for entry in snapshot["sessions"]:
        for message in entry["messages"]:
            message["info"] |= planted
            if "error" in planted:
                message["info"]["error"] = {"name": "APIError", "data": planted["error"]}
            for part in message["parts"]:
                state = planted["content"][0]["state"] if "content" in planted else planted
                part["state"] = part.get("state", {}) | {"metadata": part.get("state", {}).get("metadata", {}) | state}
    for turn in parse(snapshot).turns:
        assert canaries(repr(turn).encode()) == []
