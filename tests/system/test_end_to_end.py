"""The real OpenCode at one end, a Helicone-compatible server at the other, and our real processes between them."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.exporters.helicone.client import Client
from app.ledger import job
from app.ledger.job import Body
from app.operations.sessions import list_sessions, open_session
from app.receiver.store import Stored
from app.runtime import clock
from app.runtime.liveness import present
from app.sources.opencode import install
from app.sources.opencode.store import Store
from tests.support.opencode import OpenCode, Server
from tests.support.processes import Station, end_automatic_workers, worker
from tests.support.servers import Receiver, receiving
from tests.support.waiting import wait_until

pytest_plugins = ["tests.support.opencode"]
pytestmark = pytest.mark.opencode

DELIVERY_S = 60


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with receiving(tmp_path / "receiver" / "store.db") as running:
        yield running


@pytest.fixture
def station(tmp_path: Path, receiver: Receiver) -> Station:
    (tmp_path / "station").mkdir()
    return Station(tmp_path / "station", receiver.url)


def project_with_plugin(opencode: OpenCode, directory: Path) -> Path:
    project = opencode.project(directory)
    install.install(install.Project(project), python=sys.executable)
    opencode.spare_installation(project / ".opencode")
    return project


def for_opencode(station: Station) -> dict[str, str]:
    """What a person exports before starting OpenCode. The plugin of a project finds its command by PATH."""
    ours = {name: value for name, value in station.environ.items() if "HELICONE" in name}
    return {**ours, "PATH": f"{Path(sys.executable).parent}:{station.environ['PATH']}"}


def arrived(receiver: Receiver, root: str) -> list[Stored]:
    """What a search for the session's path finds."""
    prefix = f"/opencode/{root}"
    return [row for row in receiver.rows() if row.path == prefix or row.path.startswith(prefix + "/")]


def expect_delivered(opencode: OpenCode, project: Path, station: Station, receiver: Receiver) -> list[Stored]:
    """Everything of the project's sessions arrives, once, with OpenCode's own tokens and cost."""
    wait_until(lambda: station.counts().delivered and station.counts().pending == 0, DELIVERY_S)
    own = opencode.sessions(project)
    (root,) = [one["id"] for one in own if one["parent_id"] is None]
    messages = [message for one in own for message in opencode.stored(one["id"])]
    calls = [one["info"] for one in messages if one["info"]["role"] == "assistant"]
    tools = [part for one in messages for part in one["parts"] if part["type"] == "tool"]
    expected = len(own) + len(messages) + len(tools)
    wait_until(lambda: len(arrived(receiver, root)) >= expected and station.counts().pending == 0, DELIVERY_S)
    rows = arrived(receiver, root)
    with closing(Client(station.key)) as client:
        ids = [uuid.UUID(row.log.request_id) for row in rows]
        read_back = client.stored(f"{receiver.url}/v1/request/query-clickhouse", start_ms=0, request_ids=ids)
        assert set(read_back) == set(ids)
    assert len(rows) == len(receiver.rows()) == expected
    assert {row.log.properties["Helicone-Session-Id"] for row in rows} == {root}
    answers = [row.log for row in rows if row.log.model == "fake/fake-large"]
    assert len(answers) == len(calls)
    assert sum(log.cost_usd for log in answers) == pytest.approx(sum(call["cost"] for call in calls))
    assert sum(log.prompt_tokens + log.cache_read_tokens for log in answers) == sum(
        call["tokens"]["input"] + call["tokens"]["cache"]["read"] for call in calls
    )
    assert sum(log.completion_tokens for log in answers) == sum(
        call["tokens"]["output"] + call["tokens"]["reasoning"] for call in calls
    )
    return rows


