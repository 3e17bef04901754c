"""The ledger on a real PostgreSQL server, as far as its tables, its texts and its connections go."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing

import pytest

from app.database import postgres
from app.database.connection import Database, Ledger, Row, transaction
from app.database.postgres import PostgresLedger
from app.database.schema import SchemaError, postgres_migrations
from app.database.server import open_postgres
from tests.support.postgres import Server, postgres_words


@pytest.fixture
def ledger(postgres_server: Server) -> Iterator[PostgresLedger]:
    with closing(postgres_server.emptied()) as db:
        yield db


OWN = frozenset({"worker", "leader", "tenant", "token", "tally_change"})
"""Tables that only the centre has, and what stands for one of SQLite's."""


def columns(db: Database) -> set[tuple[str, str, bool]]:
    """Table, column, and whether it must be filled."""
    rows: Iterable[Row]
    if isinstance(db, sqlite3.Connection):
        rows = db.execute(
            'select t.name as tab, c.name as col, c."notnull" or c.pk > 0 as filled from sqlite_schema t'
            " join pragma_table_xinfo(t.name) c where t.type = 'table' and t.name not like 'sqlite_%'"
        )
    else:
        rows = db.execute(
            "select table_name as tab, column_name as col, is_nullable = 'NO' as filled from information_schema.columns"
            " where table_schema = 'public' and table_name not like 'huey_%'"
        )
    return {(row["tab"], row["col"], bool(row["filled"])) for row in rows}


def uniques(db: Database) -> set[tuple[str, tuple[str, ...]]]:
    """Table and columns of which no two rows have the same, primary keys among them; not of some rows alone."""
    if isinstance(db, sqlite3.Connection):
        rows = db.execute(
            "select t.name as tab, i.name as idx, c.name as col from sqlite_schema t join pragma_index_list(t.name) i"
            " join pragma_index_info(i.name) c where t.type = 'table' and i.\"unique\" and not i.partial"
            " union all select t.name, 'primary key', c.name from sqlite_schema t join pragma_table_info(t.name) c"
            " where t.type = 'table' and c.pk > 0 and t.name not like 'sqlite_%'"
        ).fetchall()
    else:
        rows = db.execute(
            "select c.relname as tab, i.indexrelid::regclass::text as idx, a.attname as col from pg_index i"
            " join pg_class c on c.oid = i.indrelid and c.relnamespace = 'public'::regnamespace"
            " join pg_attribute a on a.attrelid = c.oid and a.attnum = any(i.indkey::smallint[])"
            " where i.indisunique and i.indpred is null"
        ).fetchall()
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        found.setdefault((row["tab"], row["idx"]), set()).add(row["col"])
    return {(table, tuple(sorted(names))) for (table, _), names in found.items()}


def indexes(db: Database) -> set[str]:
    rows: Iterable[Row]
    if isinstance(db, sqlite3.Connection):
        rows = db.execute("select name from sqlite_schema where type = 'index' and sql is not null")
    else:
        rows = db.execute("select indexname as name from pg_indexes where schemaname = 'public'")
    return {row["name"] for row in rows}


@pytest.mark.postgres
def test_the_schema_has_what_sqlites_newest_has(ledger: PostgresLedger, sqlite_ledger: Ledger) -> None:
    """A migration that is written for one alone fails here."""
    here, there = columns(ledger), columns(sqlite_ledger)
    views = {"tally"}
    assert {one for one in there - here if one[0] not in views} == set()
    assert {one[:2] for one in there if one[0] in views} <= {one[:2] for one in here}
    assert {one for one in here - there if one[0] not in OWN | {"tally", "tally_of_jobs", "waiting_of_jobs"}} == set()
    assert {one for one in uniques(sqlite_ledger) - uniques(ledger) if one[0] not in views | {"counter"}} == set()
    assert {one for one in indexes(sqlite_ledger) - indexes(ledger) if "tally" not in one} == set()
    assert postgres_migrations()[-1][0] == sqlite_ledger.execute("pragma user_version").fetchone()[0]


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "select 1 from job where +state = ? and (+due_ms > :x)",
            "select 1 from job where state = %s and (due_ms > %(x)s)",
        ),
        (
            "select '?', ':a', '50%' from a where b is not ?",
            "select '?', ':a', '50%%' from a where b is distinct from %s",
        ),
    ],
)
def test_what_is_translated_has_no_word_of_sqlite_left(sql: str, said: str) -> None:
    assert postgres_words(sql) == said


