"""`make demo`: a recorded OpenCode session through hook, ledger, Huey queue and worker into a local receiver.

No key, no OpenCode and no network is needed. Everything runs as it does for a user, and in a folder that is gone
afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from app.receiver import store
from app.runtime.liveness import present
from tests.support.processes import Station, hook, worker
from tests.support.recorded import export
from tests.support.servers import Receiver
from tests.support.waiting import wait_until

RECORDING = "f_subagent"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def receiver(home: Path) -> Iterator[tuple[str, str]]:
    """The receiver as the command that people type; its address and its key, as it says what to export."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "receiver", "--port", "0", "--store", str(home / "receiver.db")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=home,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline() + process.stdout.readline()
        told = dict(word.split("=", 1) for word in said.split() if "=" in word)
        yield told["HELICONE_ENDPOINT"], told["HELICONE_API_KEY"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def in_tree(rows: list[store.Stored]) -> list[store.Stored]:
    """As Helicone shows them: folders by path, each where its first request stands in time."""
    first: dict[str, int] = {}
    for position, row in enumerate(rows):
        for folder in folders(row.path):
            first.setdefault(folder, position)
    return sorted(rows, key=lambda row: [first[folder] for folder in folders(row.path)])


def folders(path: str) -> list[str]:
    """Every folder from the top down to `path` itself."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def tree(rows: list[store.Stored]) -> Iterator[str]:
    """One line per record: its place in the session, and what Helicone shows beside it."""
    width = max(len(label(row)) for row in rows)
    for row in rows:
        log = row.log
        read = log.prompt_tokens + log.cache_read_tokens
        tokens = f"{read} + {log.completion_tokens} tokens" if read or log.completion_tokens else ""
        cost = f"${log.cost_usd:.5f}" if log.cost_usd else ""
        yield f"   {label(row):<{width}}  {log.model:<21} {log.latency_ms:>5} ms  {tokens:>16}  {cost:>8}".rstrip()


def label(row: store.Stored) -> str:
    *above, name = row.path.strip("/").split("/")
    return "  " * len(above) + name


def run(home: Path) -> int:
    snapshot = export(RECORDING)
    with ExitStack() as running:
        say("1. a local receiver, compatible with Helicone")
        url, key = running.enter_context(receiver(home))
        station = Station(home, url, key)
        say(f"   {url}")
        say("2. a worker: huey_consumer app.worker.huey")
        running.enter_context(worker(station))
        wait_until(lambda: present(station.spool / "workers"), 60)
        say("3. a hook, given notice of a session with a subagent, which it reads from a store as OpenCode writes it")
        process = running.enter_context(hook(station))
        process.show(snapshot, directory=str(home))
        process.end()
        say("4. opencode-helicone flush")
        flushed = station.run("flush", "--timeout", "60")
        say(indented(flushed.stdout + flushed.stderr))
        if flushed.returncode != 0:
            return flushed.returncode
        say("5. the session, as Helicone shows it")
        say("\n".join(tree(in_tree(Receiver(url, home / "receiver.db").rows()))))
        say("6. opencode-helicone status")
        status = station.run("status")
        say(indented(status.stdout + status.stderr))
        return status.returncode


def indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.rstrip().split("\n"))


def main() -> None:
    try:
        with tempfile.TemporaryDirectory(prefix="opencode-helicone-demo-") as folder:
            sys.exit(run(Path(folder)))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
