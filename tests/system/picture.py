"""Makes `docs/session.png`: the receiver's page of a session, as a browser shows it.

python -m tests.system.picture      needs chromium
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.checkout import ROOT
from tests.support.processes import Station
from tests.support.servers import receiving
from tests.support.snapshots import assistant, entry, task, text, tool, user

PICTURE = ROOT / "docs" / "session.png"
SIZE = (900, 690)
AT_MS = 1_764_500_000_000
MODEL = {"providerID": "anthropic", "modelID": "claude-sonnet-4-5"}


def tokens(read: int, cached: int, written: int) -> dict[str, Any]:
    return {"input": read, "output": written, "reasoning": 0, "cache": {"read": cached, "write": 0}}


def spoken(name: str, value: str) -> dict[str, Any]:
    return text(value, f"prt_{name}")


def sessions() -> list[dict[str, Any]]:
    """A session as `opencode export` shows it, and that of its subagent. What it says is made up."""
    tests_run = tool(
        "prt_4",
        status="completed",
        input={"command": "pytest tests/test_invoice.py"},
        output="1 failed: 12.345 is rounded to 12.34",
        time={"start": AT_MS + 4_100, "end": AT_MS + 6_300},
    )
    looked = task(
        "ses_2d3e4f5a6b7cSUBAGENT",
        "prt_5",
        input={"description": "find the rounding", "prompt": "Where are totals rounded?"},
        output="app/invoice.py rounds with round()",
        time={"start": AT_MS + 6_400, "end": AT_MS + 9_900},
    )
    said = "Totals are rounded half to even. I shall round them half up, and add the case to the tests."
    root = entry(
        user("msg_01", AT_MS, spoken("1", "The total of invoice 1207 is a cent too low. Mend the rounding, please.")),
        assistant("msg_02", AT_MS + 900, spoken("2", "I run the tests first."), tests_run, looked, parent="msg_01",
                  cost=0.0213, tokens=tokens(1_840, 11_200, 212), finish="tool-calls",
                  time={"created": AT_MS + 900, "completed": AT_MS + 10_100}, **MODEL),
        assistant("msg_03", AT_MS + 10_200, spoken("3", said), parent="msg_01", cost=0.0174,
                  tokens=tokens(960, 13_400, 148),
                  time={"created": AT_MS + 10_200, "completed": AT_MS + 14_600}, **MODEL),
        id="ses_2d3e4f5a6b7cSESSION", title="Rounding of invoice totals", directory="/home/dev/shop",
        time={"created": AT_MS, "updated": AT_MS + 14_600},
    )  # fmt: skip
    child = entry(
        user("msg_11", AT_MS + 6_450, spoken("6", "Where are totals rounded?")),
        assistant("msg_12", AT_MS + 6_500, spoken("7", "app/invoice.py rounds with round()"), parent="msg_11",
                  cost=0.0042, tokens=tokens(610, 4_100, 37),
                  time={"created": AT_MS + 6_500, "completed": AT_MS + 9_800}, **MODEL),
        id="ses_2d3e4f5a6b7cSUBAGENT", parentID="ses_2d3e4f5a6b7cSESSION", title="find the rounding",
        directory="/home/dev/shop", time={"created": AT_MS + 6_440, "updated": AT_MS + 9_800},
    )  # fmt: skip
    return [root, child]


def main() -> None:
    browser = shutil.which("chromium") or sys.exit("chromium is needed")
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-picture-") as name:
        home = Path(name)
        with receiving(home / "store.db") as receiver:
            station = Station(home, receiver.url)
            files = [home / f"{number}.json" for number, _ in enumerate(sessions())]
            for file, told in zip(files, sessions(), strict=True):
                file.write_text(json.dumps(told), "utf-8")
            for arguments in (["import", *map(str, files)], ["flush"]):
                done = station.run(*arguments)
                if done.returncode != 0:
                    sys.exit(done.stdout + done.stderr)
            session = receiver.rows()[0].log.properties["Helicone-Session-Id"]
            command = [
                browser, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={home / 'browser'}",
                f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={PICTURE}",
                f"{receiver.url}/session?{urlencode({'id': session})}",
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
