from __future__ import annotations

import json
import pickle
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app import queue as bell_module
from app.queue import Queue


class Opened:
    """Bells of one spool; closed at the end of the test."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.bells: list[Queue] = []
        self.heard: list[str] = []

    def queue(self, destination_id: int = 1) -> Queue:
        self.bells.append(Queue(self.spool, destination_id, self.heard.append))
        return self.bells[-1]


@pytest.fixture
def opened(spool: Path) -> Iterator[Opened]:
    bells = Opened(spool)
    yield bells
    for queue in bells.bells:
        queue.close()


def answer(queue: Queue) -> bool:
    """Do what a consumer's thread does with the next message; False when there is none."""
    task = queue.huey.dequeue()
    if task is None:
        return False
    queue.huey.execute(task)
    return True


def waiting(spool: Path) -> int:
    with closing(sqlite3.connect(spool / "queue.db")) as db:
        return int(db.execute("select count(*) from task").fetchone()[0])


def plant(spool: Path, data: bytes) -> None:
    with closing(sqlite3.connect(spool / "queue.db", isolation_level=None)) as db:
        db.execute("insert into task (queue, data, priority) values ('deliver-1', ?, 0)", (data,))


def test_ring_brings_its_key_to_another_process(opened: Opened) -> None:
    waking, answering = Queue(opened.spool, 1), opened.queue()
    waking.wake("key-1")
    waking.wake("key-2")
    waking.close()
    assert (answer(answering), answer(answering), answer(answering)) == (True, True, False)
    assert opened.heard == ["key-1", "key-2"]


def test_what_is_live_is_answered_before_history_that_was_rung_earlier(opened: Opened) -> None:
    queue = opened.queue()
    queue.wake("old-1", is_history=True)
    queue.wake("old-2", is_history=True)
    queue.wake("live")
    assert queue.waiting() == 3
    assert (answer(queue), answer(queue), answer(queue)) == (True, True, True)
    assert opened.heard == ["live", "old-1", "old-2"]


def test_destinations_do_not_take_each_others_rings(opened: Opened) -> None:
    first, second = opened.queue(1), opened.queue(2)
    first.wake("for the first")
    assert not answer(second)
    assert answer(first)
    assert opened.heard == ["for the first"]


def test_ring_without_somebody_to_answer_does_nothing(spool: Path) -> None:
    queue = Queue(spool, 1)
    queue.wake("key")
    assert answer(queue)
    queue.close()


def test_file_is_private(opened: Opened, spool: Path) -> None:
    opened.queue().wake("key")
    for path in spool.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_message_is_json_with_a_name_and_a_key_alone(opened: Opened, spool: Path) -> None:
    opened.queue().wake("key-1")
    with closing(sqlite3.connect(spool / "queue.db")) as db:
        [(data,)] = db.execute("select data from task").fetchall()
    message = json.loads(data)
    assert (set(message), message["name"], message["args"]) == ({"id", "name", "args"}, "app.bell.deliver", ["key-1"])


class Planted:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_planted_pickle_is_not_executed(opened: Opened, spool: Path, tmp_path: Path) -> None:
    queue = opened.queue()
    plant(spool, pickle.dumps(Planted(tmp_path / "executed")))
    with pytest.raises(ValueError, match="decode"):
        answer(queue)
    assert not (tmp_path / "executed").exists()
    queue.wake("next")
    assert answer(queue)
    assert opened.heard == ["next"]


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"id": "1", "name": "os.system", "args": ["true"]}', b'{"id": 1, "name": 2, "args": 3}'],
)
def test_planted_message_costs_itself_and_nothing_else(opened: Opened, spool: Path, data: bytes) -> None:
    queue = opened.queue()
    plant(spool, data)
    with pytest.raises(Exception):  # noqa: B017, PT011 - huey's consumer logs whatever it is and goes on
        answer(queue)
    assert waiting(spool) == 0
    queue.wake("next")
    assert answer(queue)
    assert opened.heard == ["next"]


def test_rings_are_bounded(opened: Opened, spool: Path) -> None:
    queue = opened.queue()
    with closing(sqlite3.connect(spool / "queue.db", isolation_level=None)) as db:
        db.execute("begin")
        db.executemany(
            "insert into task (queue, data, priority) values ('deliver-1', '{}', 0)",
            [()] * (bell_module.WAKES_MAX - 1),
        )
        db.execute("commit")
    queue.wake("the last one")
    queue.wake("one too many")
    assert waiting(spool) == bell_module.WAKES_MAX


def test_locked_queue_loses_the_ring_without_a_word(opened: Opened, spool: Path) -> None:
    queue = opened.queue()
    with closing(sqlite3.connect(spool / "queue.db", isolation_level=None)) as db:
        db.execute("begin exclusive")
        queue.wake("lost")
        db.execute("rollback")
    assert waiting(spool) == 0
    queue.wake("heard")
    assert waiting(spool) == 1


def test_queue_that_was_deleted_is_made_anew_by_the_next_bell(opened: Opened, spool: Path) -> None:
    opened.queue().wake("lost")
    for path in spool.glob("queue.db*"):
        path.unlink()
    queue = opened.queue()
    queue.wake("heard")
    assert waiting(spool) == 1


def test_damaged_queue_loses_the_ring_without_a_word(opened: Opened, spool: Path) -> None:
    queue = opened.queue()
    queue.wake("before")
    queue.huey.storage.close()
    (spool / "queue.db").write_bytes(b"no database" * 1_000)
    queue.wake("lost")


def test_damaged_queue_is_made_anew_by_the_next_bell(opened: Opened, spool: Path) -> None:
    spool.mkdir(mode=0o700)
    (spool / "queue.db").write_bytes(b"no database " * 1000)
    queue = opened.queue()
    queue.wake("a" * 64)
    assert answer(queue)
    assert opened.heard == ["a" * 64]


def test_a_queue_damaged_under_an_open_bell_is_made_anew_by_the_next_ring(opened: Opened, spool: Path) -> None:
    queue = opened.queue()
    queue.wake("before")
    queue.huey.storage.close()  # it is opened again by whoever needs it
    (spool / "queue.db").write_bytes(b"no database" * 1_000)
    queue.wake("heard")
    assert answer(queue)
    assert opened.heard == ["heard"]


def test_bells_find_each_other_again_after_one_has_made_the_queue_anew(opened: Opened, spool: Path) -> None:
    waking, answering = opened.queue(), opened.queue()
    waking.wake("before")
    for path in spool.glob("queue.db*"):
        path.unlink()
    waking.wake("after")
    assert answering.mend()
    assert not answering.mend()
    assert answer(answering)
    assert opened.heard == ["after"]


def test_a_locked_queue_is_not_taken_for_a_damaged_one(opened: Opened, spool: Path) -> None:
    queue = opened.queue()
    file = (spool / "queue.db").stat().st_ino
    with closing(sqlite3.connect(spool / "queue.db", isolation_level=None)) as db:
        db.execute("begin exclusive")
        assert not queue.mend()
        db.execute("rollback")
    assert (spool / "queue.db").stat().st_ino == file


def test_what_was_rung_is_known_until_it_is_answered_or_taken_for_lost(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = opened.queue()
    queue.wake("answered")
    queue.wake("lost")
    assert queue.woken() == {"answered", "lost"}
    assert answer(queue)
    assert queue.woken() == {"lost"}
    monkeypatch.setattr(bell_module, "WAKE_AGAIN_S", 0.0)
    assert queue.woken() == set()
