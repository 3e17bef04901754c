"""After `dead purge` and `recall` a body is in no file of the spool: in no free page, no log, no copy."""

from __future__ import annotations

import json
import lzma
import random
import re
import signal
import sqlite3
import uuid
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from app.database.connection import Ledger
from app.database.open import open_ledger
from app.delivery.poller import PRUNE_MS
from app.ledger import counts, dead_letters, erasure, incidents, job, versions
from app.ledger.dead_letters import Choice
from app.ledger.job import Body
from app.runtime import clock
from app.runtime.failpoint import VARIABLE
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import Station, worker
from tests.support.typed_commands import typed
from tests.support.waiting import wait_until
from tests.system.test_cli import said

CANARY = b"canary-4711"
STREAMS = re.compile(rb"x[\x01\x5e\x9c\xda]|\xfd7zXZ\x00")
PIECE = 32
KILLED_AT = ("erase.beginning", "erase.rewritten", "erase.finishing")
"""Points of `app.runtime.failpoint`."""


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9")


def inflated(data: bytes) -> Iterator[bytes]:
    """Whatever can be decompressed of it, from wherever a stream may begin, as far as it goes."""
    for found in STREAMS.finditer(data):
        rest = data[found.start() :]
        with suppress(zlib.error, lzma.LZMAError, EOFError):
            if found[0].startswith(b"x"):
                yield zlib.decompressobj().decompress(rest, 1 << 20)
            else:
                yield lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(rest, 1 << 20)


def traces(spool: Path, bundles: list[bytes], canary: bytes = CANARY) -> set[str]:
    """Files with the canary in them, or with any piece of the compressed bodies."""
    pieces = {bundle[at : at + PIECE] for bundle in bundles for at in range(0, len(bundle) - PIECE + 1, PIECE)}
    found = set()
    for path in sorted(one for one in spool.rglob("*") if one.is_file()):
        data = path.read_bytes()
        has_pieces = any(piece in data for piece in pieces)
        if has_pieces or canary in data or any(canary in text for text in inflated(data)):
            found.add(path.name)
    return found


def noise(length: int) -> bytes:
    return random.Random(7).randbytes(length).hex().encode()  # noqa: S311 - no secret


def die(bench: LedgerBench, turn: str, length: int) -> None:
    """A dead letter whose body begins with the canary, and does not become small."""
    body = Body(uuid.uuid5(uuid.NAMESPACE_URL, turn), b'{"text": "' + CANARY + turn.encode() + noise(length) + b'"}')
    versions.insert(bench.db, bench.destination, version(turn), [body], now_ms=bench.now_ms)
    assert bench.dead_letter(bench.claimed(version(turn)))


def given_up(station: Station) -> list[bytes]:
    """Dead letters of all sizes, some of them rewritten; the bundles that they have."""
    with station.ledger() as db:
        bench = LedgerBench(db)
        for number, length in enumerate((10, 1_000, 3_000, 20_000, 200_000, 100)):
            bench.now_ms += 1
            die(bench, f"t{number}", length)
        bundles = [row[0] for row in db.execute("select bodies from bundle")]
        assert len(bundles) == 6
    return bundles


def test_the_search_finds_what_is_there(station: Station) -> None:
    bundles = given_up(station)
    assert traces(station.spool, bundles) == {"ledger.db"}
    assert traces(station.spool, []) == {"ledger.db"}


@pytest.mark.parametrize("how", ["all at once", "one by one"])
def test_a_purge_leaves_no_body_in_any_file(station: Station, how: str) -> None:
    bundles = given_up(station)
    with closing(open_ledger(station.spool)):  # as a worker does: so that the log does not go with the last one
        if how == "all at once":
            assert said(typed(station, "dead", "purge", "--all", "--yes", "--json")) == {"jobs": 6, "left": []}
        for turn in range(6 if how == "one by one" else 0):
            assert typed(station, "dead", "purge", version(f"t{turn}").key).returncode == 0
        assert (station.spool / "ledger.db-wal").exists()
        assert traces(station.spool, bundles) == set()
    with station.ledger() as db:
        assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
        assert counts.counts(db).dropped_by_reason == {"purged": 6}