@pytest.mark.postgres
@pytest.mark.parametrize(
    "sql", ["select rowid from job", "select ifnull(a, 1)", "insert or ignore into meta", "pragma x"]
)
def test_a_word_of_sqlite_that_is_left_is_seen(sql: str) -> None:
    """In all that the suites have said to a server (`conftest`)."""
    with pytest.raises(AssertionError):
        postgres_words(sql)


@pytest.mark.postgres
def test_eight_processes_may_open_an_empty_database_at_once() -> None:
    with Server() as server:
        failed: list[BaseException] = []

        def begin() -> None:
            try:
                open_postgres(server.url).close()
            except BaseException as error:  # noqa: BLE001 - the test's own thread tells of it
                failed.append(error)

        threads = [threading.Thread(target=begin) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failed == []
        with closing(open_postgres(server.url)) as db:
            assert db.version() == postgres_migrations()[-1][0]
            db.execute("update meta set value = '9999' where name = 'schema'")
        with pytest.raises(SchemaError):
            open_postgres(server.url)


@pytest.mark.postgres
def test_the_server_can_tell_whose_connections_it_has(ledger: PostgresLedger) -> None:
    (name,) = ledger.execute("select application_name from pg_stat_activity where pid = pg_backend_pid()").fetchone()
    assert name == postgres.application_name()


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("text", "kept"), [("a\0b", "ab"), ("a\ud800b", "a?b"), ("\ud83d\ude00", "??"), ("50% ' \\", "50% ' \\")]
)
def test_text_that_no_server_holds_is_kept_without_what_it_cannot(ledger: PostgresLedger, text: str, kept: str) -> None:
    assert ledger.execute("select ? as text", (text,)).fetchone()["text"] == kept
    assert ledger.execute("select :text as text", {"text": text}).fetchone()["text"] == kept


@pytest.mark.postgres
def test_ten_megabytes_come_back_as_they_went(ledger: PostgresLedger) -> None:
    body = bytes(range(256)) * 40_960
    ledger.execute("create temporary table large (body bytea)")
    ledger.execute("insert into large values (?)", (body,))
    assert bytes(ledger.execute("select body from large").fetchone()["body"]) == body


@pytest.mark.postgres
def test_a_number_that_does_not_fit_is_an_error_and_undoes_its_transaction(ledger: PostgresLedger) -> None:
    def put() -> None:
        with transaction(ledger):
            ledger.execute("insert into incident (what, count, last_ms) values ('a', 1, 1)")
            ledger.execute("insert into incident (what, count, last_ms) values ('b', ?, 1)", (2**64,))

    with pytest.raises(sqlite3.Error):
        put()
    assert ledger.execute("select * from incident").fetchall() == []


@pytest.mark.postgres
def test_a_transaction_in_a_transaction_is_refused_and_both_are_undone(ledger: PostgresLedger) -> None:
    def put() -> None:
        with transaction(ledger):
            ledger.execute("insert into incident (what, count, last_ms) values ('a', 1, 1)")
            with transaction(ledger):
                pass

    with pytest.raises(sqlite3.OperationalError):
        put()
    assert ledger.execute("select * from incident").fetchall() == []
    with transaction(ledger):
        ledger.execute("insert into incident (what, count, last_ms) values ('a', 1, 1)")


