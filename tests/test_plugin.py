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

from app.desk import NOTHING_WANTED
from app.install import SOURCE, Flavour, Global, Project, install, render
from tests.opencode import MODEL, Finished, OpenCode, Server, install_opencode, unavailable
from tests.waiting import wait_until

pytest_plugins = ["tests.opencode"]

MEBIBYTE = 1024 * 1024

STAND_IN = f"""#!{sys.executable} -I
import json, os, signal, sys
folder = os.path.dirname(os.path.abspath(__file__))
variables = {{name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "OPENCODE_HELICONE"))}}
start = {{"pid": os.getpid(), "leads": os.getsid(0) == os.getpid(), "cwd": os.getcwd(), "variables": variables}}
start["arguments"] = sys.argv[1:]
with open(folder + "/mode") as file:
    mode = file.read()
with open(folder + "/starts", "a") as starts:
    starts.write(json.dumps(start) + "\\n")
if mode == "stop":
    os.kill(os.getpid(), signal.SIGSTOP)
with open(folder + "/lines", "ab") as lines:
    while chunk := os.read(0, 65536):
        lines.write(chunk)
        lines.flush()
        if mode in {{"die", "unwanted"}}:
            sys.exit({{"die": 7, "unwanted": {NOTHING_WANTED}}}[mode])
open(folder + "/eof", "w").close()
"""

