"""Fixtures that most tests need: a spool directory, and a migrated ledger in it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings

from app.database import postgres
from app.database.connection import Database, Ledger
from app.database.open import open_ledger
from app.runtime import clock
from tests.support import plans
from tests.support.ledger_bench import LedgerBench, without_waiting
from tests.support.postgres import Server, postgres_words

# Deterministic where a failure must be seen again by everybody; locally each run tries something new.
settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


TESTS = Path(__file__).parent
SLOWEST = (
    "system/test_worker.py",
    "system/test_plugin.py",
    "system/test_end_to_end.py",
    "system/test_opencode_versions.py",
    "system/test_cli.py",
    "system/test_killed_opencode.py",
    "system/test_crash_points.py",
    "system/test_real_sessions.py",
    "system/test_flush.py",
    "system/test_upgrade.py",
    "capture/test_newer_opencode.py",
    "system/test_folder_limits.py",
    "system/test_arrangements.py",
    "recall/test_recall.py",
    "system/test_same_bytes.py",
    "system/test_erasure.py",
    "sources/opencode/test_turns.py",
    "system/test_held.py",
    "backfill/test_backfill.py",
    "cli/test_recall.py",
    "privacy/test_stretches.py",
    "sources/opencode/test_config.py",
    "system/test_options.py",
    "delivery/test_deliver.py",
    "privacy/test_rules.py",
    "delivery/test_outage.py",
    "sources/opencode/test_newer.py",
    "system/test_hook.py",
    "web/test_browser.py",
    "web/test_pages.py",
)
"""Files that take the most processor time, their processes included."""


STARTS_A_PROCESS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})
"""Events of Python's audit."""
running: list[pytest.Item] = []
"""The test that runs now, if it is none of the slow ones."""


def _refuse_processes(event: str, arguments: tuple[object, ...]) -> None:
    if running and event in STARTS_A_PROCESS and "git" not in arguments:  # it takes milliseconds
        raise RuntimeError("A test that starts a process is marked `slow`: `make check` leaves it out.")


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.is_relative_to(TESTS / "system") or any(map(item.get_closest_marker, ("opencode", "matrix"))):
        item.add_marker("slow")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The slowest files first: of processes that take file by file, none is left with a long one at the end."""
    place = {name: number for number, name in enumerate(SLOWEST)}
    other = "sqlite" if config.getoption("--postgres") else "postgres"
    items[:] = [item for item in items if item.get_closest_marker(other) is None]
    items.sort(key=lambda item: place.get(str(item.path.relative_to(TESTS)), len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """So that `make check` stays quick, no other test starts a process."""
    if item.get_closest_marker("slow") is None and not item.config.getoption("--postgres"):
        running.append(item)
    try:
        return (yield)
    finally:
        running.clear()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--frozen-clock", action="store_true", help="The program's clock stands still during each test (`make frozen`)."
    )
    parser.addoption("--postgres", action="store_true", help="The ledger is on a PostgreSQL server (`make postgres`).")


def pytest_configure() -> None:
    sys.addaudithook(_refuse_processes)
    # A shell has its background jobs, and all that they start, ignore Ctrl-C; some tests press it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"SQLite {sqlite3.sqlite_version}"


@pytest.fixture(autouse=True)
def _frozen_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--frozen-clock` a test that needs time to pass between two calls fails, as it would on a fast machine.

    Processes that a test starts have the machine's clock.
    """
    if request.config.getoption("--frozen-clock"):
        stopped = clock.read()
        monkeypatch.setattr(clock, "now_ms", lambda: stopped.wall_ms)
        monkeypatch.setattr(clock, "read", lambda: stopped)


@pytest.fixture(autouse=True)
def _plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement of the ledger reads all jobs, but for those that are listed."""
    plans.watch(monkeypatch)


@pytest.fixture(autouse=True)
def _words(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said to a server has no word that only SQLite knows, whichever branch says it."""
    if request.config.getoption("--postgres"):
        monkeypatch.setattr(postgres, "translate", postgres_words)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Where a spool would be; nothing is there yet."""
    return tmp_path / "spool"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool whose ledger was just made: to copy, because making one waits for the disk several times."""
    spool = tmp_path_factory.mktemp("migrated")
    open_ledger(spool).close()
    return spool


@pytest.fixture
def db(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated ledger: a file of SQLite, or with `--postgres` a database of a server."""
    if request.config.getoption("--postgres"):
        with closing(request.getfixturevalue("postgres_server").emptied()) as connection:
            yield connection
    else:
        yield request.getfixturevalue("sqlite_ledger")


@pytest.fixture
def ledger_place(request: pytest.FixtureRequest, spool: Path) -> str:
    """Where `db` is, for another connection (`open_either`)."""
    server: Server | None = (
        request.getfixturevalue("postgres_server") if request.config.getoption("--postgres") else None
    )
    return server.url if server else str(spool)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def sqlite_ledger(spool: Path, migrated: Path) -> Iterator[Ledger]:
    """A migrated ledger in a real file: WAL and second connections behave otherwise in memory."""
    shutil.copytree(migrated, spool)
    connection = open_ledger(spool)
    yield connection
    connection.close()


@pytest.fixture
def bench(db: Database) -> LedgerBench:
    without_waiting(db)
    return LedgerBench(db)


@pytest.fixture
def at_once() -> Callable[[str, int, list[str]], None]:
    """Run a script in many processes that begin together: each prints a line when it is ready and then reads one."""

    def run(script: str, processes: int, arguments: list[str]) -> None:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", script, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(processes)
        ]
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        # Only now, when all of them have started, do they get their input.
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [process.communicate(timeout=300)[1] for process in started]
        assert [process.returncode for process in started] == [0] * processes, "\n".join(ends)

    return run
