from __future__ import annotations

import base64
import json
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.attachment import BLOB_CHARACTERS_MIN, data_url_bytes, described, strip_blobs

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(1).randbytes(6_000)  # noqa: S311 - noise, no secret
BLOB = base64.b64encode(PNG).decode()
LINES = base64.encodebytes(PNG).decode().rstrip("\n")


@pytest.mark.parametrize(
    ("url", "size_bytes"),
    [
        pytest.param("data:image/png;base64," + BLOB, len(PNG), id="base64"),
        pytest.param("data:text/plain;charset=utf-8;base64,QUI%3D", 2, id="escaped padding"),
        pytest.param("DATA:text/plain,a%20b", 3, id="percent-encoded"),
        pytest.param("data:,", 0, id="empty"),
        pytest.param("file:///home/dev/a.png", None, id="reference"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_size_is_that_of_the_bytes(url: str, size_bytes: int | None) -> None:
    assert data_url_bytes(url) == size_bytes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(f"see data:image/png;base64,{BLOB}, ok", "see [image/png, 6016 bytes], ok", id="data: URL"),
        pytest.param('<img src="data:image/gif;base64,R0lGODlh">', '<img src="[image/gif, 6 bytes]">', id="short one"),
        pytest.param("url(data:image/svg+xml;utf8,%3Csvg%3E)", "url([image/svg+xml, 5 bytes])", id="not base64"),
        pytest.param(json.dumps({"a": "data:image/png;base64,QUI="}), '{"a": "[image/png, 2 bytes]"}', id="in JSON"),
        pytest.param(r"data:image\/png;base64,QU\/D", "[image/png, 3 bytes]", id="escaped slashes"),
        pytest.param(f"x {BLOB} y", "x [image/png, 6016 bytes] y", id="bare base64"),
        pytest.param(f"{LINES}\nThe end", "[image/png, 6016 bytes]\nThe end", id="wrapped lines, then prose"),
        pytest.param(json.dumps(f"{LINES}\n"), r'"[image/png, 6016 bytes]\n"', id="wrapped lines in JSON"),
        pytest.param(LINES.replace("\n", "\r\n"), "[image/png, 6016 bytes]", id="Windows line ends"),
        pytest.param(BLOB[12:], "[base64, 6007 bytes]", id="unknown type"),
    ],
)
def test_blobs_are_described(text: str, told: str) -> None:
    assert strip_blobs(text) == told


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("the data: application/json, text/plain", id="prose"),
        pytest.param('f"data:image/png;base64,{encoded}"', id="code that makes one"),
        pytest.param("metadata:text/plain,x", id="end of a word"),
        pytest.param(BLOB[:BLOB_CHARACTERS_MIN], id="4 kB exactly"),
        pytest.param("y" * 50_000, id="one letter"),
        pytest.param("\n".join("y" * 99 for _ in range(500)), id="lines of one letter"),
        pytest.param("0123456789abcdef" * 1_000, id="hex"),
        pytest.param("\n".join(f"SomeFile{number}" for number in range(2_000)), id="a list of names"),
        pytest.param("\n".join(string.ascii_letters + " is 1 line" for _ in range(300)), id="prose lines"),
    ],
)
def test_text_is_left_alone(text: str) -> None:
    assert strip_blobs(text) == text


def test_reference_has_no_size() -> None:
    assert (described("text/plain", None), described("image/png", 70)) == ("[text/plain]", "[image/png, 70 bytes]")


PIECES = st.text(max_size=20) | st.sampled_from([BLOB, LINES, "data:image/png;base64,", "data:a/b,c", "\n", "=", "\\n"])


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_what_is_described_once_stays(text: str) -> None:
    once = strip_blobs(text)
    assert strip_blobs(once) == once
    assert len(once) <= max(len(text), BLOB_CHARACTERS_MIN) + 100
