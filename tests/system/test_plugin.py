"""The plugin, with a stand-in for the hook that writes down what it is told.

The first half runs the plugin alone, under node and under the runtime inside OpenCode, with a scripted OpenCode around
it; the second half runs it in the real OpenCode.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest

from app.capture.daemon import NOTHING_WANTED
from app.sources.opencode.install import SOURCE, Flavour, Global, Project, install, render
from tests.support.checkout import DATA
from tests.support.opencode import (
    CONFIG,
    MODEL,
    VERSION,
    Finished,
    OpenCode,
    Server,
    install_opencode,
    installed_opencode,
    unavailable,
)
from tests.support.waiting import wait_until

pytest_plugins = ["tests.support.opencode"]

MEBIBYTE = 1024 * 1024
LINES_MAX = 220
IN_FLIGHT_MAX = 64
"""As in the plugin."""

STAND_IN = f"""#!{sys.executable} -I
import contextlib, json, os, select, signal, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
variables = {{name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "OPENCODE_HELICONE"))}}
start = {{"pid": os.getpid(), "leads": os.getsid(0) == os.getpid(), "cwd": os.getcwd(), "variables": variables}}
start["arguments"] = sys.argv[1:]
def mode():
    with open(folder + "/mode") as file:
        return file.read()
with open(folder + "/starts", "a") as starts:
    starts.write(json.dumps(start) + "\\n")
if mode() == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
if mode() == "close":
    os.close(0)
    time.sleep(600)
with open(folder + "/lines", "ab") as lines:
    chunk, rest, last = b"-", b"", None
    while chunk:
        if select.select([0], [], [], 0.02)[0]:
            chunk = os.read(0, 65536)
            lines.write(chunk)
            lines.flush()
            *whole, rest = (rest + chunk).split(b"\\n")
            last = json.loads(whole[-1])["n"] if whole else last
            if mode() in {{"die", "unwanted"}}:
                sys.exit({{"die": 7, "unwanted": {NOTHING_WANTED}}}[mode()])
        if last is not None and mode() != "silent":
            with contextlib.suppress(OSError):
                os.write(1, b'{{"v":2,"ack":%d}}\\n' % last)
            last = None
open(folder + "/eof", "w").close()
"""

DRIVER = """
import { createInterface } from "node:readline"
const loads = []
const logged = []
const cleanups = []
const streams = []
const client = {
  get session() { throw new Error("the plugin reads nothing") },
  app: { log: async ({ body }) => void logged.push(body.message) },
}

/** An OpenCode 2, by its public description: what it hands to `setup`. */
function contextOf2({ version, directory, sessions, options }) {
  const subscribe = async function* ({ signal }) {
    const stream = { events: [], wake() {} }
    streams.push(stream)
    signal.addEventListener("abort", () => stream.wake())
    while (!signal.aborted) {
      if (stream.overflown) throw new Error("event subscriber overflowed")
      if (stream.events.length) yield stream.events.shift()
      else await new Promise((resolve) => (stream.wake = resolve))
    }
  }
  const get = async ({ sessionID }) => {
    if (!(sessionID in sessions)) throw new Error("no such session")
    return { id: sessionID, location: { directory: sessions[sessionID] } }
  }
  return { app: { version }, location: { directory }, options, event: { subscribe }, session: { get } }
}

const commands = {
  load: async ({ file, directory, options }) => {
    const { default: plugin } = await import(file)
    loads.push(await plugin.server({ client, directory }, options))
    return loads.length - 1
  },
  setup: async ({ file, directory, version, sessions, options }) => {
    const { default: plugin } = await import(file)
    const of1 = { agent: {}, options: {}, skill: {} }
    const context = version ? contextOf2({ version, directory, sessions, options }) : of1
    cleanups.push(await plugin.setup(context))
    return typeof cleanups.at(-1)
  },
  publish: ({ events, overflow }) => {
    const stream = streams.at(-1)
    if (overflow) stream.overflown = true
    else stream.events.push(...events)
    stream.wake()
  },
  streams: () => streams.length,
  cleanup: async () => void (await cleanups.at(-1)()),
  tell: ({ events, targets }) =>
    events.flatMap((event) => (targets ?? loads.map((_, i) => i)).map((i) => typeof loads[i].event({ event }))),
  tellAndDie: ({ event }) => {
    loads[0].event({ event })
    process.kill(process.pid, "SIGKILL")
  },
  delta: () => {
    const look = (target, name) => {
      if (name !== "type") throw new Error(`looked at ${name}`)
      return "message.part.delta"
    }
    return loads.map((load) => typeof load.event({ event: new Proxy({}, { get: look }) }))
  },
  dispose: async ({ load }) => void (await loads[load].dispose()),
  logged: () => logged,
  nap: () => new Promise((resolve) => setTimeout(resolve, 20)),
  setClock: ({ ms }) => void (Date.now = () => ms),
  held: () => {
    globalThis.Bun ? Bun.gc(true) : globalThis.gc()
    const { heapUsed, external } = process.memoryUsage()
    return heapUsed + external
  },
}
for await (const line of createInterface({ input: process.stdin })) {
  const { id, command, ...values } = JSON.parse(line)
  Promise.resolve(commands[command](values)).then((value) => console.log(JSON.stringify({ id, value: value ?? null })))
}
process.exit(0)
"""


@dataclass(frozen=True, slots=True)
class StandIn:
    """The hook's double: a program in a folder, and what it wrote there."""

    folder: Path

    @property
    def program(self) -> Path:
        return self.folder / "opencode-helicone"

    def behave(self, mode: str) -> None:
        """Do this at once, or from the next start on.

        `record`: read and acknowledge; `silent`: wait with that until told otherwise; `stop`: stop at the start, until
        continued; `close`: close the input and live on; `die`, `unwanted`: end at the first words.
        """
        draft = self.folder / "mode.draft"
        draft.write_text(mode)
        draft.replace(self.folder / "mode")

    def plugin(self, name: str = "helicone.js", source: str | None = None) -> Path:
        """A copy of the plugin that starts this program."""
        path = self.folder / name
        path.write_text(render(source or SOURCE.read_text(), (str(self.program), "hook")))
        return path

    @property
    def starts(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "starts")

    @property
    def lines(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "lines")

    @property
    def has_ended(self) -> bool:
        return (self.folder / "eof").exists()

    @property
    def told(self) -> list[tuple[str, str]]:
        """(session, why) of each notice."""
        return [(line["session"], line["why"]) for line in self.lines if line["type"] == "notice"]

    def why(self, session: str) -> list[str]:
        return [why for name, why in self.told if name == session]

    def of(self, why: str) -> list[str]:
        return [name for name, one in self.told if one == why]

    def signal(self, number: signal.Signals) -> None:
        for start in self.starts:
            with suppress(ProcessLookupError):
                os.kill(start["pid"], number)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines so far; one that is still being written does not count."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def stand_in(folder: Path) -> StandIn:
    hook = StandIn(folder)
    folder.mkdir()
    hook.program.write_text(STAND_IN)
    hook.program.chmod(0o755)
    hook.behave("record")
    return hook


