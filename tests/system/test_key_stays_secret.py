"""The API key is where it must be, in the environment and in one header of a POST, and nowhere else.

Single doors have tests of their own (`test_settings.py`, `test_client.py`, `test_cli.py`); here everything runs, and
everything that was written anywhere is searched.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.ledger import job as ledger_job
from app.runtime.liveness import present
from app.settings.layers import load
from app.settings.lookup import Sources
from app.settings.model import SettingsError
from app.settings.options import from_arguments
from app.sources.opencode import install
from app.sources.opencode.store import store_file
from tests.support.checkout import ROOT
from tests.support.processes import Station, end_automatic_workers, hook
from tests.support.recorded import Snapshot, export
from tests.support.servers import Act, Exchange, Scripted, answer, api_key, scripted, whole
from tests.support.waiting import wait_until
from tests.system.test_options import Place, attempt, capture, delivering

KEY = api_key("q")
PIECES = ("qqqqqqq", base64.b64encode(KEY.encode()).decode()[:24], KEY.encode().hex()[:24])
"""No smaller piece of it, and no other way to write it, may be found either."""


def found(station: Station, *texts: str | bytes) -> list[str]:
    """Where the key is: in a text, or in a file below the machine's home (the spool, its WAL and logs included).

    Not in OpenCode's own store, where somebody pasted it.
    """
    store = store_file(station.environ)
    below = (path for path in station.home.rglob("*") if path.is_file() and not path.name.startswith(store.name))
    files = {str(path): path.read_bytes() for path in below}
    told = {f"text {number}": text for number, text in enumerate(texts)}
    data = {name: text.encode() if isinstance(text, str) else text for name, text in {**files, **told}.items()}
    return [name for name, held in data.items() if any(piece.encode() in held for piece in PIECES)]


def bodies(station: Station) -> bytes:
    """What the compressed records in the ledger say."""
    with station.ledger() as db:
        jobs = db.execute("select id, key from job").fetchall()
        return b"".join(body.body for job in jobs for body in ledger_job.bodies(db, job["id"], job["key"]))


def command_lines() -> list[bytes]:
    """Of all processes, as everybody on the machine can see them."""
    if not Path("/proc/self/cmdline").exists():
        return [subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, check=True).stdout]
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:  # ended meanwhile
            continue
    return lines


def echo(status: int) -> Act:
    """An answer that repeats all that was sent, the Authorization header first."""

    def act(exchange: Exchange) -> None:
        exchange.read_body()
        sent = exchange.heard.headers["authorization"]
        assert sent == f"Bearer {KEY}"
        told = {"error": f"auth {sent} {exchange.heard.body.decode()[:200]}", "key": KEY}
        headers = {"x-echo": sent, "location": f"http://127.0.0.1:9/{KEY}", "retry-after": KEY, "helicone-id": KEY}
        exchange.send(whole(status, json.dumps(told).encode(), headers))

    return act


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9", KEY)


def place(station: Station, server: Scripted, **plugin: object) -> Place:
    return Place(
        station.home,
        Sources({**station.environ, "HELICONE_ENDPOINT": server.url}, Path("/"), station.home),
        plugin,
        server,
    )


def mentioning(name: str) -> Snapshot:
    """A recording in which somebody pasted the key."""
    snapshot = export(name)
    snapshot["sessions"][0]["messages"][0]["parts"][0]["text"] = f"my key {KEY} is HELICONE_API_KEY={KEY}"
    snapshot["sessions"][0]["info"]["title"] = f"about {KEY}"
    return snapshot


def test_that_search_would_find_it(station: Station) -> None:
    (station.home / "leak").write_text(f"Bearer {KEY}")
    assert found(station, "nothing", f"a {KEY}") == [str(station.home / "leak"), "text 1"]


@pytest.mark.parametrize("status", [200, 302, 400, 401, 500])
def test_a_server_that_repeats_the_key_leaves_it_nowhere(station: Station, status: int) -> None:
    with scripted(echo(status)) as server:
        here = place(station, server)
        capture(here, mentioning("a_simple"))
        with delivering(here) as made:
            attempt(made)
            assert made.db.execute("select 1 from job where error is not null").fetchone() is not None
            assert found(station, bodies(station)) == []  # the WAL is there as long as it runs
        assert len(server.requests) == 1
        assert all(KEY.encode() not in request.body for request in server.requests)


def test_nobody_sees_it_in_a_list_of_processes_or_in_what_they_write(station: Station) -> None:
    with scripted(echo(500)) as server:
        here = replace(station, endpoint=server.url, variables={"OPENCODE_HELICONE_WORKER": "auto"})
        with hook(here) as process:
            process.show(mentioning("a_simple"))
            wait_until(lambda: present(here.spool / "workers") and server.requests)
            seen = command_lines()
            assert any(b"--automatic" in line for line in seen)
            assert any(line.rstrip(b"\0").endswith(b"hook") for line in seen)
            ran = [here.run("status", "--json"), here.run("install-plugin", "--global")]
            process.end()
        end_automatic_workers(here)
        assert [one.returncode for one in ran] == [0, 0]
        assert len(list(here.home.rglob(install.FILE_NAME))) == 1
        assert found(here, *seen, bodies(here), *(one.stdout + one.stderr for one in ran)) == []


def test_a_key_that_is_malformed_is_refused_without_being_shown(station: Station) -> None:
    here = replace(station, key=f"{KEY} {KEY}")
    with hook(here) as process:
        process.notice("ses_1", "busy")
        assert process.end() == 0
    done = here.run("flush")
    assert "SettingsError" in here.text("hook.log")
    assert done.returncode == 2
    assert found(here, done.stdout, done.stderr) == []


WORKERS = (["-m", "app", "worker", "--automatic"], ["-c", "import app.worker as w; w.huey"])


@pytest.mark.parametrize("arguments", WORKERS)
def test_a_worker_that_cannot_start_writes_no_pattern_into_its_log(station: Station, arguments: list[str]) -> None:
    own = station.home / "config" / "opencode-helicone"
    own.mkdir(parents=True)
    (own / "config.toml").write_text(f'redactPatterns = "taken from {KEY}"\n', "utf-8")
    env = {**station.environ, "HELICONE_API_KEY": ""}
    done = subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "redactPatterns from config file" in done.stderr
    assert not any(piece in done.stdout + done.stderr for piece in PIECES)


WRONG_PLACES = [
    {"apiKey": KEY},
    {"HELICONE_API_KEY": KEY},
    {KEY: True},
    {"maxRetries": KEY},
    {"redactPatterns": {KEY: 1}},
]


@pytest.mark.parametrize("options", WRONG_PLACES, ids=range(len(WRONG_PLACES)))
def test_a_key_in_the_plugins_options_is_named_without_being_shown(
    station: Station, options: dict[str, object]
) -> None:
    with scripted(answer(500)) as server:
        capture(place(station, server, spoolDirectory=str(station.spool), **options))
    assert " from plugin options: " in station.text("hook.log")
    assert found(station) == []


@pytest.mark.parametrize("option", ["apiKey", "api_key", "HELICONE_API_KEY", KEY, "maxRetries", ""])
def test_a_key_on_the_command_line_is_refused_without_being_shown(option: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(environ={"HELICONE_API_KEY": KEY}, base=Path("/"), command_line=from_arguments([f"{option}={KEY}"]))
    assert not any(piece in str(refused.value) for piece in PIECES)


def test_a_key_alone_on_the_command_line_is_refused_without_being_shown() -> None:
    with pytest.raises(SettingsError) as refused:
        from_arguments([KEY])
    assert not any(piece in str(refused.value) for piece in PIECES)


@pytest.mark.parametrize(
    "line", [f'apiKey = "{KEY}"', f"apiKey = {KEY}", f'"{KEY}" = 1', f"[{KEY}]", f"maxRetries = '{KEY}'"]
)
def test_a_key_in_the_config_file_is_refused_without_being_shown(tmp_path: Path, line: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(line + "\n", "utf-8")
    with pytest.raises(SettingsError) as refused:
        load(environ={"HELICONE_API_KEY": KEY}, base=Path("/"), config_file=file)
    assert not any(piece in str(refused.value) for piece in PIECES)
