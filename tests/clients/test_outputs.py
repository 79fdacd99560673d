"""Outputs are the same however they were cut, and never other than the receipt says."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditcast.v1.generation_pb2 import OutputChunk, OutputDigest
from ditcast_client import DataLoss, DigestMismatch, Output
from ditcast_client.outputs import OutputAssembly

CUTS = st.lists(st.integers(min_value=0, max_value=400), max_size=8)


def cut(index: int, data: bytes, cuts: list[int]) -> list[OutputChunk]:
    """Cut an output at the given places."""
    places = sorted({0, *(place for place in cuts if place < len(data)), len(data)})
    ranges = list(pairwise(places)) or [(0, 0)]
    return [chunk(index, start, data[start:end], len(data)) for start, end in ranges]


def chunk(
    index: int, offset: int, part: bytes, total: int, media: str = "image/png"
) -> OutputChunk:
    """Give a chunk."""
    return OutputChunk(
        output_index=index, media_type=media, total_bytes=total, offset=offset, data=part
    )


def digest(index: int, data: bytes) -> OutputDigest:
    """Give the receipt's word on an output."""
    return OutputDigest(output_index=index, sha256=hashlib.sha256(data).digest())


@given(st.lists(st.tuples(st.binary(max_size=400), CUTS), min_size=1, max_size=4), st.randoms())
def test_any_cutting_and_mixing_gives_the_same(
    outputs: list[tuple[bytes, list[int]]], random: object
) -> None:
    """The chunks of one output come in order; where they are cut and how outputs mix is free."""
    waiting = [cut(index, data, cuts) for index, (data, cuts) in enumerate(outputs)]
    assembly = OutputAssembly()
    while waiting:
        one = waiting[random.randrange(len(waiting))]  # type: ignore[attr-defined]
        assembly.take(one.pop(0))
        waiting = [chunks for chunks in waiting if chunks]
    digests = [digest(index, data) for index, (data, _) in enumerate(outputs)]
    assert [output.data for output in assembly.finish(digests)] == [data for data, _ in outputs]


@given(st.binary(min_size=1, max_size=400), CUTS, st.data())
def test_any_other_order_is_refused(data: bytes, cuts: list[int], draw: st.DataObject) -> None:
    """A chunk that is left out, doubled or out of place never goes unnoticed."""
    chunks = cut(0, data, cuts)
    order = draw.draw(st.lists(st.sampled_from(range(len(chunks))), max_size=len(chunks) + 2))
    assembly = OutputAssembly()
    if order == list(range(len(chunks))):
        return
    with pytest.raises(DataLoss):
        _assemble(assembly, [chunks[place] for place in order], [digest(0, data)])


@given(st.binary(min_size=1, max_size=400), st.integers(min_value=0), st.integers(1, 255))
def test_any_changed_byte_is_a_digest_mismatch(data: bytes, place: int, change: int) -> None:
    """One changed byte is enough."""
    spoilt = bytearray(data)
    spoilt[place % len(data)] ^= change
    assembly = OutputAssembly()
    with pytest.raises(DigestMismatch) as caught:
        _assemble(assembly, [chunk(0, 0, bytes(spoilt), len(data))], [digest(0, data)])
    assert caught.value.expected == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (chunk(0, 3, b"d", 6), "gap or overlap"),
        (chunk(0, 5, b"f", 6), "gap or overlap"),
        (chunk(0, -1, b"f", 6), "gap or overlap"),
        (chunk(0, 4, b"efg", 6), "more bytes than the 6"),
        (chunk(0, 4, b"ef", 7), "contradicts"),
        (chunk(0, 4, b"ef", 6, "image/webp"), "contradicts"),
    ],
)
def test_bounds(second: OutputChunk, says: str) -> None:
    """Offsets, totals and media types that do not fit are refused where they appear."""
    assembly = OutputAssembly()
    assembly.take(chunk(0, 0, b"abcd", 6))
    with pytest.raises(DataLoss, match=says if says != "gap or overlap" else "4 bytes came"):
        assembly.take(second)


@pytest.mark.parametrize(("came", "named"), [([0], [0, 1]), ([0, 1], [0]), ([1], [0]), ([], [0])])
def test_outputs_are_those_of_the_receipt(came: list[int], named: list[int]) -> None:
    """An output too many or too few is refused."""
    with pytest.raises(DataLoss, match="receipt names"):
        _assemble(
            OutputAssembly(),
            [chunk(index, 0, b"a", 1) for index in came],
            [digest(index, b"a") for index in named],
        )


def test_unfinished_output_is_refused() -> None:
    """An output that lacks its last bytes is not an output."""
    with pytest.raises(DataLoss, match="4 of 6 bytes"):
        _assemble(OutputAssembly(), [chunk(0, 0, b"abcd", 6)], [digest(0, b"abcdef")])


def test_save_replaces_the_file(tmp_path: Path) -> None:
    """Saving writes the bytes as they came, over what was there, and gives the path."""
    target = tmp_path / "cup.png"
    target.write_bytes(b"something older and longer")
    output = Output(output_index=0, media_type="image/png", data=b"new")
    assert output.save(str(target)) == target
    assert target.read_bytes() == b"new"
    assert "new" not in repr(output)


def _assemble(
    assembly: OutputAssembly, chunks: list[OutputChunk], digests: list[OutputDigest]
) -> None:
    for one in chunks:
        assembly.take(one)
    assembly.finish(digests)
