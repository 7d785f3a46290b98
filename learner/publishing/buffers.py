"""Two shared-memory segments that hold the newest two versions of the weights, and the deltas between them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace

from protocol.errors import WeightsError
from protocol.messages import Manifest, TensorEntry, WeightsBucket
from protocol.weights.manifest import (
    ITEM_BYTES,
    TensorChecksum,
    TensorSpec,
    bucket_range,
    encode_delta,
    place,
    tensor_checksum,
)
from protocol.weights.segments import PIECE_BYTES, Segment, segment_path

_log = logging.getLogger(__name__)
_RETRY_S = 1.0
_FLOAT32_EVERYWHERE = ("e_score_correction_bias",)
"""Names whose dtype is the same whatever a model computes in: which experts are taken depends on every bit."""


class WeightBuffers:
    """Filled by one thread at a time; buckets may be read by another.

    Args:
        dtype: tensors are converted to it; None: they stay as they come.
        with_delta: encode buckets as changes against the other segment.
        full_every: versions divisible by it are always sent whole.
        patience_s: longest wait for room in shared memory.
    """

    def __init__(
        self, run: str, dtype: torch.dtype | None, *, with_delta: bool, full_every: int, patience_s: float = 0.0
    ) -> None:
        self._patience_s = patience_s
        self._paths = [segment_path(run, f"weights-{i}") for i in range(2)]
        self.unlink()  # of a learner that died: whoever still waits for its next byte sees that none will come
        self._segments: dict[int, Segment] = {}  # by version
        self._spare: Segment | None = None  # of a version that was withdrawn
        self._dtype = dtype
        self._with_delta = with_delta
        self._full_every = full_every
        self._deltas: dict[tuple[int, int], np.ndarray | None] = {}  # by version and bucket
        self._delta_lock = threading.Lock()
        self.entries: list[TensorEntry] = []
        self.num_bytes = 0
        self.delta_share: float | None = None  # of the last bucket that was sent as one; None: none was asked for

    @property
    def oldest_version(self) -> int | None:
        """The version that the next `fill` overwrites; None while a segment is still unused."""
        return min(self._segments) if len(self._segments) == 2 else None

    def path_of(self, version: int) -> str:
        """File that holds `version`."""
        return str(self._segments[version].path)

    def fill(
        self, version: int, tensors: Iterable[tuple[str, torch.Tensor]], on_begin: Callable[[], None]
    ) -> list[TensorEntry]:
        """Copy one version into the segment that is free, over the oldest. Returns `entries` with their checksums.

        `on_begin` is called when it is known where the version will lie, before its first byte is written; not for the
        first version, whose layout only its tensors tell.
        Raises `WeightsError` if names, order or shapes differ from those of the first version.
        """
        if not self.entries:
            return self._fill_first(version, tensors)
        segment = self._free_segment()
        segment.begin(version)
        self._segments[version] = segment
        with self._delta_lock:
            self._deltas.clear()
        on_begin()
        try:
            return self._write(segment, version, tensors)
        except BaseException:
            segment.withdraw()
            self._spare = self._segments.pop(version)
            raise

    def bucket(self, manifest: Manifest, bucket: int, base_version: int) -> WeightsBucket:
        """One bucket of the newest version, as a delta where the generator holds the version before."""
        wanted = bucket_range(manifest, bucket)
        new, old = self._segments.get(manifest.version), self._segments.get(base_version)
        if new is None:
            raise WeightsError(f"version {manifest.version} has been overwritten", kind="version")
        if self._with_delta and manifest.version % self._full_every and old is not None:
            delta = self._delta(manifest.version, bucket, _bytes_in(old, wanted), _bytes_in(new, wanted))
            if delta is not None:
                return WeightsBucket(version=manifest.version, bucket=bucket, data=delta, base_version=base_version)
        return WeightsBucket(version=manifest.version, bucket=bucket, data=_bytes_in(new, wanted))

    def view(self, manifest: Manifest, bucket: int) -> torch.Tensor:
        """Bytes (uint8 [n]) of one bucket, where they lie. Raises `WeightsError` if they were overwritten."""
        segment = self._segments.get(manifest.version)
        if segment is None:
            raise WeightsError(f"version {manifest.version} has been overwritten", kind="version")
        return torch.from_numpy(_bytes_in(segment, bucket_range(manifest, bucket)))

    def unlink(self) -> None:
        """Remove the files."""
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _free_segment(self) -> Segment:
        if self._spare is not None:
            segment, self._spare = self._spare, None
            return segment
        if self.oldest_version is not None:
            return self._segments.pop(self.oldest_version)
        used = {s.path for s in self._segments.values()}
        return self._created(next(p for p in self._paths if p not in used))

    def _created(self, path: Path) -> Segment:
        """Waits for room in shared memory; whoever gives some back unblocks it, `patience_s` end it."""
        until, is_told = time.monotonic() + self._patience_s, False
        while True:
            try:
                return Segment.create(path, self.num_bytes)
            except WeightsError as error:
                if time.monotonic() > until:
                    raise
                if not is_told:
                    _log.warning("publishing waits: %s", error)
                    is_told = True
            time.sleep(_RETRY_S)

    def _write(self, segment: Segment, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[TensorEntry]:
        written: list[TensorEntry] = []
        for name, tensor in tensors:
            spec, count = self._spec(name, tensor), len(written)
            expected = self.entries[count] if count < len(self.entries) else None
            if expected is None or spec != TensorSpec(expected.name, expected.dtype, tuple(expected.shape)):
                raise WeightsError(f"version {version} brings {spec}, expected {expected}", kind="shape")
            written.append(replace(expected, checksum=_copy(segment, expected, tensor)))
        if len(written) != len(self.entries):
            raise WeightsError(f"version {version} ends before {self.entries[len(written)].name}", kind="name")
        segment.advance(self.num_bytes)
        return written

    def _delta(self, version: int, bucket: int, old: np.ndarray, new: np.ndarray) -> np.ndarray | None:
        """Encoded once for all generators. (Should `old` be overwritten meanwhile, the checksums show it.)"""
        with self._delta_lock:
            if (version, bucket) not in self._deltas:
                delta = encode_delta(old, new, ITEM_BYTES[self.entries[0].dtype])
                self._deltas[version, bucket] = delta
                self.delta_share = 1.0 if delta is None else delta.nbytes / new.nbytes
            return self._deltas[version, bucket]

    def _spec(self, name: str, tensor: torch.Tensor) -> TensorSpec:
        return TensorSpec(name, str(self._dtype_of(name, tensor)).removeprefix("torch."), tuple(tensor.shape))

    def _dtype_of(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        return self._dtype if self._dtype and not name.endswith(_FLOAT32_EVERYWHERE) else tensor.dtype

    def _fill_first(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[TensorEntry]:
        """The first version: where tensors lie is only known once all have passed, so they are written to a file."""
        path = self._paths[0]
        path.unlink(missing_ok=True)
        entries: list[TensorEntry] = []
        end = 0
        try:
            with open(path, "xb", opener=_private) as file:
                for name, tensor in tensors:
                    entry = place(self._spec(name, tensor), end)
                    file.seek(entry.offset)
                    file.write(_bytes_of(tensor.detach().to("cpu", self._dtype_of(name, tensor))))
                    entries.append(entry)
                    end = entry.offset + entry.num_bytes
                file.truncate(Segment.file_bytes(end))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise WeightsError(f"cannot write {path}: {error.strerror}; free shared memory", kind="segment") from error
        if not entries:
            raise WeightsError(f"version {version} holds no tensors", kind="name")
        self.entries, self.num_bytes = entries, end
        segment = self._segments[version] = Segment.open(path, self.num_bytes, writable=True)
        segment.begin(version)
        segment.advance(self.num_bytes)
        memory = memoryview(segment.buffer)
        return [replace(e, checksum=tensor_checksum(memory[e.offset : e.offset + e.num_bytes])) for e in entries]


def _bytes_in(segment: Segment, wanted: slice) -> np.ndarray:
    return np.frombuffer(segment.buffer, np.uint8)[wanted]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def _copy(segment: Segment, entry: TensorEntry, tensor: torch.Tensor) -> str:
    """In pieces, so that whoever follows is never far behind, and that he and the hash find them in the cache. The
    tensor's checksum.
    """
    source = tensor.detach().flatten()
    target = torch.frombuffer(
        segment.buffer, dtype=getattr(torch, entry.dtype), count=source.numel(), offset=entry.offset
    )
    memory, checksum = memoryview(segment.buffer), TensorChecksum()
    width = target.element_size()
    piece = PIECE_BYTES // width
    for start in range(0, len(target), piece):
        end = min(start + piece, len(target))
        target[start:end].copy_(source[start:end])
        segment.advance(entry.offset + end * width)
        checksum.update(memory[entry.offset + start * width : entry.offset + end * width])
    return checksum.hexdigest()