@pytest.fixture
def hook(tmp_path: Path) -> Iterator[StandIn]:
    hook = stand_in(tmp_path / "hook")
    yield hook
    if not hook.has_ended:
        hook.signal(signal.SIGKILL)


# ---- the plugin alone -----------------------------------------------------------------------------------------------


def test_the_plugin_reads_nothing_and_is_short() -> None:
    source = SOURCE.read_text()
    assert "client.session" not in source
    assert len(source.splitlines()) <= LINES_MAX
    assert f"IN_FLIGHT_MAX = {IN_FLIGHT_MAX} " in source


@dataclass(frozen=True, slots=True)
class Runtime:
    command: tuple[str, ...]
    environ: Mapping[str, str]


in_both_runtimes = pytest.mark.parametrize(
    "runtime", ["node", pytest.param("bun", marks=pytest.mark.opencode)], indirect=True
)
"""For what touches processes and pipes, where the two could differ."""


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """`bun` is the one that OpenCode is made of: its binary acts as a plain Bun when asked to."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPENCODE", "XDG_DATA"))}
    if getattr(request, "param", "node") == "bun":
        return Runtime((str(install_opencode()),), {**environ, "BUN_BE_BUN": "1"})
    node = shutil.which("node")
    if node is None:
        unavailable("node is not installed")
    return Runtime((node, "--expose-gc"), environ)


@dataclass(frozen=True, slots=True)
class Host:
    """A process that loads plugins as OpenCode does and plays it to them."""

    process: subprocess.Popen[str]
    project: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)
    replies: dict[int, Any] = field(default_factory=dict)
    """Those that came while another one was waited for."""

    def send(self, command: str, **values: Any) -> int:
        assert self.process.stdin is not None
        number = next(self.numbers)
        self.process.stdin.write(json.dumps({"id": number, "command": command, **values}) + "\n")
        self.process.stdin.flush()
        return number

    def receive(self, number: int) -> Any:
        assert self.process.stdout is not None
        while number not in self.replies:
            line = self.process.stdout.readline()
            assert line, "the host ended"
            reply = json.loads(line)
            self.replies[reply["id"]] = reply["value"]
        return self.replies.pop(number)

    def call(self, command: str, **values: Any) -> Any:
        return self.receive(self.send(command, **values))

    def load(self, file: Path, options: Mapping[str, Any] | None = None, directory: Path | None = None) -> int:
        number: int = self.call("load", file=str(file), directory=str(directory or self.project), options=options)
        return number

    def tell(self, *events: dict[str, Any], targets: list[int] | None = None) -> None:
        answers = self.call("tell", events=list(events), targets=targets)
        assert set(answers) == {"undefined"}


Hosting = Callable[..., Host]
HOST_S_MAX = 120.0


@pytest.fixture
def hosting(runtime: Runtime, tmp_path: Path) -> Iterator[Hosting]:
    """Starts hosts; their ends are ended with the test."""
    project = tmp_path / "project"
    project.mkdir()
    driver = tmp_path / "driver.mjs"
    driver.write_text(DRIVER)
    hosts: list[Host] = []
    watches: list[threading.Timer] = []

    def start(**environ: str) -> Host:
        env = {**runtime.environ, "HOME": str(tmp_path / "home"), **environ}
        command = [*runtime.command, str(driver)]
        pipe = subprocess.PIPE
        hosts.append(Host(subprocess.Popen(command, cwd=project, env=env, stdin=pipe, stdout=pipe, text=True), project))
        # One that hangs fails its test instead of holding up all of them.
        watches.append(threading.Timer(HOST_S_MAX, hosts[-1].process.kill))
        watches[-1].start()
        return hosts[-1]

    yield start
    for watch in watches:
        watch.cancel()
        watch.join()
    for host in hosts:
        host.process.kill()
        host.process.communicate()


@pytest.fixture
def host(hosting: Hosting) -> Host:
    return hosting()


EVENT_NUMBERS = itertools.count()


def event(type_: str, session: str, **properties: Any) -> dict[str, Any]:
    return {"id": f"evt_{next(EVENT_NUMBERS):06}", "type": type_, "properties": {"sessionID": session, **properties}}


def created(session: str, **facts: Any) -> dict[str, Any]:
    return event("session.created", session, info={"id": session, "title": "a title", "time": {}, **facts})


def updated(session: str, **facts: Any) -> dict[str, Any]:
    return event("session.updated", session, info={"id": session, "title": "a title", "time": {}, **facts})


def busy(session: str) -> dict[str, Any]:
    return event("session.status", session, status={"type": "busy"})


def idle(session: str) -> dict[str, Any]:
    return event("session.idle", session)


def deleted(session: str) -> dict[str, Any]:
    return event("session.deleted", session, info={"id": session})


def message(session: str, **facts: Any) -> dict[str, Any]:
    return event("message.updated", session, info={"id": "msg_1", "sessionID": session, "role": "assistant", **facts})


def part(session: str, **facts: Any) -> dict[str, Any]:
    facts = {"id": "prt_1", "messageID": "msg_1", "sessionID": session, "type": "text", **facts}
    return event("message.part.updated", session, part=facts)


def tool(session: str, status: str) -> dict[str, Any]:
    return part(session, type="tool", state={"status": status})


def turn(session: str) -> list[dict[str, Any]]:
    """What OpenCode tells of one answered question."""
    question = [message(session, role="user"), part(session)]
    answer = [busy(session), message(session), part(session), tool(session, "completed"), busy(session)]
    return [*question, *answer, event("session.status", session, status={"type": "idle"}), idle(session)]


@in_both_runtimes
def test_a_turn_is_two_notices(host: Host, hook: StandIn, spool: Path) -> None:
    options = {"spoolDirectory": str(spool), "redactPatterns": ["Grüße 🌍 \u2028 \x00 \x1b[1m \ud83d lone\n"]}
    host.load(hook.plugin(), options)
    host.tell(created("ses_a"), updated("ses_a"), *turn("ses_a"), updated("ses_a"))
    wait_until(lambda: len(hook.lines) == 2)
    shared = {"v": 2, "type": "notice", "session": "ses_a", "directory": str(host.project), "options": options}
    assert hook.lines == [{**shared, "n": 1, "why": "busy"}, {**shared, "n": 2, "why": "idle"}]
    assert not spool.exists(), "the plugin makes no folder"


@in_both_runtimes
def test_hook_starts_at_the_first_busy_session_and_not_before(host: Host, hook: StandIn) -> None:
    host.load(hook.plugin())
    host.tell(created("ses_a"), updated("ses_a"), message("ses_a", role="user"), part("ses_a"))
    assert not hook.starts
    host.tell(busy("ses_a"))
    wait_until(lambda: hook.told == [("ses_a", "busy")])
    [start] = hook.starts
    assert start["cwd"] == "/"
    assert start["leads"], "a signal to OpenCode's terminal must not reach the hook"


@in_both_runtimes
@pytest.mark.parametrize("is_running", [True, False], ids=["running hook", "no hook yet"])
def test_notice_arrives_although_the_process_is_killed_in_the_same_tick(
    host: Host, hook: StandIn, *, is_running: bool
) -> None:
    host.load(hook.plugin())
    if is_running:
        host.tell(busy("ses_a"))
        wait_until(lambda: hook.told)
    host.send("tellAndDie", event=deleted("ses_b"))
    host.process.wait()
    wait_until(lambda: hook.has_ended)
    assert hook.told[-1] == ("ses_b", "deleted")


@pytest.mark.parametrize(
    ("late", "is_told"),
    [
        (message("ses_a"), True),
        (message("ses_a", role="user", summary={"diffs": []}), True),
        (part("ses_a"), True),
        (tool("ses_a", "completed"), True),
        (tool("ses_a", "error"), True),
        (tool("ses_a", "running"), False),
        (tool("ses_a", "pending"), False),
        (updated("ses_a"), False),
        (event("session.diff", "ses_a", diff=[]), False),
    ],
    ids=["message", "summary", "part", "tool's end", "tool's error", "tool's output", "tool's start", "totals", "diff"],
)
def test_what_is_finished_after_idle_is_told(host: Host, hook: StandIn, late: dict[str, Any], *, is_told: bool) -> None:
    """After an abort or an error OpenCode goes idle first and finishes the message then."""
    host.load(hook.plugin())
    host.tell(created("ses_a"), *turn("ses_a"), late, busy("ses_b"))
    wait_until(lambda: hook.why("ses_b"))
    assert hook.why("ses_a") == ["busy", "idle", *(["late"] if is_told else [])]


def test_error_is_told(host: Host, hook: StandIn) -> None:
    host.load(hook.plugin())
    host.tell(busy("ses_a"), event("session.error", "ses_a", error={}), idle("ses_a"), idle("ses_a"))
    host.tell({"id": "evt_x", "type": "session.error", "properties": {"error": {}}})
    wait_until(lambda: len(hook.told) == 4)
    assert hook.why("ses_a") == ["busy", "error", "idle", "idle"]


def test_each_idle_is_told_at_once(host: Host, hook: StandIn) -> None:
    """After an error there are two, and the first may be read before the message is finished."""
    hook.behave("silent")
    host.load(hook.plugin())
    host.tell(busy("ses_a"), idle("ses_a"), idle("ses_a"))
    wait_until(lambda: hook.why("ses_a") == ["busy", "idle", "idle"])


REVERT = {"messageID": "msg_0003"}


@pytest.mark.parametrize(
    "events",
    [
        [event("message.removed", "ses_a", messageID="msg_1")],
        [event("message.part.removed", "ses_a", messageID="msg_1", partID="prt_1")],
        [updated("ses_a", revert=REVERT)],
        [updated("ses_a", revert=REVERT, title="another")],
    ],
    ids=["message", "part", "revert", "revert and name"],
)
def test_what_was_undone_is_told(host: Host, hook: StandIn, events: list[dict[str, Any]]) -> None:
    host.load(hook.plugin())
    host.tell(created("ses_a"), *turn("ses_a"), *events)
    wait_until(lambda: hook.why("ses_a") == ["busy", "idle", "reverted"])


def test_revert_that_is_taken_back_is_told(host: Host, hook: StandIn) -> None:
    host.load(hook.plugin())
    host.tell(updated("ses_a", revert=REVERT))
    wait_until(lambda: hook.why("ses_a") == ["reverted"])
    host.tell(updated("ses_a", revert=REVERT))
    host.tell(updated("ses_a"))
    wait_until(lambda: hook.why("ses_a") == ["reverted", "reverted"])


def test_new_name_is_told_when_the_session_is_not_at_work(host: Host, hook: StandIn) -> None:
    host.load(hook.plugin())
    host.tell(created("ses_a"), busy("ses_a"), updated("ses_a", title="given while it works"), idle("ses_a"))
    host.tell(updated("ses_a", title="given while it works"))
    host.tell(updated("ses_a", title="by the user"), updated("ses_a", title="by the user"))
    wait_until(lambda: hook.why("ses_a") == ["busy", "idle", "renamed"])
    host.tell(updated("ses_a", title="by the user", time={"archived": 1}))
    host.tell(updated("ses_old", title="of another process's session"))
    wait_until(lambda: hook.why("ses_old") == ["renamed"])
    assert hook.why("ses_a") == ["busy", "idle", "renamed", "renamed"]


def test_subagents_are_told_by_their_own_names(host: Host, hook: StandIn) -> None:
    """Whose they are, the hook finds in the store."""
    host.load(hook.plugin())
    host.tell(busy("ses_a"), created("ses_child", parentID="ses_a"), busy("ses_child"), idle("ses_child"))
    wait_until(lambda: hook.told == [("ses_a", "busy"), ("ses_child", "busy"), ("ses_child", "idle")])


def test_what_happens_while_a_session_works_is_not_told(host: Host, hook: StandIn) -> None:
    host.load(hook.plugin())
    outputs = [one for _ in range(500) for one in (part("ses_a"), tool("ses_a", "running"), message("ses_a"))]
    host.tell(created("ses_a"), busy("ses_a"), *outputs, busy("ses_a"), idle("ses_a"))
    wait_until(lambda: hook.why("ses_a")[-1:] == ["idle"])
    assert hook.why("ses_a") == ["busy", "idle"]


def test_what_repeats_is_told_once_and_again_when_that_is_acknowledged(host: Host, hook: StandIn) -> None:
    hook.behave("silent")
    host.load(hook.plugin())
    removals = [event("message.removed", "ses_a", messageID=f"msg_{number}") for number in range(500)]
    host.tell(*removals, busy("ses_b"))
    wait_until(lambda: hook.why("ses_b"))
    assert hook.why("ses_a") == ["reverted"]
    hook.behave("record")
    wait_until(lambda: hook.why("ses_a") == ["reverted", "reverted"])


@in_both_runtimes
def test_dispose_waits_until_everything_is_acknowledged(host: Host, hook: StandIn) -> None:
    hook.behave("silent")
    load = host.load(hook.plugin())
    host.tell(*turn("ses_a"))
    disposing = host.send("dispose", load=load)
    host.call("nap")
    assert disposing not in host.replies
    hook.behave("record")
    host.receive(disposing)
    assert hook.why("ses_a") == ["busy", "idle"]


@in_both_runtimes
@pytest.mark.parametrize("mode", ["silent", "stop", "close", "die"])
def test_dispose_ends_whatever_the_hook_does(host: Host, hook: StandIn, mode: str) -> None:
    hook.behave(mode)
    load = host.load(hook.plugin())
    host.tell(*turn("ses_a"))
    host.call("dispose", load=load)
    host.call("dispose", load=load)


def test_dispose_with_nothing_new_says_nothing(host: Host, hook: StandIn) -> None:
    load = host.load(hook.plugin())
    host.tell(created("ses_a"), *turn("ses_a"), updated("ses_a"))
    host.call("dispose", load=load)
    host.process.kill()
    wait_until(lambda: hook.has_ended)
    assert hook.why("ses_a") == ["busy", "idle"]


@pytest.mark.parametrize("bare", [0, 1], ids=["bare one first", "bare one second"])
def test_plugin_loaded_twice_works_once_with_the_options_of_the_load_that_has_some(
    host: Host, hook: StandIn, spool: Path, bare: int
) -> None:
    options: list[dict[str, Any] | None] = [{"spoolDirectory": str(spool)}, {"spoolDirectory": str(spool)}]
    options[bare] = None
    for number, one in enumerate(options):
        host.load(hook.plugin(f"copy{number}.mjs"), one)
    host.tell(*turn("ses_a"), deleted("ses_a"))
    wait_until(lambda: hook.of("deleted"))
    assert [line["why"] for line in hook.lines] == ["busy", "idle", "deleted"]
    assert {line["options"]["spoolDirectory"] for line in hook.lines} == {str(spool)}
    assert len(hook.starts) == 1


def test_the_options_of_the_newest_load_count(host: Host, hook: StandIn) -> None:
    for number in range(2):
        host.load(hook.plugin(f"copy{number}.mjs"), {"redactPatterns": [f"{number}"]})
    host.tell(busy("ses_a"))
    wait_until(lambda: hook.lines)
    assert hook.lines[0]["options"] == {"redactPatterns": ["1"]}


def test_directories_of_one_process_share_a_hook(host: Host, hook: StandIn, spool: Path, tmp_path: Path) -> None:
    plugin = hook.plugin()
    first = host.load(plugin, {"spoolDirectory": str(spool), "redactPatterns": ["1"]})
    second = host.load(plugin, {"spoolDirectory": str(spool)}, tmp_path / "other")
    for name, load in (("ses_a", first), ("ses_b", second)):
        host.tell(busy(name), idle(name), targets=[load])
    host.call("dispose", load=first)
    host.tell(idle("ses_b"), targets=[second])
    wait_until(lambda: len(hook.why("ses_b")) == 3)
    of_a, of_b = ([line for line in hook.lines if line["session"] == name] for name in ("ses_a", "ses_b"))
    assert {line["directory"] for line in of_a} == {str(host.project)}
    assert {json.dumps(line["options"].get("redactPatterns")) for line in of_a} == {'["1"]'}
    assert {line["directory"] for line in of_b} == {str(tmp_path / "other")}
    assert {json.dumps(line["options"].get("redactPatterns")) for line in of_b} == {"null"}
    assert len(hook.starts) == 1


def test_instance_made_anew_goes_on_with_its_own_options(host: Host, hook: StandIn) -> None:
    old = host.load(hook.plugin(), {"redactPatterns": ["old"]})
    host.tell(busy("ses_a"), idle("ses_a"))
    host.call("dispose", load=old)
    new = host.load(hook.plugin(), {"redactPatterns": ["new"]})
    host.tell(busy("ses_a"), idle("ses_a"), targets=[new])
    wait_until(lambda: len(hook.lines) == 4)
    assert [line["options"]["redactPatterns"] for line in hook.lines] == [["old"], ["old"], ["new"], ["new"]]
    assert len(hook.starts) == 1


def test_what_is_said_after_dispose_carries_the_options_of_before(host: Host, hook: StandIn) -> None:
    load = host.load(hook.plugin(), {"redactPatterns": ["old"]})
    host.tell(busy("ses_a"))
    host.call("dispose", load=load)
    host.tell(idle("ses_a"))
    wait_until(lambda: len(hook.lines) == 2)
    assert [line["options"] for line in hook.lines] == [{"redactPatterns": ["old"]}] * 2


@in_both_runtimes
def test_instance_made_anew_in_the_middle_of_a_slow_dispose_works(host: Host, hook: StandIn) -> None:
    hook.behave("silent")
    old = host.load(hook.plugin())
    host.tell(busy("ses_a"), idle("ses_a"))
    wait_until(lambda: hook.starts)
    disposing = host.send("dispose", load=old)
    new = host.load(hook.plugin(), {"redactPatterns": ["new"]})
    host.tell(busy("ses_b"), idle("ses_b"), targets=[new])
    hook.behave("record")
    host.receive(disposing)
    wait_until(lambda: hook.why("ses_b") == ["busy", "idle"])
    assert hook.lines[-1]["options"]["redactPatterns"] == ["new"]
    assert len(hook.starts) == 1


def test_of_a_deleted_session_nothing_more_is_told(host: Host, hook: StandIn) -> None:
    hook.behave("silent")
    host.load(hook.plugin())
    host.tell(busy("ses_a"), deleted("ses_a"), idle("ses_a"), busy("ses_b"))
    wait_until(lambda: hook.why("ses_b"))
    assert hook.why("ses_a") == ["busy", "deleted"]


def test_deletion_is_told_although_no_session_was_busy(host: Host, hook: StandIn) -> None:
    """Jobs of it may wait in a spool; whether one is there, the hook knows."""
    host.load(hook.plugin())
    host.tell(deleted("ses_old"))
    wait_until(lambda: hook.told == [("ses_old", "deleted")])


@pytest.mark.parametrize("options", [{"enable": False}, {"spoolDirectory": "spool"}, {}], ids=str)
def test_nothing_is_decided_from_options_or_variables(hosting: Hosting, hook: StandIn, options: dict[str, Any]) -> None:
    environ = {"OPENCODE_HELICONE_ENABLE": "false", "OPENCODE_HELICONE_SPOOL_DIRECTORY": "../beside"}
    host = hosting(**environ)
    host.load(hook.plugin(), options)
    host.tell(*turn("ses_a"))
    wait_until(lambda: hook.of("idle"))
    assert {json.dumps(line["options"]) for line in hook.lines} == {json.dumps(options)}
    assert hook.starts[0]["cwd"] == "/"
    assert hook.starts[0]["variables"] == environ
    assert sorted(path.name for path in host.project.parent.iterdir()) == ["driver.mjs", "hook", "project"]


@in_both_runtimes
def test_where_nothing_is_wanted_no_other_hook_starts_until_the_folder_is_loaded_anew(
    host: Host, hook: StandIn, tmp_path: Path
) -> None:
    hook.behave("unwanted")
    plugin = hook.plugin()
    load = host.load(plugin, {"enable": False})
    host.tell(*turn("ses_a"))
    wait_until(lambda: hook.starts and not children_of(host))
    for _ in range(5):
        host.tell(*turn("ses_a"))
    host.tell(deleted("ses_b"))
    host.call("dispose", load=load)
    assert len(hook.starts) == 1
    assert host.call("logged") == []
    # Another folder is another question; and so is this one with other options.
    hook.behave("record")
    other = host.load(plugin, {}, tmp_path / "other")
    host.tell(busy("ses_c"), targets=[other])
    wait_until(lambda: "ses_c" in hook.of("busy"))
    again = host.load(plugin, {"enable": True})
    host.tell(busy("ses_a"), targets=[again])
    wait_until(lambda: hook.told[-1] == ("ses_a", "busy"))
    assert len(hook.starts) == 2


def test_only_the_folder_that_was_surely_heard_is_taken_for_unwanted(host: Host, hook: StandIn, tmp_path: Path) -> None:
    """The hook may have ended before it read the other ones' lines: each is asked about anew, without a pause."""
    hook.behave("unwanted")
    plugin, folders = hook.plugin(), [str(tmp_path / f"{number}") for number in range(6)]
    loads = [host.load(plugin, {}, Path(folder)) for folder in folders]
    for number, load in enumerate(loads):
        host.tell(busy(f"ses_{number}"), targets=[load])
    wait_until(lambda: len(hook.starts) == len(folders))
    wait_until(lambda: not children_of(host))
    assert sorted(line["directory"] for line in hook.lines if line["n"] == 1) == folders
    hook.behave("record")
    again = host.load(plugin, {"enable": True}, Path(folders[3]))
    host.tell(idle("ses_3"), targets=[again])
    wait_until(lambda: ("ses_3", "idle") in hook.told)
    assert host.call("logged") == []


