"""Whether OpenCode writes as fast while its store is read as it does alone.

    python benchmarks/reading.py [rounds] [prompts]

A reader in a tight loop does what this program does at worst: all roots, when each changed, a long session whole, one
turn of it. It does so in the store that is written to, and, to tell what the disk and the locks cost from what a
busy core costs, in a copy of it. Nobody reading, the copy, the store: they take turns, so that a busy machine slows
all. Measured is, once with the real OpenCode (from npm, into the tests' cache) and its scripted provider, the time from
prompt to answer; and once with a writer that commits as OpenCode does (the pragmas are those in its binary), the time
of a transaction. The write-ahead log must stay bounded, too: a reader keeps it from being begun anew.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from app.sources.opencode.store import Store  # noqa: E402 - from a checkout
from tests.support.fake_llm import fake_llm  # noqa: E402 - the tests' building blocks are no package of ours
from tests.support.opencode import OpenCode, configuration, install_opencode, isolated  # noqa: E402

WAYS = ("nobody reads", "a copy is read", "the store is read")
PRAGMAS = ("busy_timeout = 5000", "cache_size = -64000", "foreign_keys = on", "synchronous = normal")
"""As OpenCode 1.18.33 sets them, with WAL and SQLite's own checkpoints."""
TURNS = 1_000
"""In the session that is read."""
TURNS_READ = 50
"""One by one, with all roots before each, between two readings of the whole."""
TEXT_BYTES = 4_000
"""Of each of its parts."""
COMMITS = 1_500
"""In one block of the writer."""
PAUSE_S = 0.001
"""Between two of them: OpenCode waits for its model."""
GOAL_MEDIAN = 1.5
GOAL_P99 = 3.0
"""Ratios to the copy being read."""
GOAL_WAL_BYTES = 64 << 20


def history(path: Path, template: str) -> str:
    """Put a long session into a store, made of the last turn of another one. Its id."""
    session = "ses_history"
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        db.row_factory = sqlite3.Row

        def copied(table: str, row: sqlite3.Row, **changed: object) -> None:
            told = {**dict(row), **changed}
            names = ", ".join(told)
            places = ", ".join("?" * len(told))
            db.execute(f"insert into {table} ({names}) values ({places})", list(told.values()))  # noqa: S608 - ours

        copied("session", db.execute("select * from session where id = ?", (template,)).fetchone(), id=session)
        asked, answered = db.execute(
            "select * from message where session_id = ? order by time_created desc, id desc limit 2", (template,)
        ).fetchall()[::-1]
        parts = {
            message["id"]: db.execute("select * from part where message_id = ?", (message["id"],)).fetchall()
            for message in (asked, answered)
        }
        for turn in range(TURNS):
            for message in (asked, answered):
                data = json.loads(message["data"])
                if "parentID" in data:
                    data["parentID"] = f"{asked['id']}_{turn}"
                name = f"{message['id']}_{turn}"
                created_ms = message["time_created"] + turn * 60_000
                copied("message", message, id=name, session_id=session, time_created=created_ms, data=json.dumps(data))
                for part in parts[message["id"]]:
                    of_part = json.loads(part["data"])
                    if of_part["type"] == "text":
                        of_part["text"] = "word " * (TEXT_BYTES // 5)
                    own = {"id": f"{part['id']}_{turn}", "message_id": name, "session_id": session}
                    copied("part", part, **own, data=json.dumps(of_part))
    return session


def read(path: Path, session: str, wanted: Event, is_over: Event, reads: multiprocessing.Queue[int]) -> None:
    """What this program does at worst, again and again while it is wanted."""
    store = Store(path)
    whole = store.transcript(session)
    assert whole is not None
    assert len(whole.turns) == TURNS
    done = 0
    for turn in itertools.cycle(whole.turns):
        if is_over.is_set():
            break
        if not wanted.wait(0.05):
            continue
        for root in store.roots():
            store.changed_ms(root.id)
        store.turn(session, turn.id)
        done += 1
        if done % TURNS_READ == 0:
            store.transcript(session)
    reads.put(done)


@contextmanager
def readers(store: Path, copy: Path, session: str) -> Iterator[Callable[[str], None]]:
    """A process for each of the two; the function says which of them reads from now on."""
    is_over = multiprocessing.Event()
    wanted = {WAYS[1]: multiprocessing.Event(), WAYS[2]: multiprocessing.Event()}
    reads: multiprocessing.Queue[int] = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=read, args=(path, session, event, is_over, reads), daemon=True)
        for path, event in zip((copy, store), wanted.values(), strict=True)
    ]
    for process in processes:
        process.start()

    def let(way: str) -> None:
        for name, event in wanted.items():
            (event.set if name == way else event.clear)()
        time.sleep(0.5)  # the one before ends its round

    try:
        yield let
        is_over.set()
        print(f"  turns read one by one, of either: {sorted(reads.get(timeout=60) for _ in processes)}")
    finally:
        is_over.set()
        for process in processes:
            process.join(30)
            process.kill()


