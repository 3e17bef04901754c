"""Faults planted one by one beside a set-up where all is well: `doctor` names each, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from app.exporters.outcome import Outcome
from app.ledger import destinations, flow, folders, incidents, readback
from app.operations.finding import FAULTS
from app.operations.mend import _MENDING
from app.operations.send_test import _clocks
from app.runtime import clock
from app.runtime.url import normalise
from app.settings import heard
from app.settings.heard import Kept
from app.settings.lookup import typed as typed_settings
from app.sources.opencode import install
from app.sources.opencode.store import store_file
from tests.operations import test_doctor as planted
from tests.sources.opencode.test_store import built
from tests.support import json_store
from tests.support.checkout import ROOT
from tests.support.ledger_bench import LedgerBench, version
from tests.support.processes import Station, hook
from tests.support.recorded import export
from tests.support.said import answer as intakes
from tests.support.said import token
from tests.support.servers import answer, scripted
from tests.support.typed_commands import typed
from tests.system.test_cli import said

Plant: TypeAlias = Callable[[Station], Station]
"""Makes one thing wrong; the machine as it is then."""


@pytest.fixture
def station(tmp_path: Path, migrated: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    made = Station(home, "http://127.0.0.1:9", variables={"OPENCODE_HELICONE_MAX_SPOOL_SIZE": "1000000"})
    shutil.copytree(migrated, made.spool)
    assert typed(made, "install-plugin").returncode == 0
    return made


def names(station: Station, *arguments: str) -> list[str]:
    done = typed(station, "doctor", "--json", *arguments)
    found = json.loads(done.stdout)["findings"]
    assert done.returncode == any(one["level"] == "problem" for one in found)
    for one in found:
        assert bool(one["name"]) == (one["level"] != "ok")
        assert not one["name"] or (one["found"] and one["why"] and (one["todo"] or one["command"]))
    return list(dict.fromkeys(one["name"] for one in found if one["name"]))


def variables(**given: str) -> Plant:
    return lambda station: replace(station, variables={**station.variables, **given})


def opencodes_file(content: str) -> Plant:
    def plant(station: Station) -> Station:
        (station.home / "opencode.json").write_text(content)
        return station

    return plant


def harmed(harm: Callable[[Station], None]) -> Plant:
    def plant(station: Station) -> Station:
        harm(station)
        return station

    return plant


def in_ledger(change: Callable[[LedgerBench], None]) -> Plant:
    """Something happened at the destination that the settings mean."""

    def plant(station: Station) -> Station:
        with station.ledger() as db:
            bench = LedgerBench(db)
            bench.now_ms = clock.now_ms()
            bench.destination = destinations.destination(
                db, normalise(station.endpoint), destinations.fingerprint(db, station.key), 1
            ).id
            change(bench)
        return station

    return plant


def misspell_in_the_users_file(station: Station) -> None:
    own = station.home / "config" / "opencode-helicone"
    own.mkdir(parents=True)
    (own / ".env").write_text("OPENCODE_HELICONE_EXPROT_MODE=off\n")


def upgraded_from_json(station: Station) -> None:
    data = store_file(station.environ).parent
    data.mkdir(parents=True)
    built(data / "opencode.db", export("a_simple"))
    left = export("b_tools")
    left["sessions"][0]["info"]["time"]["created"] += 10**10
    json_store.put(data, left)


def put_a_file_in_the_way(station: Station) -> None:
    shutil.rmtree(station.spool)
    station.spool.write_text("in the way")


def another_app(station: Station) -> None:
    (station.home / "app").mkdir()
    (station.home / "app" / "__init__.py").touch()


def says(version: str) -> Plant:
    return lambda station: planted.opencode(station, version)


def by_project_without_a_path(station: Station) -> Station:
    planted.unplug(station)
    install.install(install.Project(station.home), python="")
    return replace(station, variables={**station.variables, "PATH": f"{station.home}/bin:/usr/bin:/bin"})


def behind_an_intake(known: Kept = heard.NOTHING) -> Plant:
    """A token for a key, and what the intake has said."""

    def plant(station: Station) -> Station:
        made = replace(station, key=token())
        heard.keep(heard.place(typed_settings(made.environ, made.home).load()), known)
        return made

    return plant


def wait(bench: LedgerBench) -> None:
    bench.put(version())


def miscount(bench: LedgerBench) -> None:
    wait(bench)
    bench.deliver(version())
    bench.db.execute("update tally set jobs = jobs + 1")


def wait_elsewhere(bench: LedgerBench) -> None:
    bench.destination = destinations.destination(bench.db, "http://127.0.0.1:8585", "abcdef0123456789", 1).id
    wait(bench)


def pause(health: Any, reason: str) -> Plant:
    return in_ledger(
        lambda bench: flow.pause(
            bench.db, bench.destination, health=health, reason=reason, count=1, probe_ms=1, now_ms=1
        )
    )


def hold_a_folder(bench: LedgerBench) -> None:
    folders.remember_folder(bench.db, "one", bench.destination, {"held": "opencode.json: it is not JSON"}, 1)


def be_blind(bench: LedgerBench) -> None:
    readback.pause_read_back(bench.db, bench.destination, readback.BLIND, 1)


def never_find(bench: LedgerBench) -> None:
    readback.note_missed(bench.db, bench.destination, 1)


def exceed(bench: LedgerBench) -> None:
    assert flow.exceed_quota(bench.db, bench.destination)


def leave_purged(bench: LedgerBench) -> None:
    incidents.note_unerased(bench.db, 1)


FAULTY: dict[str, tuple[Plant, list[str]]] = {
    # The twelve that were tried first.
    "a block under an unknown name": (opencodes_file('{"plugins": {"telemetry": {"a": 1}}}'), ["block-unknown"]),
    "the predecessor is listed, too": (
        opencodes_file('{"plugin": ["opencode-helicone-async-telemetry@1"]}'),
        ["predecessor-listed"],
    ),
    "a misspelt option": (opencodes_file(planted.place(redactPattern=["a"])), ["option-misspelt"]),
    "a pattern that RE2 refuses": (opencodes_file(planted.place(redactPatterns=["(?=a)"])), ["pattern-refused"]),
    "opencode.json is no JSON": (opencodes_file('{\n "plugin": ["opencode-helicone"'), ["config-unreadable"]),
    "a misspelt variable": (variables(OPENCODE_HELICONE_EXPROT_MODE="off"), ["variable-misspelt"]),
    "the same in .env": (harmed(misspell_in_the_users_file), ["variable-misspelt"]),
    "the command is not on PATH": (by_project_without_a_path, ["command-not-on-path"]),
    "the predecessor's spool": (harmed(planted.leave_the_predecessors_spool), ["predecessor-spool"]),
    "no spool can be made": (
        harmed(put_a_file_in_the_way),
        ["spool-unusable"],
    ),
    "the plugin was changed": (harmed(planted.age_the_plugin), ["plugin-changed"]),
    "a newer ledger": (harmed(planted.from_the_future), ["ledger-newer"]),
    # Settings, and OpenCode's files.
    "no key": (variables(HELICONE_API_KEY=""), ["key-missing"]),
    "half a key": (variables(HELICONE_API_KEY="placeholder"), ["key-odd"]),
    "a value that is none": (variables(OPENCODE_HELICONE_MAX_RETRIES="many"), ["setting-wrong"]),
    "a limit that is none": (opencodes_file(planted.place(maxRetries="many")), ["option-refused"]),
    "rules that a file cannot switch off": (
        opencodes_file(planted.place(redactSecrets=False)),
        ["option-refused"],
    ),
    "logins that cannot be read": (harmed(planted.log_in_without_end), ["logins-unreadable"]),
    # The machine.
    "others may look into the spool": (harmed(planted.loosen), ["spool-open"]),
    "the disk is full": (variables(OPENCODE_HELICONE_MAX_SPOOL_SIZE=str(2**50)), ["disk-full"]),
    "a SOCKS proxy": (
        variables(HELICONE_ENDPOINT="https://example.invalid", ALL_PROXY="socks5://127.0.0.1:1080"),
        ["proxy-unusable"],
    ),
    "certificates that are not there": (variables(SSL_CERT_FILE="/nowhere.pem"), ["certificates-unusable"]),
    "an app package on the consumer's path": (harmed(another_app), ["app-shadowed"]),
    "the clock was set back": (harmed(planted.set_the_clock_back), ["clock-back"]),
    # OpenCode and the plugin.
    "no plugin": (harmed(planted.unplug), ["plugin-missing"]),
    "somebody else's file": (harmed(planted.replace_the_plugin), ["plugin-foreign"]),
    "others may write the plugin": (harmed(planted.open_the_plugin), ["plugin-unsafe"]),
    "a plugin that OpenCode cannot load": (says("1.2.4"), ["plugin-unfitting"]),
    "an OpenCode of unknown version": (says("latest"), ["opencode-unknown"]),
    "an OpenCode that was not tried": (says("1.19.0"), ["opencode-untried"]),
    "an unknown store": (harmed(planted.bring_an_unknown_store), ["store-unreadable"]),
    "a store in memory": (variables(OPENCODE_DB=":memory:"), ["store-in-memory"]),
    "history that was not migrated": (harmed(upgraded_from_json), ["history-unmigrated"]),
    "lines that were not used": (harmed(planted.lose_a_line), ["lines-unused"]),
    # The queue.
    "a ledger that had to be recovered": (harmed(planted.no_ledger), ["ledger-damaged"]),
    "counts that do not fit": (in_ledger(miscount), ["counts-wrong"]),
    "a damaged queue.db": (harmed(planted.break_the_queue), ["queue-damaged"]),
    "no worker": (in_ledger(wait), ["no-worker"]),
    "a folder that is held": (in_ledger(hold_a_folder), ["folder-held"]),
    "a session that cannot be read": (harmed(planted.leave_a_session_unread), ["sessions-unread"]),
    "a session that nobody reads": (harmed(planted.leave_a_session_that_nobody_reads), ["sessions-unread"]),
    "jobs for another destination": (in_ledger(wait_elsewhere), ["jobs-elsewhere"]),
    "dead and dropped jobs": (harmed(planted.kill_and_drop), ["jobs-dead", "jobs-dropped"]),
    "an incident": (harmed(planted.note_an_incident), ["incident"]),
    "what was purged is still there": (in_ledger(leave_purged), ["unerased"]),
    # Helicone.
    "it cannot be reached": (pause("down", "ConnectError: Connection refused"), ["destination-down"]),
    "it refuses": (pause("refused", "401: error Unauthorized"), ["destination-refused"]),
    "its certificate is not trusted": (
        pause("refused", "the server's certificate is not trusted: self-signed certificate"),
        ["certificate-untrusted"],
    ),
    "the proxy refuses": (pause("refused", "the proxy refused with 407; see HTTPS_PROXY"), ["proxy-unusable"]),
    "its quota is exceeded": (in_ledger(exceed), ["quota-exceeded"]),
    "reading back is blind": (
        lambda station: in_ledger(be_blind)(variables(OPENCODE_HELICONE_CONFIRM="auto")(station)),
        ["read-back-blind"],
    ),
    "nothing was ever stored": (in_ledger(never_find), ["never-stored"]),
    "the intake has said nothing": (behind_an_intake(), ["intake-silent"]),
    "what it says cannot be used": (behind_an_intake(Kept(1, "", 1, intakes("full", "("))), ["intake-unusable"]),
    "what it says is not understood": (behind_an_intake(Kept(1, "", 1, None)), ["intake-unusable"]),
    "it is away": (behind_an_intake(Kept(1, "503", 1, intakes())), ["intake-away"]),
    "the token is revoked": (behind_an_intake(Kept(1, "401: revoked", 1, intakes())), ["intake-refuses"]),
    "logs are dead at the centre": (behind_an_intake(Kept(1, "", 1, intakes(dead=1))), ["dead-at-centre"]),
}


def test_on_a_healthy_set_up_there_is_none(station: Station) -> None:
    assert names(station) == []
    lines = typed(station, "doctor").stdout.splitlines()
    assert re.fullmatch(r"ok: nothing is wrong \(\d+ checks\)", lines[0])
    assert len(lines) == 1
    assert len(typed(station, "doctor", "-v").stdout.splitlines()) > 15


ASKED = {"a plugin that OpenCode cannot load", "an OpenCode of unknown version", "an OpenCode that was not tried"}
"""For these a program is started."""


@pytest.mark.parametrize(
    ("plant", "expected"),
    [pytest.param(*one, id=name, marks=pytest.mark.slow if name in ASKED else ()) for name, one in FAULTY.items()],
)
def test_each_fault_is_named_and_nothing_else(station: Station, plant: Plant, expected: list[str]) -> None:
    assert names(plant(station)) == expected


@pytest.mark.slow
def test_beside_an_opencode_that_was_tried_there_is_none(station: Station) -> None:
    assert names(says("1.18.33")(station)) == []


def test_the_planted_faults_are_thirty_and_more() -> None:
    assert len({name for _, expected in FAULTY.values() for name in expected}) >= 30
    # Those that are planted elsewhere: they need a server, a hook or a session.
    assert set(FAULTS) - {name for _, expected in FAULTY.values() for name in expected} == {
        "clock-skewed", "environment-differs", "hook-never-seen", "ledger-unusable", "not-sent",
    }  # fmt: skip


def test_every_name_is_used_and_every_mending_is_known() -> None:
    text = "".join(path.read_text("utf-8") for path in (ROOT / "app" / "operations").glob("*.py"))
    assert [name for name in FAULTS if text.count(f'"{name}"') < 2] == []
    assert {name for name, fault in FAULTS.items() if fault.is_mended} == {*_MENDING}


@pytest.mark.slow
def test_a_hook_of_another_environment_is_named(station: Station) -> None:
    service = replace(station, variables={**station.variables, "OPENCODE_HELICONE_EXPORT_MODE": "metadata_only"})
    with hook(service) as process:
        process.notice("ses_nowhere", "busy")
        process.wait_for_ack()
        assert "environment-differs" in names(station)
        process.end()


@pytest.mark.parametrize(("off_s", "expected"), [(0, []), (-30, []), (300, ["clock-skewed"]), (-300, ["clock-skewed"])])
def test_the_servers_clock_is_compared(off_s: int, expected: list[str]) -> None:
    outcome = Outcome("accepted", "ok", 200, server_ms=clock.now_ms() + off_s * 1000)
    assert [one.name for one in _clocks(outcome)] == expected
    assert list(_clocks(Outcome("accepted", "ok", 200))) == []


def test_what_is_refused_by_the_server_is_named(station: Station) -> None:
    with scripted(answer(401, b'{"error": "Unauthorized"}')) as server:
        assert names(replace(station, endpoint=server.url), "--send") == ["not-sent"]


# --- what is printed


def test_the_verdict_comes_first_and_each_fault_says_why_and_what_to_type(station: Station) -> None:
    planted.unplug(station)
    lines = typed(replace(station, variables={**station.variables, "HELICONE_API_KEY": ""}), "doctor").stdout
    first, *others = lines.splitlines()
    assert re.fullmatch(r"problem: 1 problem, 1 warning; \d+ checks well \(-v shows them\)", first)
    assert others[0] == "problem key-missing: key: no HELICONE_API_KEY is set: jobs wait"
    assert others[1].startswith("  why: ")
    assert "  opencode-helicone setup" in others
    assert "warning plugin-missing: plugin: not installed for this user, nor in this folder" in others


# --- --fix


@pytest.mark.parametrize("name", ["the plugin was changed", "a damaged queue.db", "what was purged is still there"])
def test_fix_mends_what_is_ours(station: Station, name: str) -> None:
    plant, expected = FAULTY[name]
    station = plant(station)
    assert names(station) == expected
    assert "--fix mends" in typed(station, "doctor").stdout
    done = typed(station, "doctor", "--fix")
    assert "\nmended: " in done.stdout
    assert done.stdout.startswith("ok: ")
    assert names(station) == []
    told = said(typed(station, "doctor", "--fix", "--json"))
    assert told["mended"] == []


@pytest.mark.slow
def test_fix_writes_the_form_that_opencode_loads(station: Station) -> None:
    old = says("1.2.4")(station)
    assert names(old) == ["plugin-unfitting"]
    assert names(old, "--fix") == []


@pytest.mark.parametrize("name", ["somebody else's file", "no key", "a misspelt option", "dead and dropped jobs"])
def test_fix_touches_nothing_else(station: Station, name: str) -> None:
    plant, expected = FAULTY[name]
    station = plant(station)
    assert names(station, "--fix") == expected
    assert names(station) == expected
