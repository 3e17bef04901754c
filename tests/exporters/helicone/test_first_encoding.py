"""Sessions that version 0.1.0 captured go on as it showed them: their jobs are made again byte by byte."""

from __future__ import annotations

import hashlib
import json

import pytest

from app.exporters.encoder import Frame
from app.exporters.helicone.records import encode_turn
from app.transcript.identity import Encoding
from app.transcript.model import Transcript
from app.transcript.parse import parse
from tests.support.checkout import DATA
from tests.support.snapshots import Fields

CASES = DATA / "cases"
AS_IN_0_1_0 = [
    # Name, and the beginnings of SHA-256 of all bodies and of all keys' digests, as version 0.1.0 made them.
    ("13-rare-parts", "23a34ab909da8c81", "ae204d373f8b0413"),
    ("15-full", "17ae5c5573ac97da", "de2666177f941f98"),
    ("19-base64", "ba95cdbf9abf8d35", "ade03416d6f48570"),
    ("28b-parts-across-the-wrap", "ddea9fb8c21b49a9", "5c797266a0f880e9"),
    ("29-clock-steps-back-inside-a-turn", "d5492cbaeee9c28f", "b230ba3bc5541157"),
]


def case(name: str, **info: object) -> Transcript:
    value: Fields = json.loads((CASES / f"{name}.json").read_text())
    value["info"].update(info)
    return parse({"root": value["info"]["id"], "sessions": [value]})


def bodies(transcript: Transcript, encoding: Encoding) -> list[bytes]:
    frame = Frame(transcript.session.id, "opencode: shop", "/opencode", "", interrupted=True, encoding=encoding)
    return [record.body for turn in transcript.turns for record in encode_turn(turn, frame)]


@pytest.mark.parametrize(("name", "of_bodies", "of_digests"), AS_IN_0_1_0)
def test_what_could_be_read_before_has_the_bytes_and_the_key_that_it_had(
    name: str, of_bodies: str, of_digests: str
) -> None:
    transcript = case(name)
    digests = "".join(turn.digest for turn in transcript.turns)
    assert hashlib.sha256(digests.encode()).hexdigest().startswith(of_digests)
    assert hashlib.sha256(b"\n".join(bodies(transcript, 1))).hexdigest().startswith(of_bodies)


def test_what_is_undone_is_sent_under_its_old_bytes_where_they_cannot_say_so() -> None:
    plain, undone = case("15-full"), case("15-full", revert={"messageID": "msg_1"})
    assert undone.turns[0].digest != plain.turns[0].digest
    assert bodies(undone, 1) == bodies(plain, 1)
    assert bodies(undone, 2) != bodies(plain, 2)
