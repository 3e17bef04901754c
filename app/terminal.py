"""What a terminal is given to show. It may come from a file name, an answer or a transcript, so from anybody."""

from __future__ import annotations

import json
import unicodedata


class _Signs(dict[int, str]):
    """By code point what is shown for it; filled with those that come up."""

    def __missing__(self, point: int) -> str:
        character = chr(point)
        is_plain = character.isprintable() or character == "\t" or unicodedata.category(character) == "Zs"
        self[point] = shown = character if is_plain else json.dumps(character)[1:-1]
        return shown


_SIGNS = _Signs()


def visible(text: str) -> str:
    """One line, in which what would steer a terminal, turn the order of the text or show nothing stands as in JSON.

    That is every character of the Unicode categories control (line ends too, but not the tab), format (bidirectional
    marks, zero width, tags), surrogate, private use, line and paragraph separator, and not assigned.
    """
    return text.translate(_SIGNS)
