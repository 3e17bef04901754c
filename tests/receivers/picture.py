"""Makes `docs/phoenix.png`: a turn as the real Phoenix shows it in a browser.

python -m tests.receivers.picture      needs chromium, and installs Phoenix where it is not yet
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from app.transcript.parse import parse
from tests.support.checkout import ROOT
from tests.support.receivers import phoenix
from tests.support.spans import records
from tests.system import picture

PICTURE = ROOT / "docs" / "phoenix.png"
SIZE = (1500, 600)


def main() -> None:
    browser = shutil.which("chromium") or sys.exit("chromium is needed")
    sessions = _today(picture.sessions())
    (turn,) = parse({"root": sessions[0]["info"]["id"], "sessions": sessions}).turns
    (record,) = records(turn)
    pages = {PICTURE: f"redirects/traces/{uuid.UUID(record.request_id).hex}"}
    for name, path in [one.split("=") for one in sys.argv[1:]]:
        pages[Path(name)] = path.replace("SESSION", turn.session.id)
    with (
        tempfile.TemporaryDirectory(prefix="opencode-helicone-phoenix-") as name,
        phoenix(Path(name) / "phoenix", project="shop") as receiver,
    ):
        receiver.send(record)
        receiver.await_stored(record)
        for target, path in pages.items():
            _photograph(browser, Path(name) / "profile", f"{receiver.url}/{path}", target)


def _photograph(browser: str, profile: Path, url: str, target: Path) -> None:
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1", "--disable-gpu"]
    options += [f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}", "--virtual-time-budget=30000"]
    command = [browser, *options, f"--screenshot={target}", url]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def _today(value: Any) -> Any:
    """Phoenix lists the last seven days."""
    moved_ms = int(time.time() * 1000) - 60_000 - picture.AT_MS
    match value:
        case dict():
            return {name: _today(one) for name, one in value.items()}
        case list():
            return [_today(one) for one in value]
        case int() if not isinstance(value, bool) and re.match("1764", str(value)) and value > 10**12:
            return value + moved_ms
        case _:
            return value


if __name__ == "__main__":
    main()
