"""Runs every measurement and prints one table; exits with 1 where a goal is missed.

python -m benchmarks [--short] [NAME ...]
"""

from __future__ import annotations

import importlib
import os
import platform
import sqlite3
import sys
from importlib.metadata import version

from benchmarks.table import Row, markdown

NAMES: tuple[str, ...] = ("starts", "idle", "commit", "delivery", "syncs", "history", "growth", "views", "web")
"""Modules beside this one, in the order of the table."""


def machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("huey", "httpx", "pydantic-settings"))
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {packages}"
    )


def main() -> int:
    short = "--short" in sys.argv
    names = [name for name in sys.argv[1:] if name != "--short"] or NAMES
    rows: list[Row] = []
    for name in names:
        rows += importlib.import_module(f"benchmarks.{name}").rows(short)
    print(machine())
    print()
    print(markdown(rows))
    return 1 if any(row.is_missed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
