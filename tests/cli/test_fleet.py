"""`intake` and `fleet …` as whoever runs a centre types them: on a real server, and where something is missing."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.options import STOPPED
from app.database.postgres import PostgresLedger
from app.fleet import presence, tenants
from app.settings.intake import TOKEN
from app.settings.names import DATABASE_URL
from tests.support.ledger_bench import LedgerBench, version
from tests.support.postgres import Server
from tests.support.processes import Station
from tests.support.servers import api_key
from tests.support.typed_commands import typed
from tests.support.waiting import wait_until
from tests.system.test_cli import complaint, example, said, shape

ENDPOINT = "https://helicone.example.com"
PASSWORD = "of-the-database"
LOG = {
    "providerRequest": {"url": "custom-model-nopath", "json": {"model": "m"}, "meta": {}},
    "providerResponse": {"json": {}, "status": 200, "headers": {}},
    "timing": {"startTime": {"seconds": 1, "milliseconds": 0}, "endTime": {"seconds": 2, "milliseconds": 0}},
}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Station:
    """A machine on which nothing says where a centre is."""
    return Station(tmp_path, "http://127.0.0.1:9")


@pytest.fixture
def ledger(postgres_server: Server) -> Iterator[PostgresLedger]:
    with closing(postgres_server.emptied()) as db:
        yield db


@pytest.fixture
def centre(elsewhere: Station, postgres_server: Server, ledger: PostgresLedger) -> Station:
    """A machine of the centre. Its server takes any password, which no command is to say."""
    assert ledger.is_current()
    return Station(elsewhere.home, elsewhere.endpoint, "", {DATABASE_URL: f"{postgres_server.url}&password={PASSWORD}"})


def add_tenant(centre: Station, name: str, *options: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    key = api_key() if key is None else key
    done = typed(centre, "fleet", "tenant", "add", name, *options, stdin=io.StringIO(f"{key}\n"))
    assert not key or key not in done.stdout + done.stderr
    return done


def words(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert PASSWORD not in done.stdout + done.stderr
    return [line.removeprefix("opencode-helicone: ") for line in done.stderr.splitlines()]


# --- tenants ---------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_a_tenant_is_added_with_a_key_that_nobody_is_shown(centre: Station, ledger: PostgresLedger) -> None:
    key = api_key()
    limits = ("--bytes-max", "5000", "--rate-per-minute", "300")
    added = add_tenant(centre, "acme", "--endpoint", f"{ENDPOINT}:443/", *limits, key=key)
    assert (added.returncode, added.stderr) == (0, "")
    assert f"goes to {ENDPOINT}\n" in added.stdout
    assert tenants.tenant(ledger, "acme").key == key
    listed = typed(centre, "fleet", "tenant", "list")
    assert listed.stdout == f"acme  {ENDPOINT}  at most 5.0 kB wait, 300 logs a minute  full\n"
    told = said(typed(centre, "fleet", "tenant", "list", "--json"))
    limits_told = {"bytes_max": 5000, "rate_per_minute": 300}
    policy_told = {"export_mode": "full", "redact_patterns": 0}
    assert told == {"tenants": [{"name": "acme", "endpoint": ENDPOINT, **limits_told, **policy_told}]}
    assert shape(told) == shape(example("fleet tenant list"))
    status = typed(centre, "fleet", "status", "--json")
    assert key not in listed.stdout + json.dumps(told) + status.stdout
    words(listed)


@pytest.mark.postgres
def test_its_key_may_stand_in_a_file(centre: Station, ledger: PostgresLedger) -> None:
    path = centre.home / "key"
    path.write_text(f"{api_key()}\n", "utf-8")
    assert typed(centre, "fleet", "tenant", "add", "acme", "--key-file", str(path)).returncode == 0
    assert tenants.tenant(ledger, "acme").key == path.read_text("utf-8").strip()
    assert tenants.tenant(ledger, "acme").endpoint == "https://api.worker.helicone.ai"
    missing = typed(centre, "fleet", "tenant", "add", "other", "--key-file", str(centre.home / "none"))
    assert "No such file" in complaint(missing, 1)


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.parametrize("is_interrupted", [False, True])
def test_at_a_terminal_it_is_asked_for_and_not_shown(
    centre: Station, ledger: PostgresLedger, *, is_interrupted: bool
) -> None:
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "fleet", "tenant", "add", "acme"],
        env=centre.environ,
        cwd=centre.home,
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        start_new_session=True,
    )
    shown = b""
    while b"not shown" not in shown:
        shown += os.read(terminal, 1000)
    # What is typed before the terminal was told to show nothing, it would show.
    wait_until(lambda: not termios.tcgetattr(other_end)[3] & termios.ECHO)
    if is_interrupted:
        process.send_signal(signal.SIGINT)
    else:
        os.write(terminal, f"{api_key()}\n".encode())
    assert process.wait(60) == (STOPPED if is_interrupted else 0)
    os.close(other_end)
    with suppress(OSError):  # the end, as Linux says it
        while more := os.read(terminal, 1000):
            shown += more
    os.close(terminal)
    assert api_key().encode() not in shown
    assert [one.key for one in tenants.tenants(ledger)] == ([] if is_interrupted else [api_key()])


@pytest.mark.postgres
def test_what_cannot_be_a_tenant_is_refused(centre: Station, ledger: PostgresLedger) -> None:
    key = api_key()
    assert add_tenant(centre, "acme", "--endpoint", ENDPOINT, key=key).returncode == 0
    for name, options, given, why in (
        ("acme", (), None, "tenant acme: the name"),
        ("other", ("--endpoint", ENDPOINT), key, "another tenant's already"),
        ("other", (), "", "key is missing"),
        ("other", (), f"two {key}", "printable ASCII"),
        ("other", (), key * 50, "printable ASCII"),
        ("other", ("--endpoint", "helicone.example.com"), None, "must start with https://"),
        ("other", ("--endpoint", "http://helicone.example.com"), None, "--allow-http"),
    ):
        assert why in complaint(add_tenant(centre, name, *options, key=given), 2)
    assert add_tenant(centre, "other", "--rate-per-minute", "0").returncode == 2
    assert [one.name for one in tenants.tenants(ledger)] == ["acme"]
    allowed = add_tenant(centre, "inside", "--endpoint", "http://helicone.example.com", "--allow-http")
    assert allowed.returncode == 0


# --- machines --------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_a_token_is_printed_once_and_alone(centre: Station, ledger: PostgresLedger) -> None:
    add_tenant(centre, "acme")
    made = typed(centre, "fleet", "token", "add", "acme", "anns-laptop")
    token = made.stdout.removesuffix("\n")
    assert (made.returncode, bool(TOKEN.fullmatch(token))) == (0, True)
    assert token not in made.stderr
    assert any("HELICONE_API_KEY=" in line for line in words(made))
    assert tenants.admitted(ledger, token) is not None

    told = said(typed(centre, "fleet", "token", "list", "--json"))
    assert shape(told) == shape(example("fleet token list"))
    (one,) = told["tokens"]
    assert (one["tenant"], one["machine"], one["revoked_ms"]) == ("acme", "anns-laptop", None)
    assert one["created_ms"] <= one["seen_ms"]

    revoked = typed(centre, "fleet", "token", "revoke", "acme", "anns-laptop")
    assert (revoked.returncode, revoked.stderr) == (0, "")
    assert tenants.admitted(ledger, token) is None
    listed = typed(centre, "fleet", "token", "list")
    assert re.match(r"acme  anns-laptop  made .*, last used .*, revoked .* ago \(\d\d:\d\d\)$", listed.stdout)
    assert token not in listed.stdout + revoked.stdout + json.dumps(told)


@pytest.mark.postgres
def test_a_second_token_of_a_machine_is_instead_of_the_first(centre: Station, ledger: PostgresLedger) -> None:
    add_tenant(centre, "acme")
    first, second = (typed(centre, "fleet", "token", "add", "acme", "a").stdout.strip() for _ in range(2))
    assert tenants.admitted(ledger, first) is None
    assert tenants.admitted(ledger, second) is not None
    assert "never used" not in typed(centre, "fleet", "token", "list").stdout


@pytest.mark.postgres
def test_who_is_not_there_is_named(centre: Station) -> None:
    assert "no tenant acme" in complaint(typed(centre, "fleet", "token", "add", "acme", "a"), 2)
    add_tenant(centre, "acme")
    for _ in range(2):
        assert "machine a of tenant acme has no token" in complaint(
            typed(centre, "fleet", "token", "revoke", "acme", "a"), 2
        )


# --- status ----------------------------------------------------------------------------------------------------------


def found(centre: Station) -> Any:
    return said(typed(centre, "fleet", "status", "--json"))


@pytest.mark.postgres
def test_an_empty_centre_says_what_to_do(centre: Station) -> None:
    lines = typed(centre, "fleet", "status").stdout
    assert "fleet tenant add NAME" in lines
    assert "huey_consumer app.worker.huey" in lines
    assert "fleet tenant add NAME" in typed(centre, "fleet", "tenant", "list").stdout
    assert "fleet token add TENANT MACHINE" in typed(centre, "fleet", "token", "list").stdout


@pytest.mark.postgres
def test_workers_are_told_with_who_leads_and_who_is_silent(centre: Station, ledger: PostgresLedger) -> None:
    for name, machine in (("a", "m1"), ("b", "m2")):
        presence.beat(ledger, name, {"version": "1.2.3", "machine": machine, "process": 17})
    presence.lead(ledger, "a")
    ledger.execute("update worker set seen_ms = seen_ms - ? where name = 'b'", (presence.SILENT_MS + 1_000,))
    told = found(centre)["workers"]
    assert [(one["machine"], one["is_silent"], one["leads"]) for one in told] == [
        ("m1", False, True),
        ("m2", True, False),
    ]
    lines = typed(centre, "fleet", "status").stdout
    assert re.search(r"^worker m1 17 \(1\.2\.3\): leads, last beat \d+ s ago", lines, re.MULTILINE)
    assert re.search(r"^worker m2 17 \(1\.2\.3\): silent, last beat 31 s ago", lines, re.MULTILINE)
    assert "no worker runs" not in lines
    ledger.execute("update leader set until_ms = until_ms - ?", (presence.LEADS_MS + 1_000,))
    ledger.execute("update worker set seen_ms = seen_ms - ?", (presence.SILENT_MS + 1_000,))
    assert [one["leads"] for one in found(centre)["workers"]] == [False, False]
    assert "no worker runs" in typed(centre, "fleet", "status").stdout


# --- an intake -------------------------------------------------------------------------------------------------------


@contextmanager
def intake(centre: Station) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running one, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "intake", "--port", "0"],
        env=centre.environ,
        cwd=centre.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        (address,) = re.findall(r"^listening on (http://127\.0\.0\.1:\d+) until stopped$", process.stdout.readline())
        yield process, address
    finally:
        process.kill()
        process.communicate()


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_an_intake_takes_waits_for_its_tenant(
    centre: Station, number: signal.Signals, ledger: PostgresLedger
) -> None:
    add_tenant(centre, "acme", "--bytes-max", "1000000")
    add_tenant(centre, "other", key=api_key("b"))
    token = typed(centre, "fleet", "token", "add", "acme", "a").stdout.strip()
    with intake(centre) as (process, address), httpx.Client(trust_env=False) as client:
        url, headers = f"{address}/custom/v1/log", {"Authorization": f"Bearer {token}"}
        assert client.post(url, json=LOG, headers=headers).status_code == 200
        assert client.post(url, json=LOG, headers={"Authorization": f"Bearer {api_key()}"}).status_code == 401
        typed(centre, "fleet", "token", "revoke", "acme", "a")
        assert client.post(url, json=LOG, headers=headers).status_code == 401
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == (0 if number is signal.SIGINT else -signal.SIGTERM)
        assert out + err == ""

    assert found(centre)["intakes"] == []  # it has said that it ends
    process_ = {"version": "1.2.3", "machine": "m1", "process": 17}
    presence.beat(ledger, "a", process_)
    presence.beat(ledger, "b", {**process_, **presence.INTAKE})
    told = found(centre)
    assert shape(told) == shape(example("fleet status"))
    one, other = told["destinations"]
    assert (one["tenant"], one["waiting"], one["dead"], one["delivered"]) == ("acme", 1, 0, 0)
    assert (other["tenant"], other["waiting"], other["oldest_waiting_ms"]) == ("other", 0, None)
    assert 0 < told["now_ms"] - one["oldest_waiting_ms"] < 300_000
    lines = typed(centre, "fleet", "status").stdout
    assert f"room taken: {one['held_bytes']} B of 1.0 MB" in lines
    assert "  1 wait, the oldest since" in lines
    assert "sk-helicone" not in lines + json.dumps(told)


@pytest.mark.postgres
def test_an_intake_that_cannot_listen_says_so(centre: Station) -> None:
    # 192.0.2.0/24 is nobody's.
    for host in ("192.0.2.1", "ü" * 70):
        assert "cannot listen" in complaint(typed(centre, "intake", "--host", host, "--port", "0"), 1)


@pytest.mark.postgres
def test_of_what_no_tenant_sent_it_is_told_as_well(centre: Station, ledger: PostgresLedger) -> None:
    bench = LedgerBench(ledger)
    assert found(centre)["destinations"] == []
    bench.put(version())
    (one,) = found(centre)["destinations"]
    assert (one["tenant"], one["endpoint"], one["waiting"]) == (None, "https://example.invalid", 1)
    assert "no tenant  https://example.invalid\n" in typed(centre, "fleet", "status").stdout


# --- what is missing -------------------------------------------------------------------------------------------------

COMMANDS = (
    ("intake", "--port", "0"),
    ("fleet", "status"),
    ("fleet", "tenant", "add", "acme"),
    ("fleet", "tenant", "list"),
    ("fleet", "token", "add", "acme", "a"),
    ("fleet", "token", "revoke", "acme", "a"),
    ("fleet", "token", "list"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_database_one_line_says_which_variable(elsewhere: Station, command: tuple[str, ...]) -> None:
    assert f"{DATABASE_URL} is not set" in complaint(typed(elsewhere, *command), 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_database_that_is_away_is_named_without_its_password(elsewhere: Station, command: tuple[str, ...]) -> None:
    for url in (
        f"postgresql://user:{PASSWORD}@127.0.0.1:1/helicone",
        f"postgresql://user:{PASSWORD}@[/helicone",
        PASSWORD,
    ):
        away = Station(elsewhere.home, elsewhere.endpoint, variables={DATABASE_URL: url})
        done = typed(away, *command)
        assert f"the database that {DATABASE_URL} names" in complaint(done, 1)
        words(done)


@pytest.mark.parametrize("command", COMMANDS)
def test_without_the_extra_one_line_says_what_to_install(
    elsewhere: Station, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    brought = ("psycopg", "app.fleet", "app.intake", "app.operations.fleet", "app.database.postgres")
    for name in [one for one in sys.modules if one.startswith((*brought, "app.database.server"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "opencode-helicone[fleet]" in complaint(typed(elsewhere, *command), 2)


@pytest.mark.slow
def test_no_command_but_these_needs_the_extra(elsewhere: Station) -> None:
    """What loads them all, as the help and a newer program's trial do."""
    for arguments in (["ready"], ["--help"], ["fleet", "--help"]):
        script = f"import sys; sys.modules['psycopg'] = None; sys.argv = {['app', *arguments]}\n"
        process = subprocess.run(
            [sys.executable, "-c", f"{script}from app.__main__ import main\nmain()"],
            env=elsewhere.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (process.returncode, process.stderr) == (0, "")
