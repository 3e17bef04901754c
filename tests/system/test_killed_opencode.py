"""The real OpenCode killed in the middle of turns, or run without us: the next start finds it all, and sends it once.

`make kills` plays each signal at each place.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.stress.kills import TOOL, Ground, ground, remove, two_at_once
from tests.support.opencode import OpenCode

pytest_plugins = ["tests.support.opencode"]
pytestmark = pytest.mark.opencode


@pytest.fixture(scope="module")
def place(opencode: OpenCode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """One for all: an OpenCode takes seconds to start."""
    with ground(opencode, tmp_path_factory.mktemp("killed")) as made:
        yield made


def test_the_next_start_finds_what_was_killed_and_what_ran_without_us_and_sends_it_once(place: Ground) -> None:
    place.kill(TOOL, signal.SIGKILL)
    # Its own hook has seen to that.
    assert place.unexplained() == []
    place.miss(remove, 1)
    # A turn, and its session's own record.
    assert (len(place.unexplained()), place.verified()) == (1, 2)
    place.run()
    assert (place.unexplained(), place.verified()) == ([], 0)
    place.deliver()
    assert place.sent_twice() == 0
    # What OpenCode wrote after its hook had ended comes as a newer version, under the same ids.
    assert len({send.request_id for send in place.receiver.sends()}) == place.records()


def test_a_turn_under_way_is_not_interrupted_by_another_opencode_that_comes_and_goes(place: Ground) -> None:
    go = place.project / "go"
    assert [state for state, _ in two_at_once(place, f"await:{go}", go.touch)] == ["pending"]
    assert place.unexplained() == []
