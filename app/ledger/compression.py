"""Compresses the bodies of one job as one stream, in the order of its records.

What a tool put out stands three times in the records of its turn: in its own, and twice in that of the LLM call that
read it. One stream for all of them is a third of the size of a stream for each (docs/decisions/ledger.md).
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence

from app.errors import AppError

_SMALL_BYTES = 4_096
"""Below this zlib makes less of it, and sooner."""
_XZ = b"\xfd"
_CHUNK_BYTES = 1 << 16


class BundleError(AppError):
    """The stream is damaged, or shorter than its records."""


def pack(bodies: Iterable[bytes]) -> bytes:
    """Compress bodies, asked for one after the other, so that not all need be in memory."""
    stream, begun = iter(bodies), b""
    for body in stream:
        begun += body
        if len(begun) >= _SMALL_BYTES:
            break
    else:
        return zlib.compress(begun)
    # Each body has a checksum of its own.
    packing = lzma.LZMACompressor(check=lzma.CHECK_NONE, preset=0)
    return b"".join([packing.compress(begun), *map(packing.compress, stream), packing.flush()])


def unpack(bundle: bytes, sizes_bytes: Sequence[int]) -> Iterator[bytes]:
    """The bodies again, one in memory at a time. Raises BundleError."""
    held = bytearray()
    stream = _decompressed(bundle)
    for size in sizes_bytes:
        while len(held) < size:
            piece = next(stream, b"")
            if not piece:
                raise BundleError("the stream ends too soon")
            held += piece
        yield bytes(held[:size])
        del held[:size]


def _decompressed(bundle: bytes) -> Iterator[bytes]:
    try:
        if not bundle.startswith(_XZ):
            yield zlib.decompress(bundle, bufsize=_SMALL_BYTES)
            return
        unpacking = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
        piece = unpacking.decompress(bundle, _CHUNK_BYTES)
        while piece or not (unpacking.eof or unpacking.needs_input):
            yield piece
            piece = b"" if unpacking.eof else unpacking.decompress(b"", _CHUNK_BYTES)
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        raise BundleError("the stream is damaged") from error