@in_both_runtimes
def test_command_is_found_by_path_and_the_project_cannot_put_itself_before_it(hosting: Hosting, hook: StandIn) -> None:
    path = os.pathsep.join(["bin", "", ".", str(hook.folder), os.environ["PATH"]])
    host = hosting(PATH=path, PYTHONPATH=".", PYTHONHOME="/nowhere", PYTHONSTARTUP="x.py")
    for folder in (host.project, host.project / "bin"):
        folder.mkdir(exist_ok=True)
        (folder / "opencode-helicone").write_text("#!/bin/sh\ntouch tricked\n")
        (folder / "opencode-helicone").chmod(0o755)
    host.load(install(Project(host.project), python="").path)
    host.tell(busy("ses_a"))
    wait_until(lambda: hook.told)
    assert hook.starts[0]["arguments"] == ["hook"]
    assert hook.starts[0]["variables"] == {}
    assert not [*host.project.rglob("tricked")]


@in_both_runtimes
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/nowhere/python", "hook"), "ENOENT"),
        (("/etc/passwd", "hook"), "EACCES"),
        (("no-such-command-anywhere", "hook"), "ENOENT"),
    ],
    ids=["missing", "not executable", "not on PATH"],
)
def test_hook_that_cannot_start_is_one_line_in_opencodes_log(
    host: Host, hook: StandIn, command: tuple[str, ...], reason: str
) -> None:
    plugin = hook.folder / "broken.mjs"
    plugin.write_text(render(SOURCE.read_text(), command))
    load = host.load(plugin)
    host.tell(*turn("ses_a"))
    wait_until(lambda: host.call("logged"))
    for _ in range(3):
        host.tell(*turn("ses_a"))
    host.call("dispose", load=load)
    told = f"hook did not start: {reason}; command {json.dumps(command, separators=(',', ':'))}"
    assert host.call("logged") == [told]


