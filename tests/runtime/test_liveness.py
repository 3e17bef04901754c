from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.runtime.liveness import Announced, ExclusiveLock, is_taken, present

ANNOUNCER = """
import sys
from pathlib import Path
from app.runtime.liveness import Announced
announced = Announced(Path(sys.argv[1]))
announced.say({"sessions": ["ses_1"]})
print(announced.name, flush=True)
sys.stdin.read()
announced.withdraw()
"""

HOLDER = """
import sys
from pathlib import Path
from app.runtime.liveness import ExclusiveLock
only = ExclusiveLock(Path(sys.argv[1]))
print(only.take(), flush=True)
sys.stdin.read()
"""


@contextmanager
def process(script: str, path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of its own that waits at its stdin, and the first line that it printed."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdout is not None
        try:
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


@pytest.mark.slow
def test_living_process_is_present_with_what_it_says(tmp_path: Path) -> None:
    with process(ANNOUNCER, tmp_path) as (_, name):
        [found] = present(tmp_path)
        assert (found.name, found.says) == (name, {"sessions": ["ses_1"]})


@pytest.mark.slow
def test_file_of_a_killed_process_is_found_free_and_removed(tmp_path: Path) -> None:
    with process(ANNOUNCER, tmp_path) as (killed, name):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.lock"]
    assert present(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_draft_of_a_process_killed_before_its_file_had_a_name_is_removed_by_a_later_one(tmp_path: Path) -> None:
    left, fresh = tmp_path / "left.draft", tmp_path / "fresh.draft"
    left.touch()
    fresh.touch()
    os.utime(left, (1_000, 1_000))
    announced = Announced(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / f"{announced.name}.lock", fresh])
    announced.withdraw()


@pytest.mark.slow
def test_process_that_ends_well_leaves_no_file(tmp_path: Path) -> None:
    with process(ANNOUNCER, tmp_path) as (ending, _):
        ending.communicate()
    assert list(tmp_path.iterdir()) == []


def test_each_of_several_is_found(tmp_path: Path) -> None:
    first, second = Announced(tmp_path), Announced(tmp_path)
    assert {one.name for one in present(tmp_path)} == {first.name, second.name}
    first.withdraw()
    assert {one.name for one in present(tmp_path)} == {second.name}
    second.withdraw()
    assert present(tmp_path) == []


def test_who_has_not_said_anything_yet_is_present_all_the_same(tmp_path: Path) -> None:
    announced = Announced(tmp_path)
    assert [one.says for one in present(tmp_path)] == [{}]
    announced.withdraw()


def test_what_is_said_last_replaces_what_was_said(tmp_path: Path) -> None:
    announced = Announced(tmp_path)
    announced.say({"sessions": ["ses_1", "ses_2", "ses_3"]})
    announced.say({"sessions": []})
    assert [one.says for one in present(tmp_path)] == [{"sessions": []}]
    announced.withdraw()


def test_reader_never_sees_half_of_what_is_said(tmp_path: Path) -> None:
    # Who reads nothing for a moment would take the speaker's sessions for abandoned.
    announced = Announced(tmp_path)
    facts = [{"sessions": ["ses"] * n} for n in (1, 40)]
    announced.say(facts[0])
    stop = threading.Event()

    def talk() -> None:
        while not stop.is_set():
            for fact in facts:
                announced.say(fact)

    talking = threading.Thread(target=talk)
    talking.start()
    heard = {json.dumps(one.says) for _ in range(2_000) for one in present(tmp_path)}
    stop.set()
    talking.join()
    announced.withdraw()
    assert heard <= {json.dumps(fact) for fact in facts}


def test_files_are_private(tmp_path: Path) -> None:
    announced = Announced(tmp_path / "hooks")
    only = ExclusiveLock(tmp_path / "only.lock")
    assert only.take()
    assert stat.S_IMODE((tmp_path / "hooks").stat().st_mode) == 0o700
    for path in (tmp_path / "hooks" / f"{announced.name}.lock", tmp_path / "only.lock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    only.release()
    announced.withdraw()


def test_nobody_is_present_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert present(tmp_path / "missing") == []


@pytest.mark.slow
def test_lock_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "worker.lock"
    ours = ExclusiveLock(path)
    assert not is_taken(path)
    with process(HOLDER, path) as (holder, took):
        assert took == "True"
        assert is_taken(path)
        assert not ours.take()
        holder.kill()
        holder.wait()
        assert not is_taken(path)
        assert ours.take()
    with process(HOLDER, path) as (_, took):
        assert took == "False"
    ours.release()


def test_lock_can_be_taken_again_after_its_release(tmp_path: Path) -> None:
    first, second = ExclusiveLock(tmp_path / "lock"), ExclusiveLock(tmp_path / "lock")
    assert first.take()
    assert not second.take()
    first.release()
    first.release()
    assert second.take()
    assert not first.take()
    second.release()
    assert not is_taken(tmp_path / "lock")


@contextmanager
def look(path: Path) -> Iterator[int]:
    """What `is_taken` does for an instant, held on to."""
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_those_who_look_do_not_take_each_other_for_a_holder(tmp_path: Path) -> None:
    path = tmp_path / "worker.lock"
    path.touch()
    with look(path):
        assert not is_taken(path)


def test_look_at_a_lock_does_not_keep_it_from_being_taken(tmp_path: Path) -> None:
    # Fifty hooks look whether a worker runs while one starts.
    path = tmp_path / "worker.lock"
    path.touch()
    only = ExclusiveLock(path)
    with look(path) as descriptor:
        assert only.take(lambda _: fcntl.flock(descriptor, fcntl.LOCK_UN))
    assert is_taken(path)
    only.release()
