"""Ledgers that are damaged, left half recovered, or replaced under live connections."""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from app.database import recover
from app.database.connection import PAGE_BYTES, Ledger, Replaced
from app.database.open import inspect, open_ledger, open_whole, recover_after
from app.delivery.backoff import RetryPolicy
from app.delivery.deliver import DeliveryContext, deliver
from app.exporters.outcome import Outcome
from app.ledger import incidents, job, versions
from app.privacy.policy import Post
from tests.stress import flips
from tests.support.ledger_bench import LedgerBench, bodies, version

JOBS = 60


def filled(spool: Path, jobs: int = JOBS) -> list[str]:
    """A ledger with a job in each of as many sessions; closed. Their keys."""
    wanted = [version(session=f"ses_{number:03}") for number in range(jobs)]
    with closing(open_ledger(spool)) as db:
        db.execute("pragma synchronous = off")
        bench = LedgerBench(db)
        for number, one in enumerate(wanted):
            text = random.Random(number).randbytes(1_000).hex()  # noqa: S311 - does not compress to nothing
            versions.insert(db, bench.destination, one, bodies(one.session, 2, text), now_ms=1_000)
    return [one.key for one in wanted]


def root_page(spool: Path, name: str) -> int:
    with closing(sqlite3.connect(spool / "ledger.db")) as db:
        return int(db.execute("select rootpage from sqlite_master where name = ?", (name,)).fetchone()[0])


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def leaf_pages(path: Path, root: int) -> list[int]:
    """The children of a table's root."""
    data = path.read_bytes()
    start = (root - 1) * PAGE_BYTES
    assert data[start] == 5, "the table fits into one page"
    cells = int.from_bytes(data[start + 3 : start + 5], "big")
    at = [int.from_bytes(data[start + 12 + 2 * cell : start + 14 + 2 * cell], "big") for cell in range(cells)]
    return [int.from_bytes(data[start + one : start + one + 4], "big") for one in (*at, 8)]


def noted(db: sqlite3.Connection) -> dict[str, int]:
    return {what: count for what, count, _ in incidents.incidents(db)}


def names(spool: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in spool.glob(pattern))


def job_keys(db: sqlite3.Connection) -> set[str]:
    return {row["key"] for row in db.execute("select key from job")}


# --- recovery


def test_a_ledger_that_is_no_database_is_set_aside_and_counted(spool: Path) -> None:
    spool.mkdir(mode=0o700)
    (spool / "ledger.db").write_bytes(b"no database " * 1_000)
    with closing(open_ledger(spool)) as db:
        assert noted(db)["ledger: damaged, set aside and recovered"] == 1
        assert noted(db)["ledger: rows of job that could not be read"] == 1
    (kept,) = names(spool, "*.damaged-*")
    assert (spool / kept).read_bytes() == b"no database " * 1_000
    assert (spool / kept).stat().st_mode & 0o777 == 0o600
    assert names(spool, "*.broken*") + names(spool, "*.new*") + names(spool, "*.copy*") == []


