"""What is owed to the plugin's notices in the ledger, and when each of them is looked at."""

from __future__ import annotations

import sqlite3

from app.capture.messages import Line
from app.capture.notices import FAILED_S, SOON_S, Notices, leave, look_again, postpone, settle
from app.ledger import notices
from app.ledger.notices import TurnRead, Unread
from tests.support.ledger_bench import LedgerBench, version


def test_a_notice_is_open_until_it_is_settled_and_a_later_one_stays(db: sqlite3.Connection) -> None:
    first = notices.note_notice(db, "store", "ses_1", "here", 1_000)
    later = notices.note_notice(db, "store", "ses_1", "here", 900)  # by a clock that was set back
    notices.note_notice(db, "another", "ses_1", "here", 1_000)
    assert notices.settle_notices(db, "store", {"ses_1": first}) == 0
    assert notices.open_notices(db, "store") == {"ses_1": (later, "here")}
    assert notices.settle_notices(db, "store", {"ses_1": later, "ses_2": later}) == 1
    assert notices.open_notices(db, "store") == {}
    assert notices.open_notices(db, "another") == {"ses_1": (1_000, "here")}
    assert notices.forget_notices(db, "another", 1_001) == 0
    assert notices.forget_notices(db, "store", 1_001) == 1
    assert notices.unread(db) == []


def test_what_is_open_is_told_by_the_reason_that_it_waits_for(db: sqlite3.Connection) -> None:
    for number in range(3):
        notices.note_notice(db, "store", f"ses_{number}", "here", 1_000 + number)
    notices.note_wait(db, "store", ["ses_1", "ses_2"], "away")
    assert notices.unread(db) == [Unread(None, 1, 1_000), Unread("away", 2, 1_001)]
    notices.note_notice(db, "store", "ses_1", "here", 2_000)
    assert notices.unread(db) == [Unread(None, 2, 1_000), Unread("away", 1, 1_002)]


def test_how_a_turn_was_read_is_kept_with_those_that_the_ledger_has(db: sqlite3.Connection) -> None:
    bench = LedgerBench(db)
    bench.put(version())
    read = TurnRead(7, 1_000, '{"mode": "full"}')
    notices.note_turns_read(db, bench.destination, "ses_1", {"t1": read, "t2": read})
    assert notices.turns_read(db, bench.destination, "ses_1") == {"t1": read}
    assert notices.turns_read(db, bench.destination, "ses_2") == {}
    if isinstance(db, sqlite3.Connection):
        assert db.execute("pragma synchronous").fetchone()[0] == 2  # full, as ever


def said(session: str, why: str = "idle", number: int | None = None) -> Line:
    return Line("notice", "/here", {}, session, why, number)


def test_what_is_unfinished_is_looked_at_soon_then_with_the_next_notice() -> None:
    notices = Notices()
    one = notices.add(said("ses_1"), 1)
    assert notices.next(10.0) is one
    pauses = []
    now_s = 10.0
    while one.due_s is not None:
        look_again(one, now_s)
        pauses.append(None if one.due_s is None else round(one.due_s - now_s, 3))
        now_s = one.due_s or now_s
    assert pauses == [*SOON_S, None]
    assert notices.next(1e9) is None
    assert notices.add(said("ses_1"), 2).due_s == 0


def test_a_session_at_work_is_not_looked_at_again_before_it_says_something() -> None:
    notices = Notices()
    one = notices.add(said("ses_1", "busy"), 1)
    look_again(one, 10.0)
    assert one.due_s is None
    assert notices.is_at_work("ses_1")
    notices.add(said("ses_1"), 2)
    assert not notices.is_at_work("ses_1")


def test_lines_are_acknowledged_up_to_the_first_that_nobody_has_looked_for() -> None:
    notices = Notices()
    first = notices.add(said("ses_1", number=1), 1)
    second = notices.add(said("ses_2", number=2), 2)
    again = notices.add(said("ses_1", number=3), 3)
    assert first.number == again.number == notices.acknowledged() == 1
    settle(again)
    assert notices.acknowledged() == 2
    postpone(second, 10.0, FAILED_S)
    assert notices.acknowledged() is None
    third = notices.add(said("ses_3", number=4), 4)
    leave(third)
    assert notices.acknowledged() is None


def test_what_may_be_anywhere_in_a_session_is_remembered_until_it_is_read() -> None:
    notices = Notices()
    notices.add(said("ses_1", "reverted"), 1)
    one = notices.add(said("ses_1"), 2)
    assert one.is_anywhere
    settle(one)
    assert not notices.add(said("ses_1"), 3).is_anywhere


def test_a_session_is_owned_with_the_one_inside_which_it_is_shown() -> None:
    notices = Notices()
    notices.add(said("ses_b"), 1).root = "ses_a"
    notices.add(said("ses_c"), 2)
    assert notices.owned() == ["ses_a", "ses_b", "ses_c"]
    assert [one.session for one in notices.inside("ses_a")] == ["ses_b"]
    notices.drop("ses_b")
    assert notices.owned() == ["ses_c"]


def test_sessions_of_which_nothing_is_known_have_nothing_to_do_with_each_other() -> None:
    notices = Notices()
    first, second = notices.add(said("ses_1"), 1), notices.add(said("ses_2"), 2)
    assert notices.due_inside(first, 10.0) == [first]
    first.root = second.root = "ses_0"
    assert notices.due_inside(first, 10.0) == [first, second]
