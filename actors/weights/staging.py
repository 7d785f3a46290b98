"""A second set of a model's weights: filled and proved while the first one serves, then exchanged with it.

On CPU the exchange is one of pointers, so that it takes no longer for a large model than for a small one. On a GPU,
whose captured graphs hold addresses, the staged weights stay in page-locked host memory and are copied over.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from actors.weights.effective import Part, effective_weights, unique_parameters
from protocol.errors import WeightsError
from protocol.messages import TensorEntry
from protocol.threads import give_way
from protocol.weights.manifest import TensorChecksum, tensor_checksum
from protocol.weights.segments import PIECE_BYTES, Segment


class WeightStaging:
    """Belongs to the engine's thread; copying and hashing run in threads of their own, one at a time.

    Args:
        names_in_files: of the model's own files, which pushes speak.

    Attributes:
        in_force: the model's weights by Hugging Face name, as far as this device holds them.
    """

    def __init__(self, model: torch.nn.Module, names_in_files: frozenset[str] = frozenset()) -> None:
        self._model = model
        self._names_in_files = names_in_files
        self._parameters = unique_parameters(model)
        self._on_cpu = all(p.device.type == "cpu" for p in self._parameters.values())
        self._staged: dict[str, torch.Tensor] = {}  # by vLLM's names
        self._staged_parts: dict[str, Part] = {}
        self._segments: dict[str, Segment] = {}
        self._job: _Job | None = None
        self.in_force = effective_weights(model, {n: p.data for n, p in self._parameters.items()}, names_in_files)

    def hash_in_force(self, names: Sequence[str]) -> None:
        """Begin to hash weights in force; of a tensor split over devices there is none, and its checksum is empty.

        Raises `WeightsError` if the model holds no such tensor.
        """
        if missing := [n for n in names if n not in self.in_force]:
            raise WeightsError(f"the model holds no {missing[0]}", kind="name")
        parts = [self.in_force[n] for n in names]
        self._job = _Job(lambda: [_checksum(p.view) if p.is_whole else "" for p in parts])

    def stage(self, path: str, version: int, num_bytes: int, entries: Sequence[TensorEntry]) -> None:
        """Begin to copy `entries` from a segment into which `version` is being written, or has been.

        The caller has compared names, shapes and dtypes with the model.
        """
        self._job = _Job(lambda: self._copy(path, version, num_bytes, entries))

    def result(self) -> list[str] | None:
        """Checksums of the last job, or None while it runs. Raises what it raised."""
        assert self._job is not None, "nothing was begun"
        return self._job.result()

    def swap(self) -> None:
        """Exchange the staged weights with those in force."""
        assert self._staged and self.result() is not None, "staging comes first"
        if self._on_cpu:
            for name, parameter in self._parameters.items():
                parameter.data, self._staged[name] = self._staged[name], parameter.data
            self.in_force, self._staged_parts = self._staged_parts, self.in_force
            return
        for name, parameter in self._parameters.items():
            parameter.data.copy_(self._staged[name], non_blocking=True)
        torch.accelerator.synchronize()  # the staged memory is written again as soon as this returns

    def _copy(self, path: str, version: int, num_bytes: int, entries: Sequence[TensorEntry]) -> list[str]:
        if not self._staged:  # padding and buffers start as copies of what the model has
            self._staged = {n: _host_copy(p.data) for n, p in self._parameters.items()}
            self._staged_parts = effective_weights(self._model, self._staged, self._names_in_files)
        segment = self._segment(path, num_bytes)
        return [_follow(segment, version, entry, self._staged_parts[entry.name]) for entry in entries]

    def _segment(self, path: str, num_bytes: int) -> Segment:
        """Mapped once: a publisher uses the same two files again and again. A file made anew is mapped anew."""
        known = self._segments.get(path)
        if known is None or not known.is_current() or known.num_bytes != num_bytes:
            self._segments = {p: s for p, s in self._segments.items() if s.is_current()}
            self._segments[path] = Segment.open(Path(path), num_bytes)
        return self._segments[path]


class _Job(threading.Thread):
    """Computes in a thread; copying and hashing let go of the interpreter lock."""

    def __init__(self, work: Callable[[], list[str]]) -> None:
        super().__init__(daemon=True, name="weight staging")
        self._work = work
        self._result: list[str] = []
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        give_way()
        try:
            self._result = self._work()
        except Exception as error:
            self._error = error

    def result(self) -> list[str] | None:
        if self.is_alive():
            return None
        if self._error is not None:
            raise self._error
        return self._result


def _follow(segment: Segment, version: int, entry: TensorEntry, part: Part) -> str:
    """Copy one tensor as it is written, and hash every piece of the copy while it is in the cache. Its checksum.

    Where this device holds only a part of the tensor, the source is hashed: no copy of the whole is anywhere.
    """
    dtype = getattr(torch, entry.dtype)
    source = torch.frombuffer(segment.buffer, dtype=dtype, count=math.prod(entry.shape), offset=entry.offset)
    if not (part.is_whole and part.view.is_contiguous()):
        segment.wait_written(version, entry.offset + entry.num_bytes)
        part.view.copy_(source.view(part.shape)[part.index])
        return _checksum(part.view if part.is_whole else source)
    target, piece, checksum = part.view.view(-1), PIECE_BYTES // dtype.itemsize, TensorChecksum()
    for start in range(0, len(source), piece):
        end = min(start + piece, len(source))
        segment.wait_written(version, entry.offset + end * dtype.itemsize)
        target[start:end].copy_(source[start:end])
        checksum.update(_memory(target[start:end]))
    return checksum.hexdigest()


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().to("cpu", copy=True)
    return copy if tensor.device.type == "cpu" else copy.pin_memory()


def _checksum(tensor: torch.Tensor) -> str:
    return tensor_checksum(_memory(tensor.detach().cpu().contiguous()))


def _memory(tensor: torch.Tensor) -> memoryview:
    memory: memoryview = tensor.flatten().view(torch.uint8).numpy().data
    return memory
