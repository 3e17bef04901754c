"""Runs every measurement and prints a page of tables; exits with 1 where a goal is missed.

python -m benchmarks [--short] [--write] [NAME ...]

`--write` makes `docs/performance.md` of it, from all of them. A quarter of an hour on two cores that nobody else uses.
"""

from __future__ import annotations

import importlib
import os
import platform
import sqlite3
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.table import Row, page

NAMES: tuple[str, ...] = (
    "opencode_run",
    "starts",
    "idle",
    "commit",
    "syncs",
    "delivery",
    "history",
    "growth",
    "views",
    "destinations",
    "web",
)
"""Modules beside this one, in the order of the page."""
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("huey", "httpx", "pydantic-settings"))
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} as it began; "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {packages}"
        # Huey's consumer loads it wherever it is.
        f"{', with psycopg' if find_spec('psycopg') else ''}"
    )


def main() -> int:
    options = {name for name in sys.argv[1:] if name.startswith("-")}
    names = [name for name in sys.argv[1:] if name not in options] or NAMES
    if unknown := options - {"--short", "--write"}:
        sys.exit(f"no option {', '.join(sorted(unknown))}")
    if "--write" in options and (tuple(names) != NAMES or "--short" in options):
        sys.exit("--write takes all of them, and not in short")
    if sys.dont_write_bytecode:
        sys.exit("PYTHONDONTWRITEBYTECODE is set: each start would be one that compiles everything. Unset it.")
    began, where = datetime.now(UTC).date(), machine()
    found: dict[str, list[Row]] = {}
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        found[(module.__doc__ or "").splitlines()[0]] = list(module.rows("--short" in options))
    told = page(found, f"{began}, {where}.")
    print(told)
    if "--write" in options:
        PAGE.write_text(told)
    return 1 if any(row.is_missed for rows in found.values() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