@in_both_runtimes
def test_hook_that_died_is_started_again_and_told_everything(host: Host, hook: StandIn) -> None:
    host.load(hook.plugin())
    host.tell(*turn("ses_a"), *turn("ses_b"), busy("ses_c"), busy("ses_gone"), deleted("ses_gone"))
    wait_until(lambda: hook.of("deleted"))
    host.call("nap")
    before = len(hook.lines)
    hook.behave("silent")
    host.tell(idle("ses_c"), deleted("ses_d"))
    wait_until(lambda: hook.why("ses_d"))
    hook.signal(signal.SIGKILL)
    hook.behave("record")
    wait_until(lambda: len(hook.starts) == 2 and len(hook.lines) == before + 2 + 5)
    again = hook.lines[before + 2 :]
    assert [line["n"] for line in again] == [1, 2, 3, 4, 5]
    assert sorted((line["session"], line.get("why")) for line in again) == [
        ("", None),
        ("ses_a", "idle"),
        ("ses_b", "idle"),
        ("ses_c", "idle"),
        ("ses_d", "deleted"),
    ]
    assert "hook ended: SIGKILL; command" in host.call("logged")[0]
    [trouble] = [line for line in again if line["type"] == "trouble"]
    shared = {"v": 2, "type": "trouble", "session": "", "directory": str(host.project), "options": {}}
    assert trouble == {**shared, "n": trouble["n"], "reason": "hook ended: SIGKILL"}


