"""Frames of a message in few ZMQ frames."""

import struct

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import WireError
from protocol.frames import LARGE, Joiner, split

SIZES = st.sampled_from([0, 1, 7, 8, 9, 1000, 70_000, LARGE - 1, LARGE, LARGE + 1])


def received(parts):
    """What the other side sees."""
    return [memoryview(part.bytes if isinstance(part, zmq.Frame) else bytes(part)) for part in parts]


@settings(deadline=None)
@given(st.lists(SIZES, max_size=6))
def test_frames_of_any_size_come_out_as_they_went_in(sizes):
    frames = [bytes([1 + i]) * size for i, size in enumerate(sizes)]
    parts = Joiner().join(frames)
    assert len(parts) == 1 + sum(size >= LARGE for size in sizes)
    assert split(received(parts), 100) == frames


def test_frames_are_views_aligned_to_words():
    (part,) = Joiner().join([b"head!", memoryview(np.arange(5, dtype=np.float64)).cast("B")])
    frames = split([memoryview(part)], 10)
    assert frames[1].obj is part
    array = np.frombuffer(frames[1], np.float64)
    assert array.flags.aligned
    assert array.tolist() == [0, 1, 2, 3, 4]


def test_a_buffer_is_used_again_only_once_it_is_sent():
    joiner = Joiner()
    first = joiner.join([b"a" * 100_000])
    second = joiner.join([b"b" * 100_000])
    assert received(first)[0][16:17] == b"a", "overwritten before ZMQ was done with it"
    assert received(second)[0][16:17] == b"b"


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([], "malformed"),
        ([b"short"], "malformed"),
        ([struct.pack("<Q", 1 << 60)], "size"),
        ([struct.pack("<Q", 5)], "malformed"),
        ([struct.pack("<2Q", 1, 8)], "malformed"),
        ([struct.pack("<2Q", 1, 8) + bytes(16)], "malformed"),
        ([struct.pack("<2Q", 1, LARGE)], "malformed"),
        ([struct.pack("<2Q", 1, LARGE), bytes(LARGE - 1)], "malformed"),
        ([struct.pack("<Q", 0), b"more"], "malformed"),
        ([struct.pack("<2Q", 1, (1 << 64) - 1)], "malformed"),
    ],
)
def test_a_table_that_lies_is_refused(parts, kind):
    with pytest.raises(WireError) as error:
        split([memoryview(part) for part in parts], 100)
    assert error.value.kind == kind
