"""What triggers keep about the jobs (migration 8), so that nobody has to look at all of them.

    waiting, tally         as they are kept
    <table>_of_jobs        a view of what they must hold

A damaged byte may make them say what the jobs do not: then they are made anew from these.
"""

from __future__ import annotations

import sqlite3

from app.database.connection import transaction

TABLES = ("waiting", "tally")


def is_right(db: sqlite3.Connection, table: str) -> bool:
    """Looks at all jobs: 0.1 s for 100,000."""
    kept, wanted = f"select * from {table}", f"select * from {table}_of_jobs"
    sql = f"select exists ({kept} except {wanted}) or exists ({wanted} except {kept})"
    return not db.execute(sql).fetchone()[0]


def mend(db: sqlite3.Connection) -> list[str]:
    """Make anew what is not right; the names of these tables."""
    mended = []
    for table in TABLES:
        if is_right(db, table):
            continue
        with transaction(db):
            if not is_right(db, table):  # nobody was faster
                db.execute(f"delete from {table}")
                db.execute(f"insert into {table} select * from {table}_of_jobs")
                mended.append(table)
    return mended
