from __future__ import annotations

import base64
import hashlib
import json
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.privacy.redact import Redaction
from app.transcript.attachments import data_url_bytes, strip_blobs
from app.transcript.blobs import BLOB_CHARACTERS_MIN, described
from app.transcript.model import Json

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + random.Random(1).randbytes(6_000)  # noqa: S311 - noise, no secret
DESCRIBED = "[image/png, 6016 bytes]"
BLOB = base64.b64encode(PNG).decode()
LINES = base64.encodebytes(PNG).decode().rstrip("\n")


def wrap(text: str, width: int) -> list[str]:
    return [text[at : at + width] for at in range(0, len(text), width)]


def numbered(lines: list[str], mark: str) -> str:
    return "\n".join(mark.format(number) + line for number, line in enumerate(lines, start=9))


def xxd(data: bytes) -> str:
    """As `xxd` prints it."""
    return "\n".join(
        f"{at:08x}: {data[at : at + 16].hex(' ', 2):39}  {_shown(data[at : at + 16])}" for at in range(0, len(data), 16)
    )


def hexdump(data: bytes) -> str:
    """As `hexdump -C` prints it."""
    return "\n".join(
        f"{at:08x}  {data[at : at + 8].hex(' ')}  {data[at + 8 : at + 16].hex(' ')}  |{_shown(data[at : at + 16])}|"
        for at in range(0, len(data), 16)
    )