DRIVER = """
import { createInterface } from "node:readline"
const sessions = {}
const loads = []
const logged = []
let asked = 0
const answer = (value) => {
  asked += 1
  return value ? { data: structuredClone(value), response: { status: 200 } } : { error: {}, response: { status: 404 } }
}
const client = {
  session: {
    get: async ({ path }) => answer(sessions[path.id]?.info),
    messages: async ({ path }) => answer(sessions[path.id]?.messages),
  },
  app: { log: async ({ body }) => void logged.push(body.message) },
}
const commands = {
  load: async ({ file, directory, options }) => {
    const { default: plugin } = await import(file)
    loads.push(await plugin.server({ client, directory }, options))
    return loads.length - 1
  },
  setup: async ({ file, directory, version }) => {
    const { default: plugin } = await import(file)
    const of2 = { app: { version }, location: { directory }, options: {}, event: { subscribe() {} } }
    return typeof (await plugin.setup(version ? of2 : { agent: {}, options: {}, skill: {} }))
  },
  have: ({ session, value, grow }) => {
    if (grow) value.messages.at(-1).parts[0].text += "x".repeat(grow)
    sessions[session] = value
  },
  lose: ({ session }) => { delete sessions[session] },
  tell: ({ events, targets }) =>
    events.flatMap((event) => (targets ?? loads.map((_, i) => i)).map((i) => typeof loads[i].event({ event }))),
  delta: () => {
    const look = (target, name) => {
      if (name !== "type") throw new Error(`looked at ${name}`)
      return "message.part.delta"
    }
    return loads.map((load) => typeof load.event({ event: new Proxy({}, { get: look }) }))
  },
  dispose: async ({ load }) => void (await loads[load].dispose()),
  logged: () => logged,
  asked: () => asked,
  nap: () => new Promise((resolve) => setTimeout(resolve, 20)),
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
        """`record`; `stop`: stop at the start, until continued; `die`, `unwanted`: end at the first words."""
        (self.folder / "mode").write_text(mode)

    def plugin(self, name: str = "helicone.js") -> Path:
        """A copy of the plugin that starts this program."""
        path = self.folder / name
        path.write_text(render(SOURCE.read_text(), (str(self.program), "hook")))
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

    def opened(self) -> list[str]:
        return [line["session"] for line in self.lines if line["type"] == "open"]

    def snapshots(self, root: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] == "snapshot" and line["root"] == root]

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

    def have(self, session: dict[str, Any]) -> None:
        self.call("have", session=session["info"]["id"], value=session)

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


def session(name: str, *messages: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"info": {"id": name, "title": "a title", "time": {"created": 1}, **facts}, "messages": list(messages)}


def user(number: int, text: str = "a question") -> dict[str, Any]:
    info = {"id": f"msg_{number:04}", "role": "user", "time": {"created": number}}
    return {"info": info, "parts": [{"id": f"prt_{number:04}", "type": "text", "text": text}]}


def assistant(
    number: int, parent: int, *, subagent: str | None = None, tool: str = "task", text: str = "an answer"
) -> dict[str, Any]:
    info = {
        "id": f"msg_{number:04}",
        "role": "assistant",
        "parentID": f"msg_{parent:04}",
        "time": {"created": number, "completed": number},
    }
    parts: list[dict[str, Any]] = [{"id": f"prt_{number:04}", "type": "text", "text": text}]
    if subagent:
        state = {"status": "completed", "metadata": {"sessionId": subagent}}
        parts.append({"id": f"prt_{number:04}b", "type": "tool", "tool": tool, "state": state})
    return {"info": info, "parts": parts}


EVENT_NUMBERS = itertools.count()


def event(type_: str, session_: str, **properties: Any) -> dict[str, Any]:
    properties = {"sessionID": session_, **properties}
    return {"id": f"evt_{next(EVENT_NUMBERS):06}", "type": type_, "properties": properties}


def created(session_: dict[str, Any]) -> dict[str, Any]:
    return event("session.created", session_["info"]["id"], info=session_["info"])


def updated(session_: dict[str, Any]) -> dict[str, Any]:
    return event("session.updated", session_["info"]["id"], info=session_["info"])


def busy(session_: str) -> dict[str, Any]:
    return event("session.status", session_, status={"type": "busy"})


def idle(session_: str) -> dict[str, Any]:
    return event("session.idle", session_)


def told(session_: str, message: dict[str, Any]) -> dict[str, Any]:
    return event("message.updated", session_, info=message["info"])


def positions(snapshot: dict[str, Any]) -> list[tuple[str, int, list[str]]]:
    """Per session: its name, the first position, and the last four digits of the messages carried."""
    return [
        (one["info"]["id"], one["first_index"], [message["info"]["id"][-4:] for message in one["messages"]])
        for one in snapshot["sessions"]
    ]


def prompted(host: Host, root: dict[str, Any], *messages: dict[str, Any]) -> dict[str, Any]:
    """OpenCode adds messages to a session and goes idle; returns the session as it is now."""
    name = root["info"]["id"]
    now = {**root, "messages": [*root["messages"], *messages]}
    host.have(now)
    host.tell(updated(now), *(told(name, message) for message in messages[:1]), busy(name))
    host.tell(*(told(name, message) for message in messages[1:]), idle(name))
    return now


@in_both_runtimes
def test_first_snapshot_is_whole_and_later_ones_begin_at_the_first_touched_turn(
    host: Host, hook: StandIn, spool: Path
) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool), "redactPatterns": ["a"]})
    root = session("ses_a", user(1), assistant(2, 1))
    root = prompted(host, root, user(3), assistant(4, 3))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 1)
    root = prompted(host, root, user(5), assistant(6, 5))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    first, second = hook.snapshots("ses_a")
    assert positions(first) == [("ses_a", 0, ["0001", "0002", "0003", "0004"])]
    assert positions(second) == [("ses_a", 4, ["0005", "0006"])]
    opened = hook.lines[0]
    options = {"spoolDirectory": str(spool), "redactPatterns": ["a"]}
    shared = {"v": 1, "directory": str(host.project), "options": options}
    assert opened == {**shared, "type": "open", "session": "ses_a"}
    assert {name: second[name] for name in shared} == shared
    assert second["sessions"][0]["info"] == root["info"]
    assert second["sessions"][0]["messages"] == root["messages"][4:]
    assert hook.opened() == ["ses_a"]


@in_both_runtimes
def test_hook_starts_at_the_first_busy_session_and_not_before(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    root = session("ses_a")
    host.have(root)
    host.tell(created(root), updated(root), told("ses_a", user(1)))
    assert not hook.starts
    host.tell(busy("ses_a"))
    wait_until(lambda: hook.opened() == ["ses_a"])
    [start] = hook.starts
    assert start["cwd"] == "/"
    assert start["leads"], "a signal to OpenCode's terminal must not reach the hook"
    assert not spool.exists(), "the plugin makes no folder"


def test_messages_are_sent_in_order_of_creation(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    prompted(host, session("ses_a"), user(7), assistant(9, 7), assistant(8, 7))
    wait_until(lambda: hook.snapshots("ses_a"))
    assert positions(hook.snapshots("ses_a")[0]) == [("ses_a", 0, ["0007", "0008", "0009"])]


def test_answer_that_is_finished_after_idle_is_sent(host: Host, hook: StandIn, spool: Path) -> None:
    """After an abort or an error OpenCode goes idle first and finishes the message then."""
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    unfinished = assistant(2, 1)
    del unfinished["info"]["time"]["completed"]
    root = prompted(host, session("ses_a"), user(1), unfinished)
    wait_until(lambda: len(hook.snapshots("ses_a")) == 1)
    host.have({**root, "messages": [user(1), assistant(2, 1)]})
    host.tell(told("ses_a", unfinished), told("ses_a", assistant(2, 1)))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    assert "completed" not in hook.snapshots("ses_a")[0]["sessions"][0]["messages"][1]["info"]["time"]
    assert "completed" in hook.snapshots("ses_a")[1]["sessions"][0]["messages"][1]["info"]["time"]


def test_change_of_an_earlier_turn_sends_everything_from_its_question_on(
    host: Host, hook: StandIn, spool: Path
) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    root = prompted(host, session("ses_a"), *(user(1), assistant(2, 1), user(3), assistant(4, 3), assistant(5, 3)))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 1)
    part = {"id": "prt_x", "messageID": "msg_0005", "sessionID": "ses_a", "type": "tool"}
    host.tell(event("message.part.updated", "ses_a", part=part))
    prompted(host, root, user(6), assistant(7, 6))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    assert positions(hook.snapshots("ses_a")[1]) == [("ses_a", 2, ["0003", "0004", "0005", "0006", "0007"])]


def test_diffs_that_opencode_tells_anew_touch_no_turn(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 1)
    summarised = user(1)
    summarised["info"]["summary"] = {"diffs": []}
    host.tell(told("ses_a", summarised))
    prompted(host, root, user(3), assistant(4, 3))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    assert positions(hook.snapshots("ses_a")[1]) == [("ses_a", 2, ["0003", "0004"])]


@pytest.mark.parametrize("what", ["message.removed", "message.part.removed", "revert"])
def test_snapshot_after_a_removal_or_revert_is_whole(host: Host, hook: StandIn, spool: Path, what: str) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1), user(3), assistant(4, 3))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 1)
    if what == "revert":
        root["info"]["revert"] = {"messageID": "msg_0003"}
        host.tell(updated(root))
    else:
        root["messages"] = root["messages"][:2]
        host.tell(event(what, "ses_a", messageID="msg_0003", partID="prt_0003"))
    root = prompted(host, root, user(5), assistant(6, 5))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    expected = [message["info"]["id"][-4:] for message in root["messages"]]
    assert positions(hook.snapshots("ses_a")[1]) == [("ses_a", 0, expected)]


def test_subagents_are_sent_whole_below_their_root_and_each_once(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    deeper = session("ses_deeper", user(5), assistant(6, 5), parentID="ses_child")
    child = session("ses_child", user(3), assistant(4, 3, subagent="ses_deeper"), parentID="ses_a")
    for one in (child, deeper):
        host.have(one)
        host.tell(created(one), busy(one["info"]["id"]), *(told(one["info"]["id"], m) for m in one["messages"]))
        host.tell(idle(one["info"]["id"]))
    calls = (assistant(2, 1, subagent="ses_child"), assistant(7, 1, subagent="ses_child"))
    prompted(host, session("ses_a"), user(1), *calls)
    wait_until(lambda: hook.snapshots("ses_a"))
    assert [line["type"] for line in hook.lines] == ["open", "snapshot"], "a subagent's own events trigger nothing"
    assert positions(hook.snapshots("ses_a")[0]) == [
        ("ses_a", 0, ["0001", "0002", "0007"]),
        ("ses_child", 0, ["0003", "0004"]),
        ("ses_deeper", 0, ["0005", "0006"]),
    ]


def test_subagent_that_a_tool_of_another_plugin_started_is_sent_too(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    host.have(session("ses_child", user(3), assistant(4, 3), parentID="ses_a"))
    prompted(host, session("ses_a"), user(1), assistant(2, 1, subagent="ses_child", tool="delegate"))
    wait_until(lambda: hook.snapshots("ses_a"))
    assert positions(hook.snapshots("ses_a")[0])[1:] == [("ses_child", 0, ["0003", "0004"])]


def test_subagent_that_is_gone_is_left_out(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    prompted(host, session("ses_a"), user(1), assistant(2, 1, subagent="ses_gone"))
    wait_until(lambda: hook.snapshots("ses_a"))
    assert positions(hook.snapshots("ses_a")[0]) == [("ses_a", 0, ["0001", "0002"])]


@pytest.mark.parametrize("how", ["called again", "changed"])
def test_turn_that_first_named_a_subagent_is_sent_again_when_the_subagent_is(
    host: Host, hook: StandIn, spool: Path, how: str
) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    child = session("ses_child", user(3), assistant(4, 3), parentID="ses_a")
    host.have(child)
    root = session("ses_a", user(1), assistant(2, 1), user(5))
    root = prompted(host, root, assistant(6, 5, subagent="ses_child"), user(7), assistant(8, 7))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 1)
    if how == "changed":
        host.tell(created(child), told("ses_child", assistant(9, 3)))
    prompted(host, root, user(10), assistant(11, 10, subagent="ses_child" if how == "called again" else None))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    own, subagent = positions(hook.snapshots("ses_a")[1])
    assert own == ("ses_a", 2, ["0005", "0006", "0007", "0008", "0010", "0011"])
    assert subagent == ("ses_child", 0, ["0003", "0004"])


def test_session_whose_kind_no_event_told_is_asked_for(host: Host, hook: StandIn, spool: Path) -> None:
    """A session that an earlier process began can be busy before anything else is told about it."""
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    host.have(session("ses_child", user(1), parentID="ses_a"))
    host.have(session("ses_a", user(1), assistant(2, 1)))
    host.tell(busy("ses_child"), idle("ses_child"), busy("ses_gone"), idle("ses_gone"), busy("ses_a"), idle("ses_a"))
    wait_until(lambda: hook.snapshots("ses_a"))
    assert [(line["type"], line.get("session", "ses_a")) for line in hook.lines] == [
        ("open", "ses_a"),
        ("snapshot", "ses_a"),
    ]


@in_both_runtimes
def test_dispose_sends_what_changed_since_and_waits_for_it(host: Host, hook: StandIn, spool: Path) -> None:
    load = host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 1)
    host.have(session("ses_a", *root["messages"], user(3), title="another title"))
    host.tell(busy("ses_a"), told("ses_a", user(3)))
    host.call("dispose", load=load)
    host.process.kill()
    wait_until(lambda: hook.has_ended)
    assert positions(hook.snapshots("ses_a")[1]) == [("ses_a", 2, ["0003"])]


def test_renamed_session_is_sent_at_dispose_with_its_last_turn(host: Host, hook: StandIn, spool: Path) -> None:
    load = host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1), user(3), assistant(4, 3))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 1)
    renamed = session("ses_a", *root["messages"], title="another title")
    host.have(renamed)
    host.tell(updated(renamed))
    host.call("dispose", load=load)
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    assert positions(hook.snapshots("ses_a")[1]) == [("ses_a", 2, ["0003", "0004"])]
    assert hook.snapshots("ses_a")[1]["sessions"][0]["info"]["title"] == "another title"


def test_dispose_with_nothing_new_sends_nothing(host: Host, hook: StandIn, spool: Path) -> None:
    load = host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1))
    host.tell(updated(root))
    wait_until(lambda: hook.snapshots("ses_a"))
    host.call("dispose", load=load)
    host.process.kill()
    wait_until(lambda: hook.has_ended)
    assert len(hook.snapshots("ses_a")) == 1


@pytest.mark.parametrize("bare", [0, 1], ids=["bare one first", "bare one second"])
def test_plugin_loaded_twice_works_once_with_the_options_of_the_load_that_has_some(
    host: Host, hook: StandIn, spool: Path, bare: int
) -> None:
    options: list[dict[str, Any] | None] = [{"spoolDirectory": str(spool)}, {"spoolDirectory": str(spool)}]
    options[bare] = None
    for number, one in enumerate(options):
        host.load(hook.plugin(f"copy{number}.mjs"), one)
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 1)
    host.tell(event("session.deleted", "ses_a", info=root["info"]))
    wait_until(lambda: hook.lines[-1]["type"] == "deleted")
    assert [line["type"] for line in hook.lines] == ["open", "snapshot", "deleted"]
    assert {line["options"]["spoolDirectory"] for line in hook.lines} == {str(spool)}
    assert len(hook.starts) == 1


def test_directories_of_one_process_share_a_hook(host: Host, hook: StandIn, spool: Path, tmp_path: Path) -> None:
    plugin = hook.plugin()
    first = host.load(plugin, {"spoolDirectory": str(spool), "redactPatterns": ["1"]})
    second = host.load(plugin, {"spoolDirectory": str(spool)}, tmp_path / "other")
    for name, load in (("ses_a", first), ("ses_b", second)):
        host.have(session(name, user(1), assistant(2, 1)))
        host.tell(busy(name), idle(name), targets=[load])
    wait_until(lambda: hook.snapshots("ses_a") and hook.snapshots("ses_b"))
    host.call("dispose", load=first)
    host.tell(idle("ses_b"), targets=[second])
    wait_until(lambda: len(hook.snapshots("ses_b")) == 2)
    assert hook.snapshots("ses_a")[0]["options"]["redactPatterns"] == ["1"]
    assert hook.snapshots("ses_b")[0]["directory"] == str(tmp_path / "other")
    assert len(hook.starts) == 1


def test_instance_made_anew_goes_on_where_the_old_one_ended(host: Host, hook: StandIn, spool: Path) -> None:
    options = {"spoolDirectory": str(spool)}
    old = host.load(hook.plugin(), options)
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1))
    host.call("dispose", load=old)
    new = host.load(hook.plugin(), {**options, "redactPatterns": ["new"]})
    now = session("ses_a", *root["messages"], user(3), assistant(4, 3))
    host.have(now)
    host.tell(busy("ses_a"), told("ses_a", user(3)), idle("ses_a"), targets=[new])
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    assert positions(hook.snapshots("ses_a")[1]) == [("ses_a", 2, ["0003", "0004"])]
    assert hook.snapshots("ses_a")[1]["options"]["redactPatterns"] == ["new"]
    assert len(hook.starts) == 1


@in_both_runtimes
def test_instance_made_anew_in_the_middle_of_a_slow_dispose_works(host: Host, hook: StandIn, spool: Path) -> None:
    hook.behave("stop")
    old = host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    prompted(host, session("ses_a"), user(1), assistant(2, 1, text="x" * MEBIBYTE))
    wait_until(lambda: hook.starts)
    disposing = host.send("dispose", load=old)
    new = host.load(hook.plugin(), {"spoolDirectory": str(spool), "redactPatterns": ["new"]})
    host.have(session("ses_b", user(1), assistant(2, 1)))
    host.tell(busy("ses_b"), idle("ses_b"), targets=[new])
    hook.signal(signal.SIGCONT)
    host.receive(disposing)
    wait_until(lambda: hook.snapshots("ses_b"))
    assert hook.snapshots("ses_b")[0]["options"]["redactPatterns"] == ["new"]
    assert len(hook.snapshots("ses_a")) == 1
    assert len(hook.starts) == 1


def test_directory_without_an_instance_is_not_asked_for_its_sessions(host: Host, hook: StandIn, spool: Path) -> None:
    """OpenCode would make the instance anew to answer."""
    old = host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    prompted(host, session("ses_a"), user(1), assistant(2, 1))
    host.call("dispose", load=old)
    before = host.call("asked")
    host.tell(idle("ses_a"), targets=[old])
    assert host.call("asked") == before
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    host.tell(busy("ses_a"))
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)


def test_deleted_session_is_passed_on_and_no_more_sent(host: Host, hook: StandIn, spool: Path) -> None:
    load = host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1))
    wait_until(lambda: hook.snapshots("ses_a"))
    host.call("lose", session="ses_a")
    host.tell(busy("ses_a"), event("session.deleted", "ses_a", info=root["info"]))
    host.call("dispose", load=load)
    wait_until(lambda: hook.lines[-1]["type"] == "deleted")
    assert hook.lines[-1]["session"] == "ses_a"
    assert hook.lines[-1]["directory"] == str(host.project)


def test_deletion_is_passed_on_although_no_session_was_busy(host: Host, hook: StandIn) -> None:
    """Jobs of it may wait in a spool; whether one is there, the hook knows."""
    host.load(hook.plugin())
    host.tell(event("session.deleted", "ses_old", info=session("ses_old")["info"]))
    wait_until(lambda: hook.lines)
    assert [(line["type"], line["session"]) for line in hook.lines] == [("deleted", "ses_old")]


@pytest.mark.parametrize("options", [{"enable": False}, {"spoolDirectory": "spool"}, {}], ids=str)
def test_nothing_is_decided_from_options_or_variables(hosting: Hosting, hook: StandIn, options: dict[str, Any]) -> None:
    environ = {"OPENCODE_HELICONE_ENABLE": "false", "OPENCODE_HELICONE_SPOOL_DIRECTORY": "../beside"}
    host = hosting(**environ)
    host.load(hook.plugin(), options)
    prompted(host, session("ses_a"), user(1), assistant(2, 1))
    wait_until(lambda: hook.snapshots("ses_a"))
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
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1))
    wait_until(lambda: hook.starts and not children_of(host))
    for number in range(3, 13, 2):
        root = prompted(host, root, user(number), assistant(number + 1, number))
    host.tell(event("session.deleted", "ses_b", info=session("ses_b")["info"]))
    host.call("dispose", load=load)
    assert len(hook.starts) == 1
    assert host.call("logged") == []
    # Another folder is another question; and so is this one with other options.
    hook.behave("record")
    other = host.load(plugin, {}, tmp_path / "other")
    host.have(session("ses_c", user(1)))
    host.tell(busy("ses_c"), targets=[other])
    wait_until(lambda: "ses_c" in hook.opened())
    again = host.load(plugin, {"enable": True})
    host.tell(busy("ses_a"), targets=[again])
    wait_until(lambda: hook.opened()[-1] == "ses_a")
    assert len(hook.starts) == 2


def test_only_the_folder_that_was_surely_heard_is_taken_for_unwanted(host: Host, hook: StandIn, tmp_path: Path) -> None:
    """The hook may have ended before it read the other one's line."""
    hook.behave("unwanted")
    first = host.load(hook.plugin(), {"enable": False})
    second = host.load(hook.plugin(), {}, tmp_path / "other")
    host.have(session("ses_a", user(1)))
    host.have(session("ses_b", user(1)))
    host.tell(busy("ses_a"), targets=[first])
    host.tell(busy("ses_b"), targets=[second])
    wait_until(lambda: hook.starts)
    hook.behave("record")
    wait_until(lambda: "ses_b" in hook.opened())
    wait_until(lambda: len(hook.starts) == 2)


