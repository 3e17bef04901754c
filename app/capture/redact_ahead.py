"""Redacts a large transcript piece by piece, so that other sessions need not wait until all of it is done.

What takes long is to look for secrets in long texts: seconds for 50 MB of a program's text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from app.privacy.redact import HitCounts
from app.privacy.terms import Capture
from app.transcript.model import Reasoning, Text, Tool, Transcript, Turn

LARGE_CHARACTERS_MIN = 1 << 22
"""Below this all of it takes less than half a second."""
STEP_COST = 1 << 23
"""As `Redaction.steps` counts: a tenth of a second, or one of its steps where that is more."""


class GradualRedaction:
    """Some turns of a transcript, on their way to be exported."""

    def __init__(self, transcript: Transcript, turns: Collection[str], capture: Capture) -> None:
        self.transcript = transcript
        self._capture = capture
        self._done: dict[str, tuple[str, HitCounts]] = {}
        self._steps = self._redact([turn for turn in transcript.turns if turn.id in turns])

    def is_under(self, capture: Capture) -> bool:
        """Whether that is how it is made ready; else all of it is to be done again."""
        return self._capture is capture

    def step(self) -> Capture | None:
        """One of them; what was done is kept in the capture that is returned after the last one."""
        spent = 0
        for cost in self._steps:
            spent += cost
            if spent >= STEP_COST:
                return None
        return replace(self._capture, redaction=replace(self._capture.redaction, done=self._done))

    def _redact(self, turns: list[Turn]) -> Iterator[int]:
        for value in _texts(turns) if self._capture.policy.mode == "full" else ():
            if value not in self._done:
                hits = HitCounts()
                self._done[value] = (yield from self._capture.redaction.steps(value, hits)), hits


def is_large(transcript: Transcript, turns: Collection[str]) -> bool:
    """Whether these turns are to be made ready piece by piece."""
    return sum(map(len, _texts([turn for turn in transcript.turns if turn.id in turns]))) >= LARGE_CHARACTERS_MIN


def _texts(turns: Collection[Turn]) -> Iterator[str]:
    """What was said, and what tools put out, subagents included."""
    for part in (part for turn in turns for message in turn.messages for part in message.parts):
        match part:
            case Text() | Reasoning():
                yield part.text or ""
            case Tool():
                yield part.output or ""
                yield part.error or ""
                yield from _texts(part.child.turns if part.child is not None else ())
            case _:
                pass
