"""Renders what several commands show to people: problems, what to type, and how far long work has come.

The same facts for programs are the results themselves, as JSON.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from app.runtime.terminal import visible

FIRST_S, EVERY_S = 0.9, 10.0
"""Where nobody watches a terminal: after so long the first line about how far work has come, and then the others."""


def problem_lines(problems: Sequence[str]) -> Iterator[str]:
    for problem in problems:
        yield f"problem: {problem}"


def how_to_deliver(*, is_served: bool, has_key: bool) -> Iterator[str]:
    if not has_key:
        yield "nothing is delivered without a key: set HELICONE_API_KEY"
    elif not is_served:
        yield "no worker runs: opencode-helicone flush delivers now"


class Bar:
    """Shows how far long work has come; told (done, all) of it."""

    def __init__(self, show: Callable[[int, int], object], tell: Callable[[str], object]) -> None:
        self._show = show
        self._tell = tell
        self._is_waiting = False

    def show(self, done: int, total: int) -> None:
        self._is_waiting = False
        self._show(done, total)

    def wait(self) -> None:
        """Said once for each time."""
        if not self._is_waiting:
            self._tell("waits for a worker to make room: half of maxSpoolSize is in use")
        self._is_waiting = True


@contextmanager
def bar(text: str, *, total_min: int = 0) -> Iterator[Bar]:
    """A bar on a terminal, for work of so many steps or more; elsewhere now and then a line."""
    if not sys.stderr.isatty():
        with _lines(text, total_min) as lines:
            yield lines
        return
    from rich.console import Console  # noqa: PLC0415 - costs 50 ms, and mostly nobody watches
    from rich.progress import Progress  # noqa: PLC0415 - the same

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(text, total=None, visible=not total_min)

        def show(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total, visible=total >= total_min)

        yield Bar(show, shown.console.print)


@contextmanager
def _lines(text: str, total_min: int) -> Iterator[Bar]:
    """One line when work turns out to be long, then one every EVERY_S: whoever waits sees that it goes on."""
    stop, steps = threading.Event(), [0, 0]

    def show(done: int, total: int) -> None:
        steps[:] = done, total

    def tell() -> None:
        pause_s = FIRST_S
        while not stop.wait(pause_s):
            pause_s = EVERY_S
            done, total = steps
            if total >= total_min:
                _write(f"{text}: {done} of {total}" if total else text)

    telling = threading.Thread(target=tell, name="progress", daemon=True)
    telling.start()
    try:
        yield Bar(show, _write)
    finally:
        stop.set()
        telling.join()


def _write(line: str) -> None:
    sys.stderr.write(f"opencode-helicone: {visible(line)}\n")


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], object]]:
    """While work goes on; gives what prints a line meanwhile."""
    if not sys.stderr.isatty():
        yield _write
        return
    from rich.console import Console  # noqa: PLC0415 - as above

    console = Console(stderr=True)
    with console.status(text):
        yield lambda line: console.print(visible(line), markup=False, highlight=False)
