"""Each option from each source changes what happens: captured by a hook, delivered by a worker's own objects.

    default < config file < plugin options < .env < environment < command line; of what may leave the strictest

Not that a value arrives, which is for the settings' own tests, but that somebody obeys it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from app.capture.daemon import Daemon
from app.capture.pipe_reader import PipeReader
from app.database.open import open_ledger
from app.delivery import confirm
from app.delivery.poller import POLL_MS
from app.exporters.kinds import traits_of
from app.ledger import counts, flow
from app.ledger.job import bodies
from app.runtime import clock
from app.settings.lookup import Sources, unattended
from app.settings.options import from_arguments
from app.sources.opencode.store import store_file
from app.worker import CONSUMER, Worker
from tests.support.processes import PROJECT, Station, hook, worker
from tests.support.recorded import Snapshot, export, export_files
from tests.support.servers import Scripted, answer, api_key, receiving, scripted
from tests.support.stores import put
from tests.support.waiting import wait_until
from tests.system.test_policy_sweep import configure

JOBS = 2
SEED = 7
BASES_MS = (1_000, 60_000)


@dataclass(frozen=True, slots=True)
class Place:
    """One machine, and what is told to the program there."""

    home: Path
    sources: Sources
    plugin: dict[str, object]
    server: Scripted

    @property
    def spool(self) -> Path:
        return self.home / "spool"


@dataclass(frozen=True, slots=True)
class Option:
    variable: str
    observe: Callable[[Place], object]
    value: object
    """Another one than the default."""
    by_default: object
    changed: object


def capture(place: Place, session: Snapshot | None = None) -> None:
    """A hook's whole work, in this process: that of an OpenCode which was asked one question."""
    session = session or export("a_simple")
    put(store_file(place.sources.environ), session)
    line = {"v": 2, "n": 1, "type": "notice", "session": session["root"], "why": "idle", "directory": PROJECT}
    reader, writer = os.pipe()
    with os.fdopen(reader) as pipe:
        pipe_reader = PipeReader(pipe.fileno())
        with os.fdopen(writer, "w") as other_end:
            other_end.write(json.dumps({**line, "options": place.plugin}) + "\n")
        Daemon(pipe_reader, place.sources).serve()


@contextmanager
def delivering(place: Place) -> Iterator[Worker]:
    """A worker that was started apart from the hook, without its threads: a test takes its steps."""
    made = Worker(place.sources)
    try:
        made.huey.create_consumer(**CONSUMER)
        yield made
    finally:
        made.close()


def attempt(made: Worker) -> None:
    """Try the oldest job that is due."""
    made._answer(made.db.execute("select key from job").fetchone()[0])


def text_of_bodies(spool: Path) -> str:
    with closing(open_ledger(spool)) as db:
        jobs = db.execute("select id, key from job").fetchall()
        return "\n".join(body.body.decode() for job in jobs for body in bodies(db, job["id"], job["key"]))


# --- what each option decides ----------------------------------------------------------------------------------------


def something_is_written(place: Place) -> bool:
    capture(place)
    return place.spool.exists()


def ledgers(place: Place) -> list[str]:
    capture(place)
    return [path.parent.name for path in place.home.rglob("ledger.db")]


def paths(place: Place) -> set[str]:
    capture(place)
    metas = [json.loads(body)["providerRequest"]["meta"] for body in text_of_bodies(place.spool).split("\n")]
    return {meta["Helicone-Session-Path"].split("/ses_")[0] for meta in metas}


def tells_of_the_title(place: Place) -> bool:
    capture(place)
    return "Fake Generated" in text_of_bodies(place.spool)


def pause_between_looks_ms(place: Place) -> int:
    capture(place)
    with delivering(place) as made:
        return made.poll()


def after_a_look(place: Place) -> counts.Counts:
    capture(place)
    with delivering(place) as made:
        # As if they had been captured before this moment: a fast machine does all of this within a millisecond.
        made.db.execute("update job set enqueued_ms = enqueued_ms - 2")
        for _ in range(JOBS):
            attempt(made)
            # As if no time passed: on a slow machine the first job would be due again before the second had its turn.
            made.db.execute("update job set due_ms = due_ms + 60000 where attempted_ms is not null")
        made.poll()
        return counts.counts(made.db)


def dropped_by_a_look(place: Place) -> dict[str, int]:
    return dict(after_a_look(place).dropped_by_reason)


def text_is_held(place: Place) -> bool:
    """What has no room waits without it: OpenCode's store has it."""
    return after_a_look(place).body_bytes > 0


def posts_before_a_job_is_dead(place: Place) -> int:
    capture(place)
    with delivering(place) as made:
        while counts.counts(made.db).dead == 0:
            # As if its time had come, and other jobs' records had passed.
            made.db.execute("update job set due_ms = 1 where state = 'pending'")
            flow.passed(made.db, made.target.id)
            attempt(made)
    return len(place.server.requests)


def base_of_the_first_delay_ms(place: Place) -> list[int]:
    """The first retry comes `dice * base` after the attempt: which base that was, by dice that are known."""
    capture(place)
    dice = random.Random(SEED).random()  # noqa: S311 - nothing to protect
    with delivering(place) as made:
        random.seed(SEED)
        before_ms = clock.now_ms()
        attempt(made)
        after_ms = clock.now_ms()
        due_ms = made.db.execute("select due_ms from job where setbacks = 1").fetchone()[0]
    return [base for base in BASES_MS if before_ms <= due_ms - int(dice * base) <= after_ms]


