"""How long from OpenCode's `session.idle` to delivered, with an idle worker.

    python benchmarks/latency.py [turns]

The real OpenCode (from npm, into the tests' cache), its plugin, our hook, a `huey_consumer` as in the Procfile, and the
receiver, all on this machine. OpenCode's event stream tells when a session is idle; the ledger tells when the turn's
job was delivered. Between two turns the worker is left idle for a random while.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.fake_llm import fake_llm  # noqa: E402 - the tests' building blocks are no package of ours
from tests.support.opencode import OpenCode, Server, configuration, install_opencode, isolated  # noqa: E402
from tests.support.processes import Station, worker  # noqa: E402
from tests.support.servers import receiving  # noqa: E402
from tests.support.waiting import wait_until  # noqa: E402
from tests.system.test_end_to_end import for_opencode, project_with_plugin  # noqa: E402

GOAL_MEDIAN_MS = 500
GOAL_P99_MS = 2_000


class Idle:
    """When the sessions became idle, as OpenCode's event stream told."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.times_ms: list[int] = []
        url = f"{server.url}/event?{urlencode({'directory': str(directory)})}"
        self._stream = urllib.request.urlopen(url, timeout=600)  # noqa: S310 - loopback
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._stream:
            if line.startswith(b"data:") and json.loads(line[5:])["type"] == "session.idle":
                self.times_ms.append(time.time_ns() // 1_000_000)


def delivered_ms(station: Station) -> list[int]:
    """When each turn's job was delivered, oldest first; the sessions' own records are left out."""
    with station.ledger() as db:
        rows = db.execute(
            "select j.finished_ms from job j join turn t on t.id = j.turn_id"
            " where j.state = 'delivered' and t.name <> 'session' order by j.id"
        ).fetchall()
    return [row[0] for row in rows]


def measure(turns: int, folder: Path) -> list[int]:
    home = folder / "home"
    (home / ".config" / "opencode").mkdir(parents=True)
    with fake_llm() as llm_url, receiving(folder / "receiver" / "store.db") as receiver:
        config = home / ".config" / "opencode" / "opencode.json"
        config.write_text(json.dumps(configuration(llm_url)))
        opencode = OpenCode(install_opencode(), home, isolated(home))
        (folder / "station").mkdir()
        station = Station(folder / "station", receiver.url)
        project = project_with_plugin(opencode, folder / "project")
        with worker(station), opencode.serve(project, environ=for_opencode(station)) as server:
            idle = Idle(server, project)
            session = server.new_session()
            for turn in range(turns):
                server.prompt(session, f"[[script:hello]] turn {turn}")
                wait_until(lambda: len(delivered_ms(station)) > turn, 60)  # noqa: B023 - it is over before the next turn
                time.sleep(random.uniform(0.2, 2.0))  # noqa: S311 - a pause, no secret
            return [done - began for began, done in zip(idle.times_ms, delivered_ms(station), strict=True)]


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-latency-") as folder:
        taken_ms = sorted(measure(turns, Path(folder)))
    median_ms = statistics.median(taken_ms)
    p99_ms = taken_ms[min(len(taken_ms) - 1, int(len(taken_ms) * 0.99))]
    print(f"session.idle to delivered, {len(taken_ms)} turns: median {median_ms:.0f} ms, p99 {p99_ms} ms")
    print(f"goals: median under {GOAL_MEDIAN_MS} ms, p99 under {GOAL_P99_MS} ms")
    sys.exit(0 if median_ms < GOAL_MEDIAN_MS and p99_ms < GOAL_P99_MS else 1)


if __name__ == "__main__":
    main()
