"""Weight manifests: names, shapes, dtypes and checksums of one version, and the lossless delta between two.

A checksum is xxh3 (64 bits a tensor): it proves equality against accidents at memory speed, not against forgery; the
sockets and file modes keep strangers out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np
import xxhash
import zstandard

from protocol.errors import WeightsError
from protocol.messages import Manifest, TensorEntry

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ALIGNMENT = 64


class TensorSpec(NamedTuple):
    """Name, dtype and shape of a tensor whose bytes are elsewhere."""

    name: str
    dtype: str
    shape: tuple[int, ...]


TensorChecksum = xxhash.xxh3_64
"""Takes a tensor's bytes in pieces (`update`); `hexdigest()` is then its checksum."""


def tensor_checksum(data: bytes | memoryview) -> str:
    """Checksum of a tensor's bytes."""
    return xxhash.xxh3_64_hexdigest(data)


def weights_checksum(entries: Iterable[TensorEntry]) -> str:
    """Checksum of a whole set of weights, independent of the order and place of its tensors."""
    rows = sorted((e.name, e.dtype, list(e.shape), e.checksum) for e in entries)
    return xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode(rows))


def place(spec: TensorSpec, end: int) -> TensorEntry:
    """Entry of a tensor laid behind `end`, aligned for any element type. Raises `WeightsError` on an unknown dtype."""
    name, dtype, shape = spec
    if dtype not in ITEM_BYTES:
        raise WeightsError(f"{name}: dtype {dtype} does not travel; use one of {sorted(ITEM_BYTES)}", kind="dtype")
    offset = -(-end // _ALIGNMENT) * _ALIGNMENT
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    return TensorEntry(name=name, dtype=dtype, shape=list(shape), offset=offset, num_bytes=num_bytes)


def verify_manifest(manifest: Manifest, expected: Mapping[str, TensorSpec], tied: Mapping[str, str]) -> None:
    """Raise `WeightsError` unless `manifest` describes exactly the tensors of a model, inside its bytes.

    Args:
        expected: the model's tensors by name.
        tied: names that may be left out or sent along, because they share another tensor's memory.
    """
    most = sum(entry.num_bytes + _ALIGNMENT for entry in manifest.tensors)
    if not 0 <= manifest.num_bytes <= most or manifest.bucket_bytes < 1:
        raise WeightsError(
            f"version {manifest.version}: {manifest.num_bytes} bytes in buckets of {manifest.bucket_bytes}, with "
            f"tensors of {most} at most",
            kind="shape",
        )
    seen: set[str] = set()
    for entry in manifest.tensors:
        spec = expected.get(entry.name) or expected.get(tied.get(entry.name, ""))
        if spec is None:
            raise WeightsError(f"version {manifest.version} brings {entry.name}, unknown to this model", kind="name")
        if entry.name in seen:
            raise WeightsError(f"version {manifest.version} brings {entry.name} twice", kind="name")
        if tuple(entry.shape) != spec.shape or entry.dtype != spec.dtype:
            raise WeightsError(
                f"version {manifest.version}: {entry.name} is {entry.dtype} {entry.shape}, "
                f"this model wants {spec.dtype} {list(spec.shape)}",
                kind="shape",
            )
        num_bytes = math.prod(entry.shape) * ITEM_BYTES[entry.dtype]
        if entry.num_bytes != num_bytes or entry.offset < 0 or entry.offset + num_bytes > manifest.num_bytes:
            raise WeightsError(f"version {manifest.version}: {entry.name} lies outside its segment", kind="shape")
        seen.add(entry.name)
    if missing := sorted(expected.keys() - seen - tied.keys()):
        raise WeightsError(f"version {manifest.version} lacks {missing[0]} ({len(missing)} in all)", kind="name")
    if weights_checksum(manifest.tensors) != manifest.checksum:
        raise WeightsError(f"version {manifest.version}: the manifest contradicts its own checksum", kind="checksum")


# --- buckets and deltas -------------------------------------------------------------------------------------------

_DELTA_HEADER = np.dtype([("num_changed", "<u4"), ("num_gaps", "<u4"), ("gap_bytes", "<u4"), ("value_bytes", "<u4")])
_LEVEL = 1


def num_buckets(manifest: Manifest) -> int:
    """How many buckets carry the bytes of `manifest`."""
    return -(-manifest.num_bytes // manifest.bucket_bytes)


def bucket_range(manifest: Manifest, bucket: int) -> slice:
    """Byte range of one bucket. Raises `WeightsError` if there is no such bucket."""
    if not 0 <= bucket < num_buckets(manifest):
        raise WeightsError(f"version {manifest.version} has no bucket {bucket}", kind="bucket")
    return slice(bucket * manifest.bucket_bytes, min((bucket + 1) * manifest.bucket_bytes, manifest.num_bytes))


def encode_delta(old: np.ndarray, new: np.ndarray, item_bytes: int) -> np.ndarray | None:
    """What changed from `old` to `new` (uint8 [n]), or None when that would not be smaller than `new` itself.

    The indices of changed elements travel as gaps of one byte (a gap of 255 or more is escaped by fillers), their
    values as XOR with the old ones, split into byte planes; both are compressed. At reinforcement-learning rates gaps
    are small and a change flips few low bits, so that an element costs about a byte.
    """
    kind = np.dtype(f"<u{item_bytes}")
    tail = len(new) % item_bytes
    if tail:  # the last bucket may end inside the alignment padding
        return None
    flips = np.bitwise_xor(old.view(kind), new.view(kind))
    changed = np.flatnonzero(flips)
    if len(changed) * item_bytes > len(new) // 3:
        return None
    gaps = np.diff(changed, prepend=-1) - 1
    fillers, last = np.divmod(gaps, 255)
    stream = np.full(len(gaps) + int(fillers.sum()), 255, np.uint8)
    stream[np.arange(len(gaps)) + np.cumsum(fillers)] = last
    values = np.ascontiguousarray(flips[changed].view(np.uint8).reshape(-1, item_bytes).T)
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    packed_gaps, packed_values = compressor.compress(stream.tobytes()), compressor.compress(values.tobytes())
    header = np.array([(len(changed), len(stream), len(packed_gaps), len(packed_values))], _DELTA_HEADER)
    encoded = np.frombuffer(bytes([item_bytes]) + header.tobytes() + packed_gaps + packed_values, np.uint8)
    return encoded if len(encoded) < len(new) else None


def apply_delta(target: np.ndarray, delta: np.ndarray) -> None:
    """Change `target` (uint8 [n], writable) in place. Raises `WeightsError` if `delta` does not fit it."""
    try:
        data = np.ascontiguousarray(delta).data
        item_bytes = data[0]
        kind = np.dtype(f"<u{item_bytes}")
        start = 1 + _DELTA_HEADER.itemsize
        num_changed, num_gaps, gap_bytes, value_bytes = np.frombuffer(data[1:start], _DELTA_HEADER)[0].tolist()
        if start + gap_bytes + value_bytes != len(data) or num_gaps > len(target) or num_changed > num_gaps:
            raise ValueError("its parts do not add up")
        stream = _decompress(data[start : start + gap_bytes], num_gaps)
        values = _decompress(data[start + gap_bytes :], num_changed * item_bytes)
        ends = np.flatnonzero(stream != 255)
        if len(ends) != num_changed:
            raise ValueError(f"{len(ends)} indices for {num_changed} values")
        positions = np.cumsum(stream, dtype=np.int64)[ends] + np.arange(num_changed)
        elements = target.view(kind)
        if num_changed and positions[-1] >= len(elements):
            raise ValueError(f"index {positions[-1]} in a bucket of {len(elements)} elements")
        flips = np.ascontiguousarray(values.reshape(item_bytes, num_changed).T).view(kind).reshape(-1)
        elements[positions] ^= flips
    except (ValueError, TypeError, IndexError, zstandard.ZstdError) as error:
        raise WeightsError(f"a delta does not fit its bucket: {error}", kind="delta") from error


def _decompress(data: memoryview, num_bytes: int) -> np.ndarray:
    announced = zstandard.frame_content_size(data)
    if announced != num_bytes:  # before any memory is taken
        raise ValueError(f"{announced} bytes where {num_bytes} were announced")
    return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint8)
