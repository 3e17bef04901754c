"""Erasure: rewrites the ledger's files, so that nothing of what was deleted is left in them.

    rows deleted, and noted ─▶ copies set aside go ─▶ vacuum ─▶ the WAL is copied into the file, begun anew and cut
                                                                                                   ─▶ the note goes

SQLite only marks the pages of deleted rows as free, keeps what stood beside rows in pages that are in use, and writes
over its WAL from the beginning, as far as there is something to write.

Whoever is killed on the way leaves the note, which `status` shows and a worker finds.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from app.database import recover
from app.database.connection import WAL_BYTES, Ledger, checkpoint, transaction
from app.ledger import incidents
from app.runtime import failpoint
from app.runtime.filesystem import is_draft

TRIES = 50
PAUSE_S = 0.1
"""How often, and how far apart, the WAL is tried to be begun anew: that waits for readers, whose looks are short."""
_PAGES_MAX = 4
"""Of the one row that begins the WAL anew."""
_AGAIN = "`opencode-helicone dead purge --all` tries it again, also where no letter is left"
_SAY_NOTHING = (
    "insert into meta (name, value) values ('erasure', hex(randomblob(8)))"
    " on conflict (name) do update set value = excluded.value"
)
"""Another value each time: SQLite writes no page that stays as it is."""
_OURS = ("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db-journal", "recover.lock", "hooks", "workers", "logs")
_OURS_BEGIN = ("queue.db", "worker-", "intake-", ".gitignore")


def erase(db: Ledger) -> list[str]:
    """Rewrite the ledger without what was deleted; what may still hold it, one line for each, for a person.

    No statement of this connection may be under way. Takes a second for 50 MB; others wait meanwhile.
    """
    failpoint.reach("erase.beginning")
    noted = incidents.unerased(db)
    found: list[str] = []
    try:
        copies = recover.forget_copies(db.path)
        found += copies.values()
        found += (
            f"{name} in the spool is not of this program: if it is a copy, delete it"
            for name in _foreign(db.path)
            if name not in copies
        )
        db.execute("pragma temp_store = memory")
        db.execute("vacuum")
    except (sqlite3.OperationalError, OSError) as error:
        return [*found, f"ledger.db still holds what was deleted, and could not be rewritten ({error}): {_AGAIN}"]
    failpoint.reach("erase.rewritten")
    if not _begin_wal_anew(db):
        found.append("ledger.db-wal still holds what was deleted, because another process reads it: " + _AGAIN)
    elif noted is not None and not copies:
        failpoint.reach("erase.finishing")
        incidents.note_erased(db, noted)
    return found


def _begin_wal_anew(db: Ledger) -> bool:
    """Whether the WAL now holds nothing but one row that says nothing.

    Not by `wal_checkpoint(truncate)`, which goes on without the write lock where it does not get it (see
    `database.connection`): the WAL is copied under the lock, and the next commit begins it anew and cuts it, as it is
    told.
    """
    wal = db.path.with_name(f"{db.path.name}-wal")
    if not wal.exists():
        return True  # a ledger that was restored from a dump has a rollback journal, which goes with each commit
    (page_bytes,) = db.execute("pragma page_size").fetchone()
    db.execute("pragma journal_size_limit = 0")
    try:
        for _ in range(TRIES):
            checkpoint(db, 0)
            with transaction(db):
                db.execute(_SAY_NOTHING)
            if wal.stat().st_size <= _PAGES_MAX * (page_bytes + recover.FRAME_HEADER):
                return True
            time.sleep(PAUSE_S)
    finally:
        db.execute(f"pragma journal_size_limit = {WAL_BYTES}")
    return False


def _foreign(path: Path) -> Iterator[str]:
    """What lies in the spool and was not put there by this program."""
    for one in sorted(path.parent.iterdir()):
        if not is_ours(one.name):
            yield one.name


def is_ours(name: str) -> bool:
    """Whether this is what the program calls a file or folder of a spool; copies of the ledger apart."""
    return name in _OURS or name.startswith(_OURS_BEGIN) or is_draft(name)