@in_both_runtimes
def test_command_is_found_by_path_and_the_project_cannot_put_itself_before_it(hosting: Hosting, hook: StandIn) -> None:
    hook.behave("record")
    path = os.pathsep.join(["bin", "", ".", str(hook.folder), os.environ["PATH"]])
    host = hosting(PATH=path, PYTHONPATH=".", PYTHONHOME="/nowhere", PYTHONSTARTUP="x.py")
    for folder in (host.project, host.project / "bin"):
        folder.mkdir(exist_ok=True)
        (folder / "opencode-helicone").write_text("#!/bin/sh\ntouch tricked\n")
        (folder / "opencode-helicone").chmod(0o755)
    host.load(install(Project(host.project), python="").path)
    host.have(session("ses_a", user(1)))
    host.tell(busy("ses_a"))
    wait_until(hook.opened)
    assert hook.starts[0]["arguments"] == ["hook"]
    assert hook.starts[0]["variables"] == {}
    assert not [*host.project.rglob("tricked")]


@in_both_runtimes
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/nowhere/python", "hook"), "ENOENT"),
        (("/etc/passwd", "hook"), "EACCES"),
        (("no-such-command-anywhere", "hook"), "not found on PATH"),
    ],
    ids=["missing", "not executable", "not on PATH"],
)
def test_hook_that_cannot_start_is_one_line_in_opencodes_log(
    host: Host, hook: StandIn, command: tuple[str, ...], reason: str
) -> None:
    plugin = hook.folder / "broken.mjs"
    plugin.write_text(render(SOURCE.read_text(), command))
    load = host.load(plugin)
    root = prompted(host, session("ses_a"), user(1, "a secret question"), assistant(2, 1))
    wait_until(lambda: host.call("logged"))
    for number in (3, 5, 7):
        root = prompted(host, root, user(number), assistant(number + 1, number))
    host.call("dispose", load=load)
    told = f"hook did not start: {reason}; command {json.dumps(command, separators=(',', ':'))}"
    assert host.call("logged") == [told]


