"""The real OpenCode killed in the middle of turns, run without our plugin, without our Python, and twice at a time.

    python -m tests.stress.kills [VERSION ...]

After the next start every turn of OpenCode's store has to be in the ledger as it is there, and every record has to
arrive once. Exits with 1 where that is not so. `tests/system/test_killed_opencode.py` plays the most telling cases.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.ledger import history
from app.privacy.policy import Policy
from app.runtime.liveness import present
from app.sources.opencode import install
from app.sources.opencode.store import Store
from app.transcript.model import Assistant, Tool, Turn, key
from tests.support.opencode import VERSION, OpenCode, installed_opencode
from tests.support.processes import Station, worker
from tests.support.servers import Receiver, receiving
from tests.support.typed_commands import typed
from tests.support.waiting import wait_until

WAIT_S = 90
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STREAM, TOOL = "slow:2000", "slowtool"


@dataclass(frozen=True, slots=True)
class Ground:
    """One project in which OpenCode runs with our plugin, and where its turns go."""

    opencode: OpenCode
    station: Station
    receiver: Receiver
    project: Path

    @property
    def plugin(self) -> Path:
        return self.project / ".opencode" / "plugin" / "opencode-helicone.js"

    @property
    def environ(self) -> dict[str, str]:
        """What a person exports before starting OpenCode. The plugin of a project finds its command by PATH."""
        ours = {name: value for name, value in self.station.environ.items() if "HELICONE" in name}
        return {**ours, "PATH": f"{Path(sys.executable).parent}:{self.station.environ['PATH']}"}

    @property
    def store(self) -> Store:
        return Store(self.opencode.home / ".local" / "share" / "opencode" / "opencode.db")

    def run(self, script: str = "hello", *arguments: str, others: int = 0) -> None:
        """One turn from start to end, our hook included; so many others live on."""
        finished = self.opencode.run(self.project, f"[[script:{script}]] do it", *arguments, environ=self.environ)
        assert finished.exit_code == 0, finished.errors
        wait_until(lambda: len(present(self.station.spool / "hooks")) == others, WAIT_S)

    def turns(self) -> dict[str, Turn]:
        """By session and turn, as OpenCode's store holds them now."""
        found: dict[str, Turn] = {}
        for root in self.store.roots(str(self.project)):
            transcript = self.store.transcript(root.id)
            assert transcript is not None
            found |= {f"{root.id} {turn.id}": turn for turn in transcript.turns}
        return found

    def records(self) -> int:
        """How many are to arrive: one of each session, message and tool."""
        turns = self.turns().values()
        messages = [message for turn in turns for message in turn.messages]
        parts = [part for message in messages if isinstance(message, Assistant) for part in message.parts]
        tools = sum(isinstance(part, Tool) for part in parts)
        return len({turn.session.id for turn in turns}) + len(messages) + tools

    @contextmanager
    def started(self, script: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """An OpenCode in the middle of a turn: its process, and that turn."""
        before = set(self.turns())
        with self.opencode.start(self.project, "run", f"[[script:{script}]] do it", environ=self.environ) as process:
            try:
                wait_until(lambda: any(_is_under_way(turn) for turn in self._new(before).values()), WAIT_S)
                # From here on the hook of whoever comes can know whose it is.
                (name,) = self._new(before)
                wait_until(lambda: self._is_owned(name.split(" ")[0]), WAIT_S)
                yield process, name
            finally:
                process.kill()

    def _new(self, before: set[str]) -> dict[str, Turn]:
        return {name: turn for name, turn in self.turns().items() if name not in before}

    def _is_owned(self, session: str) -> bool:
        return any(session in str(hook.says.get("sessions")) for hook in present(self.station.spool / "hooks"))

    def kill(self, script: str, signum: signal.Signals) -> None:
        """OpenCode is killed in the middle of a turn."""
        with self.started(script) as (process, _):
            process.send_signal(signum)
            process.wait(WAIT_S)  # its tool may live on, and holds its output open
        wait_until(lambda: not present(self.station.spool / "hooks"), WAIT_S)

    def miss(self, break_it: Callable[[Path], object], turns: int) -> None:
        """Turns without our plugin, or without what it starts: one new session, the rest in it."""
        whole = self.plugin.read_text("utf-8")
        break_it(self.plugin)
        for turn in range(turns):
            self.run("hello", *(["--continue"] if turn else []))
        self.plugin.write_text(whole, "utf-8")

    def unexplained(self) -> list[str]:
        """Turns of the store that the ledger does not hold just as they are there."""
        policy = Policy("full", (), redact_secrets=True, prefix="/opencode").digest("")
        names = {name.split(" ")[0] for name in self.turns()}
        with self.station.ledger() as db:
            known = {
                (session, one.turn): one.key
                for session in names
                for one in history.exported(db, 1, session)
                if one.state in {"pending", "delivered"}
            }
        return [
            name
            for name, turn in self.turns().items()
            if known.get((turn.session.id, turn.id)) != key(turn.digest, policy)
        ]

    def verified(self) -> int:
        """How many turns `verify` does not find explained."""
        done = typed(self.station, "verify", "--json", "--db", str(self.store.path))
        unexplained: int = json.loads(done.stdout)["unexplained"]
        assert (done.returncode == 0) is (unexplained == 0), done.stdout
        return unexplained

    def left(self) -> int:
        """As `verified`, once it is 0 or nothing more comes: a hook may begin only when an old OpenCode has ended."""
        with suppress(AssertionError):
            wait_until(lambda: not self.verified(), WAIT_S)
        return self.verified()

    def versions(self, name: str) -> list[tuple[str, str]]:
        """(state, key) of what was ever exported of a turn, the oldest first."""
        session, turn = name.split(" ")
        with self.station.ledger() as db:
            return [(one.state, one.key) for one in history.exported(db, 1, session) if one.turn == turn]

    def deliver(self) -> None:
        with worker(self.station):
            wait_until(lambda: self.station.counts().pending == 0, WAIT_S)

    def sent_twice(self) -> int:
        """How many bodies arrived more than once under their id."""
        sends = Counter((send.request_id, send.sha256) for send in self.receiver.sends())
        return sum(times > 1 for times in sends.values())


def _is_under_way(turn: Turn) -> bool:
    """In the middle of its answer's text, or of a tool."""
    parts = [part for message in turn.messages if isinstance(message, Assistant) for part in message.parts]
    return not turn.final and any(
        part.status == "running" if isinstance(part, Tool) else getattr(part, "text", None) is not None
        for part in parts
    )


def remove(plugin: Path) -> None:
    plugin.unlink()


def forget_python(plugin: Path) -> None:
    """What the plugin starts is not there any more."""
    begin = "const INSTALLED = "
    lines = plugin.read_text("utf-8").split("\n")
    changed = list(lines)
    for at, line in enumerate(lines):
        if line.startswith(begin):
            command = ["/nowhere/python", "-m", "app", "hook"]
            changed[at] = begin + json.dumps({**json.loads(line.removeprefix(begin)), "command": command})
    assert changed != lines
    plugin.write_text("\n".join(changed), "utf-8")


@contextmanager
def ground(opencode: OpenCode, home: Path, version: str = VERSION) -> Iterator[Ground]:
    """One whose first turn was captured, so that what comes can be missed."""
    (home / "station").mkdir(parents=True)
    project = opencode.project(home / "project")
    major, minor, patch = map(int, version.split("."))
    flavour: install.Flavour = "object" if install.fits("object", (major, minor, patch)) else "function"
    install.install(install.Project(project), python=sys.executable, flavour=flavour)
    opencode.spare_installation(project / ".opencode")
    with receiving(home / "receiver" / "store.db") as receiver:
        made = Ground(opencode, Station(home / "station", receiver.url), receiver, project)
        made.run()
        yield made


def two_at_once(place: Ground, script: str, end: Callable[[], object]) -> list[tuple[str, str]]:
    """One OpenCode starts, works and ends while another is in the middle of a turn; the versions of that turn."""
    with place.started(script) as (process, name):
        place.run(others=1)
        during = place.versions(name)
        assert not place.turns()[name].final, "the other turn was to be under way all the time"
        end()
        process.communicate(timeout=WAIT_S)
    wait_until(lambda: not present(place.station.spool / "hooks"), WAIT_S)
    return [*during, *place.versions(name)]


def play(version: str) -> bool:
    """Whether all is as it has to be."""
    print(f"OpenCode {version}", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        installed_opencode(Path(folder), version) as opencode,
        ground(opencode, Path(folder) / "ground", version) as place,
    ):
        for script, where in ((STREAM, "mid-stream"), (TOOL, "mid-tool")):
            for signum in SIGNALS:
                place.kill(script, signum)
                print(f"{signum.name} in {where}: {len(place.unexplained())} turns not in the ledger", flush=True)
        for break_it, what in ((forget_python, "Python"), (remove, "the plugin")):
            place.miss(break_it, 3)
            print(f"three turns without {what}: {len(place.unexplained())} turns not in the ledger", flush=True)
        place.run()
        print(f"after the next start: {place.left()} of {len(place.turns())} turns unexplained", flush=True)
        go = place.project / "go"
        versions = two_at_once(place, f"await:{go}", go.touch)
        print(f"two OpenCodes, one in mid-tool: {len(versions)} version(s) of its turn", flush=True)
        place.deliver()
        place.run()  # starts again, and finds nothing to do
        place.deliver()
        place.left()
        place.deliver()
        left, twice = len(place.unexplained()) + place.verified(), place.sent_twice()
        sends = len(place.receiver.sends())
        print(f"at the end: {left} of {len(place.turns())} turns unexplained, {sends} sends, {twice} of them twice")
    return not (left or twice or len(versions) != 1)


def main() -> int:
    """All versions, also after one that failed."""
    played = [play(version) for version in sys.argv[1:] or [VERSION]]
    return 0 if all(played) else 1


if __name__ == "__main__":
    sys.exit(main())
