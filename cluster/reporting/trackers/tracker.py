"""What a tracker is: somewhere else that keeps curves of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Line(NamedTuple):
    """One line of `metrics.jsonl`: finite numbers by name."""

    kind: str
    time: float  # seconds since the epoch
    step: int  # optimizer steps behind it
    values: dict[str, float]


class About(NamedTuple):
    """What a tracker is told of a run when it meets it."""

    name: str
    directory: Path
    settings: Mapping[str, Any]  # by dotted name
    versions: Mapping[str, str]


class Tracker(Protocol):
    """One run at one tracker. Calls may block and may raise whatever its library raises; they come from one thread."""

    def begin(self, about: About, known: str) -> str:
        """Go on with the run that the tracker knows by `known` (empty: begin one). The name it knows the run by."""
        ...

    def send(self, lines: Sequence[Line]) -> None:
        """Hand over, in their order."""
        ...

    def end(self, status: Status) -> None:
        """The run is over, or interrupted and to be gone on with."""
        ...

    @property
    def where(self) -> str:
        """Where a person finds the run."""
        ...


def metric_name(line: Line, name: str) -> str:
    """As TensorBoard has it: `step/reward_mean`, `system/replay.running`."""
    return f"{line.kind}/{name}"
