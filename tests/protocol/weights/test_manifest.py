import threading

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import WeightsError
from protocol.messages import Manifest, TensorEntry
from protocol.weights.manifest import (
    TensorSpec,
    apply_delta,
    bucket_range,
    encode_delta,
    num_buckets,
    place,
    tensor_checksum,
    verify_manifest,
    weights_checksum,
)
from protocol.weights.segments import Segment, segment_path

SPECS = [TensorSpec("a", "float32", (3, 5)), TensorSpec("b", "bfloat16", (7,)), TensorSpec("c", "float32", (2,))]
EXPECTED = {s.name: s for s in SPECS}


def weights(seed: int = 0, bucket_bytes: int = 64) -> tuple[Manifest, bytearray]:
    entries: list[TensorEntry] = []
    end = 0
    for spec in SPECS:
        entries.append(place(spec, end))
        end = entries[-1].offset + entries[-1].num_bytes
    buffer = bytearray(np.random.default_rng(seed).bytes(end))
    checked = [
        msgspec.structs.replace(e, checksum=tensor_checksum(memoryview(buffer)[e.offset : e.offset + e.num_bytes]))
        for e in entries
    ]
    checksum = weights_checksum(checked)
    return Manifest(version=1, tensors=checked, num_bytes=end, checksum=checksum, bucket_bytes=bucket_bytes), buffer


def test_good_weights_verify():
    manifest, _ = weights()
    verify_manifest(manifest, EXPECTED, {})
    assert [e.offset % 64 for e in manifest.tensors] == [0, 0, 0]


@settings(deadline=None)
@given(st.data())
def test_every_flipped_bit_changes_the_checksum(data):
    manifest, buffer = weights()
    entry = data.draw(st.sampled_from(manifest.tensors))
    memory = memoryview(buffer)[entry.offset : entry.offset + entry.num_bytes]
    memory[data.draw(st.integers(0, entry.num_bytes - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert tensor_checksum(memory) != entry.checksum


def changed(manifest: Manifest, index: int, **fields: object) -> Manifest:
    tensors = list(manifest.tensors)
    tensors[index] = msgspec.structs.replace(tensors[index], **fields)
    return msgspec.structs.replace(manifest, tensors=tensors, checksum=weights_checksum(tensors))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda m: changed(m, 0, name="z"), "unknown to this model"),
        (lambda m: changed(m, 0, name="c", shape=[2]), "twice|c is float32|outside"),
        (lambda m: changed(m, 0, shape=[5, 3]), "a is float32"),
        (lambda m: changed(m, 1, dtype="float16"), "b is float16"),
        (lambda m: changed(m, 2, offset=10**6), "outside its segment"),
        (lambda m: changed(m, 2, num_bytes=4), "outside its segment"),
        (lambda m: msgspec.structs.replace(m, tensors=m.tensors[:-1]), r"lacks c \(1 in all\)"),
        (lambda m: msgspec.structs.replace(m, checksum="0"), "contradicts its own checksum"),
    ],
)
def test_a_manifest_that_does_not_fit_the_model_is_refused(damage, says):
    manifest, _ = weights()
    with pytest.raises(WeightsError, match=says):
        verify_manifest(damage(manifest), EXPECTED, {})


def test_a_tied_tensor_may_be_left_out_or_sent_along():
    manifest, _ = weights()
    with_head = changed(manifest, 2, name="head", shape=[3, 5], num_bytes=60, offset=0)
    verify_manifest(with_head, {n: EXPECTED[n] for n in "ab"}, tied={"head": "a"})
    without = msgspec.structs.replace(
        with_head, tensors=with_head.tensors[:2], checksum=weights_checksum(with_head.tensors[:2])
    )
    verify_manifest(without, {n: EXPECTED[n] for n in "ab"}, tied={"head": "a"})


def test_the_checksum_does_not_depend_on_the_order_but_on_everything_else():
    manifest, _ = weights()
    assert weights_checksum(reversed(manifest.tensors)) == manifest.checksum
    for fields in ({"name": "x"}, {"dtype": "float16"}, {"shape": [15]}, {"checksum": "0"}):
        first = msgspec.structs.replace(manifest.tensors[0], **fields)
        assert weights_checksum([first, *manifest.tensors[1:]]) != manifest.checksum


def test_buckets_cover_every_byte_once():
    manifest, _ = weights(bucket_bytes=50)
    covered = [b for i in range(num_buckets(manifest)) for b in range(manifest.num_bytes)[bucket_range(manifest, i)]]
    assert covered == list(range(manifest.num_bytes))
    for bad in (-1, num_buckets(manifest)):
        with pytest.raises(WeightsError, match="no bucket"):
            bucket_range(manifest, bad)


