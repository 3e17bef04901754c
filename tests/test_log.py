from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

from app.log import BYTES_MAX, LINE_MAX, append

NOON_MS = 1_700_000_000_123


def test_line_is_dated_in_utc(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "hook: ready", NOON_MS)
    assert (tmp_path / "a.log").read_text() == "2023-11-14T22:13:20.123+00:00 hook: ready\n"


def test_missing_directory_is_made_private_and_so_is_the_file(tmp_path: Path) -> None:
    append(tmp_path / "logs" / "a.log", "one", NOON_MS)
    assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "logs" / "a.log").stat().st_mode) == 0o600


def test_message_stays_on_one_line_and_bounded(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "one\r\ntwo\nthree", NOON_MS)
    append(tmp_path / "a.log", "x" * 5 * LINE_MAX, NOON_MS)
    first, second = (tmp_path / "a.log").read_text().splitlines()
    assert first.endswith("one  two three")
    assert len(second) < LINE_MAX + 40


def test_lone_surrogate_does_not_stop_the_log(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "before \ud800 after", NOON_MS)
    assert "before ? after" in (tmp_path / "a.log").read_text()


def test_full_log_begins_anew_and_the_one_before_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("old\n" + "x" * BYTES_MAX)
    append(path, "new", NOON_MS)
    assert path.read_text().endswith("new\n")
    assert path.stat().st_size < 100
    assert (tmp_path / "a.log.1").read_text().startswith("old")
    path.write_text("y" * (BYTES_MAX + 1))
    append(path, "newer", NOON_MS)
    assert (tmp_path / "a.log.1").read_text().startswith("y")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.log", "a.log.1"]


def test_log_that_cannot_be_written_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    append(tmp_path / "file" / "a.log", "lost", NOON_MS)
    (tmp_path / "folder.log").mkdir()
    append(tmp_path / "folder.log", "lost", NOON_MS)
    assert (tmp_path / "file").read_text() == "kept"


WRITER = """
import sys
from pathlib import Path
from app.log import append
for n in range(200):
    append(Path(sys.argv[1]), sys.argv[2] * 300 + "!", 0)
"""


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "a.log"), letter]) for letter in "abcd"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert len(lines) == 800
    assert all(re.fullmatch(r"\S+ (a{300}|b{300}|c{300}|d{300})!", line) for line in lines)
