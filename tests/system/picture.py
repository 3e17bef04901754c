"""Makes the pictures in `docs/`: the receiver's page of a session, and two of the web view, as a browser shows them.

python -m tests.system.picture      needs chromium
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Browser, sync_playwright

from app.runtime import clock
from tests.support.browser import CHROMIUM
from tests.support.checkout import ROOT
from tests.support.long_use import LongUse
from tests.support.processes import Station
from tests.support.servers import receiving
from tests.support.snapshots import assistant, entry, task, text, tool, user
from tests.support.web import showing, site_of

DOCS = ROOT / "docs"
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


def shoot(browser: Browser, name: str, *pages: str, size: tuple[int, int], scheme: Any = "light") -> None:
    """The last of these pages; the others are gone through first."""
    with browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme) as context:
        page = context.new_page()
        for url in pages:
            page.goto(url)
        page.screenshot(path=DOCS / name)
    sys.stdout.write(f"docs/{name}: {(DOCS / name).stat().st_size} bytes\n")


def of_receiver(browser: Browser, home: Path) -> None:
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
        shoot(browser, "session.png", f"{receiver.url}/session?{urlencode({'id': session})}", size=(900, 640))


def of_web(browser: Browser, home: Path) -> None:
    use = LongUse(home, clock.now_ms()).make()
    for name, page, size, scheme in (
        ("web-overview.png", "/", (1100, 700), "light"),
        ("web-session.png", f"/session?id={use.latest}", (1100, 560), "dark"),
    ):
        with showing(site_of(use)) as web:
            shoot(browser, name, web.opened_by, web.url + page, size=size, scheme=scheme)


def main() -> None:
    if CHROMIUM is None:
        sys.exit("chromium is needed")
    with (
        tempfile.TemporaryDirectory(prefix="opencode-helicone-picture-") as name,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        for make in (of_receiver, of_web):
            home = Path(name) / make.__name__
            home.mkdir()
            make(browser, home)


if __name__ == "__main__":
    main()
