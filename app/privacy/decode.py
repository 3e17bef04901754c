r"""Decodes a text: escapes, colours, line ends, base64; and says where each piece of it stands in the original.

    b"\x1b[32mpassword\x1b[0m%3Dabc"        layer 0: the text itself
    b"password=abc"                         layer 1: colours, JSON and URL escapes undone once
    b"...eyJhbGci\n12: OiJIUzI1..."         joined: line ends and line numbers inside a word taken out
    b"...cGFzc3dvcmQ9YWJj..."               unpacked: what its runs of base64 hold

Rules look at every view; `View.source` says which bytes of the text a finding stands for.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from app.privacy.literals import linear

LAYERS_MAX = 4
"""Escaped twice, coloured inside, and one to spare; `%252525…` ends here."""

LINE_MARK = rb"(?:[0-9]{1,7}(?:[:|\t]|\xe2\x86\x92)|Line [0-9]{1,7}:|[+-])"
"""What tools put before a line: `12: ` (read), `00012| `, `12\t` (cat -n), `Line 12: ` (grep), `+` (diff)."""
LINE_MARKS = rb"(?:[ \t]*" + LINE_MARK + rb"){0,2}"
"""The same, also of a file that holds such a file."""


@dataclass(slots=True)
class View:
    data: bytes
    below: View | None = None
    """What this was made from; None for the text itself."""
    starts: Sequence[int] = ()
    """Where each piece begins in `data`; of one whose escapes were undone, when it is first asked for."""
    pieces: Sequence[tuple[int, int, bool]] = ()
    """Per piece: start and end in `below`, and whether it is a copy (else it stands for the whole range)."""
    has_seams: bool = False
    """Something may have been taken out between two of its bytes."""

    def part(self, start: int, end: int) -> View:
        return View(self.data[start:end], self, (0,), ((start, end, True),), self.has_seams)

    def source(self, start: int, end: int) -> tuple[int, int]:
        """The range of the text itself that `data[start:end]` (not empty) stands for."""
        if self.below is None:
            return start, end
        self._locate(self.below)
        first, last = bisect_right(self.starts, start) - 1, bisect_left(self.starts, end) - 1
        begin, _, copied = self.pieces[first]
        if copied:
            begin += start - self.starts[first]
        last_begin, finish, copied = self.pieces[last]
        if copied:
            finish = last_begin + end - self.starts[last]
        return self.below.source(begin, finish)

    def is_seam(self, position: int) -> bool:
        """Whether something was taken out just before this position: the byte before it is no neighbour."""
        if self.below is None or (position and not self.has_seams):
            return False
        self._locate(self.below)
        at = bisect_right(self.starts, position) - 1
        begin, _, copied = self.pieces[at]
        if self.starts[at] == position and (at == 0 or self.pieces[at - 1][1] != begin):
            return True
        return self.below.is_seam(begin + position - self.starts[at] if copied else begin)

    def _locate(self, below: View) -> None:
        if not self.pieces:
            self.pieces = _around_escapes(below.data)
            lengths = (
                end - start if copied else len(_meaning(below.data[start:end])) for start, end, copied in self.pieces
            )
            self.starts = list(accumulate(lengths, initial=0))[:-1]


@dataclass(slots=True)
class _Assembly:
    """A view being made, piece by piece, in order."""

    below: View
    data: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    pieces: list[tuple[int, int, bool]] = field(default_factory=list)
    length: int = 0

    def put(self, piece: bytes, start: int, end: int, *, copied: bool) -> None:
        if piece:
            self.data.append(piece)
            self.starts.append(self.length)
            self.pieces.append((start, end, copied))
            self.length += len(piece)

    def copy(self, start: int, end: int) -> None:
        self.put(self.below.data[start:end], start, end, copied=True)

    def view(self) -> View:
        return View(b"".join(self.data), self.below, self.starts, self.pieces, has_seams=True)


OCTAL = rb"\\(?:0(?:1[125]|33|[4-7][0-7])|1[0-7]{2})"
"""A letter, a line end or the beginning of a colour, as C and shells may write it."""
# Each alternative is decided by its first two bytes, so that the search is linear.
_ESCAPE = re.compile(
    rb"(?:\x1b|\\(?:e|033))\[[0-9;:?]*[ -/]*[@-~]"
    rb"|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)?"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\[\"'`/\\bfnrt]"
    rb"|%[0-9a-fA-F]{2}|" + OCTAL
)


def layers(view: View) -> list[View]:
    """The view itself, then each time with one more layer of escapes undone, while there is any."""
    found = [view]
    while len(found) <= LAYERS_MAX and (inner := unescaped(found[-1])):
        found.append(inner)
    return found


def unescaped(view: View) -> View | None:
    """None when there is nothing to undo."""
    data = view.data
    has_colours = any(colour in data for colour in _COLOURS)
    made = _ESCAPE.sub(_undone, data) if has_colours or b"\x00" in data else _without_colours(data)
    return None if made == data else View(made, view, has_seams=view.has_seams or has_colours)


_COLOURS = (b"\x1b", b"\\e[", b"\\033[")
_BACKSLASHES = b"\\\\"
_UNUSUAL = (b"\\u", b"\\x", b"\\0", b"\\1")
_PERCENT = re.compile(rb"%[0-9a-fA-F]{2}")
_SIMPLE = {b"\\" + letter: letter for letter in (b'"', b"'", b"`", b"/")} | {
    b"\\b": b"\b",
    b"\\f": b"\f",
    b"\\n": b"\n",
    b"\\r": b"\r",
    b"\\t": b"\t",
}


def _without_colours(data: bytes) -> bytes:
    """The same, faster: text in JSON has an escape every thirty letters, so that nothing is called for most of them."""
    has_percent = _PERCENT.search(data) is not None
    if not has_percent and b"\\" not in data:
        return data
    # Two backslashes are one, and what follows them is no escape: a zero stands for them meanwhile.
    made = data.replace(_BACKSLASHES, b"\x00")
    for escape, meaning in _SIMPLE.items():
        made = made.replace(escape, meaning)
    if has_percent or any(escape in made for escape in _UNUSUAL):
        return _ESCAPE.sub(_undone, made.replace(b"\x00", _BACKSLASHES))
    return made.replace(b"\x00", b"\\")


def _undone(escape: re.Match[bytes]) -> bytes:
    return _meaning(escape[0])


def _meaning(escape: bytes) -> bytes:
    if simple := _SIMPLE.get(escape):
        return simple
    if escape == _BACKSLASHES:
        return b"\\"
    if escape[:1] == b"\x1b" or escape.startswith((b"\\e", b"\\033[")):
        return b""
    if escape[:2] in {b"\\0", b"\\1"}:
        return bytes([int(escape[1:], 8)])
    if escape[:1] == b"%" or escape[1:2] == b"x":
        return bytes([int(escape[-2:], 16)])
    character: str = json.loads(b'"%b"' % escape)
    return character.encode("utf-8", "replace")


def _around_escapes(data: bytes) -> list[tuple[int, int, bool]]:
    """The escapes that mean something, and the pieces between them, which are copies: where a colour was, is a gap."""
    pieces: list[tuple[int, int, bool]] = []
    at = 0
    for escape in _ESCAPE.finditer(data):
        start, end = escape.span()
        if at < start:
            pieces.append((at, start, True))
        if _meaning(escape[0]):
            pieces.append((start, end, False))
        at = end
    if at < len(data):
        pieces.append((at, len(data), True))
    return pieces


_LETTER = rb"[A-Za-z0-9+/=_.~-]"
_BREAK = re.compile(rb"\n((?:[ \t]*+" + LINE_MARK + rb")?[ \t]*+)(?=" + _LETTER + rb")")
_WORD_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_.~-")
# The quote is that of a JSON string whose first line has a number.
_MARK_AT_START = re.compile(rb"[ \t]*[\"'`]?(" + LINE_MARK + rb")")
_LINE_LOOKBACK = 400
"""A line whose start is further back than this is taken to have no number."""


def joined(view: View) -> View | None:
    """The view without the line ends that stand inside a word; None when there are none.

    A line number or diff sign is taken out with the line end when the line before has one of its kind.
    """
    made, at, data = _Assembly(view), 0, view.data
    for found in _BREAK.finditer(data):
        start = _word_end(data, found.start())
        if start < 0:
            continue
        mark = found[1]
        is_mark = not mark.isspace() and _mark_kind(mark) == _mark_kind(_mark_before(data, start))
        made.copy(at, start)
        at = found.end() if is_mark else found.end() - len(mark.lstrip())
    if not at:
        return None
    made.copy(at, len(data))
    return made.view()


def _word_end(data: bytes, line_end: int) -> int:
    """Where the word before a line end ends: before spaces, and a backslash that shows that the line goes on."""
    end = line_end - (data[line_end - 1 : line_end] == b"\r")
    if data[end - 1 : end] in {b" ", b"\t"}:
        line = data.rfind(b"\n", 0, end) + 1
        end = line + len(data[line:end].rstrip(b" \t"))
    end -= data[end - 1 : end] == b"\\"
    return end if end > 0 and data[end - 1] in _WORD_BYTES else -1


def _mark_before(data: bytes, position: int) -> bytes:
    lookback = max(0, position - _LINE_LOOKBACK)
    line = data.rfind(b"\n", lookback, position) + 1
    found = _MARK_AT_START.match(data, line) if line or not lookback else None
    return found[1] if found else b""


def _mark_kind(mark: bytes) -> bytes:
    sign = mark.strip()[:1]
    return b"1" if sign.isdigit() else sign


_BASE64 = linear(rb"[A-Za-z0-9+/_-]{20,}")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_NO_TEXT = b"\x00\n\x00"
"""Between two runs: nothing that a rule looks for goes across it."""


def unpacked(view: View, seams: Sequence[int] = ()) -> Iterator[View]:
    """What the runs of base64 in the view hold, at each of the four places where one may really begin.

    A finding stands for its whole run, or where the run has seams, for the stretches that it touches.
    """
    runs = [found.span() for found in _BASE64.finditer(view.data)]
    for shift in range(4 if runs else 0):
        made = _Assembly(view)
        for start, end in runs:
            held = _decoded(view.data[start + shift : end])
            cuts = seams[bisect_right(seams, start + shift) : bisect_left(seams, end)]
            done, begin = 0, start
            for cut in (*cuts, end):
                upto = len(held) if cut == end else (cut - start - shift) * 3 // 4
                made.put(held[done:upto], begin, cut, copied=False)
                done, begin = upto, cut
            made.put(_NO_TEXT, end, end, copied=False)
        yield made.view()


def _decoded(run: bytes) -> bytes:
    usable = run[: len(run) - 1] if len(run) % 4 == 1 else run
    return a2b_base64(usable.translate(_URL_SAFE) + b"=" * (-len(usable) % 4))
