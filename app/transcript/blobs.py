r"""Finds a file's bytes (base64, hex, dumps) inside a text over 4 kB, and says what and how many they are.

    iVBORw0KGgo…                   base64, on one line or on many of any width, also behind line numbers
    ["iVBORw0K…", "GgoAAAAN…"]     or in a list of pieces
    89504e47…  \x89\x50…           hex; also in pairs, `<Buffer 89 50 …>`, and as xxd and hexdump print it
    {"type":"Buffer","data":[137,80,…]}    a list of numbers
    iBL{Q4GJ0x0000D…               base85

They become `[image/png, 6016 bytes]` where the first bytes tell the type, else `[base64, 6016 bytes]` and the like.

A text is read closely only when a look every few kilobytes meets one: a blob covers at least one of these places.
"""

from __future__ import annotations

import binascii
import re
import string
from collections.abc import Iterator, Sequence
from typing import NamedTuple

BLOB_CHARACTERS_MIN = 4096
"""Shorter ones stay: keys, hashes and ids look the same."""

_LOOK = 256
_STEP = BLOB_CHARACTERS_MIN - _LOOK
_DENSE_MIN, _OTHERS_MAX_SHARE, _DIGITS_MIN_SHARE, _LETTERS85_MIN = _LOOK // 2, 0.3, 0.15, 68
_DIGITS_MIN = _LOOK // 16
"""Of the characters of such a look. 256 of 85 letters at random show about 81, and 62 of 64 those of base64."""
_LONG_CHUNK = 60
"""Lines of a wrapped blob have one width; 60 and more are taken for such lines without."""
_HASH_WIDTHS = {32, 40, 56, 64, 96, 128}
"""Hex lines of these widths are a list of hashes."""

_PIECES_ALIKE_MIN = 4

_LINE_END = r"(?:\r?\n|(?:\\r)?\\n)"
_MARK = r"(?:[ \t]{0,40}(?:[0-9]{1,7}(?:[:|\t]|→)|Line [0-9]{1,7}:|[+-](?=[ \t\"'A-Za-z0-9]))[ \t]?)?"
_BETWEEN = rf"(?:[\\\"'`,+)]*[ \t]*\\?{_LINE_END}{_MARK}[ \t]{{0,40}}[\\\"'`(]*|\\*[\"'`][ \t]*[,+][ \t]*\\*[\"'`])"
_CHUNK = r"[A-Za-z0-9+/_-]{16,}={0,2}"
_CHUNKS = re.compile(
    rf"(?<![A-Za-z0-9+/_-]){_CHUNK}(?:{_BETWEEN}{_CHUNK})*"
    rf"(?:{_BETWEEN}(?![0-9]{{1,7}}[:|\t])[A-Za-z0-9+/_-]{{1,15}}(?=[=\r\n\\\"']|$)={{0,2}})?"
)
# The `n` of an escaped line end is no letter of a piece.
_PIECE = re.compile(r"(?<!\\)(?:[A-Za-z0-9+/_-]{16,}={0,2}|[A-Za-z0-9+/_-]+={0,2}$)")
_DENSE = re.compile(r"[A-Za-z0-9+/_=-]{16,}")
_DIGITS = string.digits.encode()
_OF_NUMBERS = string.hexdigits.encode() + b"x\\,:|\"'[]<>."

