from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ledger.compression import BundleError, pack, unpack

BODIES = st.lists(
    st.binary(max_size=50) | st.integers(0, 200_000).map(lambda size: b"abcdefgh" * (size // 8)), max_size=5
)


@given(BODIES)
def test_what_is_packed_comes_out_again(bodies: list[bytes]) -> None:
    assert list(unpack(pack(bodies), [len(body) for body in bodies])) == bodies


@given(BODIES.filter(lambda bodies: sum(map(len, bodies)) > 0), st.data())
def test_damage_is_an_error_or_other_bytes_and_nothing_else(bodies: list[bytes], data: st.DataObject) -> None:
    bundle = bytearray(pack(bodies))
    bundle[data.draw(st.integers(0, len(bundle) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        out = list(unpack(bytes(bundle), [len(body) for body in bodies]))
    except BundleError:
        return
    assert [len(body) for body in out] == [len(body) for body in bodies]


@pytest.mark.parametrize("size", [100, 100_000])
def test_cut_stream_is_an_error(size: int) -> None:
    bundle = pack([bytes(range(256)) * size])
    with pytest.raises(BundleError):
        list(unpack(bundle[: len(bundle) // 2], [256 * size]))


def test_text_that_stands_in_three_records_costs_once() -> None:
    text = bytes(n * n % 251 for n in range(50_000))
    assert len(pack([text, b"x" + text + text])) < 1.2 * len(pack([text]))
