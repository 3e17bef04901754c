"""Tells from OpenCode's ids when they were made, and so which messages a fork copied.

    msg_2295a9866001xUw3NOie3wkDMy
        └ 12 hex digits: milliseconds * 4096 + a counter, of which 48 bits are kept; then 14 random characters

So the first 9 digits are the milliseconds modulo 2^36 (about 796 days); they began anew on 14 August 2026. A message of
OpenCode 1.18.33 is made in the millisecond of its `time.created`, or the one before. A fork gives the messages that it
copies new ids and leaves their times: these ids were made when the fork was.
"""

from __future__ import annotations

import re

_ID = re.compile(r"[a-z]+_([0-9a-f]{12})[0-9A-Za-z]{8,}")
_TICKS = 1 << 48
_TICKS_PER_MS = 1 << 12


def ticks(name: str) -> int | None:
    """The number in an id; None for an id of another form, which another tool made."""
    found = _ID.fullmatch(name)
    return None if found is None else int(found[1], 16)


def minted_ms(name: str, *, near_ms: int) -> int | None:
    """When the id was made: of all times that it may mean the nearest one."""
    number = ticks(name)
    return None if number is None else near_ms + distance(number, near_ms * _TICKS_PER_MS) // _TICKS_PER_MS


def distance(number: int, base: int) -> int:
    """How many ticks `number` is after `base`, the short way round; negative when it is before."""
    return (number - base + _TICKS // 2) % _TICKS - _TICKS // 2


def is_copy(name: str, created_ms: int, session_ms: int) -> bool | None:
    """Whether a fork brought a message along into a session that was created at `session_ms`.

    A message that is older than its session was either copied, and has an id from when the session was created, or the
    clock was set back, and it has one from when it was created itself. None when the id does not tell.
    """
    if created_ms >= session_ms:
        return False
    made_ms = minted_ms(name, near_ms=session_ms)
    return None if made_ms is None else abs(made_ms - session_ms) < abs(made_ms - created_ms)
