"""One machine, its centre and Helicone, all as they run: what the machine does when the centre says something else."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.database.postgres import PostgresLedger
from app.fleet import tenants
from app.fleet.queue import CentralQueue
from app.fleet.tenants import Changes
from app.ledger.counters import counters
from app.pages import loopback
from app.settings.heard import SILENT
from app.settings.names import DATABASE_URL
from tests.support.intake import start_intake
from tests.support.postgres import Server
from tests.support.processes import Station, start_consumer, worker
from tests.support.servers import Receiver, api_key, nobody, receiving
from tests.support.typed_commands import typed
from tests.support.waiting import wait_until
from tests.system.test_behind_an_intake import CANARY, charged, say

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Company:
    """A tenant with one machine, whose intake is not there yet."""

    server: Server
    db: PostgresLedger
    helicone: Receiver
    key: str
    """Helicone's."""
    token: str
    port: int
    home: Path
    """Of the centre's processes."""
    desk: Station

    @contextmanager
    def intake(self) -> Iterator[None]:
        with (
            loopback.listening("127.0.0.1", self.port) as bound,
            (self.home / "intake.log").open("ab") as output,
            start_intake(self.server.url, bound, {}, output) as process,
        ):
            try:
                yield
            finally:
                process.kill()

    def deliver(self) -> None:
        """Have all delivered that waits at the centre."""
        centre = Station(self.home, "", "", {DATABASE_URL: self.server.url})
        process = start_consumer(centre, 4, self.home / "consumer.log")
        try:
            wait_until(lambda: self.waiting() == 0)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def waiting(self) -> int:
        count: int = self.db.execute("select count(*) from job where state = 'pending'").fetchone()[0]
        return count

    def refused(self, status: str) -> int:
        """How often a log of the machine was answered so."""
        with self.desk.ledger() as own:
            return sum(one.count for one in counters(own, 0) if (one.kind, one.name) == ("failed", status))

    @property
    def first_line(self) -> str:
        return typed(self.desk, "status").stdout.splitlines()[0]


@pytest.fixture
def company(postgres_server: Server, tmp_path: Path) -> Iterator[Company]:
    key = api_key("k")
    for name in ("desk", "centre"):
        (tmp_path / name).mkdir()
    with (
        closing(postgres_server.emptied()) as db,
        closing(CentralQueue(postgres_server.url)) as queue,
        receiving(tmp_path / "store.db", keys=frozenset({key})) as helicone,
    ):
        queue.make_tables(db)
        tenants.add_tenant(db, "acme", endpoint=f"{helicone.url}/custom/v1/log", key=key)
        token = tenants.add_token(db, "acme", "desk")
        with nobody() as url:
            port = urlsplit(url).port
        assert port is not None
        desk = Station(tmp_path / "desk", f"{url}/custom/v1/log", token)
        yield Company(postgres_server, db, helicone, key, token, port, tmp_path / "centre", desk)


def bytes_under(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_machine_follows_what_its_centre_says(company: Company) -> None:
    desk = company.desk
    say(desk)
    with worker(desk):
        # Nothing is known yet.
        wait_until(lambda: company.first_line.startswith(f"waiting: 2 jobs wait: {SILENT} (ConnectError"))
        with company.intake():
            wait_until(lambda: desk.delivered(2))
            assert company.first_line == "ok: the centre has all that was captured"
            # What was made under another mode is refused, charged to nobody, and made again.
            tenants.change(company.db, "acme", Changes(export_mode="metadata_only"))
            say(desk, 2)
            wait_until(lambda: desk.delivered(3))
            assert charged(desk) == [("delivered", 0)] * 3
            assert company.refused("403") == 1
        # The intake is away: what it said last counts.
        say(desk, 3)
        wait_until(lambda: company.first_line.startswith("waiting: the intake cannot be reached"))
        with company.intake():
            wait_until(lambda: desk.delivered(4))
            assert company.refused("403") == 1
            # The token is revoked: one log is refused, and all wait.
            tenants.revoke(company.db, "acme", "desk")
            say(desk, 6)
            wait_until(lambda: "401: the token is revoked" in typed(desk, "status").stdout)
            assert company.first_line.startswith("problem: the intake refuses what is sent: 401")
            assert charged(desk)[4:] == [("pending", 0)] * 3
            assert company.refused("401") == 1
    company.deliver()
    assert len(company.helicone.rows()) >= 4
    assert {send.status for send in company.helicone.sends()} == {200}
    nobody_sees_what_is_not_theirs(company)


def nobody_sees_what_is_not_theirs(company: Company) -> None:
    words = ("status -v", "status --json", "config show", "doctor -v", "dead list", "sent")
    told = "".join(done.stdout + done.stderr for done in (typed(company.desk, *one.split()) for one in words)).encode()
    kept = bytes_under(company.desk.home)
    logged = bytes_under(company.home)
    for place in (told, kept, logged, json.dumps(company.desk.environ).encode()):
        assert company.key.encode() not in place
    assert company.token.encode() not in told + kept + logged
    assert company.token.encode() not in company.helicone.wire()
    assert CANARY.encode() not in logged


def test_verify_follows_what_the_machine_has_sent_to_helicone(company: Company) -> None:
    desk = company.desk
    say(desk, 2)
    with company.intake():
        with worker(desk):
            wait_until(lambda: desk.delivered(3))
        assert "delivered means here that the centre has it" in typed(desk, "verify").stdout
        (one,) = json.loads(typed(desk, "verify", "--remote", "--json").stdout)["sessions"]
        assert (one["remote"]["found"], one["remote"]["missing"]) == (0, 0)
        assert one["remote"]["at_centre"] == company.waiting() > 2
        company.deliver()
        (two,) = json.loads(typed(desk, "verify", "--remote", "--json").stdout)["sessions"]
        assert (two["remote"]["found"], two["remote"]["at_centre"]) == (one["remote"]["at_centre"], 0)
        # What is dead there is told here.
        first = company.db.execute("select id from job order by id limit 1").fetchone()[0]
        company.db.execute("update job set state = 'dead', error = '400: no', due_ms = null where id = ?", (first,))
        done = typed(desk, "verify", "--remote")
        assert done.returncode == 1
        assert "1 dead at the centre: 400: no" in done.stdout
        with worker(desk):
            wait_until(lambda: "1 log of this machine is dead at the centre" in company.first_line)
        assert "400: no" in typed(desk, "dead", "list").stdout


def test_doctor_sends_one_log_all_the_way(company: Company) -> None:
    tenants.change(company.db, "acme", Changes(export_mode="metadata_only"))
    with company.intake():
        done = typed(company.desk, "doctor", "--send", "--timeout", "0", "-v")
        assert "the intake says: export mode metadata_only, 0 redaction pattern(s)" in done.stdout
        assert "the centre has it, and has not delivered it within 0 s" in done.stdout
        company.deliver()
        assert len(company.helicone.rows()) == 1
