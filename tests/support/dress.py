"""The dresses that a secret wears in a transcript, and what can still be read once a text has been redacted."""

from __future__ import annotations

import json
import re
import textwrap
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from urllib.parse import quote, unquote

from tests.support.fake_secrets import Sample

Dress = Callable[[Sample], str]
GRAM = 7
"""So many letters of a secret in a row are a leak."""


def in_lines(text: str) -> str:
    return f"the first line\n{text}\nthe last line"


def numbered(text: str) -> str:
    """As OpenCode's read tool shows a file."""
    lines = "\n".join(f"{number}: {line}" for number, line in enumerate(in_lines(text).split("\n"), start=9))
    return f"<path>/home/dev/x</path>\n<content>\n{lines}\n\n(End of file - total 11 lines)\n</content>"


def tabbed(text: str) -> str:
    """As `cat -n` does."""
    return "\n".join(f"{number:6}\t{line}" for number, line in enumerate(in_lines(text).split("\n"), start=9))


def added(text: str) -> str:
    return "@@ -1,3 +1,3 @@\n context\n" + "\n".join(f"+{line}" for line in in_lines(text).split("\n"))


def removed(text: str) -> str:
    return "@@ -1,3 +1,3 @@\n context\n" + "\n".join(f"-{line}" for line in in_lines(text).split("\n"))


def in_json(text: str) -> str:
    return json.dumps({"output": in_lines(text), "exit": 0})


def in_json_twice(text: str) -> str:
    return json.dumps({"arguments": in_json(text)})


def in_url(text: str) -> str:
    return f"https://x.example.com/?q={quote(in_lines(text), safe='')}&r=1"


def in_base64(text: str, shift: int = 0) -> str:
    longer = f"some text before it{'!' * shift}\n{text}\nand some after it"
    return f"it reads {b64encode(longer.encode()).decode()} there"


def in_wrapped_base64(text: str) -> str:
    longer = f"a longer text that stands before it\n{text}\nand a longer text after it, too"
    return "\n".join(("data:", *textwrap.wrap(b64encode(longer.encode()).decode(), 76), "end."))


def coloured(sample: Sample) -> str:
    """As `grep --color` marks a find inside a word."""
    middle = len(sample.secret) // 2
    painted = f"\x1b[32m{sample.secret[:middle]}\x1b[1;31m{sample.secret[middle:]}\x1b[0m"
    return in_lines(sample.text.replace(sample.secret, painted))


def _on_text(wear: Callable[[str], str]) -> Dress:
    return lambda sample: wear(sample.text)


WHOLE: dict[str, Dress] = {
    "plain": _on_text(in_lines),
    "alone": _on_text(str),
    "numbered": _on_text(numbered),
    "tabbed": _on_text(tabbed),
    "added": _on_text(added),
    "removed": _on_text(removed),
    "windows lines": _on_text(lambda text: in_lines(text).replace("\n", "\r\n")),
    "coloured": coloured,
    "coloured words": _on_text(lambda text: in_lines(re.sub(r"(\w+)", "\x1b[33m\\1\x1b[0m", text))),
    "coloured in json": lambda sample: json.dumps(coloured(sample)),
    "json": _on_text(in_json),
    "json twice": _on_text(in_json_twice),
    "last line of json": _on_text(lambda text: json.dumps({"output": f"the first line\n{text}"})),
    "behind a tab in json": _on_text(lambda text: json.dumps(f"a\t{text}")),
    "last line of json twice": _on_text(lambda text: json.dumps([json.dumps([f"the first line\n{text}"])])),
    "numbered in json": _on_text(lambda text: json.dumps(numbered(text))),
    "url": _on_text(in_url),
    "url in json": _on_text(lambda text: json.dumps(in_url(text))),
    "base64": _on_text(in_base64),
    "base64 shifted": _on_text(lambda text: in_base64(text, 1)),
    "base64 shifted twice": _on_text(lambda text: in_base64(text, 2)),
    "base64 wrapped": _on_text(in_wrapped_base64),
    "base64 wrapped and numbered": _on_text(lambda text: numbered(in_wrapped_base64(text))),
    "tabbed in json": _on_text(lambda text: json.dumps(tabbed(text))),
    "json in base64": _on_text(lambda text: in_base64(in_json(text))),
}


def _broken(part: float, wear: Callable[[str], str]) -> Dress:
    def dress(sample: Sample) -> str:
        at = max(1, int(len(sample.secret) * part))
        return wear(sample.text.replace(sample.secret, f"{sample.secret[:at]}\n{sample.secret[at:]}"))

    return dress


def _cut(part: float, tail: str) -> Dress:
    def dress(sample: Sample) -> str:
        at = sample.text.index(sample.secret) + max(1, int(len(sample.secret) * part))
        return f"the first line\n{sample.text[:at]}{tail}"

    return dress


_PARTS = {"early": 0.1, "at a third": 0.3, "in the middle": 0.5, "late": 0.9}
_WEARS = {
    "": in_lines,
    ", numbered": numbered,
    ", added": added,
    ", in json": in_json,
    ", tabbed in json": lambda text: json.dumps(tabbed(text)),
    ", in base64": in_base64,
}
BROKEN = {f"broken {at}{name}": _broken(_PARTS[at], wear) for at in _PARTS for name, wear in _WEARS.items()}
_TAILS = {"": "", ", with dots": "...", ", with a line end": "\n"}
CUT = {f"cut {at}{name}": _cut(_PARTS[at], tail) for at in ("in the middle", "late") for name, tail in _TAILS.items()}
DRESSES = WHOLE | BROKEN | CUT


def leaks(text: str, secret: str, gram: int = GRAM) -> bool:
    """Whether a reader who undresses the text still finds a piece of the secret."""
    size = min(len(secret), gram)
    pieces = {secret[at : at + size] for at in range(len(secret) - size + 1)}
    return any(piece in reading for reading in _readings(text) for piece in pieces)


def _readings(text: str) -> set[str]:
    found = newest = {text}
    for _ in range(4):
        newest = {undone for reading in newest for undone in _undone(reading)} - found
        found = found | newest
    return found | {unpacked for reading in found for unpacked in _unpacked(reading)}


def _undone(text: str) -> Iterator[str]:
    yield re.sub(r"\x1b\[[0-9;]*m", "", text)
    yield unquote(text)
    yield re.sub(r'\\(?:u001b|["\\/nrt])', lambda found: _ESCAPES.get(found[0][1:], found[0][1:]), text)
    yield re.sub(r"\r?\n(?:[ ]*[0-9]+(?:: |\t)|[+-])?", "", text)


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "u001b": "\x1b"}


def _unpacked(text: str) -> Iterator[str]:
    for run in re.findall(r"[A-Za-z0-9+/_-]{16,}", text):
        for shift in range(4):
            digits = run[shift:].replace("-", "+").replace("_", "/")
            yield b64decode(digits[: len(digits) // 4 * 4]).decode("latin-1")
