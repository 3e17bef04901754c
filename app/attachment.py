"""Puts a description in place of what nobody reads as text: `[image/png, 70 bytes]`.

    data:image/png;base64,iVBORw0KGgo…      a data: URL, however short
    iVBORw0KGgo…                            base64 over 4 kB, on one line or wrapped as `base64` wraps it

The type of a bare blob is told by its first bytes, `base64` when they say nothing.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

BLOB_CHARACTERS_MIN = 4096
"""Shorter runs of base64 stay: keys, hashes and ids look the same."""

_DATA_URL = re.compile(
    # The slash is escaped (`\/`) in some JSON that stands in a text.
    r"(?<![a-z0-9])data:(?P<type>[a-z0-9.+-]{1,64}\\?/[a-z0-9.+-]{1,64})(?:;(?!base64,)[a-z0-9=.+-]{1,64}){0,4}"
    r"(?:;base64,(?P<base64>(?:[a-z0-9+/_=-]|\\/|%[0-9a-f]{2})+)|,(?P<plain>[^\s\"'<>()\\`]+))",
    re.IGNORECASE,
)
# The lines of one wrapped blob are long; 60 keeps lists of words and file names out. Only its last line is short.
_LINE_END = r"(?:\r?\n|(?:\\r)?\\n)"
_BLOB = re.compile(
    r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{60,}"
    rf"(?:{_LINE_END}[A-Za-z0-9+/_-]{{60,}})*"
    rf"(?:{_LINE_END}[A-Za-z0-9+/_-]+(?=[=\r\n\\\"']|$))?={{0,2}}"
)
_DATA_COLONS = ("ta:", "TA:", "tA:", "Ta:")
_DATA_HEAD = re.compile(r"data:[a-z0-9.+-]{1,64}\\?/", re.IGNORECASE)
_SAMPLE_STEP = 32
_SAMPLE_OF_BLOB = re.compile(rf"[A-Za-z0-9+/_\r\n\\-]{{{BLOB_CHARACTERS_MIN // _SAMPLE_STEP}}}")
_ESCAPED_LINE_END = re.compile(r"\\[rn]")
_NO_DIGITS = {ord(character): None for character in "=\\\r\n"}
_MAGIC = {
    "iVBORw0KGgo": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "JVBERi0": "application/pdf",
    "UEsDB": "application/zip",
    "H4sI": "application/gzip",
}


def described(kind: str, size_bytes: int | None) -> str:
    return f"[{kind}]" if size_bytes is None else f"[{kind}, {size_bytes} bytes]"


def data_url_bytes(url: str) -> int | None:
    """How many bytes a data: URL holds; None for any other URL."""
    if url[:5].lower() != "data:":
        return None
    head, _, payload = url.partition(",")
    return _base64_bytes(payload) if head.lower().endswith(";base64") else len(unquote_to_bytes(payload))


def strip_blobs(text: str) -> str:
    """The text with its data: URLs and its base64 over 4 kB described."""
    if _may_have_url(text):
        text = _DATA_URL.sub(_without_url, text)
    # Every letter of a blob is one of few, so every 32nd is: most texts are told by a look at these.
    if len(text) > BLOB_CHARACTERS_MIN and _SAMPLE_OF_BLOB.search(text[::_SAMPLE_STEP]):
        text = _BLOB.sub(_without_blob, text)
    return text


def _may_have_url(text: str) -> bool:
    for colon in _DATA_COLONS:
        at = text.find(colon)
        while at >= 0:
            if _DATA_HEAD.match(text, at - 2):
                return True
            at = text.find(colon, at + 1)
    return False


def _without_url(found: re.Match[str]) -> str:
    kind = found["type"].replace("\\", "").lower()
    if found["base64"] is None:
        return described(kind, len(unquote_to_bytes(found["plain"])))
    return described(kind, _base64_bytes(found["base64"]))


def _without_blob(found: re.Match[str]) -> str:
    blob = found[0]
    # Hex dumps, rulers and repeated letters are made of the same characters, but never of all three kinds.
    mixed = all(re.search(kind, blob) for kind in ("[A-Z]", "[a-z]", "[0-9]"))
    if len(blob) <= BLOB_CHARACTERS_MIN or not mixed:
        return blob
    kind = next((name for magic, name in _MAGIC.items() if blob.startswith(magic)), "base64")
    return described(kind, _base64_bytes(_ESCAPED_LINE_END.sub("", blob)))


def _base64_bytes(payload: str) -> int:
    """Four base64 digits hold three bytes; padding and line ends hold none."""
    digits = unquote_to_bytes(payload).decode("latin-1") if "%" in payload else payload
    return len(digits.translate(_NO_DIGITS)) * 3 // 4
