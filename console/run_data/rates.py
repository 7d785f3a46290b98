"""What flows along the loop: how much a second of each of its arrows, over the last minute or over the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from console.run_data.metrics import Line

_WINDOW_S = 60.0


class Rates(NamedTuple):
    """Per second; None where the run does not say."""

    leases: float | None  # buffer to sandbox actors
    tokens: float | None  # generators to sandbox actors
    episodes: float | None  # sandbox actors to buffer
    trained: float | None  # buffer to learner: episodes
    versions: float | None  # learner to generators


NO_RATES = Rates(None, None, None, None, None)
_COUNTED = (
    "replay.leased",
    "generator.generated_tokens",
    "replay.accepted",
    "replay.trained",
    "replay.trained_version",
)


def rates(samples: Sequence[Line], newest: Line, *, is_live: bool) -> Rates:
    """Between the newest sample and the one a minute before (of a run that is over: the first)."""
    since = newest.get("time", 0.0) - _WINDOW_S if is_live else 0.0
    first = next((sample for sample in samples if sample["time"] >= since), newest)
    seconds = newest.get("time", 0.0) - first.get("time", 0.0)
    if seconds <= 0:
        return NO_RATES

    def of(name: str) -> float | None:
        if name not in newest or name not in first:
            return None
        return max(newest[name] - first[name], 0.0) / seconds  # a part that was started again counts from 0

    return Rates(*(of(name) for name in _COUNTED))
