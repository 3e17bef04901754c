"""Makes `docs/session.png`: the receiver's page of a recorded session, as a browser shows it.

    python -m tests.system.picture      needs chromium
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from tests.support.checkout import ROOT
from tests.support.processes import Station
from tests.support.recorded import export_files
from tests.support.servers import receiving

PICTURE = ROOT / "docs" / "session.png"
RECORDING = "f_subagent"
SIZE = (900, 560)


def main() -> None:
    browser = shutil.which("chromium") or sys.exit("chromium is needed")
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-picture-") as name:
        home = Path(name)
        with receiving(home / "store.db") as receiver:
            station = Station(home, receiver.url)
            for arguments in (["import", *map(str, export_files(RECORDING))], ["flush"]):
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
