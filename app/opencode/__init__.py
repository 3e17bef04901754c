"""OpenCode's own data, read from outside of it: its store, the files of `opencode export`, and its configuration.

    store   what each generation of OpenCode keeps: SQLite files from 1.2 on, JSON files before; gives `Transcript`s
    files   {"info": {session}, "messages": [{"info": {…}, "parts": [{…}, …]}, …]}, one session each; `families` puts
            them together, and `snapshot` makes of a family what `parse` reads

The configuration is apart from them, in `app.opencode.config`.
"""

from app.opencode.access import UNTRIED, AbsentError, InMemoryError, StoreError
from app.opencode.files import FILE_BYTES_MAX, Export, ExportError, File, examine, families, snapshot
from app.opencode.store import Store, StoredSession, store_file
from app.opencode.turns import Outline, TurnOutline

__all__ = [
    "FILE_BYTES_MAX",
    "UNTRIED",
    "AbsentError",
    "Export",
    "ExportError",
    "File",
    "InMemoryError",
    "Outline",
    "Store",
    "StoreError",
    "StoredSession",
    "TurnOutline",
    "examine",
    "families",
    "snapshot",
    "store_file",
]
