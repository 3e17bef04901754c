"""What becomes of a notice after each outcome of a look at its session. Store, ledger and reader are stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.capture.messages import Line
from app.capture.notices import AGAIN_S, FAILED_S, SOON_S, Noticed, Notices
from app.capture.owed import Owed
from app.capture.process_notices import SETTINGS_S, NoticeProcessor
from app.capture.projects import Captures
from app.capture.session_reader import FAILURES_MAX, Look, Reader, ReadRequest
from app.sources.opencode.access import AbsentError, StoreError
from app.sources.opencode.store import Store

NOW_S, NOW_MS = 100.0, 100_000
SESSION = "ses_1"


@dataclass
class Scene:
    """One session, noticed once; `found` is what a look at it comes to."""

    found: Look | Exception | None = field(default_factory=Look)
    is_enabled: bool = True
    is_captured: bool = True
    told: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.notices = Notices()
        self.owed = SimpleNamespace(
            note=lambda *_: 7,
            all=dict,
            settle=lambda marks: self.done.append(f"settled {dict(marks)}"),
            give_up=lambda marks, _: self.done.append(f"gone {dict(marks)}"),
            wait=lambda sessions, reason: self.done.append(f"waits {sessions}: {reason}"),
        )
        store = SimpleNamespace(root_of=lambda session: session, changed_ms=lambda _: 5)
        reader = SimpleNamespace(look=self.read, let_go=lambda: None, is_known=lambda _: False)
        found = object() if self.is_captured else None
        seen = SimpleNamespace(
            settings=SimpleNamespace(enable=self.is_enabled), capture=found, folder="f", towards=lambda _: found
        )
        captures = SimpleNamespace(seen=lambda _: seen)
        self.notice_processor = NoticeProcessor(
            cast("Store", store),
            cast("Captures", captures),
            self.notices,
            cast("Owed", self.owed),
            {"helicone": cast("Reader", reader)},
            self.told.append,
        )

    def read(self, _: str, request: ReadRequest) -> Look | None:
        self.request = request
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def look(self, why: str = "idle", now_s: float = NOW_S) -> Noticed:
        if SESSION not in self.notices:
            self.notice_processor.owe(Line("notice", "/here", {}, SESSION, why, 3), NOW_MS)
        (one,) = self.notices
        self.notice_processor.look(one, now_s, NOW_MS)
        return one


SETTLED = [f"settled {{'{SESSION}': 7}}"]
GONE = [f"gone {{'{SESSION}': 7}}"]
OUTCOMES: Mapping[str, tuple[Callable[[], Scene], str, float | None, list[str]]] = {
    "read": (Scene, "idle", None, SETTLED),
    "there is more": (lambda: Scene(Look(has_more=True)), "idle", NOW_S, []),
    "unfinished": (lambda: Scene(Look(is_waiting=True)), "idle", NOW_S + SOON_S[0], []),
    "unfinished, and at work": (lambda: Scene(Look(is_waiting=True)), "busy", None, []),
    "not there yet": (lambda: Scene(None), "idle", NOW_S + SOON_S[0], []),
    "not there, and at work": (lambda: Scene(None), "busy", None, []),
    "cannot be read": (
        lambda: Scene(StoreError("locked")),
        "idle",
        NOW_S + FAILED_S,
        [f"waits ['{SESSION}']: OpenCode's store cannot be read"],
    ),
    "a bug": (
        lambda: Scene(KeyError("text")),
        "idle",
        NOW_S + AGAIN_S,
        [f"waits ['{SESSION}']: internal error KeyError"],
    ),
    "settings that cannot be used": (
        lambda: Scene(is_captured=False),
        "idle",
        NOW_S + SETTINGS_S,
        [f"waits ['{SESSION}']: the settings of its folder cannot be used"],
    ),
    "not enabled": (lambda: Scene(is_enabled=False), "idle", None, SETTLED),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_what_becomes_of_a_notice(name: str) -> None:
    scene, why, due_s, done = OUTCOMES[name]
    made = scene()
    assert made.look(why).due_s == due_s
    assert made.done == done
    assert "text" not in "".join(made.told)


def test_a_session_that_stays_away_is_given_up_after_the_last_of_its_soon_looks() -> None:
    scene = Scene(None)
    for _ in SOON_S:
        scene.look()
        assert scene.done == []
    scene.look()
    assert scene.done == GONE
    assert SESSION not in scene.notices


@pytest.mark.parametrize(("error", "given_up"), [(AbsentError("no file"), True), (StoreError("locked"), False)])
def test_at_the_end_a_store_that_is_not_there_is_no_session_more_and_one_that_fails_is_given_up(
    error: Exception, *, given_up: bool
) -> None:
    scene = Scene(error)
    scene.look()
    scene.notices.has_ended = True
    scene.notice_processor.end(NOW_S)
    looks = 0
    while not scene.notice_processor.is_given_up and SESSION in scene.notices and looks <= FAILURES_MAX:
        scene.look()
        looks += 1
    assert (SESSION not in scene.notices) == given_up
    assert looks == (1 if given_up else FAILURES_MAX)


@pytest.mark.parametrize(
    ("why", "has_ended", "expected"),
    [
        ("idle", False, {"whole": False, "again": True, "is_over": False, "changed_ms": None}),
        ("late", False, {"whole": True, "again": True, "is_over": False, "changed_ms": None}),
        ("idle", True, {"whole": True, "again": True, "is_over": True, "changed_ms": 5}),
    ],
)
def test_how_a_session_is_read_for_a_notice(why: str, *, has_ended: bool, expected: dict[str, Any]) -> None:
    scene = Scene()
    scene.notices.has_ended = has_ended
    scene.look(why)
    assert {name: getattr(scene.request, name) for name in expected} == expected
