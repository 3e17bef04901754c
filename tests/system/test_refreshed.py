"""Secrets that this machine holds, in every place where it may hold them, changed while a session goes on.

Canaries that no rule knows, with the built-in rules off: only that they are known keeps them back. Whole processes
run, and what they wrote anywhere is searched, as is what arrives.
"""

from __future__ import annotations

import json
import sqlite3
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.ledger.job import bodies
from tests.support.dress import added, in_base64, in_json, in_url, numbered
from tests.support.fake_secrets import noise
from tests.support.opencode import OpenCode
from tests.support.processes import Station, hook, repository, worker
from tests.support.servers import api_key, receiving
from tests.support.snapshots import assistant, entry, snapshot, text, tool, user
from tests.support.waiting import wait_until
from tests.system.test_end_to_end import for_opencode, project_with_plugin

pytest_plugins = ["tests.support.opencode"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ROUNDS = 3
CREDENTIAL = """create table if not exists credential (id text primary key, integration_id text, label text not null,
    value text not null, connector_id text, method_id text, active integer, time_created integer not null,
    time_updated integer not null)"""
ACCOUNT = """create table if not exists account (id text primary key, email text not null, url text not null,
    access_token text not null, refresh_token text not null, token_expiry integer, time_created integer not null,
    time_updated integer not null)"""
"""As OpenCode 1.18.34 makes them."""


def canary(place: str, turn: int) -> str:
    return noise(f"{place} {turn}", LETTERS, 24)


@dataclass(frozen=True, slots=True)
class Machine:
    station: Station
    project: Path

    @property
    def data(self) -> Path:
        return self.station.home / "data" / "opencode"

    @property
    def config(self) -> Path:
        return self.station.home / "config" / "opencode"

    def written(self, path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), "utf-8")

    def stored(self, table: str, statement: str, *values: object) -> None:
        """In OpenCode's store, whose log is left where it is."""
        self.data.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.data / "opencode.db", isolation_level=None)) as db:
            db.execute("pragma journal_mode = wal")
            db.execute(table)
            db.execute(statement, values)


def auth(machine: Machine, place: str, turn: int) -> None:
    login = {"type": "oauth", "access": canary(place, turn), "refresh": canary(f"{place} refresh", turn), "expires": 1}
    machine.written(machine.data / "auth.json", {"anthropic": login})


def mcp_auth(machine: Machine, place: str, turn: int) -> None:
    tokens = {"accessToken": canary(place, turn), "refreshToken": canary(f"{place} refresh", turn), "scope": "mcp:read"}
    machine.written(machine.data / "mcp-auth.json", {"server": {"tokens": tokens, "serverUrl": "https://example.com"}})


def credential(machine: Machine, place: str, turn: int) -> None:
    value = {"type": "oauth", "access": canary(place, turn), "refresh": canary(f"{place} refresh", turn), "expires": 1}
    row = "insert or replace into credential values ('cre_1', 'anthropic', '', ?, null, null, 1, 0, 0)"
    machine.stored(CREDENTIAL, row, json.dumps(value))


def account(machine: Machine, place: str, turn: int) -> None:
    row = "insert or replace into account values ('acc_1', 'dev@example.com', 'https://example.com', ?, ?, 0, 0, 0)"
    machine.stored(ACCOUNT, row, canary(place, turn), canary(f"{place} refresh", turn))


def user_file(machine: Machine, place: str, turn: int) -> None:
    options = {"apiKey": canary(place, turn), "headers": {"X-Any": canary(f"{place} refresh", turn)}}
    machine.written(machine.config / "opencode.json", {"provider": {"openai": {"options": options}}})


def project_file(machine: Machine, place: str, turn: int) -> None:
    server = {"type": "local", "environment": {"ANY": canary(place, turn)}}
    remote = {"type": "remote", "headers": {"Authorization": f"Bearer {canary(f'{place} refresh', turn)}"}}
    machine.written(machine.project / "opencode.json", {"mcp": {"a": server, "b": remote}})


