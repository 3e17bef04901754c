"""A folder whose files may withhold more than could be read of them: nothing of it leaves, and everybody sees why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.capture.targets import target
from app.database.open import open_ledger
from app.ledger import destinations as destination
from app.ledger import flow, folders, policy_enforcement
from app.privacy.policy import Hold
from app.runtime import clock
from app.settings.lookup import Sources, typed, unattended
from app.settings.model import Settings
from app.worker import CONSUMER, Worker
from tests.support.processes import HookProcess, Station, hook, repository, worker
from tests.support.recorded import export
from tests.support.servers import nobody, receiving
from tests.support.snapshots import Fields, assistant, entry, snapshot, text, user
from tests.support.typed_commands import typed as command
from tests.support.waiting import wait_until
from tests.system.test_policy_sweep import CANARY, Bench, bench, talk

__all__ = ["bench"]  # a fixture

RIGHT = {"plugin": [["./opencode-helicone.js", {"redactPatterns": [r"swordfish-\d+"]}]]}
WRONG = {
    "a misspelt option": '{"plugin": [["./opencode-helicone.js",\n {"redactPattern": ["swordfish"]}]]}',
    "a pattern that RE2 refuses": '{"plugin": [["./opencode-helicone.js",\n {"redactPatterns": ["swordfish("]}]]}',
    "a mode that is none": '{"plugin": [["./opencode-helicone.js",\n {"exportMode": "metadata"}]]}',
    "a switch that is text": '{"plugin": [["./opencode-helicone.js",\n {"enable": "false"}]]}',
    "no JSON": '{"plugin": [["./opencode-helicone.js",\n {"enable": false]]}',
}


@pytest.fixture
def station(tmp_path: Path) -> Station:
    home = tmp_path / "home"
    home.mkdir()
    return Station(home, "http://127.0.0.1:9")


@pytest.fixture
def project(station: Station) -> Path:
    """A repository in which OpenCode works."""
    made = station.home / "shop"
    repository(made)
    return made


def asked(project: Path, session: str = "ses_root") -> Fields:
    """A session in which somebody has just said the canary."""
    now_ms = clock.now_ms()
    asked_first = user(f"msg_1{session}", now_ms, text(f"{CANARY}?", f"prt_1{session}"))
    answered = assistant(
        f"msg_2{session}", now_ms + 10, text(f"{CANARY}!", f"prt_2{session}"), parent=f"msg_1{session}"
    )
    times = {"created": now_ms - 1, "updated": now_ms + 10}
    return snapshot(entry(asked_first, answered, id=session, directory=str(project), time=times))


def configure(project: Path, configuration: object) -> None:
    written = configuration if isinstance(configuration, str) else json.dumps(configuration)
    draft = project / "draft"
    draft.write_text(written, "utf-8")
    draft.rename(project / "opencode.json")


def show(process: HookProcess, project: Path, wanted: Fields) -> None:
    process.show(wanted, directory=str(project))


def held(station: Station) -> list[tuple[str, int]]:
    with station.ledger() as db:
        return [(one.reason, 1) for one in folders.held_folders(db)]


def patterns_of_jobs(station: Station) -> list[int]:
    with station.ledger() as db:
        rows = db.execute("select p.facts from job j join policy p on p.id = j.policy_id where j.state = 'pending'")
        return [len(json.loads(row["facts"])["patterns"]) for row in rows]


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_held_folder_is_seen_and_its_turns_come_from_the_store_when_the_files_are_right(
    station: Station, project: Path, wrong: str
) -> None:
    configure(project, wrong)
    with hook(station) as process:
        show(process, project, asked(project))
        assert process.end() == 0
    assert station.counts().pending == 0
    ((reason, folders),) = held(station)
    assert reason.removeprefix('"').startswith(("opencode.json line 2: ", "redactPattern", "exportMode ", "enable "))
    assert "opencode.json line 2" in reason
    assert folders == 1
    assert str(project) not in reason
    told = command(station, "status", "-v").stdout
    assert f"held: 1 folder ({project}), whose turns wait in OpenCode's store: {reason}\n" in told
    everything = b"".join(path.read_bytes() for path in station.spool.rglob("*") if path.is_file())
    assert b"swordfish" not in everything
    configure(project, RIGHT)
    with hook(station) as process:
        process.notice("", "busy", directory=str(project))
        wait_until(lambda: station.counts().pending == 2)
        assert process.end() == 0
    assert patterns_of_jobs(station) == [1, 1]
    assert held(station) == []
    assert "held:" not in command(station, "status", "-v").stdout


def test_what_was_said_while_a_folder_was_held_comes_at_the_end_of_that_opencode(
    station: Station, project: Path
) -> None:
    configure(project, WRONG["a misspelt option"])
    with hook(station) as process:
        show(process, project, asked(project))
        wait_until(lambda: held(station))
        configure(project, RIGHT)
        wait_until(lambda: not held(station))
        assert process.end() == 0
    assert patterns_of_jobs(station) == [1, 1]


def test_a_turn_that_began_before_is_not_captured_as_it_was_then(station: Station, project: Path) -> None:
    wanted = asked(project)
    wanted["sessions"][0]["messages"][1]["info"].pop("finish")
    wanted["sessions"][0]["messages"][1]["info"]["time"].pop("completed")
    with hook(station) as process:
        show(process, project, wanted)
        process.wait_for_ack()
        configure(project, WRONG["a misspelt option"])
        wait_until(lambda: held(station))
        assert process.end() == 0
    assert station.counts().pending == 0


def test_other_folders_go_on(station: Station, project: Path) -> None:
    configure(project, WRONG["no JSON"])
    with hook(station) as process:
        show(process, project, asked(project))
        process.show(export("a_simple"))
        assert process.end() == 0
    assert station.counts().pending == 2
    assert [folders for _, folders in held(station)] == [1]


def test_a_file_of_the_user_holds_every_folder_and_a_worker_that_runs(station: Station, tmp_path: Path) -> None:
    with nobody() as url:
        port = int(url.rpartition(":")[2])
    station = replace(station, endpoint=url, variables={"OPENCODE_HELICONE_RETRY_BASE_DELAY": "20"})
    own = station.home / "config" / "opencode"
    own.mkdir(parents=True)
    with hook(station) as process:
        process.show(talk(1))
        wait_until(lambda: station.counts().pending == 2)
        process.end()
    configure(own, WRONG["a misspelt option"])

    def reasons() -> list[str]:
        with station.ledger() as db:
            return [reason for reason, _ in policy_enforcement.held(db, 1)]

    with worker(station):
        wait_until(lambda: any("opencode.json line 2" in reason for reason in reasons()))
        with receiving(tmp_path / "receiver" / "store.db", port=port) as receiver:
            configure(own, {})
            wait_until(lambda: station.delivered(2))
            assert len(receiver.rows()) == 3


def test_a_worker_holds_what_its_folder_was_held_for(bench: Bench) -> None:
    bench.capture(talk(1))
    bench.record(held="opencode.json line 3: it is not JSON")
    bench.sweep()
    bench.deliver()
    assert (bench.posted, bench.states) == ([], ["pending"] * 2)
    ((reason, jobs),) = policy_enforcement.held(bench.db, bench.destination)
    assert (reason, jobs) == ("held until the configuration is right: opencode.json line 3: it is not JSON", 2)
    assert isinstance(bench.policy_check.capture(bench.db, ""), Hold)
    bench.record()
    bench.sweep()
    bench.deliver()
    assert bench.states == ["delivered"] * 2


def test_import_and_preview_say_why_nothing_leaves(station: Station, project: Path, tmp_path: Path) -> None:
    configure(project, WRONG["a misspelt option"])
    root = asked(project)["sessions"][0]
    path = tmp_path / "session.json"
    path.write_text(json.dumps(root))
    for name in ("import", "preview"):
        done = command(station, name, str(path))
        assert done.returncode == 0
        assert "disabled: held until the configuration is right: " in done.stdout
        assert CANARY not in done.stdout
    assert station.counts().pending == 0


# --- whose jobs a key takes over


def waiting_without_a_key(station: Station) -> None:
    with hook(replace(station, key="")) as process:
        process.show(export("a_simple"))
        process.end()
    assert destinations(station) == {"": 2}


def destinations(station: Station) -> dict[str, int]:
    """Waiting jobs by the fingerprint of the key."""
    with station.ledger() as db:
        rows = db.execute(
            "select d.key_fingerprint as key, count(*) as jobs from job j join destination d on d.id = j.destination_id"
            " where j.state = 'pending' group by d.key_fingerprint"
        )
        return {row["key"]: row["jobs"] for row in rows}


def here(station: Station) -> Mapping[str, str]:
    """The environment of somebody whose key stands in the `.env` of the folder where the command is typed."""
    (station.home / ".env").write_text(f"HELICONE_API_KEY={station.key}\n")
    return replace(station, key="").environ


@pytest.fixture
def beside(station: Station) -> tuple[Sources, Sources]:
    """The same key in the environment, and in the `.env` of the folder where a command is typed."""
    waiting_without_a_key(station)
    return unattended(station.environ), typed(here(station), station.home)


def test_a_worker_takes_over_jobs_for_a_key_of_the_user_alone(
    station: Station, beside: tuple[Sources, Sources]
) -> None:
    for sources, expected in zip(reversed(beside), ("", "own"), strict=True):
        made = Worker(sources)
        try:
            made.huey.create_consumer(**CONSUMER)
            assert made._key == station.key
            made.poll()
        finally:
            made.close()
            made.queue.close()
            made.db.close()
        assert ["own" if key else "" for key in destinations(station)] == [expected]


def test_flush_takes_over_jobs_for_a_key_of_the_user_alone(station: Station, tmp_path: Path) -> None:
    with receiving(tmp_path / "store.db") as receiver:
        station = replace(station, endpoint=receiver.url)
        waiting_without_a_key(station)
        here(station)
        command(replace(station, key=""), "flush", "--timeout", "1")
        assert destinations(station) == {"": 2}
        assert receiver.rows() == []
        assert command(station, "flush", "--timeout", "20").returncode == 0
        assert len(receiver.rows()) == 3


def test_jobs_of_a_refused_key_do_not_go_to_a_key_of_the_folder_either(station: Station) -> None:
    """Not even where the folder's hook has the same key."""
    refused = replace(station, key=f"{station.key}x")
    with hook(refused) as process:
        process.show(export("a_simple"))
        process.end()
    with station.ledger() as db:
        (one,) = destination.destinations(db)
        flow.pause(db, one.id, health="refused", reason="401", count=1, probe_ms=1 << 50, now_ms=1)
        ours = target(db, unattended(station.environ).load(), 1)
        (place,) = (row["hash"] for row in db.execute("select hash from folder"))
        folders.remember_folder(db, place, ours.id, {}, 1)
        before = destinations(station)
    command_env = here(station)
    settings: Settings = typed(command_env, station.home).load()
    assert not settings.takes_over
    command(replace(station, key=""), "flush", "--timeout", "0")
    assert destinations(station) == before
    assert command(station, "flush", "--timeout", "0").returncode == 1
    assert destinations(station) != before


def test_hooks_never_read_the_env_file_of_a_folder(station: Station, project: Path) -> None:
    (project / ".env").write_text(f"HELICONE_API_KEY={station.key}\n")
    waiting_without_a_key(station)
    with hook(replace(station, key="")) as process:
        show(process, project, asked(project))
        process.end()
    assert list(destinations(station)) == [""]
    with closing(open_ledger(station.spool)) as db:
        assert [one.key_fingerprint for one in destination.destinations(db)] == [""]
