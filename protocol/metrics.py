"""Metrics are `dict[str, float]`; the name's last word says how values of several processes become one.

`..._mean`, `..._share`, `..._ms` average, `..._max` and `version` take the largest, everything else adds up.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

Values = Mapping[str, float]
_FLUSH_S = 30.0


def reduce_metrics(parts: Iterable[Values]) -> dict[str, float]:
    """One value per name over all `parts`; a part that lacks a name does not count for it."""
    collected: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            collected.setdefault(name, []).append(value)
    return {name: _reduce(name, values) for name, values in collected.items()}


def _reduce(name: str, values: list[float]) -> float:
    last_word = name.rpartition("_")[2].rpartition(".")[2]
    if last_word in ("mean", "share", "ms"):
        return sum(values) / len(values)
    if last_word in ("max", "version"):
        return max(values)
    return sum(values)


class Sink(Protocol):
    """Where metrics go."""

    def write(self, kind: str, values: Values, step: int) -> None:
        """Record `values`, or raise `OSError` (a full disk); `kind` is `step` (one optimizer step), `system` (a sample
        of the whole run), `eval` (an evaluation of held-out tasks) or `watch` (by watcher that sees something: the step
        since which)."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


class JsonlSink:
    """One JSON object a line: {"kind": ..., "time": ..., "step": ..., metric: value, ...}. NaN becomes null."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, kind: str, values: Values, step: int) -> None:
        """See `Sink.write`: a whole line, or none."""
        line: dict[str, Any] = {"kind": kind, "time": round(time.time(), 3), "step": step}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        data, before = json.dumps(line).encode() + b"\n", os.fstat(self._file).st_size
        if (wrote := os.write(self._file, data)) < len(data):
            os.ftruncate(self._file, before)
            raise OSError(errno.ENOSPC, f"only {wrote} of {len(data)} bytes of a line were written")

    def close(self) -> None:
        os.close(self._file)


class TensorBoardSink:
    """Scalars for TensorBoard, by optimizer step."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        self._num_files = 0
        self._flush_at = 0.0
        self._open()

    def write(self, kind: str, values: Values, step: int) -> None:
        """See `Sink.write`. A file that could not be written is left as it is, and another one begun."""
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        if self._writer is None:
            self._open()
        now = time.time()
        try:
            for name, value in values.items():
                summary = scalar(f"{kind}/{name}", value)
                event = event_pb2.Event(wall_time=now, step=step, summary=summary)
                self._writer.write(event.SerializeToString())
            if now > self._flush_at:  # it forces the file to disk, too
                self._writer.flush()
                self._flush_at = now + _FLUSH_S
        except OSError:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> None:
        """tensorboardX's own `SummaryWriter` writes from a thread: where that ends, whoever writes waits for ever."""
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        self._directory.mkdir(parents=True, exist_ok=True)
        now, self._num_files = time.time(), self._num_files + 1
        name = f"events.out.tfevents.{now:.0f}.{os.uname().nodename}.{os.getpid()}.{self._num_files}"
        self._writer = RecordWriter(str(self._directory / name))
        self._writer.write(event_pb2.Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