_PAIR = r"(?:\\?\\x|0x)?[0-9a-fA-F]{2}"
_GAP = rf"(?:[\s:,]|{_LINE_END}|[\"'][ \t]*{_LINE_END}?[ \t]*[\"'])"
_PAIRS = re.compile(rf"{_PAIR}(?:{_GAP}{{1,4}}{_MARK}[ \t]{{0,40}}{_PAIR}|\\?\\x[0-9a-fA-F]{{2}}){{8,}}")
_DUMP_LINE = rf"{_MARK}[0-9a-fA-F]{{6,8}}:?[ \t]+(?:[0-9a-fA-F]{{2,4}}[ \t]+){{1,17}}[^\r\n]{{0,24}}"
_DUMP = re.compile(rf"^(?:{_DUMP_LINE}\r?\n){{2,}}(?:{_DUMP_LINE})?(?:{_MARK}[0-9a-f]{{6,8}}\r?$)?", re.MULTILINE)
_NUMBER = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_NUMBERS = re.compile(
    rf"(?<![0-9.]){_NUMBER}(?:[ \t]*,(?:[ \t]*|[ \t]*{_LINE_END}{_MARK}[ \t]{{0,40}}){_NUMBER}(?![0-9.])){{8,}}"
)
_ANY_PAIR = re.compile(r"(?:x|(?<![0-9a-fA-F]))[0-9a-fA-F]{2}(?![0-9a-fA-F])")
_DUMPED = re.compile(r"[0-9a-fA-F]{6,8}:?[ \t]+((?:[0-9a-fA-F]{2,4}[ \t]+){1,17})")
_ALPHABETS85 = (
    r"[0-9A-Za-z!#$%&()*+;<=>?@^_`{|}~-]",
    r"[!-uz\r\n]",
    r"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]",
)
"""RFC 1924, Ascii85 and Z85."""
_BASE85 = re.compile("|".join(f"(?<!{one}){one}{{{BLOB_CHARACTERS_MIN + 1},}}" for one in _ALPHABETS85))
_SIGNS_MIN, _SIGNS_SHARE_MIN = 12, 0.12

_MAGIC = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
    b"%PDF": "application/pdf",
    b"PK\x03\x04": "application/zip",
    b"\x1f\x8b": "application/gzip",
}


def described(kind: str, size_bytes: int | None) -> str:
    return f"[{kind}]" if size_bytes is None else f"[{kind}, {size_bytes} bytes]"


def described_pieces(values: Sequence[object]) -> list[str] | None:
    """A list of a blob's pieces or bytes as one description; None for any other list."""
    if all(isinstance(value, str) for value in values):
        text = "\n".join(map(str, values))
    elif all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        text = ", ".join(map(str, values))
    else:
        return None
    told = describe_blobs(text)
    return None if told == text else told.split("\n")


class _Place(NamedTuple):
    """A part of a text that may hold a blob, and of which kinds."""

    start: int
    end: int
    chunks: bool
    numbers: bool
    base85: bool


def describe_blobs(text: str) -> str:
    """The text with its blobs over 4 kB described."""
    if len(text) <= BLOB_CHARACTERS_MIN:
        return text
    made: list[str] = []
    at = 0
    for place in _places(text):
        made += (text[at : place.start], _described_in(text[place.start : place.end], place))
        at = place.end
    return "".join((*made, text[at:]))


def _places(text: str) -> Iterator[_Place]:
    """From the last look that met nothing to the next one."""
    start, chunks, numbers, base85 = 0, False, False, False
    for at in range(0, len(text) - _LOOK + 1, _STEP):
        seen = text[at : at + _LOOK]
        digits = _LOOK - len(seen.encode("ascii", "replace").translate(None, _DIGITS))
        has_chunks = digits >= _DIGITS_MIN and sum(map(len, _DENSE.findall(seen))) >= _DENSE_MIN
        has_numbers = digits >= _DIGITS_MIN and _is_numeric(seen, digits)
        has_base85 = " " not in seen and len(set(seen)) >= _LETTERS85_MIN
        if has_chunks or has_numbers or has_base85:
            chunks, numbers, base85 = chunks or has_chunks, numbers or has_numbers, base85 or has_base85
            continue
        if chunks or numbers or base85:
            yield _Place(start, at, chunks, numbers, base85)
            start, chunks, numbers, base85 = at, False, False, False
        start = max(start, at)
    if chunks or numbers or base85:
        yield _Place(start, len(text), chunks, numbers, base85)


def _is_numeric(seen: str, digits: int) -> bool:
    solid = "".join(seen.split()).encode("ascii", "replace")
    others = len(solid.translate(None, _OF_NUMBERS))
    return others <= len(solid) * _OTHERS_MAX_SHARE and digits > len(solid) * _DIGITS_MIN_SHARE


def _described_in(text: str, place: _Place) -> str:
    if place.chunks:
        text = _CHUNKS.sub(_without_chunks, text)
    if place.numbers:
        text = _DUMP.sub(_without_dump, text)
        text = _NUMBERS.sub(_without_numbers, text)
        text = _PAIRS.sub(_without_pairs, text)
    return _BASE85.sub(_without_base85, text) if place.base85 else text