@pytest.mark.parametrize("page_bytes", recover.PAGES_BYTES)
@pytest.mark.parametrize("lost_bytes", [PAGE_BYTES, 4096])
def test_everything_is_recovered_when_only_the_beginning_is_lost(
    spool: Path, page_bytes: int, lost_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.database.open.PAGE_BYTES", page_bytes)
    keys = filled(spool)
    monkeypatch.undo()
    assert int.from_bytes((spool / "ledger.db").read_bytes()[16:18], "big") == page_bytes
    overwrite(spool / "ledger.db", 0, bytes(lost_bytes))
    with closing(open_ledger(spool)) as db:
        assert db.execute("pragma page_size").fetchone()[0] == PAGE_BYTES
        assert job_keys(db) == set(keys)
        assert noted(db) == {"ledger: damaged, set aside and recovered": 1}
        assert db.execute("select count(*) from record").fetchone()[0] == 2 * JOBS
        inspect(db)


@pytest.mark.parametrize(
    ("offset", "byte"),
    [
        (0, 0),
        (16, 0),
        (18, 0x82),
        (19, 0x42),
        (20, 8),
        (44, 0x44),
        (47, 0x44),
        (56, 0x80),
        (59, 3),
        (60, 0x40),
        (63, 0),
    ],
    ids=lambda value: f"{value:#x}",
)
def test_a_damaged_byte_of_the_header_costs_nothing(spool: Path, offset: int, byte: int) -> None:
    keys = filled(spool, 3)
    overwrite(spool / "ledger.db", offset, bytes([byte]))
    wanted = version(session="after it")
    with closing(open_whole(spool)) as db:
        try:
            LedgerBench(db).put(wanted)
        except sqlite3.Error as error:
            assert recover_after(db, error)  # noqa: PT017 - some of them are no error at all
    with closing(open_whole(spool)) as db:
        LedgerBench(db).put(wanted)
        assert job_keys(db) == {*keys, wanted.key}
        assert set(noted(db)) <= {"ledger: damaged, set aside and recovered"}


def test_rows_before_and_behind_a_lost_page_are_recovered_and_the_others_counted(spool: Path) -> None:
    keys = filled(spool, 150)
    path = spool / "ledger.db"
    leaves = leaf_pages(path, root_page(spool, "job"))
    overwrite(path, (leaves[1] - 1) * PAGE_BYTES, bytes(PAGE_BYTES))
    with closing(open_whole(spool)) as db:
        found = job_keys(db)
        assert {keys[0], keys[-1]} <= found < set(keys)
        assert noted(db)["ledger: rows of job that could not be read"] == len(keys) - len(found)


def test_rows_between_two_lost_pages_are_recovered(spool: Path) -> None:
    keys = filled(spool, 150)
    leaves = leaf_pages(spool / "ledger.db", root_page(spool, "job"))
    for leaf in (leaves[1], leaves[-2]):
        overwrite(spool / "ledger.db", (leaf - 1) * PAGE_BYTES, bytes(PAGE_BYTES))
    with closing(open_whole(spool)) as db:
        found = job_keys(db)
    lost = [number for number, one in enumerate(keys) if one not in found]
    gaps = sum(later - earlier > 1 for earlier, later in pairwise(lost))
    assert (gaps, lost[0] > 0, lost[-1] < len(keys) - 1) == (1, True, True)


def test_rows_behind_a_gap_that_is_too_long_are_found_from_the_end(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "KEYS_MISSED_MAX", 0)
    keys = filled(spool, 150)
    leaves = leaf_pages(spool / "ledger.db", root_page(spool, "job"))
    overwrite(spool / "ledger.db", (leaves[1] - 1) * PAGE_BYTES, bytes(PAGE_BYTES))
    with closing(open_whole(spool)) as db:
        assert {keys[0], keys[-1]} <= job_keys(db)


@pytest.mark.parametrize("table", ["destination", "session", "turn", "policy"])
def test_jobs_survive_the_loss_of_a_table_that_they_refer_to(spool: Path, table: str) -> None:
    keys = filled(spool, 5)
    with closing(open_ledger(spool)) as db:
        db.execute("insert into policy (facts) values ('{}')")
        db.execute("update job set policy_id = 1")
        db.execute("update turn set row_count = 3, updated_ms = 1, policy_id = 1")
    overwrite(spool / "ledger.db", (root_page(spool, table) - 1) * PAGE_BYTES, bytes(PAGE_BYTES))
    with closing(open_whole(spool)) as db:
        assert job_keys(db) == set(keys)
        rows = db.execute("select id, key from job").fetchall()
        assert all(len(list(job.bodies(db, row["id"], row["key"]))) == 2 for row in rows)
        assert "ledger: rows of job that could not be read" not in noted(db)
        (policies,) = db.execute("select count(policy_id) from job").fetchone()
        assert policies == (0 if table == "policy" else 5)
        if table == "policy":
            turns = {tuple(row) for row in db.execute("select name, policy_id from turn")}
            assert turns == {("t1", None)}


def test_what_was_set_aside_goes_when_it_is_old_or_holds_what_is_to_be_held_nowhere(spool: Path) -> None:
    filled(spool, 5)
    path = spool / "ledger.db"
    ways: list[Callable[[], object]] = [
        lambda: recover.forget_copies(path),
        lambda: recover.tidy(path, older_than_s=1e11),
    ]
    for forget in ways:
        overwrite(path, 0, bytes(100))
        open_whole(spool).close()
        assert names(spool, "*.damaged-*")
        assert {stat.S_IMODE(one.stat().st_mode) for one in spool.iterdir() if one.is_file()} == {0o600}
        forget()
        assert names(spool, "*.damaged-*") == []


def test_damage_that_no_statement_has_met_is_found_by_an_inspection(spool: Path) -> None:
    filled(spool)
    root = root_page(spool, "job_due")
    page = (spool / "ledger.db").read_bytes()[(root - 1) * PAGE_BYTES :][:PAGE_BYTES]
    overwrite(spool / "ledger.db", root * PAGE_BYTES - 1, bytes([page[-1] ^ 1]))
    with closing(open_ledger(spool)) as db:
        with pytest.raises(sqlite3.DatabaseError, match="damaged") as caught:
            inspect(db)
        assert recover_after(db, caught.value)
    with closing(open_ledger(spool)) as db:
        inspect(db)
        assert len(job_keys(db)) == JOBS


def test_a_schema_that_belies_its_version_is_damage(spool: Path) -> None:
    keys = filled(spool)
    with closing(sqlite3.connect(spool / "ledger.db")) as db:
        db.execute("pragma user_version = 0")
    with closing(open_ledger(spool)) as db:
        assert job_keys(db) == set(keys)
        assert "ledger: damaged, set aside and recovered" in noted(db)


TABLE_LEAF = 0x0D
"""What the page of a table's rows begins with, see https://sqlite.org/fileformat2.html."""


def places_in_tables(path: Path, text: bytes) -> list[int]:
    """Where it stands in rows, also those that are moved or gone: not every SQLite wipes what they leave behind."""
    data = path.read_bytes()
    page_bytes = int.from_bytes(data[16:18], "big")
    found = [match.start() for match in re.finditer(re.escape(text), data)]
    return [at for at in found if data[at - at % page_bytes] == TABLE_LEAF]


def test_a_key_that_its_index_knows_otherwise_is_counted(spool: Path) -> None:
    wanted = filled(spool)[7]
    path = spool / "ledger.db"
    for at in places_in_tables(path, wanted.encode()):
        overwrite(path, at + 60, b"0")
    with closing(open_whole(spool)) as db:
        assert wanted not in job_keys(db)
        assert noted(db)["ledger: rows of job that could not be read"] == 1


@pytest.mark.parametrize("left", [("",), ("", "-wal"), ("", "-wal", "-shm")], ids=len)
def test_a_recovery_that_was_killed_is_finished_by_whoever_comes_next(spool: Path, left: tuple[str, ...]) -> None:
    template = spool.with_name("template")
    keys = filled(template)
    db = open_ledger(template)
    LedgerBench(db).put(version(session="in the WAL"))
    shutil.copytree(template, spool)
    db.close()
    for suffix in left:
        (spool / f"ledger.db{suffix}").rename(spool / f"ledger.db.broken{suffix}")
    (spool / "ledger.db.new").write_bytes(b"half a draft")
    with closing(open_ledger(spool)) as db:
        assert job_keys(db) == {*keys, version(session="in the WAL").key}
    assert names(spool, "*.broken*") + names(spool, "*.new*") == []
    assert len(names(spool, "*.damaged-*Z")) == 1


def test_a_recovery_that_was_killed_at_its_very_end_does_not_begin_again(spool: Path) -> None:
    filled(spool)
    (spool / "ledger.db.broken").write_bytes(b"was read before")
    with closing(open_ledger(spool)) as db:
        assert len(job_keys(db)) == JOBS
        assert noted(db) == {}
    assert len(names(spool, "*.damaged-*Z")) == 1


RECOVERER = """
import sys
from pathlib import Path
from app.database.open import open_ledger
print("ready", flush=True)
sys.stdin.readline()
db = open_ledger(Path(sys.argv[1]))
db.execute("insert into meta values (hex(randomblob(16)), '')")
db.close()
"""


@pytest.mark.slow
def test_of_many_processes_one_recovers_and_all_go_on(
    spool: Path, at_once: Callable[[str, int, list[str]], None]
) -> None:
    keys = filled(spool)
    overwrite(spool / "ledger.db", 0, bytes(PAGE_BYTES))
    at_once(RECOVERER, 4, [str(spool)])
    with closing(open_ledger(spool)) as db:
        assert noted(db) == {"ledger: damaged, set aside and recovered": 1}
        assert job_keys(db) == set(keys)
        assert db.execute("select count(*) from meta").fetchone()[0] == 1 + 4
    assert len(names(spool, "*.damaged-*")) == 1


def replaced(spool: Path) -> Ledger:
    """A connection to a ledger that another process recovers meanwhile."""
    db = open_ledger(spool)
    code = (
        "import sys; from pathlib import Path; from app.database.open import open_ledger, recover_after, Damaged;"
        "db = open_ledger(Path(sys.argv[1])); assert recover_after(db, Damaged('as a test')); db.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(spool)], check=True)
    return db


@pytest.mark.slow
def test_a_write_to_a_ledger_that_was_replaced_is_an_error_and_nothing_committed_before_is_lost(spool: Path) -> None:
    keys = filled(spool, 3)
    with closing(replaced(spool)) as old:
        with pytest.raises(Replaced):
            LedgerBench(old).put(version(session="too late"))
        assert not old.in_transaction
        assert recover_after(old, Replaced())
        with closing(open_ledger(spool)) as new:
            assert job_keys(new) == set(keys)


@pytest.mark.slow
def test_closing_a_connection_to_the_old_file_leaves_the_new_ones_wal_alone(spool: Path) -> None:
    filled(spool, 3)
    old = replaced(spool)
    with closing(open_ledger(spool)) as new:
        LedgerBench(new).put(version(session="new"))
        old.close()
        assert (spool / "ledger.db-wal").stat().st_size > 0
        look = (
            "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('select count(*) from job').fetchone()[0])"
        )
        counted = subprocess.run(
            [sys.executable, "-c", look, str(spool / "ledger.db")], check=True, capture_output=True, text=True
        ).stdout
    assert counted.strip() == "4"


def test_an_error_that_is_no_damage_heals_nothing(db: Ledger, spool: Path) -> None:
    for statement in ("select * from nowhere", "insert into meta values (null, null)"):
        with pytest.raises(sqlite3.Error) as caught:
            db.execute(statement)
        assert not recover_after(db, caught.value)
    assert names(spool, "*.damaged-*") == []


def test_files_set_aside_are_bounded(spool: Path) -> None:
    for _ in range(recover.KEPT + 2):
        open_ledger(spool).close()
        overwrite(spool / "ledger.db", 0, bytes(PAGE_BYTES))
        stamped = names(spool, "*.damaged-*")
        for name in stamped:  # all of them within this second
            (spool / name).rename(spool / f"{name}{len(stamped)}")
    open_ledger(spool).close()
    assert len(names(spool, "*.damaged-*")) == recover.KEPT


# --- the WAL


def killed_with_wal(spool: Path, jobs: int) -> list[str]:
    """A ledger whose jobs are all in its WAL, as a killed process leaves it."""
    template = spool.with_name("template")
    open_ledger(template).close()
    with closing(open_ledger(template)) as db:
        bench = LedgerBench(db)
        wanted = [version(session=f"ses_{number}") for number in range(jobs)]
        for one in wanted:
            bench.put(one)
        spool.mkdir(mode=0o700)
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copy(template / name, spool / name)
    return [one.key for one in wanted]


def test_a_wal_of_a_killed_process_is_no_damage(spool: Path) -> None:
    keys = killed_with_wal(spool, 5)
    with closing(open_ledger(spool)) as db:
        assert job_keys(db) == set(keys)
        assert noted(db) == {}


def test_a_write_that_a_kill_cut_off_is_no_damage(spool: Path) -> None:
    keys = killed_with_wal(spool, 5)
    with (spool / "ledger.db-wal").open("r+b") as wal:
        header = bytearray(wal.read(56)[32:])
        header[4:8] = bytes(4)  # a frame that ends no transaction, and its page did not arrive
        wal.seek(0, 2)
        wal.write(header + bytes(100))
    with closing(open_ledger(spool)) as db:
        assert job_keys(db) == set(keys)
        assert noted(db) == {}


def test_transactions_behind_a_flipped_bit_in_the_wal_are_counted(spool: Path) -> None:
    keys = killed_with_wal(spool, 5)
    wal = spool / "ledger.db-wal"
    half = wal.stat().st_size // 2
    overwrite(wal, half, bytes([wal.read_bytes()[half] ^ 1]))
    with closing(open_ledger(spool)) as db:
        lost = set(keys) - job_keys(db)
        assert 0 < len(lost) <= noted(db)["ledger: transactions lost from a damaged WAL"]
    assert len(names(spool, "*.damaged-wal-*")) == 1


# --- bodies


def context(bench: LedgerBench) -> DeliveryContext:
    return DeliveryContext(
        destination_id=bench.destination,
        worker="w",
        policy=RetryPolicy(max_retries=5, base_ms=1, cap_ms=1),
        permit=lambda _: Post(),
        post=lambda _claim, _body: Outcome("accepted", "200", 200),
        clock=lambda: 2_000,
        dice=lambda: 0.5,
        stopping=lambda: False,
    )


def test_a_flipped_bit_in_a_body_on_the_disk_is_a_dead_letter(spool: Path) -> None:
    (wanted,) = filled(spool, 1)
    with closing(open_ledger(spool)) as db:
        (body,) = db.execute("select bodies from bundle").fetchone()
    path = spool / "ledger.db"
    at = path.read_bytes().index(body[:200]) + 100
    overwrite(path, at, bytes([path.read_bytes()[at] ^ 8]))
    with closing(open_ledger(spool)) as db:
        deliver(db, wanted, context(LedgerBench(db)))
        job = db.execute("select state, error from job").fetchone()
    assert job["state"] == "dead"
    assert "is damaged" in job["error"] or "checksum" in job["error"]


def test_a_job_whose_record_was_lost_is_a_dead_letter_and_not_delivered(db: Ledger) -> None:
    bench = LedgerBench(db)
    bench.put(version(), 3)
    db.execute("delete from record where position = 1")
    deliver(db, version().key, context(bench))
    job = db.execute("select state, error from job").fetchone()
    assert (job["state"], job["error"]) == ("dead", f"1 record(s) of job {version().key[:12]} are missing")


# --- anything


@pytest.mark.slow
def test_random_faults_lose_nothing_silently(tmp_path: Path) -> None:
    keys = flips.populate(tmp_path / "template", tmp_path / "scratch", sessions=4)
    dice = random.Random(3)  # noqa: S311
    for _ in range(10):
        one = flips.fault(dice, tmp_path / "template")
        found = flips.play(tmp_path / "template", keys, tmp_path, one)
        assert isinstance(found, flips.Found), f"{one}: {found}"
