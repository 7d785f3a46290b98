"""The learner's own log-probs of a step, brought together from the ranks that computed them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from learner.packing import Bin, row_length
from learner.ranks.group import RankGroup


class LearnedLogprobs:
    """Log-probs before the update of every sample's targets, by micro-batches as they are computed.

    Every rank sets its slice of the positions in a table that is summed once a step: 4 bytes a token.
    """

    def __init__(self, group: RankGroup, plan: Sequence[Sequence[Bin]], lengths: Sequence[int]) -> None:
        self._group, self._plan, self._lengths = group, plan, lengths
        sizes = [row_length(row, lengths, group.sequence_parallel) for row in plan]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._table = torch.zeros(group.data_parallel, self._starts[-1], device=group.device)

    def put(self, index: int, logprobs: Tensor) -> None:
        """This rank's slice of micro-batch `index`."""
        start = self._starts[index] + self._group.sequence_index * len(logprobs)
        self._table[self._group.data_index, start : start + len(logprobs)] = logprobs.detach()

    def gather(self) -> list[np.ndarray]:
        """Of every sample, float32 [tokens], entry t about token t + 1 as in the sample. Collective."""
        table = self._group.sum(self._table).cpu().numpy()
        found: list[np.ndarray] = [np.empty(0, np.float32)] * len(self._lengths)
        for row, start in zip(self._plan, self._starts, strict=False):
            for of_group, members in zip(table, row, strict=True):
                at = start
                for sample in members:
                    found[sample] = of_group[at : at + self._lengths[sample]]
                    at += self._lengths[sample]
        return found
