"""`app.enqueue` in a program of somebody else, that has transcripts of its own, and neither OpenCode nor its store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.processes import Station, worker
from tests.support.recorded import SECRETS
from tests.support.servers import receiving
from tests.support.snapshots import assistant, entry, snapshot, text, user
from tests.support.waiting import wait_until

PROGRAM = """
import json, os, sys, time
from app.enqueue import Place, Queue, capture, enqueue, folder, open_ledger, parse, target, unattended

settings, now_ms = unattended(dict(os.environ)).load(), time.time_ns() // 1_000_000
db = open_ledger(settings.spool_directory)
ours = target(db, settings, now_ms)
wake = Queue(settings.spool_directory, ours.id).wake
place = Place(ours.id, folder(db, "/srv/bot"))
for line in sys.stdin:
    print(enqueue(db, parse(json.loads(line)), capture(settings, ()), place, now_ms=now_ms, wake=wake).new)
"""


def test_another_program_enqueues_what_it_said_and_the_worker_of_the_procfile_delivers_it(tmp_path: Path) -> None:
    elsewhere = tmp_path / "bot"
    elsewhere.mkdir()
    (elsewhere / "bot.py").write_text(PROGRAM)
    (tmp_path / "home").mkdir()
    said = user("ask-1", 1_700_000_000_010, text(f"the key is {SECRETS['SECRET_1']}", "p-1"))
    reply = assistant("reply-1", 1_700_000_000_020, text("I keep no keys", "p-2"), parent="ask-1", modelID="bot-3")
    line = json.dumps(snapshot(entry(said, reply, name="bot-session", version="bot 3.1", directory="/srv/bot")))
    with receiving(tmp_path / "receiver" / "store.db") as receiver:
        station = Station(tmp_path / "home", receiver.url)
        program = subprocess.run(
            [sys.executable, "-I", "bot.py"],
            cwd=elsewhere,
            env=station.environ,
            input=f"{line}\n{line}\n",
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (program.returncode, program.stdout, program.stderr) == (0, "2\n0\n", "")
        with worker(station):
            wait_until(lambda: station.delivered(2))
        logs = [row.log for row in receiver.rows()]
        assert {row.sends for row in receiver.rows()} == {1}
    assert {log.properties["Helicone-Session-Id"] for log in logs} == {"bot-session"}
    assert sorted(log.model for log in logs) == ["anthropic/bot-3", "opencode/session", "opencode/user"]
    bodies = "".join(log.request_body + log.response_body for log in logs)
    assert "I keep no keys" in bodies
    assert SECRETS["SECRET_1"] not in bodies
    assert not (station.home / "data").exists()
