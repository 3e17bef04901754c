"""Makes text safe to show: it may come from a file name, an answer or a transcript, so from anybody."""

from __future__ import annotations

import json
import unicodedata

_BLANK = {
    *(0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, 0xFFA0),
    *(0x13441, 0x13442, 0x16FE4, 0x1D159, *range(0xFE00, 0xFE0E), *range(0xE0100, 0xE01F0)),
}
"""Letters and signs by their category that show nothing: fillers of Hangul, the empty pattern of Braille, what chooses
among forms of a letter; but for U+FE0E and U+FE0F, which stand behind many an emoji."""


_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000))
"""Of time, in ms."""


class _Signs(dict[int, str]):
    """By code point what is shown for it; filled with those that come up."""

    def __missing__(self, point: int) -> str:
        character = chr(point)
        is_shown = character.isprintable() and point not in _BLANK
        is_plain = is_shown or character == "\t" or unicodedata.category(character) == "Zs"
        self[point] = shown = character if is_plain else json.dumps(character)[1:-1]
        return shown


_SIGNS = _Signs()


def visible(text: str) -> str:
    """One line, in which what would steer a terminal, turn the order of the text or show nothing stands as in JSON.

    That is every character of the Unicode categories control (line ends too, but not the tab), format (bidirectional
    marks, zero width, tags), surrogate, private use, line and paragraph separator, and not assigned; and blank letters.
    """
    return text.translate(_SIGNS)


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def span(length_ms: int) -> str:
    """A length of time in its largest unit.

    >>> span(125_000), span(400), span(-5)
    ('2 min', '0 s', '0 s')
    """
    for name, unit_ms in _UNITS:
        if length_ms >= unit_ms:
            return f"{length_ms // unit_ms} {name}"
    return "0 s"
