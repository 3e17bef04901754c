"""`make fuzz`: 50,000 broken lines and files, and broken sessions in OpenCode's store, through real hooks and `import`.

    python -m tests.stress.fuzz [--count 50000] [--seed N]

Fails where a line or a file vanished uncounted, a job is not whole, a bug of ours was met (also one that a process
survived), something was printed that should not be, or a process held more memory than it may.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from app.backfill.import_files import Imported, import_files
from app.database.open import open_ledger
from app.ledger import incidents
from app.settings.lookup import Sources
from app.sources.opencode.export_files import File
from app.sources.opencode.store import Store, store_file
from tests.support import mutants
from tests.support.mutants import Expected, audit
from tests.support.processes import PROJECT, Station, hook
from tests.support.stores import put

LINES_EACH = 2_500
"""Of one hook's life."""
LINES_PER_SESSION = 3
FILES_EACH = 50
HOOK_MIB_MAX = 768
"""About 400 with a line of 50 MB and one of more than is allowed; under 100 with recordings of the usual size."""
COMMAND_MIB_MAX = 256
HOOK_S_MAX = 900
SAMPLE_S = 0.02


def machine(home: Path) -> Station:
    return Station(home, "http://127.0.0.1:9", variables={"OPENCODE_HELICONE_MAX_SPOOL_SIZE": str(10**12)})


def sources(station: Station) -> Sources:
    """What the station's environment says, and nothing of the machine that this runs on."""
    return Sources(station.environ, Path("/"), station.home)


def refusals(db: sqlite3.Connection) -> Counter[str]:
    return Counter({reason: count for reason, count, _ in incidents.refusals(db, 1_000)})


def first_line() -> bytes:
    """Makes the spool."""
    line = {
        "v": 2,
        "n": 1,
        "type": "notice",
        "session": "ses_first",
        "why": "busy",
        "directory": PROJECT,
        "options": {},
    }
    return json.dumps(line).encode()


def compare(station: Station, expected: Sequence[Expected]) -> Counter[str]:
    """What a spool holds against what hooks were fed; the numbers of both."""
    with station.ledger() as db:
        counted = refusals(db)
        wanted = sum((one.refusals for one in expected), Counter[str]())
        assert counted == wanted, f"refused {counted - wanted} too often, {wanted - counted} too seldom"
        left = {row["session"] for row in db.execute("select session from notice")}
        unread, waiting, deleted = (
            set().union(*(getattr(one, kind) for one in expected)) for kind in ("unread", "waiting", "deleted")
        )
        missing = {root for one in expected for root in one.missing(db)}
        # What waits for the end of a turn is owed, and said to be.
        lost = missing - (left & waiting)
        assert not lost, f"turns of {len(lost)} sessions are missing: {sorted(lost)[:3]}"
        assert unread - deleted <= left, f"{len(unread - deleted - left)} that cannot be read are not owed"
        assert left <= unread | waiting, f"{len(left - unread - waiting)} are owed that could be read"
        seen = audit(db)
    assert "Traceback" not in station.text("hook.log") + station.text("worker.log")
    fed = sum(one.lines for one in expected)
    notices, others = sum(one.notices for one in expected), sum(one.others for one in expected)
    assert fed == notices + others + counted.total()
    told = {"lines": fed, "notices taken": notices, "other lines taken": others, "sessions unread": len(left)}
    return seen + counted + Counter(told)


def compare_import(files: Sequence[File], results: Sequence[Imported]) -> Counter[str]:
    """One result for each file, and of an imported one as many jobs as it has turns, and its session's own."""
    assert Counter(result.file for result in results) == Counter(file.name for file in files)
    data = {file.name: file.data for file in files}
    for result in results:
        if result.outcome == "imported":
            turns = len(mutants.turns_of_file(data[result.file] or b"").turns)
            jobs = result.new + result.known + result.superseded + result.shut
            assert jobs == (turns - result.copied + 1 if turns > result.copied else 0), result
        else:
            assert result.reason, result
    return Counter(f"file {result.outcome}" for result in results)


# --- the long form ---------------------------------------------------------------------------------------------------


def fed(station: Station, lines: Sequence[bytes]) -> int:
    """Feed a real hook to its end; the most memory that it held, in MiB (0 where nobody says)."""
    peak = 0
    with hook(station) as running:
        process = running.process

        def feed() -> None:
            for line in lines:
                running.raw(line)
            assert process.stdin is not None
            process.stdin.close()

        feeding = threading.Thread(target=feed, daemon=True)
        feeding.start()
        ends_s = time.monotonic() + HOOK_S_MAX
        while process.poll() is None:
            assert time.monotonic() < ends_s, "the hook does not end"
            peak = max(peak, memory_mib(process.pid))
            time.sleep(SAMPLE_S)
        assert process.returncode == 0
        feeding.join(20)
    return peak