@pytest.mark.parametrize("script", ["tools", "http401", "task"])
def test_a_run_of_opencode_is_delivered_whole(
    opencode: OpenCode, station: Station, receiver: Receiver, tmp_path: Path, script: str
) -> None:
    project = project_with_plugin(opencode, tmp_path / "project")
    with worker(station):
        finished = opencode.run(project, f"[[script:{script}]] do it", environ=for_opencode(station))
        assert finished.exit_code == (1 if script == "http401" else 0)
        rows = expect_delivered(opencode, project, station, receiver)
    statuses = {row.log.status for row in rows if row.log.model == "fake/fake-large"}
    assert statuses == ({401} if script == "http401" else {200})
    if script == "task":
        assert any("/tool-task/ses_" in row.path for row in rows)
        expect_previewed(opencode, station, rows)
        expect_shown(opencode, station, rows)


def expect_previewed(opencode: OpenCode, station: Station, rows: list[Stored]) -> None:
    """`preview SESSION`, out of OpenCode's own store, shows what arrived."""
    root = rows[0].log.properties["Helicone-Session-Id"]
    at_home = replace(station, variables={"XDG_DATA_HOME": str(opencode.home / ".local" / "share")})
    (previewed,) = json.loads(at_home.run("preview", "--json", root).stdout)["sessions"]
    ids = {record["request_id"] for record in previewed["records"]}
    assert ids == {row.log.request_id for row in rows}


def expect_shown(opencode: OpenCode, station: Station, rows: list[Stored]) -> None:
    """The web view's page of the session shows the tree that arrived, each row as long and in the same state."""
    root = rows[0].log.properties["Helicone-Session-Id"]
    store = Store(opencode.home / ".local" / "share" / "opencode" / "opencode.db")
    with station.ledger() as db:
        found = open_session(db, store, root, "/opencode", clock.now_ms(), 50)
        (listed,) = list_sessions(db, store, root, 50).rows
    spans = [span for turn in found.turns for span in turn.spans]
    there = [(row.path.rpartition("/")[2], row.log.created_ms, row.log.latency_ms) for row in rows]
    assert sorted((span.label, span.start_ms, span.length_ms or 0) for span in spans) == sorted(there)
    assert ({span.state for span in spans}, found.problem) == ({"taken"}, "")
    assert (listed.state, listed.models) == ("delivered", ("fake/fake-large",))
    tokens = sum(one.log.prompt_tokens + one.log.cache_read_tokens + one.log.completion_tokens for one in rows)
    assert listed.tokens == tokens


def test_an_abort_and_two_prompts_of_one_session_are_delivered_whole(
    opencode: OpenCode, station: Station, receiver: Receiver, tmp_path: Path
) -> None:
    project = project_with_plugin(opencode, tmp_path / "project")
    with worker(station), opencode.serve(project, environ=for_opencode(station)) as server:
        session = server.new_session()
        server.prompt(session, "[[script:hello]] one")
        server.prompt(session, "[[script:second]] two")
        server.prompt_async(session, "[[script:slow:200]] three")
        wait_until(lambda: len(server.messages(session)) == 6 and server.messages(session)[-1]["parts"])
        server.abort(session)
        wait_until(lambda: "error" in server.messages(session)[-1]["info"])
        rows = expect_delivered(opencode, project, station, receiver)
    answers = {row.path.rsplit("/", 1)[1]: row.log for row in rows if row.log.model == "fake/fake-large"}
    assert {name: log.status for name, log in answers.items()} == {"msg-1": 200, "msg-3": 200, "msg-5": 500}
    assert json.loads(answers["msg-5"].response_body)["error"]["message"]


def test_without_a_worker_and_with_nobody_listening_opencode_is_the_same_and_nothing_is_lost(
    opencode: OpenCode, station: Station, receiver: Receiver, tmp_path: Path
) -> None:
    project = project_with_plugin(opencode, tmp_path / "project")
    away = replace(station, endpoint="http://127.0.0.1:9")
    # First nobody to deliver, then nobody to deliver to.
    for current in (station, away):
        finished = opencode.run(project, "[[script:hello]] do it", environ=for_opencode(current))
        assert opencode.plain is not None
        assert (finished.exit_code, finished.output) == (opencode.plain.exit_code, opencode.plain.output)
    wait_until(lambda: station.counts().pending == 4)
    with worker(station):
        wait_until(lambda: station.counts().delivered == 2, DELIVERY_S)
    assert len(receiver.rows()) == 3
    assert station.counts().pending == 2


