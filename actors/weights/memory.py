"""A `WeightHolder` without an engine: weights as plain memory. For tests and for measuring channels on their own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protocol.messages import TensorEntry
from protocol.weights.manifest import ITEM_BYTES, TensorSpec, tensor_checksum
from protocol.weights.segments import Segment


class MemoryWeights:
    """Holds the tensors of `specs`, zero at first.

    Attributes:
        labels: every version that was put in force or named, in order.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = list(specs)
        self.tensors = {
            s.name: np.zeros(int(np.prod(s.shape, dtype=np.int64)) * ITEM_BYTES[s.dtype], np.uint8) for s in specs
        }
        self.labels: list[int] = []
        self._staged: dict[str, np.ndarray] = {}

    async def layout(self) -> list[TensorSpec]:
        return self._specs

    async def stage(self, path: Path, version: int, num_bytes: int, entries: Sequence[TensorEntry]) -> list[str]:
        segment = Segment.open(path, num_bytes)
        await asyncio.to_thread(segment.wait_written, version, num_bytes)
        staged = np.frombuffer(segment.buffer, np.uint8)
        self._staged = {e.name: staged[e.offset : e.offset + e.num_bytes].copy() for e in entries}
        return [tensor_checksum(self._staged[e.name].data) for e in entries]

    async def swap(self, version: int) -> None:
        self.tensors.update(self._staged)
        await self.label(version)

    async def label(self, version: int) -> None:
        self.labels.append(version)

    async def checksums(self, names: Sequence[str]) -> list[str]:
        return [tensor_checksum(self.tensors[n].data) for n in names]
