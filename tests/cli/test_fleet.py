"""`intake` and `fleet …` as whoever runs a centre types them: on a real server, and where something is missing."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.cli.options import STOPPED
from app.database.postgres import PostgresLedger
from app.fleet import presence, tenants
from app.fleet.tenants import TenantPolicy
from app.settings.intake import TOKEN
from app.settings.names import DATABASE_URL
from tests.support.checkout import ROOT
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
    "providerRequest": {
        "url": "custom-model-nopath",
        "json": {"model": "m"},
        "meta": {"Helicone-Request-Id": "0f1ed2fd-0000-4000-8000-000000000001"},
    },
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
    done = typed(centre, "fleet", "tenant", "set", "acme", "--key-file", "-", stdin=io.StringIO(api_key("b")))
    assert (done.returncode, tenants.tenant(ledger, "acme").key) == (0, api_key("b"))
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


@pytest.mark.postgres
def test_what_may_leave_is_said_and_its_patterns_are_not_shown(centre: Station, ledger: PostgresLedger) -> None:
    policy = ("--export-mode", "metadata_only", "--redact-pattern", "acme-[0-9]+", "--redact-pattern", "a{2}")
    added = add_tenant(centre, "acme", *policy)
    assert tenants.tenant(ledger, "acme").policy == TenantPolicy("metadata_only", ("acme-[0-9]+", "a{2}"))
    listed, told = typed(centre, "fleet", "tenant", "list"), typed(centre, "fleet", "tenant", "list", "--json")
    assert listed.stdout.endswith("  no limits  metadata_only, 2 patterns masked\n")
    assert said(told)["tenants"][0]["redact_patterns"] == 2
    assert "acme-[" not in added.stdout + listed.stdout + told.stdout + typed(centre, "fleet", "status").stdout


@pytest.mark.postgres
@pytest.mark.parametrize("command", ["add", "set"])
def test_a_policy_that_cannot_be_used_is_refused_as_it_is_set(
    centre: Station, ledger: PostgresLedger, command: str
) -> None:
    add_tenant(centre, "acme", "--redact-pattern", "fine")
    before = tenants.tenants(ledger)
    name = "other" if command == "add" else "acme"
    for options, why in (
        (("--redact-pattern", "fine", "--redact-pattern", "(a"), "redaction pattern 2, (a: "),
        (("--redact-pattern", "a*"), "it matches the empty text"),
    ):
        done = typed(centre, "fleet", "tenant", command, name, *options, stdin=io.StringIO(api_key("b")))
        assert why in complaint(done, 2)
    assert typed(centre, "fleet", "tenant", command, name, "--export-mode", "off").returncode == 2
    assert tenants.tenants(ledger) == before


@pytest.mark.postgres
def test_a_tenant_is_changed_in_what_is_named(centre: Station, ledger: PostgresLedger) -> None:
    add_tenant(centre, "acme", "--bytes-max", "5000", "--redact-pattern", "a", "--endpoint", ENDPOINT)
    before = tenants.tenant(ledger, "acme")
    key = centre.home / "new.key"
    key.write_text(f"{api_key('b')}\n", "utf-8")

    def change(*options: str) -> str:
        done = typed(centre, "fleet", "tenant", "set", "acme", *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == typed(centre, "fleet", "tenant", "list").stdout
        assert api_key("b") not in done.stdout
        return done.stdout

    change("--key-file", str(key), "--rate-per-minute", "7")
    assert tenants.tenant(ledger, "acme") == replace(before, key=api_key("b"), rate_per_minute=7)
    line = change(
        "--bytes-max", "0", "--rate-per-minute", "0", "--no-redact-patterns", "--export-mode", "metadata_only"
    )
    assert line == f"acme  {ENDPOINT}  no limits  metadata_only\n"
    change(
        "--redact-pattern", "b", "--redact-pattern", "c", "--endpoint", "http://127.0.0.1:1/", "--export-mode", "full"
    )
    assert tenants.tenant(ledger, "acme") == replace(
        before, key=api_key("b"), bytes_max=None, endpoint="http://127.0.0.1:1", policy=TenantPolicy("full", ("b", "c"))
    )


@pytest.mark.postgres
def test_a_change_that_cannot_be_is_refused(centre: Station, ledger: PostgresLedger) -> None:
    add_tenant(centre, "acme", "--endpoint", ENDPOINT)
    add_tenant(centre, "other", "--endpoint", ENDPOINT, key=api_key("b"))
    before = tenants.tenants(ledger)
    of_other, empty, broken, token = (centre.home / name for name in ("other.key", "empty", "broken", "token"))
    token.write_text(tenants.new_token(), "utf-8")
    of_other.write_text(api_key("b"), "utf-8")
    empty.write_text("\n", "utf-8")
    broken.write_text(f"two {api_key()}", "utf-8")
    for options, why in (
        ((), "nothing to be changed was named"),
        (("--key-file", str(of_other)), "has this key at this endpoint already"),
        (("--key-file", str(empty)), "key is empty"),
        (("--key-file", str(token)), "that is a machine's token"),
        (("--key-file", str(broken)), "printable ASCII"),
        (("--endpoint", "http://helicone.example.com"), "--allow-http"),
        (("--endpoint", "helicone.example.com"), "must start with https://"),
    ):
        refused = complaint(typed(centre, "fleet", "tenant", "set", "acme", *options), 2)
        assert why in refused
        assert api_key("b") not in refused
    assert "no tenant nobody" in complaint(typed(centre, "fleet", "tenant", "set", "nobody", "--bytes-max", "1"), 2)
    both = ("--redact-pattern", "a", "--no-redact-patterns")
    assert "exclude each other" in typed(centre, "fleet", "tenant", "set", "acme", *both).stderr
    assert tenants.tenants(ledger) == before


@pytest.mark.postgres
def test_a_tenant_is_removed_and_gone_from_what_is_shown(centre: Station, ledger: PostgresLedger) -> None:
    add_tenant(centre, "acme", "--endpoint", ENDPOINT)
    bench = bench_of(ledger, "acme")
    bench.put(version())
    assert "fleet status says why" in complaint(typed(centre, "fleet", "tenant", "remove", "acme"), 2)
    bench.deliver(version())
    typed(centre, "fleet", "token", "add", "acme", "a")
    assert "fleet token revoke acme a" in complaint(typed(centre, "fleet", "tenant", "remove", "acme"), 2)
    typed(centre, "fleet", "token", "revoke", "acme", "a")
    done = typed(centre, "fleet", "tenant", "remove", "acme")
    assert (done.returncode, done.stderr) == (0, "")
    assert found(centre)["destinations"] == []
    assert said(typed(centre, "fleet", "token", "list", "--json")) == {"tokens": []}
    assert bench.state() == "delivered"


# --- what is dead ----------------------------------------------------------------------------------------------------


def bench_of(ledger: PostgresLedger, name: str) -> LedgerBench:
    bench = LedgerBench(ledger)
    bench.destination = tenants.tenant(ledger, name).destination_id
    bench.now_ms = presence.server_ms(ledger)
    return bench


@pytest.fixture
def dead(centre: Station, ledger: PostgresLedger) -> tuple[LedgerBench, LedgerBench]:
    """Of two tenants: two and one logs that are dead, for two reasons. One of both has the same key."""
    for name, letter in (("acme", "a"), ("other", "b")):
        add_tenant(centre, name, "--endpoint", ENDPOINT, key=api_key(letter))
    acme, other = bench_of(ledger, "acme"), bench_of(ledger, "other")
    for bench, session, error in (
        (acme, "ses_1", "413: too large"),
        (acme, "ses_2", "400: bad"),
        (other, "ses_1", "413: too large"),
    ):
        bench.put(version(session=session))
        bench.dead_letter(bench.claimed(version(session=session)), bench.now_ms, error)
    return acme, other


@pytest.mark.postgres
def test_dead_letters_are_those_of_one_tenant(centre: Station, dead: tuple[LedgerBench, LedgerBench]) -> None:
    told = said(typed(centre, "fleet", "dead", "list", "acme", "--json"))
    assert shape({**told, "centre": None}) == shape(example("dead list"))
    assert (told["jobs"], [one["session"] for one in told["letters"]]) == (2, ["ses_2", "ses_1"])
    lines = typed(centre, "fleet", "dead", "list", "acme").stdout
    (group,) = re.findall(
        r"^to try a group again: opencode-helicone (fleet dead retry acme --error \w+)$", lines, re.MULTILINE
    )
    assert typed(centre, *group.split(), "--yes").stdout == "1 dead letter will be tried again\n"
    rest = said(typed(centre, "fleet", "dead", "list", "acme", "--json"))
    assert (rest["jobs"], len(rest["groups"])) == (1, 1)
    assert said(typed(centre, "fleet", "dead", "list", "other", "--json"))["jobs"] == 1
    assert "no tenant nobody" in complaint(typed(centre, "fleet", "dead", "list", "nobody"), 2)
    del dead


@pytest.mark.postgres
def test_what_is_tried_again_is_of_one_tenant(centre: Station, dead: tuple[LedgerBench, LedgerBench]) -> None:
    acme, other = dead
    key = version().key
    assert said(typed(centre, "fleet", "dead", "retry", "acme", key, "--json")) == {"jobs": 1}
    assert (acme.state(), other.state()) == ("pending", "dead")
    # Whoever leads looks for it.
    acme.now_ms = presence.server_ms(acme.db)  # type: ignore[arg-type]  # a server's, here
    assert acme.wake() == [key]
    assert "no dead letter's key begins" in complaint(typed(centre, "fleet", "dead", "retry", "acme", key), 1)
    assert complaint(typed(centre, "fleet", "dead", "retry", "other", "--all"), 2).endswith("say --yes")
    assert typed(centre, "fleet", "dead", "retry", "other").returncode == 2
    unknown = complaint(typed(centre, "fleet", "dead", "retry", "other", "--error", "00000000"), 1)
    assert "fleet dead list other names them" in unknown
    assert said(typed(centre, "fleet", "dead", "retry", "other", "--all", "--yes", "--json")) == {"jobs": 1}
    assert other.state() == "pending"
    assert acme.state(version(session="ses_2")) == "dead"


@pytest.mark.postgres
def test_what_is_given_up_is_of_one_tenant(centre: Station, dead: tuple[LedgerBench, LedgerBench]) -> None:
    acme, other = dead
    purged = typed(centre, "fleet", "dead", "purge", "acme", "--all", "--yes")
    assert (purged.stdout, purged.stderr) == ("2 dead letters purged\n", "")
    assert (acme.state(), other.state()) == ("dropped (purged)", "dead")
    assert typed(centre, "fleet", "tenant", "remove", "acme").returncode == 0
    assert said(typed(centre, "fleet", "dead", "purge", "other", version().key, "--json")) == {"jobs": 1}


# --- machines --------------------------------------------------------------------------------------------------------


@pytest.mark.postgres
def test_a_token_is_printed_once_and_alone(centre: Station, ledger: PostgresLedger) -> None:
    add_tenant(centre, "acme")
    made = typed(centre, "fleet", "token", "add", "acme", "anns-laptop")
    token = made.stdout.removesuffix("\n")
    assert (made.returncode, bool(TOKEN.fullmatch(token))) == (0, True)
    assert token not in made.stderr
    assert any("setup --endpoint" in line for line in words(made))
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
    assert "no tenant acme; there are none yet" in complaint(typed(centre, "fleet", "token", "add", "acme", "a"), 2)
    add_tenant(centre, "acme")
    add_tenant(centre, "a b", key=api_key("c"))
    typed(centre, "fleet", "token", "add", "a b", "the laptop")
    told = complaint(typed(centre, "fleet", "tenant", "remove", "a b"), 2)
    assert "fleet token revoke 'a b' 'the laptop'" in told
    told = complaint(typed(centre, "fleet", "dead", "list", "acne"), 2)
    assert "no tenant acne; known: a b, acme" in told
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


@pytest.mark.postgres
def test_what_waits_is_told_of_each_machine(centre: Station, ledger: PostgresLedger) -> None:
    add_tenant(centre, "acme", "--endpoint", ENDPOINT)
    add_tenant(centre, "other", "--endpoint", ENDPOINT, key=api_key("b"))
    for machine in ("idle", "busy"):
        typed(centre, "fleet", "token", "add", "acme", machine)
    typed(centre, "fleet", "token", "add", "other", "busy")
    bench = bench_of(ledger, "acme")
    for session, machine in (("ses_1", "busy"), ("ses_2", "busy"), ("ses_3", "gone")):
        bench.put(replace(version(session=session), folder=machine))
    bench.deliver(version(session="ses_2"))
    bench.dead_letter(bench.claimed(version(session="ses_3")))
    acme, other = found(centre)["destinations"]
    nothing = {"waiting": 0, "dead": 0, "delivered": 0, "dropped": 0, "oldest_waiting_ms": None}
    assert acme["machines"] == [
        {"machine": "busy", "waiting": 1, "dead": 0, "delivered": 1, "dropped": 0, "oldest_waiting_ms": bench.now_ms},
        {**nothing, "machine": "gone", "dead": 1},
        {**nothing, "machine": "idle"},
    ]
    assert other["machines"] == [{**nothing, "machine": "busy"}]
    assert "full" not in typed(centre, "fleet", "status").stdout
    typed(centre, "fleet", "tenant", "set", "acme", "--bytes-max", "1")
    assert [one["is_full"] for one in found(centre)["destinations"]] == [True, False]
    assert "  fine; full: its machines are answered 429" in typed(centre, "fleet", "status").stdout
    lines = typed(centre, "fleet", "status").stdout
    assert re.search(r"^  busy: 1 wait, the oldest since .*; 0 dead, 1 delivered$", lines, re.MULTILINE)
    assert "\n  gone: 0 wait; 1 dead, 0 delivered\n  1 machine of which nothing waits or is dead\n" in lines


@pytest.mark.postgres
def test_intakes_are_told_beside_workers(centre: Station, ledger: PostgresLedger) -> None:
    assert "no intake runs: `opencode-helicone intake` takes logs\n" in typed(centre, "fleet", "status").stdout
    for name, process in (("a", 1), ("b", 2)):
        presence.beat(ledger, name, {"version": "1", "machine": "m", "process": process, **presence.INTAKE})
    ledger.execute("update worker set seen_ms = seen_ms - ? where name = 'b'", (presence.SILENT_MS + 1_000,))
    assert [(one["process"], one["is_silent"]) for one in found(centre)["intakes"]] == [(1, False), (2, True)]
    lines = typed(centre, "fleet", "status").stdout
    assert re.search(r"^intake m 1 \(1\): runs, last beat \d+ s ago", lines, re.MULTILINE)
    assert re.search(r"^intake m 2 \(1\): silent, last beat 31 s ago", lines, re.MULTILINE)
    assert "no intake runs" not in lines
    assert "no worker runs" in lines


# --- metrics ---------------------------------------------------------------------------------------------------------

PROMTOOL = shutil.which("promtool")
ODD = 'a"b\\c\nd é'
"""Each letter has to be written otherwise in a label."""


def numbers(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (one.name.removeprefix("opencode_helicone_"), frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


@pytest.fixture
def busy(centre: Station, ledger: PostgresLedger) -> str:
    """What the metrics of a centre at work say."""
    add_tenant(centre, "acme", "--endpoint", ENDPOINT, "--bytes-max", "5000", "--redact-pattern", "acme-4711")
    add_tenant(centre, ODD, "--endpoint", ENDPOINT, key=api_key("b"))
    bench = bench_of(ledger, "acme")
    for session in ("ses_1", "ses_2"):
        bench.put(replace(version(session=session), folder="a"))
    bench.deliver(version(session="ses_2"))
    ledger.execute("update job set enqueued_ms = enqueued_ms - 60000")
    odd = bench_of(ledger, ODD)
    odd.put(replace(version(session="ses_9"), folder=ODD))
    odd.dead_letter(odd.claimed(version(session="ses_9")))
    odd.pause(probe_ms=9_000)
    says = {"version": "1", "machine": "m", "process": 1}
    presence.beat(ledger, "a", says)
    presence.beat(ledger, "b", {**says, **presence.INTAKE})
    presence.beat(ledger, "c", {**says, **presence.INTAKE})
    ledger.execute("update worker set seen_ms = 0 where name = 'c'")
    done = typed(centre, "fleet", "metrics")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.postgres
def test_metrics_are_by_tenant_and_machine(busy: str) -> None:
    found_ = numbers(busy)

    def value(name: str, **labels: str) -> float:
        return found_[f"fleet_{name}", frozenset(labels.items())]

    assert value("database_up") == 1
    assert [value("logs", tenant="acme", machine="a", state=one) for one in ("pending", "dead", "delivered")] == [
        1,
        0,
        1,
    ]
    assert value("logs", tenant=ODD, machine=ODD, state="dead") == 1
    assert 60 <= value("oldest_pending_seconds", tenant="acme", machine="a") < 600
    assert value("oldest_pending_seconds", tenant=ODD, machine=ODD) == 0
    assert (value("tenant_up", tenant="acme"), value("tenant_up", tenant=ODD)) == (1, 0)
    assert value("held_bytes_max", tenant="acme") == 5000
    assert ("fleet_held_bytes_max", frozenset({("tenant", ODD)})) not in found_
    assert value("held_bytes", tenant="acme") > 0
    assert (value("workers"), value("intakes")) == (1, 1)
    for secret in (api_key(), api_key("b"), "ses_1", "acme-4711", PASSWORD):
        assert secret not in busy
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    for name, _ in found_:
        assert f"opencode_helicone_{name}`" in page or f"`_{name}`" in page


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")
def test_promtool_has_nothing_to_say_of_them(busy: str) -> None:
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=busy, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.postgres
def test_metrics_may_go_to_a_file(centre: Station, busy: str) -> None:
    path = centre.home / "fleet.prom"
    done = typed(centre, "fleet", "metrics", "--textfile", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert numbers(path.read_text("utf-8")).keys() == numbers(busy).keys()


def test_of_a_database_that_is_away_metrics_tell_that_alone(elsewhere: Station, tmp_path: Path) -> None:
    away = Station(
        elsewhere.home, elsewhere.endpoint, variables={DATABASE_URL: "postgresql://user@127.0.0.1:1/helicone"}
    )
    path = tmp_path / "fleet.prom"
    complaint(typed(away, "fleet", "metrics", "--textfile", str(path)), 1)
    told = numbers(path.read_text("utf-8"))
    assert told["fleet_database_up", frozenset()] == 0
    assert {name for name, _ in told} == {"info", "fleet_database_up"}


def test_without_prometheus_one_line_says_what_to_install(elsewhere: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Station(
        elsewhere.home, elsewhere.endpoint, variables={DATABASE_URL: "postgresql://user@127.0.0.1:1/helicone"}
    )
    monkeypatch.delitem(sys.modules, "app.operations.fleet_metrics", raising=False)
    for name in [one for one in sys.modules if one.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert "opencode-helicone[web]" in complaint(typed(away, "fleet", "metrics"), 2)


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
    ("fleet", "tenant", "set", "acme", "--bytes-max", "0"),
    ("fleet", "tenant", "remove", "acme"),
    ("fleet", "dead", "list", "acme"),
    ("fleet", "dead", "retry", "acme", "--all", "--yes"),
    ("fleet", "dead", "purge", "acme", "--all", "--yes"),
    ("fleet", "metrics"),
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
    assert "pip install '.[fleet]'" in complaint(typed(elsewhere, *command), 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "missing", "told"),
    [
        ("postgresql://127.0.0.1:1/helicone", "psycopg", "the centre needs the extra `fleet`"),
        (f"postgresql://user:{PASSWORD}@127.0.0.1:1/helicone", "", f"the database that {DATABASE_URL} names: "),
    ],
    ids=["no extra", "away"],
)
def test_a_worker_that_cannot_begin_says_why_in_one_line(elsewhere: Station, url: str, missing: str, told: str) -> None:
    hidden = f"import sys; sys.modules.update(dict.fromkeys({missing.split()}))\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}import app.worker\napp.worker.huey"],
        env={**elsewhere.environ, DATABASE_URL: url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"opencode-helicone: {told}")
    assert PASSWORD not in line


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
