from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from app.database.connection import WAL_BYTES, Ledger, checkpoint, connect, shrink, transaction, wal_reset_bug
from app.database.open import open_ledger
from app.database.schema import NEWEST, SchemaError, digest_of, migrate, migrations, objects_of, statements
from app.runtime.filesystem import private_directory, private_file

HEAD = len(migrations())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def pragma(db: sqlite3.Connection, name: str) -> object:
    return db.execute(f"pragma {name}").fetchone()[0]


def tables(db: sqlite3.Connection) -> set[str]:
    return {row["name"] for row in db.execute("select name from sqlite_master where type = 'table'")}


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file without a schema."""
    with closing(connect(tmp_path / "empty.db")) as db:
        yield db


# --- migrations


def test_empty_file_is_migrated_to_the_last_version(empty: sqlite3.Connection) -> None:
    assert migrate(empty, migrations()) == HEAD
    assert pragma(empty, "user_version") == HEAD
    assert {"job", "record", "acknowledgement", "destination", "session", "turn"} <= tables(empty)


def test_second_migration_changes_nothing(spool: Path) -> None:
    with closing(open_ledger(spool)) as db:
        salt = db.execute("select value from meta where name = 'salt'").fetchone()[0]
        before = db.total_changes
        assert migrate(db, migrations()) == HEAD
        assert db.total_changes == before
    with closing(open_ledger(spool)) as db:
        assert db.execute("select value from meta where name = 'salt'").fetchone()[0] == salt


def test_failing_migration_rolls_back_and_the_ones_before_it_stay(empty: sqlite3.Connection) -> None:
    broken = "create table b (x) strict;\ninsert into nowhere values (1);\n"
    with pytest.raises(sqlite3.OperationalError):
        migrate(empty, [(1, "create table a (x integer) strict;\n"), (2, broken)])
    assert tables(empty) == {"a"}
    assert pragma(empty, "user_version") == 1
    assert not empty.in_transaction


def test_rerun_after_a_failure_applies_each_migration_once(empty: sqlite3.Connection) -> None:
    first = (1, "create table a (x integer) strict;\ninsert into a values (1);\n")
    with pytest.raises(sqlite3.OperationalError):
        migrate(empty, [first, (2, "insert into b values (1);\n")])
    migrate(empty, [first, (2, "create table b (x integer) strict;\n")])
    assert [row[0] for row in empty.execute("select x from a")] == [1]
    assert tables(empty) == {"a", "b"}


FAMILY = """
create table parent (id integer primary key, name text) strict;
create table child (id integer primary key, parent_id integer not null references parent (id) on delete cascade) strict;
insert into parent values (1, 'a'), (2, 'b');
insert into child values (10, 1), (20, 2);
"""


def test_a_migration_may_make_a_table_anew_that_others_refer_to(empty: sqlite3.Connection) -> None:
    rebuild = """
create table parent_new (id integer primary key, name text not null, age integer not null default 0) strict;
insert into parent_new (id, name) select id, name from parent;
drop table parent;
alter table parent_new rename to parent;
"""
    migrate(empty, [(1, FAMILY), (2, rebuild)])
    assert [tuple(row) for row in empty.execute("select * from parent")] == [(1, "a", 0), (2, "b", 0)]
    assert [tuple(row) for row in empty.execute("select * from child")] == [(10, 1), (20, 2)]
    assert pragma(empty, "foreign_keys") == 1
    empty.execute("delete from parent where id = 1")
    assert [tuple(row) for row in empty.execute("select * from child")] == [(20, 2)]


def test_a_migration_that_orphans_rows_is_rolled_back(empty: sqlite3.Connection) -> None:
    with pytest.raises(SchemaError, match=r"migration 2 leaves 1 row\(s\) of child without parent"):
        migrate(empty, [(1, FAMILY), (2, "delete from parent where id = 1;\n")])
    assert [row["id"] for row in empty.execute("select id from parent")] == [1, 2]
    assert pragma(empty, "user_version") == 1
    assert pragma(empty, "foreign_keys") == 1


def test_newer_schema_is_refused_and_the_file_stays_as_it_is(spool: Path) -> None:
    with closing(open_ledger(spool)) as db:
        db.execute(f"pragma user_version = {HEAD + 1}")
    before = (spool / "ledger.db").read_bytes()
    with pytest.raises(SchemaError, match=rf"schema {HEAD + 1}.*up to {HEAD}.*install the newer version"):
        open_ledger(spool)
    assert (spool / "ledger.db").read_bytes() == before
    assert sorted(path.name for path in spool.iterdir()) == [".gitignore", "ledger.db", "recover.lock"]


def test_statements_survive_comments_semicolons_in_text_and_triggers() -> None:
    script = """