def _without_chunks(found: re.Match[str]) -> str:
    text = found[0]
    if len(text) <= BLOB_CHARACTERS_MIN:
        return text
    made: list[str] = []
    at = 0
    for pieces in _blobs(_pieces(text)):
        start, end = pieces[0][0], pieces[-1][1]
        if told := _told([text[slice(*piece)] for piece in pieces]):
            made += (text[at:start], told)
            at = end
    return "".join((*made, text[at:]))


def _pieces(text: str) -> list[tuple[int, int]]:
    spans = [piece.span() for piece in _PIECE.finditer(text)]
    is_diff = len(spans) > 1 and len({text[start] for start, _ in spans} | {"+"}) == 1
    return [(start + is_diff, end) for start, end in spans]


def _blobs(pieces: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The pieces that may be one blob's lines: all as wide as the first; the last may be shorter."""
    first = 0
    for number, (start, end) in enumerate(pieces):
        width = pieces[first][1] - pieces[first][0]
        fits = end - start == width or min(end - start, width) >= _LONG_CHUNK
        if fits and number + 1 < len(pieces):
            continue
        last = number if fits or end - start < width else number - 1
        yield from _if_long(pieces[first : last + 1])
        first = last + 1
    yield from _if_long(pieces[first:])


def _if_long(pieces: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    if pieces and pieces[-1][1] - pieces[0][0] > BLOB_CHARACTERS_MIN:
        yield pieces


def _told(pieces: list[str]) -> str | None:
    """What the pieces of one blob are; None when they are no blob."""
    digits = "".join(pieces).rstrip("=")
    if _repeats(digits) or (len(pieces) > _PIECES_ALIKE_MIN and len({piece[:3] for piece in pieces}) == 1):
        return None
    if not set(digits) - set(string.hexdigits):
        is_list = len(pieces) > 1 and len(pieces[0]) in _HASH_WIDTHS
        return None if is_list else described(_kind(_bytes_of_hex(digits[:32]), "hex"), len(digits) // 2)
    # Rulers, names and repeated letters are made of the same characters, but never of all three kinds.
    if not all(re.search(kind, digits) for kind in ("[A-Z]", "[a-z]", "[0-9]")):
        return None
    head = digits[:16].replace("-", "+").replace("_", "/")
    return described(_kind(binascii.a2b_base64(head), "base64"), len(digits) * 3 // 4)


def _repeats(letters: str) -> bool:
    """A ruler, or the same words again and again."""
    return len({letters[at : at + 8] for at in range(0, len(letters) - 8, 8)}) < len(letters) // 8 // 4


def _without_dump(found: re.Match[str]) -> str:
    if len(found[0]) <= BLOB_CHARACTERS_MIN:
        return found[0]
    digits = "".join("".join(line.split()) for line in _DUMPED.findall(found[0]))
    end = "\n" if found[0].endswith("\n") else ""
    return described(_kind(_bytes_of_hex(digits[:32]), "hex"), len(digits) // 2) + end


def _without_numbers(found: re.Match[str]) -> str:
    if len(found[0]) <= BLOB_CHARACTERS_MIN:
        return found[0]
    # Line numbers that stand between are followed by a sign of their own.
    values = [int(value) for value in re.findall(r"[0-9]+(?=[ \t\r\n]*(?:,|\\|$))", found[0])]
    return described(_kind(bytes(value for value in values[:16] if value < 256), "bytes"), len(values))  # noqa: PLR2004 - a byte


def _without_pairs(found: re.Match[str]) -> str:
    if len(found[0]) <= BLOB_CHARACTERS_MIN:
        return found[0]
    pairs = _ANY_PAIR.findall(found[0])
    return described(_kind(_bytes_of_hex("".join(pairs[:16]).replace("x", "")), "hex"), len(pairs))


def _without_base85(found: re.Match[str]) -> str:
    letters = "".join(found[0].split())
    signs = [letter for letter in letters if not letter.isalnum()]
    if len(set(signs)) < _SIGNS_MIN or len(signs) < len(letters) * _SIGNS_SHARE_MIN or _repeats(letters):
        return found[0]
    return described("base85", len(letters) * 4 // 5)


def _bytes_of_hex(digits: str) -> bytes:
    return bytes.fromhex(digits[: len(digits) // 2 * 2])


def _kind(head: bytes, otherwise: str) -> str:
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), otherwise)