@in_both_runtimes
def test_hook_that_closes_its_input_and_lives_is_replaced(host: Host, hook: StandIn) -> None:
    hook.behave("close")
    host.load(hook.plugin())
    host.tell(busy("ses_a"))
    wait_until(lambda: hook.starts)
    host.call("nap")
    hook.behave("record")
    while not host.call("logged"):
        host.tell(idle("ses_a"))
        host.call("nap")
    assert host.call("logged")[0].startswith("hook closed its input; command")
    wait_until(lambda: ("ses_a", "idle") in hook.told)
    assert len(hook.starts) == 2


def children_of(host: Host) -> list[str]:
    processes = subprocess.check_output(["ps", "-A", "-o", "ppid=,pid="], text=True).splitlines()
    return [line for line in processes if line.split()[0] == str(host.process.pid)]


@in_both_runtimes
def test_a_clock_that_is_set_back_holds_up_no_new_hook(host: Host, hook: StandIn) -> None:
    hook.behave("die")
    host.load(hook.plugin())
    host.tell(busy("ses_a"))
    wait_until(lambda: host.call("logged"))
    host.call("setClock", ms=0)
    hook.behave("record")
    host.tell(idle("ses_a"))
    wait_until(lambda: ("ses_a", "idle") in hook.told)


@in_both_runtimes
def test_hook_that_keeps_dying_is_not_started_for_every_event(host: Host, hook: StandIn) -> None:
    hook.behave("die")
    load = host.load(hook.plugin())
    host.tell(*turn("ses_a"))
    wait_until(lambda: len(hook.starts) == 2)  # the first restart
    wait_until(lambda: not children_of(host))
    for _ in range(20):
        host.tell(*turn("ses_a"))
    host.call("dispose", load=load)
    assert not children_of(host)
    assert len(hook.starts) == 2
    assert len(host.call("logged")) == 1
    assert "hook ended: exit code 7; command" in host.call("logged")[0]