-- a comment; with a semicolon
create table a (x text); -- and one behind
/* a block; comment */
insert into a values ('one;
two');
create trigger t after insert on a begin
    insert into b values (new.x);
    delete from b;
end;

-- the end
"""
    found = list(statements(script))
    assert [statement.count(";") for statement in found] == [2, 3, 3]
    assert [next(word for word in ("trigger", "table", "insert") if word in found[i]) for i in range(3)] == [
        "table",
        "insert",
        "trigger",
    ]


def test_script_that_ends_within_a_statement_is_refused(empty: sqlite3.Connection) -> None:
    with pytest.raises(SchemaError, match="middle of a statement"):
        migrate(empty, [(1, "create table a (x);\ncreate table b (x)\n")])
    assert tables(empty) == set()


def old_ledger(spool: Path) -> bytes:
    """A ledger of the version before, with a row in it; its bytes."""
    path = private_directory(spool) / "ledger.db"
    with closing(connect(private_file(path))) as db:
        db.execute("pragma auto_vacuum = incremental")
        db.execute("pragma journal_mode = wal")
        migrate(db, migrations()[:-1])
        db.execute("insert into meta values ('old', ?)", ("x" * 300_000,))
    return path.read_bytes()


needs_two_versions = pytest.mark.skipif(HEAD < 2, reason="there is no older schema")


@needs_two_versions
def test_an_older_ledger_is_migrated_and_a_backup_of_it_kept(spool: Path) -> None:
    old_ledger(spool)
    (spool / "ledger.db.before-0").write_bytes(b"an older backup")
    with closing(open_ledger(spool)) as db:
        assert pragma(db, "user_version") == HEAD
    backup = spool / f"ledger.db.before-{HEAD - 1}"
    assert [path.name for path in spool.glob("*before*")] == [backup.name]
    assert mode(backup) == 0o600
    with closing(connect(backup)) as db:
        assert pragma(db, "user_version") == HEAD - 1
        assert db.execute("select 1 from meta where name = 'old'").fetchone() is not None


@pytest.mark.slow
@needs_two_versions
def test_many_processes_migrate_at_once_with_one_backup(
    spool: Path, at_once: Callable[[str, int, list[str]], None]
) -> None:
    old_ledger(spool)
    at_once(OPENER, 4, [str(spool)])
    with closing(open_ledger(spool)) as db:
        assert db.execute("select count(*) from meta").fetchone()[0] == 2 + 4
    assert [path.name for path in spool.glob("*before*")] == [f"ledger.db.before-{HEAD - 1}"]


@pytest.mark.slow
@needs_two_versions
def test_without_room_for_the_backup_nothing_is_migrated(spool: Path) -> None:
    before = old_ledger(spool)
    code = (
        "import resource, sys; from pathlib import Path; from app.database.open import open_ledger;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)); open_ledger(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(spool)], check=False, capture_output=True, text=True)
    assert "OperationalError: no backup could be made before the migration, nothing changed" in done.stderr
    assert (spool / "ledger.db").read_bytes() == before
    assert [path.name for path in spool.iterdir() if "ledger" in path.name] == ["ledger.db"]


# --- how the file is opened


def test_file_is_wal_with_incremental_vacuum_and_full_sync(db: sqlite3.Connection, spool: Path) -> None:
    assert pragma(db, "journal_mode") == "wal"
    assert pragma(db, "auto_vacuum") == 2
    assert pragma(db, "synchronous") == 2
    assert pragma(db, "foreign_keys") == 1
    with closing(open_ledger(spool)) as again:
        assert pragma(again, "auto_vacuum") == 2


def test_deleted_pages_really_go_back_to_the_file_system(db: sqlite3.Connection, spool: Path) -> None:
    db.execute("insert into meta values ('bulk', ?)", ("x" * 3_000_000,))
    db.execute("pragma wal_checkpoint(truncate)").fetchall()
    full = (spool / "ledger.db").stat().st_size
    db.execute("delete from meta where name = 'bulk'")
    shrink(db)
    db.execute("pragma wal_checkpoint(truncate)").fetchall()
    assert (spool / "ledger.db").stat().st_size < full - 2_500_000


def test_directory_and_all_three_files_are_private_under_a_permissive_umask(tmp_path: Path) -> None:
    spool = tmp_path / "new" / "spool"
    with umask(0), closing(open_ledger(spool)) as db:
        with transaction(db):
            db.execute("insert into meta values ('a', 'b')")
        assert mode(spool.parent) == 0o700
        assert mode(spool) == 0o700
        assert {path.name: mode(path) for path in spool.iterdir()} == {
            ".gitignore": 0o600,
            "recover.lock": 0o600,
            "ledger.db": 0o600,
            "ledger.db-shm": 0o600,
            "ledger.db-wal": 0o600,
        }


def test_loose_modes_are_tightened(spool: Path) -> None:
    open_ledger(spool).close()
    spool.chmod(0o755)
    (spool / "ledger.db").chmod(0o644)
    open_ledger(spool).close()
    assert (mode(spool), mode(spool / "ledger.db")) == (0o700, 0o600)


def test_directory_that_exists_above_the_spool_keeps_its_mode(tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir(mode=0o755)
    above.chmod(0o755)
    private_directory(above / "spool")
    assert mode(above) == 0o755


def test_directory_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        open_ledger(tmp_path / "file" / "spool")


@pytest.mark.slow
def test_locks_of_an_open_connection_survive_a_second_opening_in_the_same_process(spool: Path) -> None:
    # POSIX drops all locks of a process on a file when it closes any descriptor of it. Without its lock the first
    # connection is invisible: another process that comes and goes takes the WAL away under it, and commits are lost.
    with closing(open_ledger(spool)) as first:
        first.execute("insert into meta values ('before', '')")
        open_ledger(spool).close()
        private_file(spool / "ledger.db")
        look = (
            "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); print(d.execute('select * from meta').fetchall())"
        )
        subprocess.run([sys.executable, "-c", look, str(spool / "ledger.db")], check=True, stdout=subprocess.DEVNULL)
        first.execute("insert into meta values ('after', '')")
        seen = subprocess.run(
            [sys.executable, "-c", look, str(spool / "ledger.db")], check=True, capture_output=True, text=True
        ).stdout
    assert "before" in seen
    assert "after" in seen


def test_private_file_keeps_what_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    path.chmod(0o644)
    assert private_file(path).read_bytes() == b"kept"
    assert mode(path) == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


# --- transactions


def test_transaction_rolls_back_on_any_exception(db: sqlite3.Connection) -> None:
    def interrupted() -> None:
        with transaction(db):
            db.execute("insert into meta values ('a', 'b')")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not db.in_transaction
    assert db.execute("select count(*) from meta where name = 'a'").fetchone()[0] == 0


def test_commit_that_fails_leaves_no_transaction_open(db: sqlite3.Connection) -> None:
    def orphan() -> None:
        with transaction(db):
            db.execute("pragma defer_foreign_keys = on")
            db.execute("insert into turn (session_id, name) values (99, 'of nobody')")

    with pytest.raises(sqlite3.IntegrityError):
        orphan()
    assert not db.in_transaction
    with transaction(db):
        db.execute("insert into meta values ('next', '')")


def test_second_writer_waits_for_the_first(db: sqlite3.Connection, spool: Path) -> None:
    with closing(connect(spool / "ledger.db")) as other:
        other.execute("pragma busy_timeout = 0")
        with transaction(db):
            with pytest.raises(sqlite3.OperationalError, match="locked"), transaction(other):
                pass
            assert not other.in_transaction
        with transaction(other):
            other.execute("insert into meta values ('a', 'b')")


# --- checkpoints


def test_a_short_wal_is_left_alone_and_a_long_one_copied(db: Ledger, spool: Path) -> None:
    wal = spool / "ledger.db-wal"
    before = (spool / "ledger.db").stat().st_size
    with transaction(db):
        db.execute("insert into meta values ('short', 'x')")
    assert (spool / "ledger.db").stat().st_size == before
    with transaction(db):
        db.execute("insert into meta values ('long', ?)", ("x" * 6_000_000,))
    assert (spool / "ledger.db").stat().st_size > before + 6_000_000
    with transaction(db):
        db.execute("insert into meta values ('next', 'x')")
    assert wal.stat().st_size <= WAL_BYTES


def test_no_checkpoint_runs_while_somebody_else_writes(db: Ledger, spool: Path) -> None:
    with closing(connect(spool / "ledger.db")) as other:
        before = (spool / "ledger.db").stat().st_size
        db.execute("insert into meta values ('long', ?)", ("x" * 6_000_000,))
        with transaction(other):
            db.execute("pragma busy_timeout = 0")
            checkpoint(db)
            assert (spool / "ledger.db").stat().st_size == before
    checkpoint(db)
    assert (spool / "ledger.db").stat().st_size > before + 6_000_000


WRITER = """
import sys
from pathlib import Path
from app.database.connection import transaction
from app.database.open import open_ledger
db = open_ledger(Path(sys.argv[1]))
db.execute("pragma synchronous = off")
print("ready", flush=True)
sys.stdin.readline()
wal = Path(sys.argv[1]) / "ledger.db-wal"
for _ in range(60):
    with transaction(db):
        db.execute("insert into meta values (hex(randomblob(16)), ?)", ("x" * 100_000,))
    assert wal.stat().st_size < 16 * 1024 * 1024
db.close()
"""


@pytest.mark.slow
def test_the_wal_stays_short_under_many_writers_and_everything_is_kept(
    spool: Path, at_once: Callable[[str, int, list[str]], None]
) -> None:
    open_ledger(spool).close()
    at_once(WRITER, 4, [str(spool)])
    with closing(open_ledger(spool)) as db:
        assert db.execute("select count(*) from meta").fetchone()[0] == 1 + 4 * 60
        assert pragma(db, "integrity_check") == "ok"


@pytest.mark.parametrize(
    ("sqlite", "has_it"),
    [
        ("3.6.23", False),
        ("3.7.0", True),
        ("3.40.1", True),
        ("3.44.5", True),
        ("3.44.6", False),
        ("3.45.0", True),
        ("3.50.6", True),
        ("3.50.7", False),
        ("3.51.2", True),
        ("3.51.3", False),
        ("3.53", False),
        ("4.0.0", False),
    ],
)
def test_versions_with_the_wal_reset_bug(sqlite: str, has_it: bool) -> None:  # noqa: FBT001 - a table's column
    assert wal_reset_bug(sqlite) is has_it


# --- many processes

OPENER = """
import sys
from pathlib import Path
from app.database.open import open_ledger
print("ready", flush=True)
sys.stdin.readline()
for round in sys.argv[1:]:
    db = open_ledger(Path(round))
    db.execute("insert into meta values (hex(randomblob(16)), '')")
    db.close()
"""


@pytest.mark.slow
def test_eight_processes_open_missing_spools_at_once(
    tmp_path: Path, at_once: Callable[[str, int, list[str]], None]
) -> None:
    spools = [tmp_path / f"spool{n}" for n in range(10)]
    at_once(OPENER, 8, [str(spool) for spool in spools])
    for spool in spools:
        with closing(open_ledger(spool)) as db:
            assert pragma(db, "auto_vacuum") == 2
            assert pragma(db, "journal_mode") == "wal"
            assert db.execute("select count(*) from meta").fetchone()[0] == 1 + 8
            assert pragma(db, "integrity_check") == "ok"
        assert sorted(path.name for path in spool.iterdir()) == [".gitignore", "ledger.db", "recover.lock"]


def test_a_folder_that_all_users_share_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(PermissionError, match="folder of its own"):
        open_ledger(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


APPLIED = {
    1: "2b30271a0c8e",
    2: "de22d874aab9",
    3: "3ba9b645848a",
    4: "523f0aa2340c",
    5: "4ac36418db11",
    6: "d4cdd3573d32",
    7: "111238f13c27",
    8: "9518f69ef5b2",
    9: "477f155d4b12",
    10: "a7bce125a04a",
}
"""Of each migration as it was first applied somewhere, comments and white space aside: it is never edited again."""


def test_an_applied_migration_is_never_edited() -> None:
    bare = {version: "".join(re.sub(r"--[^\n]*", "", sql).split()) for version, sql in migrations()}
    assert {version: hashlib.sha256(sql.encode()).hexdigest()[:12] for version, sql in bare.items()} == APPLIED


def test_a_comment_in_a_table_is_no_part_of_the_schema(spool: Path) -> None:
    open_ledger(spool).close()
    with closing(sqlite3.connect(spool / "ledger.db")) as db:
        db.execute("pragma writable_schema = on")
        db.execute(
            "update sqlite_master set sql = replace(sql, 'a worker has it', 'somebody has it') where name = 'job'"
        )
        db.commit()
    open_ledger(spool).close()
    assert list(spool.glob("*.damaged-*")) == []


def test_what_the_newest_ledger_consists_of_is_known_without_making_one() -> None:
    assert digest_of(objects_of(migrations()[-1][0])) == NEWEST