@pytest.mark.postgres
def test_who_is_stopped_within_a_transaction_gives_its_locks_back(
    ledger: PostgresLedger, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that is paused: whoever takes its job back would wait for it."""
    monkeypatch.setattr(postgres, "IDLE_S_MAX", 1)
    ledger.execute("insert into incident (what, count, last_ms) values ('a', 1, 1)")
    ledger.execute("set lock_timeout = 60000")

    def stop_and_go_on(stopped: PostgresLedger) -> None:
        with stopped.transaction():
            stopped.execute("update incident set count = 2")
            ledger.execute("update incident set count = 3")
            stopped.execute("update incident set count = 4")

    with closing(PostgresLedger(postgres_server.url)) as stopped:
        with pytest.raises(sqlite3.OperationalError):
            stop_and_go_on(stopped)
        assert not stopped.is_current()
    assert ledger.execute("select count from incident").fetchone()[0] == 3


@pytest.mark.postgres
def test_a_standby_counts_as_a_server_that_is_away(ledger: PostgresLedger) -> None:
    ledger.execute("set default_transaction_read_only = on")
    with pytest.raises(sqlite3.OperationalError):
        ledger.execute("insert into incident (what, count, last_ms) values ('a', 1, 1)")


def test_who_cannot_connect_says_to_where_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(url: str) -> str:
        with pytest.raises(sqlite3.OperationalError) as raised:
            PostgresLedger(url)
        return str(raised.value)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(postgres, "CONNECT_S_MAX", 2)
        timed_out = told(f"postgresql://user:secret@127.0.0.1:{port}/helicone")
    assert timed_out == f"PostgreSQL: no answer from 127.0.0.1, port {port} within 2 s"
    refused = told(f"postgresql://user:secret@127.0.0.1:{port}/helicone")
    assert refused == f'PostgreSQL: connection to server at "127.0.0.1", port {port} failed: Connection refused'


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://u@h/d", "it is not of the form postgresql://"),
        ("ledger.db", "it is not of the form postgresql://"),
        ("postgresql://u:p@ss/word@h/d", "within a password @ : / are written"),
    ],
)
def test_a_url_that_is_none_is_told_without_a_word_of_it(url: str, why: str) -> None:
    with pytest.raises(sqlite3.Error) as raised:
        PostgresLedger(url)
    assert why in str(raised.value)
    assert "'ss'" not in str(raised.value)


@pytest.mark.postgres
def test_no_error_quotes_a_row_or_the_urls_password(ledger: PostgresLedger, postgres_server: Server) -> None:
    for sql in ("insert into job (key) values (?)", "insert into meta values ('salt', ?)", "select ?::bigint"):
        with pytest.raises(sqlite3.Error) as raised:
            ledger.execute(sql, ("a secret text",))
        assert "secret" not in str(raised.value)
        assert raised.value.__cause__ is None
    for url in (
        f"{postgres_server.url}x&password=secret",
        "postgresql://u:secret@[x/y",
        "postgresql://u:se/cret@h:pw/d",
    ):
        with pytest.raises(sqlite3.Error) as raised:
            PostgresLedger(url)
        assert "cret" not in str(raised.value)


@pytest.mark.postgres
@pytest.mark.parametrize("durability", ["off", "remote_apply"])
def test_a_transaction_is_what_races_and_promises_need_whatever_the_server_has_for_a_default(
    postgres_server: Server, durability: str
) -> None:
    def is_now(db: PostgresLedger) -> tuple[str, str]:
        return tuple(
            db.execute(f"show {name}").fetchone()[0] for name in ("transaction_isolation", "synchronous_commit")
        )

    with closing(postgres_server.emptied()) as db:
        db.run("set default_transaction_isolation = 'repeatable read'")
        db.run(f"set synchronous_commit = {durability}")
        with transaction(db):
            assert is_now(db) == ("read committed", "on" if durability == "off" else durability)
        with db.unflushed(), transaction(db):
            assert is_now(db) == ("read committed", "off")
        assert is_now(db) == ("repeatable read", durability)
