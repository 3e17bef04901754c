"""A PostgreSQL server of the system's packages: in a folder of its own, reached through a socket there."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from app.database.connection import Ledger
from app.database.open import open_ledger
from app.database.postgres import PostgresLedger, translate
from app.database.schema import postgres_migrations
from app.database.server import open_postgres
from tests.support.waiting import wait_until

STARTED_S = 60
LEFT = re.compile(
    r"\?|(?<![:\w]):[a-z]|\b(indexed by|cross join|glob|ifnull|rowid|pragma|strftime|replace into|insert or)\b"
    r"|is not %|[\s(]\+[a-z]"
)
"""Words of SQLite's that PostgreSQL does not know, or knows otherwise."""
NEWEST = postgres_migrations()[-1][0]


def programs() -> Path:
    """Where `initdb` and `pg_ctl` are: Debian has them beside each other for every version."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not versions:
        raise RuntimeError("PostgreSQL is needed: apt-get install postgresql")
    return versions[-1].parent


@cache
def postgres_words(sql: str) -> str:
    """What a statement of the ledger becomes; none of SQLite's words may be left."""
    words = translate(sql)
    left = LEFT.search(re.sub(r"'(?:[^']|'')*'", "''", words))
    assert left is None, f"{left and left.group()} is left in: {words}"
    return words


def open_either(place: str) -> Ledger | PostgresLedger:
    """The ledger at a server's URL, or in a spool directory."""
    return open_postgres(place) if place.startswith("postgresql:") else open_ledger(Path(place))


class Server:
    """One server; it starts with the `with` and is gone with all that it held after it."""

    def __init__(self, *, settings: dict[str, str] | None = None) -> None:
        # A socket's path has room for some 100 characters, which pytest's own folders use up.
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._settings = {"fsync": "off", "full_page_writes": "off", **(settings or {})}
        self.url = f"postgresql:///postgres?host={self.folder}&user=postgres"

    def __enter__(self) -> Self:
        data = self.folder / "data"
        if os.getuid() == 0:  # which PostgreSQL refuses
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "--locale=C", "--encoding=UTF8", "--no-sync")
        with (data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())
            file.write(f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\n")
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        data, log = self.folder / "data", self.folder / "log"
        self._run("pg_ctl", "-D", data, "-l", log, "-w", "-t", str(STARTED_S), "start")

    def stop(self, how: Literal["smart", "fast", "immediate"] = "fast") -> None:
        self._run("pg_ctl", "-D", self.folder / "data", "-m", how, "-w", "stop")

    def emptied(self) -> PostgresLedger:
        """A connection to a ledger in which nothing is yet."""
        db = open_postgres(self.url)
        tables = [row[0] for row in db.execute("select tablename from pg_tables where schemaname = 'public'")]
        sequences = [row[0] for row in db.execute("select sequencename from pg_sequences where schemaname = 'public'")]
        # Faster than `truncate`, which makes every file anew.
        deletions = "".join(f"delete from {name};" for name in tables)  # noqa: S608 - names of our own schema
        restarts = "".join(f"alter sequence {name} restart;" for name in sequences)
        db.run(f"begin; set local session_replication_role = replica; {deletions} {restarts} commit")
        db.executemany("insert into meta (name, value) values (?, ?)", [("salt", "0" * 32), ("schema", str(NEWEST))])
        return db

    def _run(self, program: str, *arguments: object) -> None:
        is_root = os.getuid() == 0
        subprocess.run(
            [programs() / program, *map(str, arguments)],
            check=True,
            user="postgres" if is_root else None,
            group="postgres" if is_root else None,
            extra_groups=[] if is_root else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextmanager
def pooler(server: Server) -> Iterator[str]:
    """PgBouncer before the server, in transaction mode: a connection is anybody's after each commit. Its URL."""
    folder = server.folder
    port = 6543
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={folder} user=postgres\n[pgbouncer]\nlisten_addr =\nlisten_port = {port}\n"
        f"unix_socket_dir = {folder}\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 20\n"
        "max_client_conn = 500\nlogfile =\npidfile =\nignore_startup_parameters = extra_float_digits\n",
        "utf-8",
    )
    is_root = os.getuid() == 0
    process = subprocess.Popen(
        ["/usr/sbin/pgbouncer", "-q", folder / "pgbouncer.ini"],
        user="postgres" if is_root else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((folder / f".s.PGSQL.{port}").exists)
        yield f"postgresql:///postgres?host={folder}&port={port}&user=postgres"
    finally:
        process.kill()
        process.wait()