@in_both_runtimes
def test_hook_that_died_is_started_again_and_told_everything(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    prompted(host, session("ses_a"), user(1), assistant(2, 1))
    prompted(host, session("ses_b"), user(1), assistant(2, 1))
    wait_until(lambda: hook.snapshots("ses_a") and hook.snapshots("ses_b"))
    hook.signal(signal.SIGKILL)
    wait_until(lambda: len(hook.snapshots("ses_a")) == len(hook.snapshots("ses_b")) == 2)
    assert sorted(hook.opened()) == ["ses_a", "ses_a", "ses_b", "ses_b"]
    assert [positions(snapshot)[0][1] for snapshot in hook.snapshots("ses_a")] == [0, 0]
    assert "hook ended: SIGKILL; command" in host.call("logged")[0]
    assert [line["reason"] for line in hook.lines if line["type"] == "trouble"] == ["hook ended: SIGKILL"]


def children_of(host: Host) -> list[str]:
    processes = subprocess.check_output(["ps", "-A", "-o", "ppid=,pid="], text=True).splitlines()
    return [line for line in processes if line.split()[0] == str(host.process.pid)]


@in_both_runtimes
def test_hook_that_keeps_dying_is_not_started_for_every_event(host: Host, hook: StandIn, spool: Path) -> None:
    hook.behave("die")
    load = host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    root = prompted(host, session("ses_a"), user(1), assistant(2, 1))
    wait_until(lambda: len(hook.starts) == 2)  # the first restart
    wait_until(lambda: not children_of(host))
    for number in range(3, 43, 2):
        root = prompted(host, root, user(number), assistant(number + 1, number))
    host.call("dispose", load=load)
    assert not children_of(host)
    assert len(hook.starts) == 2
    assert len(host.call("logged")) == 1
    assert "hook ended: exit code 7; command" in host.call("logged")[0]


def held_after_many_prompts(host: Host, load: int) -> int:
    """What the process holds, in bytes, after 40 answers of 2 MiB, each the only one of its session."""
    for number in range(1, 81, 2):
        messages = (user(number), assistant(number + 1, number, text=f"answer {number} "))
        host.call("have", session="ses_a", value=session("ses_a", *messages), grow=2 * MEBIBYTE)
        host.tell(busy("ses_a"), *(told("ses_a", message) for message in messages), idle("ses_a"))
        host.call("nap")
    host.call("dispose", load=load)
    held: int = host.call("held")
    return held


@in_both_runtimes
def test_stopped_hook_costs_no_memory_and_gets_the_newest_state_when_it_goes_on(
    hosting: Hosting, hook: StandIn, spool: Path
) -> None:
    hook.behave("stop")
    options = {"spoolDirectory": str(spool)}
    bare, host = hosting(), hosting()
    idle = hook.folder / "idle.mjs"
    idle.write_text("export default { server: async () => ({ event() {}, async dispose() {} }) }")
    without = held_after_many_prompts(bare, bare.load(idle))
    assert held_after_many_prompts(host, host.load(hook.plugin(), options)) - without < 16 * MEBIBYTE
    host.load(hook.plugin(), options)
    hook.signal(signal.SIGCONT)
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    own = hook.snapshots("ses_a")[1]["sessions"][0]
    assert own["messages"][-1]["parts"][0]["text"].startswith("answer 79 ")


@in_both_runtimes
def test_long_session_is_cut_between_turns_into_several_lines(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    text = "x" * (3 * MEBIBYTE)
    host.have(session("ses_child", user(7), assistant(8, 7, text=text), parentID="ses_a"))
    messages = [user(1), assistant(2, 1, text=text), user(3), assistant(4, 3, text=text)]
    messages += [user(5), assistant(6, 5, text=text, subagent="ses_child"), user(9), assistant(10, 9)]
    prompted(host, session("ses_a"), *messages)
    wait_until(lambda: len(hook.snapshots("ses_a")) == 2)
    assert [positions(snapshot) for snapshot in hook.snapshots("ses_a")] == [
        [("ses_a", 0, ["0001", "0002", "0003", "0004"])],
        [("ses_a", 4, ["0005", "0006", "0009", "0010"]), ("ses_child", 0, ["0007", "0008"])],
    ]


def test_turn_that_is_too_long_is_refused_and_the_others_are_sent(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    messages = [user(1), assistant(2, 1), user(3), assistant(4, 3, text="é" * (9 * MEBIBYTE)), user(5)]
    prompted(host, session("ses_a"), *messages)
    wait_until(lambda: len(hook.lines) == 4)
    opened, first, refused, last = hook.lines
    assert opened["type"] == "open"
    assert positions(first) == [("ses_a", 0, ["0001", "0002"])]
    assert positions(last) == [("ses_a", 4, ["0005"])]
    assert refused.pop("bytes") > 18 * MEBIBYTE
    assert refused == {"v": 1, "type": "refused", "session": "ses_a", "reason": "too large"}


@in_both_runtimes
def test_text_arrives_as_it_is(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    text = "Grüße 🌍 \u2028 \x00 \x1b[1m \ud83d lone\n"
    root = prompted(host, session("ses_a"), user(1, text), assistant(2, 1))
    wait_until(lambda: hook.snapshots("ses_a"))
    assert hook.snapshots("ses_a")[0]["sessions"][0]["messages"] == root["messages"]


def test_streamed_text_is_not_looked_at(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    assert host.call("delta") == ["undefined"]
    assert host.call("logged") == []


def test_events_of_unknown_shape_are_passed_over(host: Host, hook: StandIn, spool: Path) -> None:
    host.load(hook.plugin(), {"spoolDirectory": str(spool)})
    strange: list[dict[str, Any]] = [
        {"id": "evt_x", "type": type_, "properties": {}} for type_ in ("session.status", "message.updated")
    ]
    host.tell(*strange, {"type": "session.idle"}, {}, {"type": "toString", "properties": {}})
    assert not hook.starts
    prompted(host, session("ses_a"), user(1), assistant(2, 1))
    wait_until(lambda: hook.snapshots("ses_a"))


def test_opencode_2_is_told_of_and_what_1_calls_too_does_nothing(host: Host, hook: StandIn) -> None:
    """From 1.17 on OpenCode 1 calls `setup` with a context that lacks what makes a 2."""
    file, directory = str(hook.plugin()), str(host.project)
    assert host.call("setup", file=file, directory=directory) == "undefined"
    assert host.call("setup", file=file, directory=directory, version="2.1.0") == "undefined"
    wait_until(lambda: hook.lines)
    assert hook.lines == [
        {
            "v": 1,
            "type": "trouble",
            "directory": directory,
            "options": {},
            "session": "",
            "reason": "OpenCode 2.1.0: its sessions are not read yet",
        }
    ]
    assert len(hook.starts) == 1


@pytest.mark.parametrize("flavour", get_args(Flavour))
def test_both_forms_have_an_id_and_a_server(runtime: Runtime, hook: StandIn, flavour: Flavour) -> None:
    plugin = hook.folder / "form.mjs"
    plugin.write_text(render(SOURCE.read_text(), ("x",), flavour))
    kinds = "typeof it, it.id, typeof it.server, typeof it.setup, Object.keys(others).length"
    look = f"import('{plugin}').then(({{ default: it, ...others }}) => console.log({kinds}))"
    told = subprocess.check_output([*runtime.command, "-e", look], env=dict(runtime.environ), text=True)
    assert told.split() == [flavour, "opencode-helicone", "function", "function", "0"]


# ---- in the real OpenCode -------------------------------------------------------------------------------------------

REAL_S_MAX = 90.0
"""How long the real OpenCode may take for one step; it starts in seconds, on a busy machine in many."""


def use(hook: StandIn, spool: Path) -> list[Any]:
    """OpenCode's configuration of the plugin."""
    return [[str(hook.plugin()), {"spoolDirectory": str(spool)}]]


def settled(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the diffs, which OpenCode still writes after a turn has ended."""
    return [
        {**message, "info": {name: value for name, value in message["info"].items() if name != "summary"}}
        for message in messages
    ]


def assert_complete(opencode: OpenCode, snapshot: dict[str, Any]) -> None:
    """Everything that OpenCode holds of these sessions is in the snapshot."""
    for one in snapshot["sessions"]:
        assert settled(one["messages"]) == settled(opencode.stored(one["info"]["id"]))[one["first_index"] :]


@pytest.mark.opencode
def test_everything_of_a_run_arrives(opencode: OpenCode, hook: StandIn, spool: Path, tmp_path: Path) -> None:
    project = opencode.project(tmp_path / "project", plugin=use(hook, spool))
    finished = opencode.run(project, "[[script:task]] do it")
    assert finished.exit_code == 0
    wait_until(lambda: hook.has_ended, REAL_S_MAX)
    [root] = hook.opened()
    last = hook.snapshots(root)[-1]
    assert [one["first_index"] for one in last["sessions"]] == [0, 0]
    assert_complete(opencode, last)
    answers = [message["info"] for message in last["sessions"][0]["messages"] if message["info"]["role"] == "assistant"]
    assert all("completed" in answer["time"] for answer in answers)
    assert len(hook.starts) == 1
    assert not spool.exists()


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
    assert [line["type"] for line in hook.lines] == ["open", "snapshot"]
    assert hook.lines[1]["options"] == {"spoolDirectory": str(spool)}
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
    assert [line["type"] for line in hook.lines] == ["open", "snapshot"]
    assert hook.starts[0]["cwd"] == "/"


@pytest.mark.opencode
def test_hook_outlives_the_terminal_and_keeps_what_was_written(
    opencode: OpenCode, hook: StandIn, spool: Path, tmp_path: Path
) -> None:
    project = opencode.project(tmp_path / "project", plugin=use(hook, spool))
    with opencode.start(project, "run", "[[script:slow:2000]] hi") as process:
        wait_until(hook.opened, REAL_S_MAX)
        os.killpg(process.pid, signal.SIGHUP)
        process.communicate()
    wait_until(lambda: hook.has_ended, REAL_S_MAX)
    assert len(hook.opened()) == 1


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
def test_everything_of_a_served_prompt_arrives(opencode: OpenCode, serving: Serving, script: str) -> None:
    server, hook = serving.server, serving.hook
    root = server.new_session()
    server.prompt(root, f"[[script:{script}]] do it")
    wait_until(lambda: hook.snapshots(root), REAL_S_MAX)
    assert_complete(opencode, hook.snapshots(root)[-1])


@pytest.mark.opencode
def test_second_prompt_of_a_served_session_sends_only_its_turn(opencode: OpenCode, serving: Serving) -> None:
    server, hook = serving.server, serving.hook
    root = server.new_session()
    server.prompt(root, "[[script:hello]] one")
    wait_until(lambda: hook.snapshots(root), REAL_S_MAX)
    server.prompt(root, "[[script:second]] two")
    wait_until(lambda: hook.snapshots(root)[-1]["sessions"][0]["first_index"] == 2, REAL_S_MAX)
    assert hook.snapshots(root)[0]["sessions"][0]["first_index"] == 0
    assert_complete(opencode, hook.snapshots(root)[-1])
    assert hook.opened().count(root) == 1


@pytest.mark.opencode
def test_aborted_answer_arrives_with_its_end(serving: Serving) -> None:
    server, hook = serving.server, serving.hook
    root = server.new_session()
    server.prompt_async(root, "[[script:slow:2000]] long")
    wait_until(lambda: [part for part in parts_of(server.messages(root)) if part["type"] == "step-start"], REAL_S_MAX)
    server.abort(root)
    wait_until(lambda: [one for one in hook.snapshots(root) if is_aborted(one)], REAL_S_MAX)


def parts_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for message in messages for part in message["parts"]]


def is_aborted(snapshot: dict[str, Any]) -> bool:
    info = snapshot["sessions"][0]["messages"][-1]["info"]
    return "completed" in info["time"] and info["error"]["name"] == "MessageAbortedError"


@pytest.mark.opencode
def test_session_goes_on_after_its_instance_was_disposed_of(serving: Serving) -> None:
    server, hook = serving.server, serving.hook
    root = server.new_session()
    server.prompt(root, "[[script:hello]] one")
    server.request("POST", "/instance/dispose")
    wait_until(lambda: hook.snapshots(root), REAL_S_MAX)
    server.prompt(root, "[[script:second]] two")
    wait_until(lambda: hook.snapshots(root)[-1]["sessions"][0]["first_index"] == 2, REAL_S_MAX)


@pytest.mark.opencode
def test_sessions_of_another_directory_go_to_the_same_hook(serving: Serving) -> None:
    server, hook, other = serving.server, serving.hook, serving.other_project
    root = server.request("POST", "/session", {}, directory=other)["id"]
    server.request("POST", f"/session/{root}/message", {"model": MODEL, "parts": [TEXT]}, directory=other)
    wait_until(lambda: hook.snapshots(root), REAL_S_MAX)
    assert hook.snapshots(root)[0]["directory"] == str(other)
    server.request("DELETE", f"/session/{root}", directory=other)
    wait_until(lambda: root in [line["session"] for line in hook.lines if line["type"] == "deleted"], REAL_S_MAX)


TEXT = {"type": "text", "text": "[[script:hello]] hi"}
