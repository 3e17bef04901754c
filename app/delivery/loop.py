"""Loop: a thread that does one step after another, whatever goes wrong in one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event


@dataclass(frozen=True, slots=True)
class Loop:
    name: str
    every_ms: int
    """Until the next step, after one that failed."""
    step: Callable[[], int | None]
    """Returns the milliseconds until the next step; None when nothing is left to do."""

    def run(self, stop: Event, failed: Callable[[str, Exception], None]) -> None:
        """Take steps until `stop` is set. `failed` is told the loop's name and what a step raised."""
        pause_ms: int | None = 0
        while pause_ms is not None and not stop.wait(pause_ms / 1000):
            try:
                pause_ms = self.step()
            except Exception as error:  # noqa: BLE001 - a worker whose loop has died looks alive and retries nothing
                if stop.is_set():
                    return  # what the step used is being closed
                failed(self.name, error)
                pause_ms = self.every_ms