@in_both_runtimes
@pytest.mark.parametrize("mode", ["silent", "stop"])
def test_hook_that_keeps_us_waiting_is_told_so_much_and_then_the_newest_of_each(
    host: Host, hook: StandIn, mode: str
) -> None:
    hook.behave(mode)
    host.load(hook.plugin())
    sessions = [f"ses_{number:03}" for number in range(100)]
    for name in sessions:
        host.tell(busy(name), idle(name), event("session.error", name))
    for _ in range(20):
        host.tell(*(idle(name) for name in sessions))
    wait_until(lambda: hook.starts)
    if mode == "silent":
        wait_until(lambda: len(hook.lines) == IN_FLIGHT_MAX)
    hook.behave("record")
    hook.signal(signal.SIGCONT)
    wait_until(lambda: len(hook.lines) == IN_FLIGHT_MAX + len(sessions))
    assert sorted(hook.told[IN_FLIGHT_MAX:]) == [(name, "idle") for name in sessions]
    assert [line["n"] for line in hook.lines] == [*range(1, len(hook.lines) + 1)]


@in_both_runtimes
def test_stopped_hook_costs_little_memory_and_nothing_blocks(hosting: Hosting, hook: StandIn) -> None:
    hook.behave("stop")
    bare, host = hosting(), hosting()
    empty = hook.folder / "empty.mjs"
    empty.write_text("export default { server: async () => ({ event() {}, async dispose() {} }) }")
    # Longer than all of them together fit in a pipe.
    bare.load(empty)
    host.load(hook.plugin(), {"redactPatterns": ["x" * 10_000]})
    for one in (bare, host):
        for number in range(0, 5_000, 100):
            one.tell(*(idle(f"ses_{name}") for name in range(number, number + 100)))
    assert host.call("held") - bare.call("held") < 16 * MEBIBYTE
    hook.behave("record")
    hook.signal(signal.SIGCONT)
    wait_until(lambda: hook.of("idle")[-1:] == ["ses_4999"])
    assert len(hook.lines) <= IN_FLIGHT_MAX + 1_000


# --- several copies


def other_code(source: str) -> str:
    """The same, by another name: what an upgrade brings."""
    return source + "// upgraded\n"


@in_both_runtimes
def test_copy_with_newer_code_takes_over_and_ends_the_hook_of_the_older(host: Host, hook: StandIn) -> None:
    options = {"redactPatterns": ["1"]}
    host.load(hook.plugin("old.mjs"), options)
    host.tell(*turn("ses_a"), busy("ses_b"))
    wait_until(lambda: hook.why("ses_b"))
    newer = hook.plugin("new.mjs", other_code(SOURCE.read_text()))
    hook.behave("silent")
    host.load(newer)
    wait_until(lambda: len(hook.starts) == 2)
    wait_until(lambda: len(hook.why("ses_b")) == 2)
    assert not hook.has_ended  # it would take the turn of ses_b for cut off: nobody else has it open yet
    hook.behave("record")
    wait_until(lambda: hook.has_ended)
    host.tell(idle("ses_b"), targets=[0])  # OpenCode still calls what the old code gave it
    wait_until(lambda: hook.of("idle").count("ses_b") == 1)
    second = hook.lines[[line["n"] for line in hook.lines].index(1, 1) :]
    assert [(line["n"], line["session"], line["why"]) for line in second] == [
        (1, "ses_b", "busy"),
        (2, "ses_a", "idle"),
        (3, "ses_b", "idle"),
    ]
    assert all(line["options"] == options for line in second)
    assert host.call("logged") == []
    host.call("dispose", load=0)


def test_registry_of_the_first_protocol_is_left_alone(host: Host, hook: StandIn) -> None:
    old = DATA / "plugins" / "first.js"
    beside = hook.folder / "beside.mjs"
    beside.write_text(old.read_text().replace('["opencode-helicone", "hook"]', json.dumps(["/nowhere", "hook"])))
    host.load(beside)
    host.load(hook.plugin())
    host.tell(*turn("ses_a"))
    wait_until(lambda: hook.of("idle") == ["ses_a"])


# --- events


def test_streamed_text_is_not_looked_at(host: Host, hook: StandIn) -> None:
    host.load(hook.plugin())
    assert host.call("delta") == ["undefined"]
    assert host.call("logged") == []


def test_events_of_unknown_shape_are_passed_over(host: Host, hook: StandIn) -> None:
    host.load(hook.plugin())
    strange: list[dict[str, Any]] = [
        {"id": "evt_x", "type": type_, "properties": {}} for type_ in ("session.status", "message.updated")
    ]
    host.tell(*strange, {}, {"type": "toString", "properties": {}}, {"type": "session.created", "properties": {}})
    assert not hook.starts
    host.tell({"type": "session.idle"}, event("session.status", "ses_a"))
    host.tell(*turn("ses_b"))
    wait_until(lambda: hook.of("idle") == ["ses_b"])
    assert [line["reason"] for line in hook.lines if line["type"] == "trouble"] == ["event not understood: TypeError"]


@pytest.mark.parametrize("flavour", get_args(Flavour))
def test_both_forms_have_an_id_and_a_server(runtime: Runtime, hook: StandIn, flavour: Flavour) -> None:
    plugin = hook.folder / "form.mjs"
    plugin.write_text(render(SOURCE.read_text(), ("x",), flavour))
    kinds = "typeof it, it.id, typeof it.server, typeof it.setup, Object.keys(others).length"
    look = f"import('{plugin}').then(({{ default: it, ...others }}) => console.log({kinds}))"
    told = subprocess.check_output([*runtime.command, "-e", look], env=dict(runtime.environ), text=True)
    assert told.split() == [flavour, "opencode-helicone", "function", "function", "0"]


# --- OpenCode 2, by its public description: the real one was not tried yet


def in_2(type_: str, session: str, directory: Path | str | None = None, **data: Any) -> dict[str, Any]:
    found = {} if directory is None else {"location": {"directory": str(directory)}}
    number = next(EVENT_NUMBERS)
    return {"id": f"evt_{number:06}", "created": number, "type": type_, "data": {"sessionID": session, **data}, **found}


@dataclass(frozen=True, slots=True)
class Host2:
    host: Host

    def publish(self, *events: dict[str, Any]) -> None:
        self.host.call("publish", events=list(events))


@pytest.fixture
def host_2(host: Host, hook: StandIn) -> Host2:
    """With a plugin set up for the project; `ses_other` lives elsewhere."""
    sessions = {"ses_a": str(host.project), "ses_b": str(host.project), "ses_other": "/somewhere/else"}
    values = {"directory": str(host.project), "sessions": sessions, "options": {"redactPatterns": ["1"]}}
    assert host.call("setup", file=str(hook.plugin()), version="2.0.32", **values) == "function"
    return Host2(host)


def test_what_opencode_1_calls_as_well_does_nothing(host: Host, hook: StandIn) -> None:
    """From 1.17 on it calls `setup` with a context that lacks what makes a 2."""
    assert host.call("setup", file=str(hook.plugin()), directory=str(host.project)) == "undefined"