def folder_file(machine: Machine, place: str, turn: int) -> None:
    """A value that a file of its own holds."""
    (machine.project / ".opencode").mkdir(exist_ok=True)
    (machine.project / ".opencode" / "key").write_text(canary(place, turn))
    command = ["server", "--api-key", canary(f"{place} refresh", turn)]
    mcp = {"c": {"type": "local", "environment": {"ANY": "{file:./key}"}, "command": command}}
    machine.written(machine.project / ".opencode" / "opencode.jsonc", {"mcp": mcp})


PLACES: dict[str, Callable[[Machine, str, int], None]] = {
    "auth.json": auth,
    "mcp-auth.json": mcp_auth,
    "credential": credential,
    "account": account,
    "the user's file": user_file,
    "the project's file": project_file,
    "its .opencode": folder_file,
}
VARIABLES = {
    "AWS_BEARER_TOKEN_BEDROCK": "{}",
    "CLARIFAI_PAT": "{}",
    "SNOWFLAKE_CORTEX_PAT": "{}",
    "WATSONX_AI_APIKEY": "{}",
    "DB_PASS": "{}",
    "GPG_PASSPHRASE": "{}",
    "GOOGLE_CREDENTIAL": "{}",
    "OPENAI_API_KEY_TEAM": "{}",
    "TOKEN_DEPLOY": "{}",
    "DATABASE_URL": "postgres://app:{}@db.example.com/main",
    "OPENCODE_AUTH_CONTENT": '{{"openai": {{"type": "api", "key": "{}"}}}}',
    "OPENCODE_CONFIG_CONTENT": '{{"provider": {{"x": {{"options": {{"apiKey": "{}"}}}}}}}}',
}


def planted(turns: int) -> list[str]:
    """All that were held until the end of so many turns."""
    lasting = [canary(name, 0) for name in VARIABLES]
    return lasting + [
        canary(f"{place}{part}", turn) for turn in range(turns) for place in PLACES for part in ("", " refresh")
    ]