def rounds_of(
    rounds: int, let: Callable[[str], None], block: Callable[[], list[float]], wal: Path
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """(seconds of each event, most bytes of the write-ahead log), by way."""
    taken_s: dict[str, list[float]] = {way: [] for way in WAYS}
    wal_bytes = dict.fromkeys(WAYS, 0)
    for number in range(rounds):
        for way in WAYS if number % 2 else WAYS[::-1]:
            let(way)
            taken_s[way] += block()
            # It keeps its size when it is begun anew: the most so far.
            wal_bytes[way] = max(wal_bytes[way], wal.stat().st_size)
    return taken_s, wal_bytes


def told(what: str, taken_s: dict[str, list[float]], wal_bytes: dict[str, int]) -> bool:
    """Print it; whether the goals are met."""
    found = {
        way: (statistics.median(one), sorted(one)[min(len(one) - 1, len(one) * 99 // 100)])
        for way, one in taken_s.items()
    }
    for way, (median_s, p99_s) in found.items():
        print(
            f"  {what}, {way}: {len(taken_s[way])}, median {median_s * 1000:.3g} ms, p99 {p99_s * 1000:.3g} ms;"
            f" WAL {wal_bytes[way] / 1e6:.1f} MB"
        )
    (median_s, p99_s), of_copy = found[WAYS[2]], found[WAYS[1]]
    ratios = median_s / of_copy[0], p99_s / of_copy[1]
    alone = median_s / found[WAYS[0]][0], p99_s / found[WAYS[0]][1]
    print(f"  to the copy being read: median x{ratios[0]:.2f}, p99 x{ratios[1]:.2f}")
    print(f"  to nobody reading:      median x{alone[0]:.2f}, p99 x{alone[1]:.2f}")
    return ratios[0] < GOAL_MEDIAN and ratios[1] < GOAL_P99 and max(wal_bytes.values()) < GOAL_WAL_BYTES


def commits(store: Path, template: str) -> Callable[[], list[float]]:
    """A block of transactions as OpenCode's, each with a part and the times of its message and session."""
    db = sqlite3.connect(store, isolation_level=None)
    db.row_factory = sqlite3.Row
    for pragma in PRAGMAS:
        db.execute(f"pragma {pragma}")
    assert db.execute("pragma journal_mode = wal").fetchone()[0] == "wal"
    (message,) = db.execute(
        "select id from message where session_id = ? order by id desc limit 1", (template,)
    ).fetchone()
    data = json.dumps({"type": "text", "text": "word " * 400})
    count = 0

    def block() -> list[float]:
        nonlocal count
        taken_s = []
        for _ in range(COMMITS):
            count += 1
            time.sleep(PAUSE_S)
            start_s = time.perf_counter()
            db.execute("begin immediate")
            db.execute(
                "insert into part (id, message_id, session_id, time_created, time_updated, data)"
                " values (?, ?, ?, ?, ?, ?)",
                (f"prt_bench_{count:09}", message, template, count, count, data),
            )
            db.execute("update message set time_updated = ? where id = ?", (count, message))
            db.execute("update session set time_updated = ? where id = ?", (count, template))
            db.execute("commit")
            taken_s.append(time.perf_counter() - start_s)
        return taken_s

    return block


def measure(rounds: int, prompts: int, folder: Path) -> bool:
    home = folder / "home"
    (home / ".config" / "opencode").mkdir(parents=True)
    with fake_llm() as llm_url:
        (home / ".config" / "opencode" / "opencode.json").write_text(json.dumps(configuration(llm_url)))
        opencode = OpenCode(install_opencode(), home, isolated(home))
        store = home / ".local" / "share" / "opencode" / "opencode.db"
        wal = store.with_name("opencode.db-wal")
        with opencode.serve(opencode.project(folder / "project")) as server:
            template = server.new_session()
            server.prompt(template, "[[script:hello]] first")
            session = history(store, template)
            with closing(sqlite3.connect(store)) as db, closing(sqlite3.connect(folder / "copy.db")) as copy:
                db.backup(copy)
            shutil.copy(folder / "copy.db", folder / "written.db")
            print(f"the store: {(folder / 'copy.db').stat().st_size / 1e6:.1f} MB, one session of {TURNS} turns")

            def block() -> list[float]:
                fresh = server.new_session()  # each block asks as long a session
                taken_s = []
                for number in range(prompts):
                    start_s = time.perf_counter()
                    server.prompt(fresh, f"[[script:hello]] turn {number}")
                    taken_s.append(time.perf_counter() - start_s)
                return taken_s[1:]  # the first one makes the title as well

            with readers(store, folder / "copy.db", session) as let:
                of_opencode = rounds_of(rounds, let, block, wal)
    is_met = told("prompt to answer", *of_opencode)
    with readers(folder / "written.db", folder / "copy.db", session) as let:
        of_writer = rounds_of(rounds, let, commits(folder / "written.db", template), folder / "written.db-wal")
    return told("transaction", *of_writer) and is_met


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    prompts = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-reading-") as folder:
        is_met = measure(rounds, prompts, Path(folder))
    print(f"goals, to the copy being read: median under x{GOAL_MEDIAN}, p99 under x{GOAL_P99}; WAL under 64 MB")
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
