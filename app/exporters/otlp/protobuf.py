"""Writes and reads the wire format of Protocol Buffers, as far as OTLP needs it.

Our own, so that the bytes of a record never change with a release of a library, and hooks load none. The tests hold
its bytes against those of Google's library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeAlias

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_WORD = 1 << 64
_LONG_MAX = (1 << 63) - 1
_NO_TEXT = {0: "\ufffd", **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}
"""Half a surrogate pair has no UTF-8, and PostgreSQL, in which receivers keep spans, has no NUL in its texts."""

Field: TypeAlias = tuple[int, int | bytes]
"""Number and value. Of 8 and 4 bytes are left as they are."""


class WireError(ValueError):
    """The bytes are no message. Quotes nothing of them."""


def whole(field: int, value: int) -> bytes:
    """An integer or truth value; what 64 bits with a sign cannot hold is the nearest that they can."""
    return _varint(field << 3 | _VARINT) + _varint(max(-_LONG_MAX - 1, min(value, _LONG_MAX)) % _WORD)


def fixed(field: int, value: int) -> bytes:
    """An integer of 64 bits without a sign, as times are; the nearest one that is. 0 is what is not there."""
    if value <= 0:
        return b""
    return _varint(field << 3 | _FIXED_64) + struct.pack("<Q", min(value, _WORD - 1))


def double(field: int, value: float) -> bytes:
    return _varint(field << 3 | _FIXED_64) + struct.pack("<d", value)


def text(field: int, value: str) -> bytes:
    return message(field, value.translate(_NO_TEXT).encode())


def message(field: int, *parts: bytes) -> bytes:
    """Bytes, or a message that is put together of its fields."""
    return b"".join((_varint(field << 3 | _BYTES), _varint(sum(map(len, parts))), *parts))


def fields(data: bytes) -> Iterator[Field]:
    """The fields of a message in order. Raises WireError."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        match tag & 7:
            case 0:
                value, at = _read_varint(data, at)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _read_varint(data, at)
            case 5:
                size = 4
            case _:
                raise WireError("a field of a kind that is not known")
        if len(data) - at < size:
            raise WireError("cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise WireError("cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value % _WORD, at
    raise WireError("a number of more than 64 bits")
