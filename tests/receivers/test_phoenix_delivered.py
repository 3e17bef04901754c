"""The whole way to the real Phoenix: hook, ledger, worker, reading back; killed, locked, changed, recalled."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from app.ledger.readback import confirmations
from app.sources.opencode.store import store_file
from tests.support import snapshots
from tests.support.lean_receiver import lean_receiver
from tests.support.processes import Station, hook
from tests.support.receivers import Receiver, phoenix
from tests.support.stores import put
from tests.support.waiting import wait_until

NAME = "phoenix"


@dataclass(slots=True)
class Site:
    station: Station
    receiver: Receiver

    @contextmanager
    def worker(self) -> Iterator[None]:
        with (self.station.home / "beside.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", "worker", "--destination", NAME],
                env=self.station.environ,
                cwd=self.station.home,
                stdout=output,
                stderr=output,
            )
        with process:
            try:
                yield
            finally:
                process.kill()

    def show(self, *told: dict[str, Any]) -> None:
        with hook(self.station) as process:
            for one in told:
                process.show(one)
                process.wait_for_ack()
            assert process.end() == 0

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.station.run(*arguments, "--destination", NAME)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def states(self) -> dict[str, int]:
        with self.station.ledger() as db:
            rows = db.execute(
                "select state, count(*) as jobs from job where destination_id ="
                " (select id from destination where name = ?) group by state",
                [NAME],
            ).fetchall()
        return {row["state"]: row["jobs"] for row in rows}

    def confirmed(self) -> int:
        with self.station.ledger() as db:
            (row,) = db.execute("select id from destination where name = ?", [NAME])
            return confirmations(db, row["id"]).confirmed

    def texts(self) -> list[str]:
        """What the roots at Phoenix were asked."""
        path = f"/v1/projects/{quote(self.receiver.project)}/spans?limit=1000&parent_id=null"
        status, _ = self.receiver.get(path)
        found = self.receiver.json(path)["data"] if status == 200 else []
        return sorted(one["attributes"]["input.value"] for one in found)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with phoenix(tmp_path_factory.mktemp("phoenix")) as receiver:
        yield receiver


@pytest.fixture
def site(tmp_path: Path, running: Receiver) -> Iterator[Site]:
    running.project = f"project {uuid.uuid4().hex[:8]}"
    folder = tmp_path / "config" / "opencode-helicone"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(
        f'[destinations.{NAME}]\nkind = "otlp"\nendpoint = "{running.url}"\npreset = "phoenix"\n'
        f'project = "{running.project}"\n',
        "utf-8",
    )
    with lean_receiver() as helicone:
        station = Station(tmp_path, helicone.url, variables={"OPENCODE_HELICONE_CONFIRM": "auto"})
        yield Site(station, running)


def asked(words: str, answered: str = "done") -> dict[str, Any]:
    """A session of one turn, just now: a destination gets nothing by itself of what was before it."""
    number, now_ms = uuid.uuid4().hex, int(time.time() * 1000)
    return snapshots.snapshot(
        snapshots.entry(
            snapshots.user(f"msg_1{number}", now_ms, snapshots.text(words, f"prt_1{number}")),
            snapshots.assistant(
                f"msg_2{number}",
                now_ms + 20,
                snapshots.text(answered, f"prt_2{number}"),
                parent=f"msg_1{number}",
            ),
            id=f"ses_{number}",
            time={"created": now_ms, "updated": now_ms},
        )
    )


def test_what_phoenix_loses_after_its_200_is_there_in_the_end(site: Site) -> None:
    site.show(asked("before"))
    with site.worker():
        wait_until(lambda: site.confirmed() == 1)
        with site.receiver.locked():  # it stores nothing, and says 200
            site.show(*(asked(f"killed {number}") for number in range(6)))
            wait_until(lambda: site.states() == {"delivered": 7})
            site.receiver.kill()
        site.receiver.start()
        assert site.texts() == ["before"]
        with site.receiver.locked():
            site.show(asked("locked"))
            wait_until(lambda: site.states().get("delivered") == 8)
            wait_until(lambda: "failed after savepoint rollback" in site.receiver.log.read_text())
        wait_until(lambda: site.confirmed() == 8)
    assert site.states() == {"delivered": 8}
    assert site.texts() == sorted(["before", "locked", *(f"killed {number}" for number in range(6))])


def test_a_changed_turn_takes_the_place_of_the_one_before_and_a_recall_leaves_no_word(site: Site) -> None:
    word, other = f"word{uuid.uuid4().hex}", f"other{uuid.uuid4().hex}"
    told = asked(word)
    put(store_file(site.station.environ), told)
    site.show(told)
    site.command("flush")
    wait_until(lambda: site.texts() == [word])
    told["sessions"][0]["messages"][0]["parts"][0]["text"] = other
    told["sessions"][0]["messages"][1]["info"]["time"]["completed"] += 1_000
    site.show(told)
    site.command("flush")
    wait_until(lambda: site.texts() == [other])
    assert not site.receiver.holds(word)
    done = site.command("recall", told["root"], "--blank", "--yes", "--json")
    assert json.loads(done.stdout)["outcomes"] == {"deleted": 1}
    assert site.texts() == []
    assert not site.receiver.holds(other)