def test_what_was_freed_before_goes_too(station: Station) -> None:
    """Bodies of jobs that were delivered or dropped lie in free pages, until somebody purges."""
    bundles = given_up(station)
    with station.ledger() as db:
        db.execute("pragma secure_delete = off")  # as SQLite's own default is; some systems have another
        dead_letters.purge_dead(db, Choice(keys=tuple(version(f"t{turn}").key for turn in range(5))), 2_000)
    assert traces(station.spool, bundles)
    assert typed(station, "dead", "purge", version("t5").key).returncode == 0
    assert traces(station.spool, bundles) == set()


def test_a_purge_that_finds_no_letter_clears_what_an_earlier_one_could_not(station: Station) -> None:
    bundles = given_up(station)
    with station.ledger() as db:
        db.execute("pragma secure_delete = off")
        dead_letters.purge_dead(db, Choice(), 2_000)
    assert traces(station.spool, bundles)
    assert said(typed(station, "dead", "purge", "--all", "--json")) == {"jobs": 0, "left": []}
    assert traces(station.spool, bundles) == set()


def test_the_purge_of_one_letter_leaves_the_others_whole(station: Station) -> None:
    given_up(station)
    assert typed(station, "dead", "purge", version("t4").key).returncode == 0
    with station.ledger() as db:
        rows = db.execute("select id, key from job where state = 'dead'").fetchall()
        assert [CANARY in body.body for row in rows for body in job.bodies(db, row["id"], row["key"])] == [True] * 5


def test_copies_that_were_set_aside_go_and_others_are_named(station: Station) -> None:
    bundles = given_up(station)
    whole = (station.spool / "ledger.db").read_bytes()
    gone = [
        "ledger.db.before-1", "ledger.db.damaged-20260131T120000Z", "ledger.db.damaged-20260131T120000Z-wal",
        "ledger.db.damaged-wal-1", "ledger.db.new", "ledger.db.broken.copy", ".ledger.db.backup",
    ]  # fmt: skip
    for name in (*gone, "ledger.db.bak", "my copy"):
        (station.spool / name).write_bytes(whole)
    done = typed(station, "dead", "purge", "--all", "--yes")
    assert done.returncode == 1
    assert traces(station.spool, bundles) == {"ledger.db.bak", "my copy"}
    assert "6 dead letters purged" in done.stdout
    for name in ("ledger.db.bak", "my copy"):
        assert f"{name} in the spool is not of this program" in done.stderr
    (station.spool / "my copy").unlink()
    (station.spool / "ledger.db.bak").unlink()


def test_everything_that_this_program_puts_into_a_spool_is_known_to_be_its_own(station: Station) -> None:
    given_up(station)
    with worker(station):
        typed(station, "status")
        with station.ledger() as db:
            assert erasure.erase(db) == []  # type: ignore[arg-type]  # it is one


