"""Who survives to be trained on: episodes dispatched, finished and trained, by task and by size.

A buffer that loses long episodes, or a filter that removes one repository's, trains on another distribution than was
dispatched. Sources and repositories are known when an episode is dispatched; its duration and length only when it has
ended. So for sources and repositories what was trained on is compared with what was dispatched, for sizes with what
finished, by quantile: of the episodes that finished, a quarter is in each quartile of duration; of those trained on, it
is a quarter, too, unless short or long ones were lost between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct, field

from learner.replay.events import Finished
from protocol.messages import TaskRef

Counts = dict[str, int]

NUM_QUANTILES = 4
_CLASSES_PER_DOUBLING = 8


class Survivorship(Struct, kw_only=True):
    """Counts of episodes by stage (`dispatched`, `finished`, `trained`) and dimension, then by value."""

    counts: dict[str, Counts] = field(default_factory=dict)

    def dispatch(self, task: TaskRef | None, num_episodes: int) -> None:
        """A group of a task was opened."""
        self._add("dispatched", _of_task(task), num_episodes)

    def finish(self, task: TaskRef | None, finished: Finished) -> None:
        """A trajectory was accepted."""
        self._add("finished", _of_task(task) | _of_size(finished), 1)

    def train(self, task: TaskRef | None, finished: Finished) -> None:
        """A trajectory was trained on."""
        self._add("trained", _of_task(task) | _of_size(finished), 1)

    def metrics(self) -> dict[str, float]:
        """How far the trained distribution is from the one before (0 equal, 1 disjoint), and what it consists of.

        `survivorship_D_distance` for each dimension D; the share of the trained episodes in each quartile of size of
        the finished ones (`survivorship_length_q4_share`: the longest quarter); counts by stage and source of task.
        """
        metrics: dict[str, float] = {}
        for dimension in ("source", "repository"):
            metrics[f"survivorship_{dimension}_distance"] = total_variation(
                self._of("dispatched", dimension), self._of("trained", dimension)
            )
        for dimension in ("duration", "length"):
            shares = quantile_shares(self._of("finished", dimension), self._of("trained", dimension))
            metrics[f"survivorship_{dimension}_distance"] = 0.5 * sum(abs(s - 1 / NUM_QUANTILES) for s in shares)
            metrics |= {f"survivorship_{dimension}_q{i}_share": share for i, share in enumerate(shares, start=1)}
        for stage in ("dispatched", "finished", "trained"):
            metrics |= {f"{stage}.{source}": float(n) for source, n in self._of(stage, "source").items()}
        return metrics

    def _of(self, stage: str, dimension: str) -> Counts:
        return self.counts.get(f"{stage} {dimension}", {})

    def _add(self, stage: str, values: Mapping[str, str], count: int) -> None:
        for dimension, value in values.items():
            counts = self.counts.setdefault(f"{stage} {dimension}", {})
            counts[value] = counts.get(value, 0) + count


def total_variation(left: Mapping[str, int], right: Mapping[str, int]) -> float:
    """Half the summed difference of two distributions given as counts; 0 while one of them is empty."""
    left_sum, right_sum = sum(left.values()), sum(right.values())
    if not left_sum or not right_sum:
        return 0.0
    return 0.5 * sum(abs(left.get(k, 0) / left_sum - right.get(k, 0) / right_sum) for k in left.keys() | right.keys())


def quantile_shares(finished: Mapping[str, int], trained: Mapping[str, int]) -> list[float]:
    """Share of the trained episodes in each quantile of the finished ones, smallest first; empty while there are none.

    Args:
        finished: episodes by size class (see `size_class`).
        trained: the same, of some of them. A class that reaches over the edge of a quantile is divided in proportion.
    """
    num_finished, num_trained = sum(finished.values()), sum(trained.values())
    if not num_trained:
        return []
    shares = [0.0] * NUM_QUANTILES
    before = 0.0  # in units of quantiles
    for name in sorted(finished, key=int):
        after = before + NUM_QUANTILES * finished[name] / num_finished
        for i in range(NUM_QUANTILES):
            inside = max(min(after, i + 1) - max(before, i), 0.0)
            shares[i] += trained.get(name, 0) / num_trained * inside / (after - before)
        before = after
    return shares


def size_class(size: float) -> str:
    """Classes of one size within a twelfth: eight to a doubling."""
    return str(int(_CLASSES_PER_DOUBLING * math.log2(1 + size)))


def _of_task(task: TaskRef | None) -> dict[str, str]:
    return {"source": task.source, "repository": task.repository} if task else {}


def _of_size(finished: Finished) -> dict[str, str]:
    return {"duration": size_class(finished.duration_s), "length": size_class(finished.num_tokens)}
