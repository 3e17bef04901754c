"""Spells text as the value of a header, which takes Latin-1 and no more than a kilobyte. Pure."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

from anyascii import anyascii

META_CHARACTERS_MAX = 1024
STEP_CHARACTERS_MAX = 128
"""Of one step of a session path."""
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_LATIN_1 = re.compile("[^ -$&-~\u00a0-\u00ff]")
"""Control characters, DEL and what is beyond Latin-1; `%`, so that the escapes can be undone."""


def latin1(value: str, characters_max: int = META_CHARACTERS_MAX) -> str:
    """The value as Helicone takes it in `meta`: other characters percent-encoded, and no longer than may be."""
    if len(value) <= characters_max and _NOT_LATIN_1.search(value) is None:
        return value
    escaped: list[str] = []
    room = characters_max
    for character in value[:characters_max]:
        escaped.append(_escaped(character) if _NOT_LATIN_1.match(character) else character)
        room -= len(escaped[-1])
        if room < 0:
            escaped.pop()
            break
    return "".join(escaped)


def readable(value: str, characters_max: int = META_CHARACTERS_MAX) -> str:
    """The value as `meta` takes it and a person reads it: in Latin letters, and without `%`.

    Helicone's servers refuse a header beyond Latin-1, and its pages show an escape as it stands: `项目` becomes
    `XiangMu`, `проект` becomes `proekt`. Not to be undone: for names that nothing is looked up by.
    """
    if value.isascii() and _NOT_LATIN_1.search(value) is None:
        return value[:characters_max].strip()
    normal = unicodedata.normalize("NFC", value[:characters_max])
    spelled = "".join(_spelled(character) if _NOT_LATIN_1.match(character) else character for character in normal)
    # What is left is `%`, which the spelling of some characters has as well.
    return _NOT_LATIN_1.sub("_", spelled)[:characters_max].strip()


def _spelled(character: str) -> str:
    if unicodedata.category(character)[0] in "CMZ":  # controls, marks, separators
        return " " if character.isspace() else ""
    return anyascii(character) or f"U+{ord(character):04X}"


def below(path: str, *steps: str) -> str:
    """The session path of `steps` under `path`, safe for `meta` as it is."""
    whole = "/".join([path, *(latin1(step, STEP_CHARACTERS_MAX).replace("/", "%2F") for step in steps)])
    # Only subagents of subagents of subagents come so far; an escape is not cut in two.
    return whole if len(whole) <= META_CHARACTERS_MAX else re.sub("%.?$", "", whole[:META_CHARACTERS_MAX])


def _escaped(character: str) -> str:
    return quote(LONE_SURROGATE.sub("\ufffd", character), safe="")