def test_a_log_that_somebody_reads_is_named_and_goes_with_the_next_purge(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = given_up(station)
    monkeypatch.setattr("app.ledger.erasure.TRIES", 2)
    with closing(open_ledger(station.spool)) as db, closing(open_ledger(station.spool)) as reader:
        bench = LedgerBench(db)
        die(bench, "t9", 1_000)  # so that there is something in the log
        reader.execute("begin")
        reader.execute("select count(*) from job").fetchone()
        dead_letters.purge_dead(db, Choice(), 2_000)
        assert ["ledger.db-wal" in line for line in erasure.erase(db)] == [True]
        reader.execute("commit")
        assert erasure.erase(db) == []
        assert traces(station.spool, bundles) == set()


def noted(station: Station) -> list[str]:
    with station.ledger() as db:
        return [what for what, _, _ in incidents.incidents(db)]


def pruned(station: Station) -> bool:
    """Whether a worker has done what it does each minute."""
    with station.ledger() as db:
        return db.execute("select 1 from meta where name = 'clock_seen_ms'").fetchone() is not None


@pytest.mark.parametrize("point", KILLED_AT)
def test_a_purge_that_is_killed_is_told_of_and_finished_by_a_worker(station: Station, point: str) -> None:
    bundles = given_up(station)
    with station.ledger() as db:
        db.execute("pragma secure_delete = off")  # as SQLite's own default is; some systems have another
        dead_letters.purge_dead(db, Choice(keys=(version("t4").key,)), 2_000)
    killed = replace(station, variables={VARIABLE: point}).run("dead", "purge", "--all", "--yes")
    assert killed.returncode == -signal.SIGKILL
    assert bool(traces(station.spool, bundles)) is (point != "erase.finishing")
    assert station.counts().dead == 0
    assert noted(station) == [incidents.UNERASED]
    assert f"noted: {incidents.UNERASED}: 2" in typed(station, "status", "-v").stdout
    told = json.loads(typed(station, "doctor", "--json").stdout)["findings"]
    assert ["dead purge --all" in one["todo"] for one in told if one["check"] == "incident"] == [True]
    with station.ledger() as db:
        db.execute("update incident set last_ms = last_ms - ?", (PRUNE_MS,))  # a minute later
    with worker(station):
        wait_until(lambda: noted(station) == [])
        assert traces(station.spool, bundles) == set()
    assert "rewrites the ledger" in station.text("worker.log")


def test_a_worker_leaves_a_purge_that_is_under_way_to_its_command(station: Station) -> None:
    given_up(station)
    with station.ledger() as db:
        dead_letters.purge_dead(db, Choice(), clock.now_ms())
    with worker(station):
        wait_until(lambda: "starts" in station.text("worker.log"))
        wait_until(lambda: pruned(station))
    assert noted(station) == [incidents.UNERASED]
    assert typed(station, "dead", "purge", "--all").returncode == 0
    assert noted(station) == []


def test_a_recall_notes_that_what_it_replaces_lies_in_the_files(station: Station) -> None:
    with station.ledger() as db:
        bench = LedgerBench(db)
        bench.put(version())
        assert noted(station) == []
        versions.insert(db, bench.destination, replace(version(content="b"), is_recall=True), [], now_ms=bench.now_ms)
        assert noted(station) == [incidents.UNERASED]


def test_what_is_deleted_while_the_files_are_rewritten_stays_noted(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up(station)
    begin = erasure._begin_wal_anew

    def purging(db: Ledger) -> bool:
        with station.ledger() as another:
            dead_letters.purge_dead(another, Choice(keys=(version("t2").key,)), 2_000)
        return begin(db)

    with closing(open_ledger(station.spool)) as db:
        dead_letters.purge_dead(db, Choice(keys=(version("t1").key,)), 2_000)
        with monkeypatch.context() as patch:
            patch.setattr("app.ledger.erasure._begin_wal_anew", purging)
            assert erasure.erase(db) == []
        assert noted(station) == [incidents.UNERASED]
        assert erasure.erase(db) == []
    assert noted(station) == []


def test_copies_that_cannot_be_deleted_are_named_and_the_rest_is_cleared(station: Station) -> None:
    bundles = given_up(station)
    (station.spool / "ledger.db.before-1").mkdir()
    (station.spool / "ledger.db.before-2").write_bytes((station.spool / "ledger.db").read_bytes())
    done = typed(station, "dead", "purge", "--all", "--yes")
    assert done.returncode == 1
    assert "ledger.db.before-1 in the spool cannot be deleted" in done.stderr
    assert "not of this program" not in done.stderr
    assert traces(station.spool, bundles) == set()
    assert noted(station) == [incidents.UNERASED]


def test_a_ledger_that_cannot_be_rewritten_is_named(station: Station) -> None:
    given_up(station)
    with closing(open_ledger(station.spool)) as db, closing(open_ledger(station.spool)) as writer:
        db.execute("pragma busy_timeout = 1")
        writer.execute("begin immediate")
        assert ["could not be rewritten" in line for line in erasure.erase(db)] == [True]
        writer.execute("rollback")


def test_the_tables_of_a_new_ledger_lie_where_those_of_a_rewritten_one_do(station: Station) -> None:
    """By this a ledger whose first page is lost can be read."""

    def roots(db: sqlite3.Connection) -> list[tuple[str, int]]:
        return [tuple(row) for row in db.execute("select name, rootpage from sqlite_master order by name")]

    with station.ledger() as db:
        fresh = roots(db)
    given_up(station)
    with closing(open_ledger(station.spool)) as db:
        assert erasure.erase(db) == []
        assert roots(db) == fresh