def is_read_back(place: Place) -> bool:
    """A job that is delivered now, to a server that is not Helicone's cloud."""
    capture(place)
    with delivering(place) as made:
        return confirm.when(made.db, made.target.id, made._plan, traits_of("helicone"), clock.now_ms()) is not None


OPTIONS = {
    "enable": Option("ENABLE", something_is_written, value=False, by_default=True, changed=False),
    "spoolDirectory": Option(
        "SPOOL_DIRECTORY", ledgers, value="elsewhere", by_default=["spool"], changed=["elsewhere"]
    ),
    "sessionPathPrefix": Option(
        "SESSION_PATH_PREFIX", paths, value="/team", by_default={"/opencode"}, changed={"/team"}
    ),
    "redactPatterns": Option("REDACT_PATTERNS", tells_of_the_title, value=["fake gen"], by_default=True, changed=False),
    "flushInterval": Option("FLUSH_INTERVAL", pause_between_looks_ms, value=50, by_default=POLL_MS, changed=50),
    "maxSpoolSize": Option("MAX_SPOOL_SIZE", text_is_held, value=1, by_default=True, changed=False),
    "maxSpoolAge": Option("MAX_SPOOL_AGE", dropped_by_a_look, value=1, by_default={}, changed={"age": JOBS}),
    "maxRetries": Option("MAX_RETRIES", posts_before_a_job_is_dead, value=1, by_default=6, changed=2),
    "retryBaseDelay": Option(
        "RETRY_BASE_DELAY",
        base_of_the_first_delay_ms,
        value=BASES_MS[1],
        by_default=[BASES_MS[0]],
        changed=[BASES_MS[1]],
    ),
    "confirm": Option("CONFIRM", is_read_back, value="off", by_default=True, changed=False),
}
SOURCES = ("command line", "environment", ".env", "plugin", "config file")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Nothing is set but where to send, and the spool by the source that all others overrule."""
    home = tmp_path / "home"
    config = home / "config" / "opencode-helicone"
    config.mkdir(parents=True)
    # Where the user's config folder is, is asked of the system.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    (config / "config.toml").write_text(f"spoolDirectory = {json.dumps(str(home / 'spool'))}\n", "utf-8")
    with scripted(answer(503)) as server:
        environ = {
            "HOME": str(home),
            "HELICONE_ENDPOINT": server.url,
            "HELICONE_API_KEY": api_key(),
            "OPENCODE_HELICONE_WORKER": "external",
        }
        yield Place(home, unattended(environ), {}, server)


def told(place: Place, source: str, name: str) -> Place:
    """The same place, with one option set in one source."""
    option = OPTIONS[name]
    value = str(place.home / str(option.value)) if name == "spoolDirectory" else option.value
    variable, text = f"OPENCODE_HELICONE_{option.variable}", value if isinstance(value, str) else json.dumps(value)
    config = place.home / "config" / "opencode-helicone"
    environ = place.sources.environ
    match source:
        case "command line":
            given = from_arguments([f"{name}={text}"])  # --set
            return replace(place, sources=replace(place.sources, command_line=given))
        case "environment":
            environ = {**environ, variable: text}
        case ".env":
            (config / ".env").write_text(f"{variable}={text}\n", "utf-8")
        case "plugin":
            return replace(place, plugin={name: value})
        case _:
            lines = (config / "config.toml").read_text("utf-8").splitlines()
            kept = [line for line in lines if not line.startswith(f"{name} ")]
            (config / "config.toml").write_text("\n".join([*kept, f"{name} = {json.dumps(value)}", ""]), "utf-8")
    return replace(place, sources=unattended(environ))


@pytest.mark.parametrize("name", OPTIONS)
def test_what_happens_by_default(place: Place, name: str) -> None:
    assert OPTIONS[name].observe(place) == OPTIONS[name].by_default


LIMITS = ("maxSpoolSize", "maxSpoolAge", "maxRetries")
"""What the plugin brings of these is for the jobs of its folder alone."""


@pytest.mark.parametrize(
    ("name", "source"),
    [(name, source) for name in OPTIONS for source in SOURCES if name not in LIMITS or source != "plugin"],
)
def test_an_option_changes_what_happens(place: Place, name: str, source: str) -> None:
    option = OPTIONS[name]
    assert option.changed != option.by_default
    assert option.observe(told(place, source, name)) == option.changed


# --- the same, between processes -------------------------------------------------------------------------------------


def test_a_consumer_started_apart_obeys_the_delivery_options_that_a_plugin_brought(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with receiving(tmp_path / "store.db") as receiver:
        station = Station(tmp_path / "home", receiver.url)
        configure(tmp_path / "home" / "config" / "opencode-helicone", maxRetries=1)
        receiver.fault({"times": 1}, {"status": 500, "times": 1_000})
        with hook(station) as process:
            process.show(export("a_simple"), options={"retryBaseDelay": 1})
            assert process.end() == 0
        with worker(station):
            wait_until(lambda: station.counts().dead == 1)
        with station.ledger() as db:
            (error,) = db.execute("select error from job where state = 'dead'").fetchone()
        assert error == "500: empty body (after 1 retries)"


def test_the_command_line_says_where_the_spool_is(tmp_path: Path) -> None:
    station = Station(tmp_path, "http://127.0.0.1:9")
    done = station.run("import", "--spool-directory", str(tmp_path / "elsewhere"), str(*export_files("a_simple")))
    assert done.returncode == 0, done.stderr
    assert [path.parent.name for path in tmp_path.rglob("ledger.db")] == ["elsewhere"]