@in_both_runtimes
def test_in_opencode_2_a_turn_is_two_notices(host_2: Host2, hook: StandIn) -> None:
    steps = ["step.started", "text.delta", "tool.called", "tool.success", "step.ended", "usage.updated"]
    host_2.publish(
        in_2("session.created", "ses_a"),
        in_2("session.inbox.enqueued", "ses_a"),
        in_2("session.execution.started", "ses_a"),
        in_2("session.inbox.delivered", "ses_a"),
        *(in_2(f"session.{step}", "ses_a") for step in steps),
        in_2("session.execution.succeeded", "ses_a"),
    )
    wait_until(lambda: len(hook.lines) == 2)
    directory, options = str(host_2.host.project), {"redactPatterns": ["1"]}
    shared = {"v": 2, "type": "notice", "session": "ses_a", "directory": directory, "options": options}
    assert hook.lines == [{**shared, "n": 1, "why": "busy"}, {**shared, "n": 2, "why": "idle"}]


@pytest.mark.parametrize(
    ("type_", "why"),
    [
        ("execution.succeeded", "idle"),
        ("execution.failed", "idle"),
        ("execution.interrupted", "idle"),
        ("renamed", "renamed"),
        ("archived", "renamed"),
        ("unarchived", "renamed"),
        ("revert.committed", "reverted"),
        ("deleted", "deleted"),
    ],
)
def test_in_opencode_2_each_change_is_told(host_2: Host2, hook: StandIn, type_: str, why: str) -> None:
    host_2.publish(in_2(f"session.{type_}", "ses_a"))
    wait_until(lambda: hook.told == [("ses_a", why)])


def test_in_opencode_2_a_session_is_told_in_its_own_directory(host_2: Host2, hook: StandIn) -> None:
    done = "session.execution.succeeded"
    host_2.publish(
        in_2(done, "ses_other"),
        in_2(done, "ses_c", "/somewhere/else"),
        in_2("session.deleted", "ses_gone"),
        in_2(done, "ses_b", host_2.host.project),
    )
    wait_until(lambda: hook.why("ses_b"))
    assert hook.told == [("ses_gone", "deleted"), ("ses_b", "idle")]


def test_in_opencode_2_events_are_subscribed_to_again_after_an_overflow(host_2: Host2, hook: StandIn) -> None:
    host_2.publish(in_2("session.inbox.delivered", "ses_a"))
    wait_until(lambda: hook.why("ses_a") == ["busy"])
    host_2.host.call("publish", overflow=True)
    wait_until(lambda: hook.why("ses_a") == ["busy", "late"])  # its end may have been among what was missed
    wait_until(lambda: host_2.host.call("streams") == 2)
    host_2.publish(in_2("session.inbox.delivered", "ses_b"))
    wait_until(lambda: hook.why("ses_b") == ["busy"])


def test_in_opencode_2_nothing_is_followed_after_the_cleanup(host_2: Host2, hook: StandIn) -> None:
    host_2.publish(in_2("session.inbox.delivered", "ses_a"))
    wait_until(lambda: hook.why("ses_a") == ["busy"])
    host_2.host.call("cleanup")
    host_2.publish(in_2("session.execution.succeeded", "ses_a"))
    host_2.host.call("nap")
    host_2.host.process.kill()
    wait_until(lambda: hook.has_ended)
    assert hook.why("ses_a") == ["busy"]


# ---- in the real OpenCode -------------------------------------------------------------------------------------------

REAL_S_MAX = 90.0
"""How long the real OpenCode may take for one step; it starts in seconds, on a busy machine in many."""
LINES_OF_A_TURN_MAX = 6
"""Busy and idle, and what is finished late: never one for each message, part or letter."""


def use(hook: StandIn, spool: Path) -> list[Any]:
    """OpenCode's configuration of the plugin."""
    return [[str(hook.plugin()), {"spoolDirectory": str(spool)}]]


@pytest.mark.opencode
def test_a_run_is_told_with_its_subagent(opencode: OpenCode, hook: StandIn, spool: Path, tmp_path: Path) -> None:
    project = opencode.project(tmp_path / "project", plugin=use(hook, spool))
    finished = opencode.run(project, "[[script:task]] do it")
    assert finished.exit_code == 0
    wait_until(lambda: hook.has_ended, REAL_S_MAX)
    [root, subagent] = hook.of("busy")
    assert "idle" in hook.why(root)
    assert "idle" in hook.why(subagent)
    assert {line["directory"] for line in hook.lines} == {str(project)}
    assert len(hook.lines) <= LINES_OF_A_TURN_MAX * 2
    assert len(hook.starts) == 1
    assert not spool.exists()


DELETES = [pytest.param(version, marks=pytest.mark.matrix) for version in ("1.3.2", "1.14.34")]


@pytest.mark.opencode
@pytest.mark.parametrize("version", [*DELETES, VERSION])
def test_deletion_is_told_by_a_process_that_ends_at_once(hook: StandIn, tmp_path: Path, version: str) -> None:
    with installed_opencode(tmp_path, version) as opencode:
        project = opencode.project(tmp_path / "project")
        install(Global(opencode.home / CONFIG), python=str(hook.program), flavour="function")
        assert opencode.run(project, "[[script:hello]] hi").exit_code == 0
        wait_until(lambda: hook.of("idle"), REAL_S_MAX)
        [session] = hook.of("busy")
        with opencode.start(project, "session", "delete", session) as process:
            _, errors = process.communicate(timeout=REAL_S_MAX)
        assert process.returncode == 0, errors
    wait_until(lambda: hook.told[-1] == (session, "deleted"), REAL_S_MAX)


@pytest.mark.opencode
def test_run_is_the_same_when_the_command_is_missing(
    opencode: OpenCode, hook: StandIn, spool: Path, tmp_path: Path
) -> None:
    project = opencode.project(tmp_path / "project", plugin=use(hook, spool))
    hook.program.unlink()
    assert opencode.run(project, "[[script:hello]] hi") == opencode.plain
    logs = opencode.home / ".local" / "share" / "opencode" / "log"
    assert any("hook did not start: ENOENT" in log.read_text() for log in logs.iterdir())


@pytest.mark.opencode
def test_run_is_the_same_when_the_hook_stops_reading(
    opencode: OpenCode, hook: StandIn, spool: Path, tmp_path: Path
) -> None:
    hook.behave("stop")
    project = opencode.project(tmp_path / "project", plugin=use(hook, spool))
    characters = 400_000  # more than the pipe takes
    finished = opencode.run(project, f"[[script:long:{characters}]] hi")
    assert opencode.plain is not None
    assert finished == Finished(0, "x" * characters + "\n", opencode.plain.errors)
    assert hook.starts
    assert not hook.lines


