"""Metrics are `dict[str, float]`; the name's last word says how values of several processes become one.

`..._mean`, `..._share`, `..._ms` average, `..._max` and `version` take the largest, everything else adds up.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

Values = Mapping[str, float]


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
        """Record `values`; `kind` is `step` (one optimizer step), `system` (a sample of the whole run), `eval` (an
        evaluation of held-out tasks) or `watch` (by watcher that sees something: the step since which)."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


class JsonlSink:
    """One JSON object a line: {"kind": ..., "time": ..., "step": ..., metric: value, ...}. NaN becomes null."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, values: Values, step: int) -> None:
        line: dict[str, Any] = {"kind": kind, "time": round(time.time(), 3), "step": step}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Scalars for TensorBoard, by optimizer step."""

    def __init__(self, directory: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    def write(self, kind: str, values: Values, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()
