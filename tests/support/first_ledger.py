"""A ledger as version 0.1.0 left it, with jobs in every state that it can wait in.

`first_ledger.sql` was made by that version's own hook and worker (a83643a), with the receiver of these tests, in this
order: DELIVERED and CALLED were captured and delivered; DEAD was answered 400 and is dead; EMPTIED was captured without
a Helicone and gave up its bodies, as in a full spool; WAITING was captured after that. Then `ledger.db` was written as
SQL (`sqlite3.Connection.iterdump`), with ENDPOINT in place of the receiver's address.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.support.checkout import DATA
from tests.support.snapshots import Fields, assistant, entry, snapshot, task, text, tool, user

SQL = DATA / "first_ledger.sql"
SCHEMA = 3
ENDPOINT = "http://127.0.0.1:9"
FOLDER = "/home/dev/project"
DELIVERED, CALLED, DEAD, EMPTIED, WAITING = "ses_delivered", "ses_called", "ses_dead", "ses_emptied", "ses_waiting"
CREATED_MS = 1_700_000_000_000


def conversation(name: str, turns: int = 1, directory: str = FOLDER) -> Fields:
    """A session with that many turns. CALLED has a subagent, and a provider of another name."""
    messages, others = [], []
    time = {"created": CREATED_MS, "updated": CREATED_MS + 1}
    for turn in range(turns):
        at_ms = CREATED_MS + 1_000 * (turn + 1)
        asked, answered, child = f"msg_{name}_{turn}a", f"msg_{name}_{turn}b", f"{name}_child{turn}"
        parts = [text(f"question {turn} of {name}", f"prt_{asked}")]
        messages.append(user(asked, at_ms, *parts))
        told = [tool(f"prt_{answered}0"), text(f"answer {turn} of {name}", f"prt_{answered}1")]
        if name == CALLED:
            told = [task(child, f"prt_{answered}2"), *told]
            inner = assistant(
                f"msg_{child}b", at_ms + 30, text("inner answer", f"prt_{child}b"), parent=f"msg_{child}a"
            )
            inner_asked = user(f"msg_{child}a", at_ms + 20, text("inner question", f"prt_{child}a"))
            others.append(entry(inner_asked, inner, name=child, parentID=name, directory=directory, time=time))
        facts: Fields = {"path": {"cwd": FOLDER, "root": FOLDER}}
        if name == CALLED:
            facts["providerID"] = "claude-code"
        messages.append(assistant(answered, at_ms + 10, *told, parent=asked, **facts))
    root = entry(*messages, name=name, directory=directory, title=f"title of {name}", time=time)
    return snapshot(root, *others)


def restore(spool: Path, endpoint: str) -> None:
    """Put the ledger into a spool."""
    spool.mkdir(mode=0o700, parents=True)
    path = spool / "ledger.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(SQL.read_text("utf-8").replace(ENDPOINT, endpoint))
        db.execute(f"pragma user_version = {SCHEMA}")
    path.chmod(0o600)
