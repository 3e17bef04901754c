"""Opens the ledger on a PostgreSQL server: connects, and makes or migrates its schema."""

from __future__ import annotations

from contextlib import ExitStack, closing

from app.database.postgres import PostgresLedger
from app.database.schema import SchemaError, postgres_migrations


def open_postgres(url: str) -> PostgresLedger:
    """Connect, and bring the server's schema to this program's version; the first one of many does it.

    Raises sqlite3.OperationalError where the server is away, SchemaError for a schema from the future.
    """
    with ExitStack() as opened:
        db = opened.enter_context(closing(PostgresLedger(url)))
        _migrate(db)
        opened.pop_all()  # the caller closes it
        return db


def _migrate(db: PostgresLedger) -> None:
    newest = postgres_migrations()[-1][0]
    if db.version() < newest:
        with db.transaction():
            db.lock("migrations")
            for version, sql in postgres_migrations():
                if version > db.version():
                    db.run(sql)
                    db.execute(
                        "insert into meta (name, value) values ('schema', ?)"
                        " on conflict (name) do update set value = excluded.value",
                        (str(version),),
                    )
    if db.version() > newest:
        raise SchemaError(f"the ledger on PostgreSQL has schema {db.version()}: install the newer version again")