def _shown(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


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
        *(
            pytest.param("\n".join(wrap(BLOB, width)), "[image/png, 6016 bytes]", id=f"lines of {width}")
            for width in (16, 20, 32, 48, 50, 64, 100, 1000)
        ),
        pytest.param(numbered(wrap(BLOB, 76), "{}: "), "9: [image/png, 6016 bytes]", id="numbered"),
        pytest.param(numbered(wrap(BLOB, 64), "{:6}\t"), "     9\t[image/png, 6016 bytes]", id="cat -n"),
        pytest.param(numbered(wrap(BLOB, 76), "{:05}| "), "00009| [image/png, 6016 bytes]", id="padded numbers"),
        pytest.param("+" + "\n+".join(wrap(BLOB, 76)), "+[image/png, 6016 bytes]", id="diff"),
        pytest.param(json.dumps(wrap(BLOB, 100)), '["[image/png, 6016 bytes]"]', id="list of pieces"),
        pytest.param(json.dumps(wrap(BLOB, 64), indent=2), '[\n  "[image/png, 6016 bytes]"\n]', id="indented list"),
        pytest.param(json.dumps(json.dumps(wrap(BLOB, 90))), r'"[\"[image/png, 6016 bytes]\"]"', id="escaped list"),
        pytest.param(
            "x = (\n    '" + "'\n    '".join(wrap(BLOB, 76)) + "')", "x = (\n    '[image/png, 6016 bytes]')", id="code"
        ),
        pytest.param(f"a {PNG.hex()} b", "a [image/png, 6016 bytes] b", id="hex"),
        pytest.param("\n".join(wrap(PNG.hex(), 60)), "[image/png, 6016 bytes]", id="xxd -p"),
        pytest.param(PNG[16:].hex().upper(), "[hex, 6000 bytes]", id="hex of unknown type"),
        pytest.param("".join(f"\\x{byte:02x}" for byte in PNG), "[image/png, 6016 bytes]", id=r"\x"),
        pytest.param(json.dumps("".join(f"\\x{byte:02x}" for byte in PNG)), '"[image/png, 6016 bytes]"', id=r"\\x"),
        pytest.param(", ".join(f"0x{byte:02x}" for byte in PNG), "[image/png, 6016 bytes]", id="0x"),
        pytest.param(f"<Buffer {PNG.hex(' ')}>", "<Buffer [image/png, 6016 bytes]>", id="<Buffer>"),
        pytest.param(PNG.hex(":"), "[image/png, 6016 bytes]", id="colons"),
        pytest.param(xxd(PNG) + "\nend", "[image/png, 6016 bytes]\nend", id="xxd"),
        pytest.param(hexdump(PNG) + "\nend", "[image/png, 6016 bytes]\nend", id="hexdump -C"),
        pytest.param(
            json.dumps({"type": "Buffer", "data": list(PNG)}),
            '{"type": "Buffer", "data": [[image/png, 6016 bytes]]}',
            id="Buffer",
        ),
        pytest.param(json.dumps(list(PNG), separators=(",", ":")), "[[image/png, 6016 bytes]]", id="numbers"),
        pytest.param(json.dumps(list(PNG), indent=2), "[\n  [image/png, 6016 bytes]\n]", id="numbers, one a line"),
        pytest.param(base64.b85encode(PNG).decode(), "[base85, 6016 bytes]", id="base85"),
        pytest.param(
            f"{LINES}\n{BLOB}", "[image/png, 6016 bytes]\n[image/png, 6016 bytes]", id="lines, then all on one line"
        ),
        pytest.param(f"see <~{base64.a85encode(PNG).decode()}~>", "see <~[base85, 6016 bytes]~>", id="Ascii85"),
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
        pytest.param("\n".join(hashlib.sha256(b"%d" % n).hexdigest()[:40] for n in range(300)), id="commits"),
        pytest.param("\n".join(hashlib.sha256(b"%d" % n).hexdigest() for n in range(99)), id="digests"),
        pytest.param("\n".join(f"ses_{hashlib.sha256(b'%d' % n).hexdigest()[:20]}A" for n in range(300)), id="ids"),
        pytest.param(json.dumps([[number, number * 7] for number in range(1_000)]), id="numbers over 255"),
        pytest.param("\n".join(f"some_module_name_{n}/withALongPart{n}.py" for n in range(500)), id="paths"),
        pytest.param("\n".join(f"{n:02x} is {n}" for n in range(1_000)), id="a table"),
        pytest.param("https://example.com/?" + "&".join(f"a{n}=b%20{n}" for n in range(900)), id="a long URL"),
        pytest.param("function(a,b){return a.c[b]?1:0};" * 200, id="minified code"),
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


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        pytest.param(wrap(BLOB, 500), ["[image/png, 6016 bytes]"], id="pieces"),
        pytest.param({"type": "Buffer", "data": list(PNG)}, {"type": "Buffer", "data": [DESCRIBED]}, id="Buffer"),
        pytest.param(list(range(200)), list(range(200)), id="few numbers"),
        pytest.param([n * 300 for n in range(2_000)], [n * 300 for n in range(2_000)], id="no bytes"),
        pytest.param(["a", *["b c"] * 3_000], ["a", *["b c"] * 3_000], id="words"),
    ],
)
def test_pieces_of_a_blob_in_json_are_described(told: Json, shown: Json) -> None:
    assert Redaction.compile([], secrets=False).json(told) == shown


SLOW: dict[str, str] = {
    "spaces": " " * 300_000,
    "runs that are too short": (random.Random(2).randbytes(2_900).hex()[:4_000] + " ") * 60,  # noqa: S311 - noise
    "lists that are too short": ("[" + "12," * 900 + "x]") * 100,
    "pairs and nothing": "ff " * 100_000,
    "lines of a dump": "00000000: ffff ffff\n" * 15_000,
    "words of one blob's width": ("Ab1" * 7 + "\n") * 14_000,
    "data": "data:" * 60_000,
    "marks": "1: 2: 3: " * 30_000,
    "backslashes": "\\" * 300_000,
    "quotes": "aB1" * 10 + '",' * 150_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_a_text_that_is_made_to_be_slow_is_read_through(name: str) -> None:
    # Where the time grew with the square of the length, this would take hours.
    assert len(strip_blobs(SLOW[name])) <= len(SLOW[name])


def test_what_was_described_is_not_copied_once_more_for_each_data_url() -> None:
    """For that took minutes."""
    count = 200_000
    assert strip_blobs("see data:a/b,x " * count) == "see [a/b, 1 bytes] " * count