def memory_mib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def remember(dice: random.Random, station: Station, count: int) -> list[str]:
    """Have OpenCode's store hold so many sessions that are broken in some way; their ids."""
    return [mutants.stored(dice, store_file(station.environ)) for _ in range(count)]


def hooks(dice: random.Random, home: Path, count: int, *, largest: bool = False) -> tuple[Counter[str], int]:
    """Two hooks at once on one spool; what became of their lines, and the most memory of one of them."""
    station = machine(home)
    sessions = remember(dice, station, count // LINES_PER_SESSION)
    extra = [mutants.giant(dice), long_text(dice, station)] if largest else []
    batches = [[first_line(), *(mutants.line(dice, sessions) for _ in range(count // 2)), *extra] for _ in range(2)]
    expected = [Expected(Store(store_file(station.environ))) for _ in batches]
    peaks: list[int] = []
    threads = [threading.Thread(target=lambda lines=lines: peaks.append(fed(station, lines))) for lines in batches]
    for thread in threads:
        thread.start()
    for one, lines in zip(expected, batches, strict=True):
        for line in lines:
            one.feed(line, sources(station))
    for thread in threads:
        thread.join()
    assert len(peaks) == len(batches), "a hook failed, see above"
    return compare(station, expected), max(peaks)


def imports(dice: random.Random, station: Station, count: int) -> Counter[str]:
    """In this process."""
    files = [File(f"file-{number}", mutants.export_file(dice)) for number in range(count)]
    return compare_import(files, list(import_files(files, sources(station))))


def command(dice: random.Random, station: Station, count: int) -> tuple[Counter[str], int]:
    """The same with the real command, its memory measured."""
    folder = station.home / "files"
    folder.mkdir(exist_ok=True)
    files = [File(str(folder / f"{number}.json"), mutants.export_file(dice)) for number in range(count)]
    for file in files:
        Path(file.name).write_bytes(file.data or b"")
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "import", "--json", *(file.name for file in files)],
        env=station.environ,
        cwd=station.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    peaks: list[int] = []
    watching = threading.Thread(target=lambda: peaks.extend(_peaks(process)))
    watching.start()
    out, said = process.communicate(timeout=120)
    watching.join()
    assert process.returncode in {0, 1}, said
    assert b"Traceback" not in said, said
    assert b"internal error" not in said, said
    results = [Imported(**one) for one in json.loads(out)["files"]]
    return compare_import(files, results), max(peaks, default=0)


def _peaks(process: subprocess.Popen[bytes]) -> list[int]:
    found = []
    while process.poll() is None:
        found.append(memory_mib(process.pid))
        time.sleep(SAMPLE_S)
    return found


def long_text(dice: random.Random, station: Station) -> bytes:
    """Of a session with a text of 50 MB."""
    small, _ = mutants.recordings()
    snapshot = json.loads(dice.choice([one for one in small if '"type": "text"' in one]))
    parts = [part for message in snapshot["sessions"][0]["messages"] for part in message["parts"]]
    next(part for part in parts if part["type"] == "text")["text"] = "word " * 10_000_000
    put(store_file(station.environ), snapshot)
    said = {"v": 2, "n": 2, "type": "notice", "session": snapshot["root"], "why": "idle", "directory": PROJECT}
    return json.dumps(said).encode()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--count", type=int, default=50_000)
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    chosen = arguments.parse_args()
    print(f"{chosen.count} mutants, --seed {chosen.seed}", flush=True)
    dice = random.Random(chosen.seed)  # noqa: S311 - to break things, not to protect them
    total: Counter[str] = Counter()
    hook_mib = command_mib = 0
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        left = chosen.count * 6 // 10
        while left > 0:
            home = Path(folder, f"hooks-{left}")
            home.mkdir()
            # Once: what is larger than all else.
            became, peak = hooks(dice, home, min(left, 2 * LINES_EACH), largest=not total)
            total, hook_mib, left = total + became, max(hook_mib, peak), left - 2 * LINES_EACH
            print(f"  {total['lines']} lines, hook's peak {peak} MiB, {time.monotonic() - started_s:.0f} s", flush=True)
        station = machine(Path(folder, "imports"))
        station.home.mkdir()
        for number in range(max(1, chosen.count * 4 // 10 // FILES_EACH)):
            if number % 20 == 0:
                became, peak = command(dice, station, FILES_EACH)
                command_mib = max(command_mib, peak)
            else:
                became = imports(dice, station, FILES_EACH)
            total += became
        with closing(open_ledger(station.spool)) as db:
            total += audit(db)
    for what, count in sorted(total.items()):
        print(f"{count:>9}  {what}")
    print(f"{hook_mib:>9}  MiB, a hook's peak (at most {HOOK_MIB_MAX})")
    print(f"{command_mib:>9}  MiB, import's peak (at most {COMMAND_MIB_MAX})")
    print(f"{time.monotonic() - started_s:>9.0f}  s")
    assert hook_mib <= HOOK_MIB_MAX
    assert command_mib <= COMMAND_MIB_MAX


if __name__ == "__main__":
    main()