@pytest.mark.opencode
def test_plugin_that_is_installed_and_configured_works_once(
    opencode: OpenCode, hook: StandIn, spool: Path, tmp_path: Path
) -> None:
    everywhere = Global(tmp_path / "config")
    install(everywhere, python=str(hook.program))
    opencode.spare_installation(everywhere.config_directory)
    project = opencode.project(tmp_path / "project", plugin=use(hook, spool))
    environ = {"OPENCODE_CONFIG_DIR": str(everywhere.config_directory)}
    opencode.run(project, "[[script:hello]] hi", environ=environ)
    wait_until(lambda: hook.has_ended, REAL_S_MAX)
    assert {json.dumps(line["options"]) for line in hook.lines} == {json.dumps({"spoolDirectory": str(spool)})}
    assert len(hook.of("busy")) == 1
    assert len(hook.starts) == 1


@pytest.mark.opencode
def test_plugin_installed_in_a_project_finds_its_command_by_path(
    opencode: OpenCode, hook: StandIn, tmp_path: Path
) -> None:
    project = opencode.project(tmp_path / "project")
    install(Project(project), python="")
    opencode.spare_installation(project / ".opencode")
    environ = {"PATH": os.pathsep.join([str(hook.folder), opencode.environ["PATH"]])}
    opencode.run(project, "[[script:hello]] hi", environ=environ)
    wait_until(lambda: hook.has_ended, REAL_S_MAX)
    assert len(hook.of("busy")) == 1
    assert hook.starts[0]["cwd"] == "/"


@pytest.mark.opencode
def test_hook_outlives_the_terminal_and_keeps_what_was_written(
    opencode: OpenCode, hook: StandIn, spool: Path, tmp_path: Path
) -> None:
    project = opencode.project(tmp_path / "project", plugin=use(hook, spool))
    with opencode.start(project, "run", "[[script:slow:2000]] hi") as process:
        wait_until(lambda: hook.told, REAL_S_MAX)
        os.killpg(process.pid, signal.SIGHUP)
        process.communicate()
    wait_until(lambda: hook.has_ended, REAL_S_MAX)
    assert len(hook.of("busy")) == 1


@dataclass(frozen=True, slots=True)
class Serving:
    server: Server
    hook: StandIn
    other_project: Path


@pytest.fixture(scope="module")
def serving(opencode: OpenCode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One `opencode serve` for several tests, with a plugin installed for all projects."""
    base = tmp_path_factory.mktemp("serving")
    hook = stand_in(base / "hook")
    install(Global(base / "config"), python=str(hook.program))
    opencode.spare_installation(base / "config")
    environ = {"OPENCODE_CONFIG_DIR": str(base / "config"), "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(base / "spool")}
    project, other = [opencode.project(base / name) for name in ("project", "other")]
    with opencode.serve(project, environ=environ) as server:
        yield Serving(server, hook, other)
    wait_until(lambda: hook.has_ended, REAL_S_MAX)
    [start] = hook.starts
    assert start["arguments"] == ["-I", "-m", "app", "hook"]


@pytest.mark.opencode
@pytest.mark.parametrize("script", ["tools", "big_tool", "reason", "unicode"])
def test_a_served_prompt_is_told(serving: Serving, script: str) -> None:
    server, hook = serving.server, serving.hook
    root = server.new_session()
    server.prompt(root, f"[[script:{script}]] do it")
    wait_until(lambda: "idle" in hook.why(root), REAL_S_MAX)
    assert hook.why(root)[0] == "busy"
    assert len(hook.why(root)) <= LINES_OF_A_TURN_MAX


@pytest.mark.opencode
def test_second_prompt_of_a_served_session_is_told(serving: Serving) -> None:
    server, hook = serving.server, serving.hook
    root = server.new_session()
    server.prompt(root, "[[script:hello]] one")
    wait_until(lambda: hook.why(root).count("idle") == 1, REAL_S_MAX)
    server.prompt(root, "[[script:second]] two")
    wait_until(lambda: hook.why(root).count("idle") == 2, REAL_S_MAX)
    assert hook.why(root).count("busy") == 2


@pytest.mark.opencode
def test_end_of_an_aborted_answer_is_told(serving: Serving) -> None:
    """The store has it when the last of the notices is there."""
    server, hook = serving.server, serving.hook
    root = server.new_session()
    server.prompt_async(root, "[[script:slow:2000]] long")
    wait_until(lambda: [part for part in parts_of(server.messages(root)) if part["type"] == "step-start"], REAL_S_MAX)
    server.abort(root)
    wait_until(lambda: is_aborted(server.messages(root)), REAL_S_MAX)
    wait_until(lambda: hook.why(root)[-1] in {"idle", "late"}, REAL_S_MAX)
    assert "error" in hook.why(root)


def parts_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["parts"]]


def is_aborted(messages: list[dict[str, Any]]) -> bool:
    info = messages[-1]["info"]
    return "completed" in info["time"] and info["error"]["name"] == "MessageAbortedError"


@pytest.mark.opencode
def test_renamed_and_reverted_session_is_told(serving: Serving) -> None:
    server, hook = serving.server, serving.hook
    root = server.new_session()
    server.prompt(root, "[[script:hello]] one")
    wait_until(lambda: "idle" in hook.why(root), REAL_S_MAX)
    # Counted, because OpenCode names a session by itself as well, and may say so before or after.
    named = hook.why(root).count("renamed")
    server.request("PATCH", f"/session/{root}", {"title": "another"})
    wait_until(lambda: hook.why(root).count("renamed") > named, REAL_S_MAX)
    server.request("POST", f"/session/{root}/revert", {"messageID": server.messages(root)[0]["info"]["id"]})
    wait_until(lambda: hook.why(root).count("reverted") == 1, REAL_S_MAX)
    server.request("POST", f"/session/{root}/unrevert")
    wait_until(lambda: hook.why(root).count("reverted") == 2, REAL_S_MAX)


@pytest.mark.opencode
def test_session_goes_on_after_its_instance_was_disposed_of(serving: Serving) -> None:
    server, hook = serving.server, serving.hook
    root = server.new_session()
    server.prompt(root, "[[script:hello]] one")
    server.request("POST", "/instance/dispose")
    assert "idle" in hook.why(root), "dispose waits until it is acknowledged"
    server.prompt(root, "[[script:second]] two")
    wait_until(lambda: hook.why(root).count("idle") == 2, REAL_S_MAX)


@pytest.mark.opencode
def test_sessions_of_another_directory_go_to_the_same_hook(serving: Serving) -> None:
    server, hook, other = serving.server, serving.hook, serving.other_project
    root = server.request("POST", "/session", {}, directory=other)["id"]
    server.request("POST", f"/session/{root}/message", {"model": MODEL, "parts": [TEXT]}, directory=other)
    wait_until(lambda: "idle" in hook.why(root), REAL_S_MAX)
    assert {line["directory"] for line in hook.lines if line["session"] == root} == {str(other)}
    server.request("DELETE", f"/session/{root}", directory=other)
    wait_until(lambda: root in hook.of("deleted"), REAL_S_MAX)


TEXT = {"type": "text", "text": "[[script:hello]] hi"}
