from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.runtime import log
from app.runtime.log import BYTES_MAX, LINE_MAX, MESSAGES_MAX, REPEAT_MS, append, carry_warnings

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
    assert "before \\ud800 after" in (tmp_path / "a.log").read_text()


def test_what_would_steer_the_terminal_of_whoever_reads_it_is_escaped(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "a\x1b[2Jb\u202ec\u200bd\U000e0041e", NOON_MS)
    assert (tmp_path / "a.log").read_text().endswith(" a\\u001b[2Jb\\u202ec\\u200bd\\udb40\\udc41e\n")


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
from app.runtime.log import append
path, letter, lines, length = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for n in range(lines):
    append(path, f"{n:06} {letter * length}!", n * 1_000_000)
"""


def written_by_four(path: Path, lines: int, length: int) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter, str(lines), str(length)])
        for letter in "abcd"
    ]
    assert [writer.wait(300) for writer in writers] == [0, 0, 0, 0]


@pytest.mark.slow
def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    written_by_four(tmp_path / "a.log", 200, 300)
    lines = (tmp_path / "a.log").read_text().splitlines()
    assert len(lines) == 800
    assert all(re.fullmatch(r"\S+ \d{6} (a{300}|b{300}|c{300}|d{300})!", line) for line in lines)


@pytest.mark.slow
def test_writers_that_find_a_log_full_at_once_lose_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    written_by_four(path, 450, 900)  # 1.7 files full: one change from one file to the next
    lines = path.read_text().splitlines() + (tmp_path / "a.log.1").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 4 * 450
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.log", "a.log.1"]
    assert path.with_name("a.log.1").stat().st_size <= BYTES_MAX + 4 * LINE_MAX


def test_a_writer_that_comes_late_to_a_full_log_leaves_the_new_one_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("x" * (BYTES_MAX + 1))
    late = log._open(path)
    append(path, "by the first", NOON_MS)
    log._put_aside(path, late)
    os.close(late)
    assert "by the first" in path.read_text()
    assert path.with_name("a.log.1").read_text().startswith("x")


def test_a_writer_that_finds_another_at_putting_a_full_log_aside_waits_for_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("x" * (BYTES_MAX + 1))
    with path.open("rb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = threading.Thread(target=append, args=(path, "by the second", NOON_MS))
        second.start()
        second.join(0.2)  # it has the time to get it wrong
        path.rename(path.with_name("a.log.1"))
    second.join(60)
    assert path.read_text().endswith("by the second\n")
    assert path.with_name("a.log.1").stat().st_size == BYTES_MAX + 1


def test_a_writer_that_was_stopped_while_it_put_a_log_aside_stops_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runtime.log.PATIENCE", 3)
    path = tmp_path / "a.log"
    path.write_text("x" * (BYTES_MAX + 1))
    with path.open("rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        append(path, "by another", NOON_MS)
    assert path.read_text().endswith("by another\n")


# --- repeats


def test_a_message_that_comes_again_and_again_is_written_once_and_then_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for n in range(1_000):
        append(path, "the disk is full", NOON_MS + 500 * n)
        append(path, "the ledger is locked", NOON_MS + 500 * n)
    assert path.read_text().count("\n") == 2
    append(path, "another", NOON_MS + REPEAT_MS)
    said = [line.partition(" ")[2] for line in path.read_text().splitlines()]
    assert said[2:] == ["the disk is full (repeated 999 times)", "the ledger is locked (repeated 999 times)", "another"]


def test_a_message_that_comes_again_later_is_written_again(tmp_path: Path) -> None:
    for n in range(3):
        append(tmp_path / "a.log", "once an hour", NOON_MS + n * 3_600_000)
    assert [line[-12:] for line in (tmp_path / "a.log").read_text().splitlines()] == ["once an hour"] * 3


def test_a_clock_that_was_set_back_hides_nothing(tmp_path: Path) -> None:
    append(tmp_path / "a.log", "now", NOON_MS)
    append(tmp_path / "a.log", "now", NOON_MS - 86_400_000)
    assert (tmp_path / "a.log").read_text().count("now") == 2


@pytest.mark.slow
def test_what_was_counted_is_written_at_the_end_of_the_process(tmp_path: Path) -> None:
    script = WRITER.replace("{n:06} ", "").replace("n * 1_000_000", "n")
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.log"), "x", "9", "3"], check=True)
    said = [line.partition(" ")[2] for line in (tmp_path / "a.log").read_text().splitlines()]
    assert said == ["xxx!", "xxx! (repeated 8 times)"]


def test_what_could_not_be_written_is_when_it_can(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    path = tmp_path / "logs" / "a.log"
    for _ in range(3):
        append(path, "the disk is full", NOON_MS)
    append(path, "worse", NOON_MS)
    (tmp_path / "logs").unlink()
    append(path, "better", NOON_MS)
    said = [line.partition(" ")[2] for line in path.read_text().splitlines()]
    assert said == ["the disk is full (repeated 3 times)", "worse", "better"]


def test_messages_that_are_remembered_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for n in range(3 * MESSAGES_MAX):
        append(path, f"number {n}", NOON_MS)
        append(path, f"number {n}", NOON_MS)
    assert len(log._messages) <= MESSAGES_MAX
    assert path.read_text().count("number 0\n") == 1
    assert path.read_text().count("number 0 (repeated once)") == 1


# --- what libraries say


def test_warnings_of_libraries_are_lines_without_the_text_of_their_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    carry_warnings(tmp_path / "before.log")
    carry_warnings(path)
    library = logging.getLogger("some.library")
    try:
        for number in range(5):
            try:
                raise ValueError("a transcript")  # noqa: TRY301 - as in a library
            except ValueError:
                library.exception("task %s failed", number)
        library.info("never mind")
    finally:
        logging.getLogger().handlers = [one for one in logging.getLogger().handlers if not isinstance(one, log._Lines)]
    (line,) = path.read_text().splitlines()
    assert re.search(r" some\.library: task %s failed: ValueError at test_log\.py:\d+$", line)
    assert not (tmp_path / "before.log").exists()