def talk(directory: Path, turns: int) -> dict[str, Any]:
    """A session in which all of them are printed, each time all that were held until then."""
    messages = []
    for turn in range(turns):
        values = planted(turn + 1)
        said = "\n".join(f"{value} {in_base64(value)} {in_json(value)} {in_url(value)}" for value in values)
        shown = tool(output=numbered(said), input={"command": f"echo {values[-1]}"}, title=values[-2])
        question = user(f"msg_{turn}u", 1_000_000 + 100 * turn, text(said, f"prt_{turn}a"))
        reply = assistant(
            f"msg_{turn}v",
            1_000_010 + 100 * turn,
            shown | {"id": f"prt_{turn}b"},
            text(added(said), f"prt_{turn}c"),
            parent=f"msg_{turn}u",
        )
        messages += [question, reply]
    return snapshot(entry(*messages, directory=str(directory), title=f"about {planted(turns)[-1]}"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    repository(project)
    variables = {name: form.format(canary(name, 0)) for name, form in VARIABLES.items()}
    variables["OPENCODE_HELICONE_REDACT_SECRETS"] = "false"
    return Machine(Station(home, "http://127.0.0.1:9", api_key("q"), variables), project)


def has_taken(station: Station, turns: int) -> bool:
    """Each of them is a job, and the session is one."""
    return station.counts().pending > turns


def has_sent(station: Station, turns: int) -> bool:
    return station.counts().delivered > turns


def written(station: Station) -> Iterator[tuple[str, bytes]]:
    """Every file of the spool, and what the compressed bodies in the ledger say."""
    for path in station.spool.rglob("*"):
        if path.is_file():
            yield path.name, path.read_bytes()
    with station.ledger() as db:
        for job in db.execute("select id, key from job").fetchall():
            yield from (("a body", body.body) for body in bodies(db, job["id"], job["key"]))


def leaks(*texts: tuple[str, bytes]) -> set[tuple[str, str]]:
    """Where which canary is, in whatever form; the names of both."""
    told = {canary(name, 0): name for name in VARIABLES}
    for turn in range(ROUNDS):
        for place in PLACES:
            told |= {canary(f"{place}{part}", turn): f"{place}{part} {turn}" for part in ("", " refresh")}
    forms = [(form, name) for value, name in told.items() for form in forms_of(value)]
    return {(where, name) for where, data in texts for form, name in forms if form in data}


def forms_of(value: str) -> Iterator[bytes]:
    """Itself, and its base64 wherever it stands in a longer text."""
    yield value.encode()
    for shift in range(3):
        yield b64encode(bytes(shift) + value.encode())[4:28]


def test_that_search_would_find_one() -> None:
    value = canary("auth.json", 1)
    assert leaks(("a", f"x{value}y".encode()), ("b", in_base64(value).encode()), ("c", b"nothing")) == {
        ("a", "auth.json 1"),
        ("b", "auth.json 1"),
    }


def test_what_a_machine_holds_stays_there_whenever_it_changes(machine: Machine, tmp_path: Path) -> None:
    with receiving(tmp_path / "received.db") as receiver:
        station = replace(machine.station, endpoint=receiver.url)
        directory = str(machine.project)
        with hook(station) as process:
            for turn in range(ROUNDS):
                for place, hold in PLACES.items():
                    hold(machine, place, turn)
                process.show(talk(machine.project, turn + 1), directory=directory)
                wait_until(partial(has_taken, station, turn + 1))
            assert leaks(*written(station)) == set()  # with its connection open, and its WAL there
            assert process.end() == 0
        with worker(station):
            wait_until(lambda: station.delivered(station.counts().delivered) and station.counts().delivered > ROUNDS)
        assert len(receiver.rows()) > ROUNDS
        assert leaks(("the wire", receiver.wire()), *written(station)) == set()
        assert b"[REDACTED]" in receiver.wire()


def test_a_new_token_sends_nothing_anew(machine: Machine) -> None:
    auth(machine, "auth.json", 0)
    directory = str(machine.project)
    another = snapshot(entry(user(), assistant(), id="ses_another", directory=directory))
    with hook(machine.station) as process:
        process.show(talk(machine.project, 1), directory=directory)
        wait_until(partial(has_taken, machine.station, 1))
        auth(machine, "auth.json", 1)
        process.notice("ses_root", directory=directory)
        process.show(another, directory=directory)
        wait_until(partial(has_taken, machine.station, 3))
        assert process.end() == 0
    with machine.station.ledger() as db:
        assert db.execute("select count(*) from job").fetchone()[0] == 4


@pytest.mark.parametrize("command", ["import", "preview"])
def test_commands_know_them_as_well(machine: Machine, tmp_path: Path, command: str) -> None:
    for place, hold in PLACES.items():
        hold(machine, place, 0)
    file = tmp_path / "session.json"
    file.write_text(json.dumps(talk(machine.project, 1)["sessions"][0]), "utf-8")
    done = machine.station.run(command, str(file))
    assert done.returncode == 0, done.stderr
    printed = [("printed", (done.stdout + done.stderr).encode())]
    assert leaks(*printed, *written(machine.station)) == set()
    assert command == "preview" or machine.station.counts().pending == 2


@pytest.mark.opencode
def test_a_key_that_the_real_opencode_gets_in_mid_session_stays_there(
    opencode: OpenCode, machine: Machine, tmp_path: Path
) -> None:
    project = project_with_plugin(opencode, tmp_path / "plugged")
    with receiving(tmp_path / "received.db") as receiver:
        station = replace(machine.station, endpoint=receiver.url)
        environ = for_opencode(station) | {"OPENCODE_HELICONE_REDACT_SECRETS": "false"}
        with worker(station), opencode.serve(project, environ=environ) as server:
            session = server.new_session()
            for turn in range(2):
                value = canary("auth.json", turn)
                server.request("PUT", "/auth/anthropic", {"type": "api", "key": value})
                (project / "README.md").write_text(f"# demo\n\n{value}\n")
                server.prompt(session, f"[[script:tools]] {value}")
                wait_until(partial(has_sent, station, turn + 1), 60)
            assert leaks(("the wire", receiver.wire()), *written(station)) == set()
        assert receiver.wire().count(b"[REDACTED]") > 4