def test_where_a_project_wants_nothing_nothing_is_made_and_no_hook_stays(
    opencode: OpenCode, station: Station, receiver: Receiver, tmp_path: Path
) -> None:
    project = project_with_plugin(opencode, tmp_path / "project")
    listed = {"plugin": [["./.opencode/plugin/opencode-helicone.js", {"enable": False}]]}
    (project / "opencode.json").write_text(json.dumps(listed))
    with opencode.serve(project, environ=for_opencode(station)) as server:
        session = server.new_session()
        server.prompt(session, "[[script:hello]] one")
        wait_until(lambda: "opencode-helicone" not in children_of(server), DELIVERY_S)
        server.prompt(session, "[[script:second]] two")
    assert not station.spool.exists()
    assert receiver.sends() == []


def children_of(server: Server) -> str:
    """The command lines of what it started and that still runs."""
    listed = subprocess.check_output(["ps", "-A", "-o", "ppid=,args="], text=True).splitlines()
    return "\n".join(line for line in listed if line.split()[0] == str(server.process.pid))


def test_a_project_with_its_own_app_package_and_env_file_redirects_nothing(
    opencode: OpenCode, station: Station, receiver: Receiver, tmp_path: Path
) -> None:
    project = project_with_plugin(opencode, tmp_path / "project")
    trap = tmp_path / "trapped"
    (project / "app").mkdir()
    for name in ("__init__", "__main__", "queue", "worker"):
        (project / "app" / f"{name}.py").write_text(f"open({str(trap)!r}, 'w')\n")
    (project / ".env").write_text(f"HELICONE_ENDPOINT=http://127.0.0.1:9\nOPENCODE_HELICONE_SPOOL_DIRECTORY={trap}\n")
    station = replace(station, variables={"OPENCODE_HELICONE_WORKER": "auto"})
    environ = {**for_opencode(station), "PYTHONPATH": ".", "PYTHONSTARTUP": "app/__init__.py"}
    try:
        opencode.run(project, "[[script:hello]] do it", environ=environ)
        expect_delivered(opencode, project, station, receiver)
    finally:
        end_automatic_workers(station)
    assert not trap.exists()


def test_a_backfill_from_opencodes_own_store_gives_the_keys_of_live_capture(
    opencode: OpenCode, station: Station, tmp_path: Path
) -> None:
    project = project_with_plugin(opencode, tmp_path / "project")
    for script in ("tools", "task"):
        opencode.run(project, f"[[script:{script}]] do it", environ=for_opencode(station))
    wait_until(lambda: not present(station.spool / "hooks"))
    (tmp_path / "later").mkdir()
    data = {"XDG_DATA_HOME": str(opencode.home / ".local" / "share")}
    later = Station(tmp_path / "later", station.endpoint, station.key, variables=data)
    arguments = ("backfill", "--project", str(project), "--json")
    done = later.run(*arguments)
    assert done.returncode == 0, done.stderr
    keys = made(station)
    assert len(keys) == 4
    assert made(later) == keys
    # Beside live capture there is nothing left to do.
    again = replace(station, variables=data).run(*arguments)
    assert (again.returncode, json.loads(again.stdout)["logs"]) == (0, 0)


def made(station: Station) -> dict[tuple[str, str], tuple[str, list[Body]]]:
    """By session and turn: the key, and the records to be sent."""
    with station.ledger() as db:
        rows = db.execute(
            "select j.id, s.name as session, t.name as turn, j.key from job j join turn t on t.id = j.turn_id"
            " join session s on s.id = j.session_id where j.state = 'pending'"
        ).fetchall()
        return {
            (row["session"], row["turn"]): (row["key"], list(job.bodies(db, row["id"], row["key"]))) for row in rows
        }