@settings(deadline=None)
@given(
    st.sampled_from([2, 4]),
    st.integers(1, 3000),
    st.lists(st.tuples(st.integers(0, 2999), st.integers(1, 2**16 - 1)), max_size=40),
)
def test_a_delta_rebuilds_the_new_bytes_exactly(item_bytes, length, changes):
    kind = np.dtype(f"<u{item_bytes}")
    old = np.random.default_rng(0).integers(0, 2**15, length).astype(kind)
    new = old.copy()
    for position, flip in changes:
        new[position % length] ^= flip
    delta = encode_delta(old.view(np.uint8), new.view(np.uint8), item_bytes)
    if delta is None:  # it would not have been smaller
        assert (old != new).sum() * 3 * item_bytes > old.nbytes or old.nbytes < 200
        return
    rebuilt = old.copy()
    apply_delta(rebuilt.view(np.uint8), delta)
    assert rebuilt.tolist() == new.tolist()


def test_a_small_change_makes_a_small_delta():
    rng = np.random.default_rng(1)
    old = rng.integers(0, 2**16, 1 << 20).astype(np.uint16)
    new = old.copy()
    at = rng.choice(len(old), len(old) // 50, replace=False)
    new[at] ^= 1
    delta = encode_delta(old.view(np.uint8), new.view(np.uint8), 2)
    assert delta is not None
    assert delta.nbytes < 0.02 * old.nbytes


@settings(deadline=None)
@given(st.data())
def test_a_damaged_delta_is_refused_or_caught_by_the_checksum_but_never_writes_outside(data):
    old = np.zeros(4096, np.uint8)
    new = old.copy()
    new[::40] = 1
    delta = encode_delta(old, new, 2)
    assert delta is not None
    broken = bytearray(delta.tobytes())
    match data.draw(st.sampled_from(["flip", "cut", "grow", "other"])):
        case "flip":
            broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del broken[data.draw(st.integers(0, len(broken) - 1)) :]
        case "grow":
            broken += b"x"
        case "other":
            broken = bytearray(data.draw(st.binary(max_size=60)))
    around = np.zeros(4096 + 200, np.uint8)
    try:
        apply_delta(around[100:-100], np.frombuffer(bytes(broken), np.uint8))
    except WeightsError as error:
        assert error.kind == "delta"
    assert not around[:100].any()
    assert not around[-100:].any()


def test_segments_are_private_and_found_by_prefix(tmp_path):
    path = segment_path("unit", "weights-0")
    assert path.name == "longhaul-unit-weights-0"
    segment = Segment.create(path, 4096)
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        segment.buffer[:3] = b"abc"
        assert Segment.open(path, 4096).buffer[:3] == b"abc"
        with pytest.raises(WeightsError, match="has 4112 bytes, expected at least"):
            Segment.open(path, 4097)
    finally:
        segment.unlink()
    with pytest.raises(WeightsError, match="cannot open"):
        Segment.open(path, 1)


def test_a_reader_follows_the_writer_and_gives_up_with_it():
    path = segment_path("unit", "followed")
    written = Segment.create(path, 100)
    try:
        read = Segment.open(path, 100)
        with pytest.raises(WeightsError, match="version 7 is written no further") as caught:
            read.wait_written(7, 1)
        assert caught.value.kind == "withdrawn"
        written.begin(7)
        written.advance(60)
        read.wait_written(7, 60)
        with pytest.raises(WeightsError, match=r"has 60 of 61 bytes for 0\.05 s"):
            read.wait_written(7, 61, stalled_after_s=0.05)
        threading.Timer(0.05, written.advance, (100,)).start()
        read.wait_written(7, 100)
        written.begin(8)
        with pytest.raises(WeightsError, match="no further"):
            read.wait_written(7, 100)
        threading.Timer(0.05, written.withdraw).start()
        with pytest.raises(WeightsError, match="no further"):
            read.wait_written(8, 1)
    finally:
        written.unlink()


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "a" * 300])
def test_a_segment_name_cannot_leave_its_directory(name):
    with pytest.raises(WeightsError, match="cannot be part"):
        segment_path("run", name)


def test_a_full_shared_memory_is_an_error_not_a_crash():
    path = segment_path("unit", "too-large")
    with pytest.raises(WeightsError, match="free shared memory"):
        Segment.create(path, 1 << 50)
    assert not path.exists()
