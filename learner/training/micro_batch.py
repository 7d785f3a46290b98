"""What a rank computes at once: documents laid end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learner.objectives.samples import Sample
from learner.packing import Bin

UNRECORDED = -1
"""Stands for the experts of a token whose own were not recorded: the model chooses."""


@dataclass(frozen=True)
class MicroBatch:
    """Documents laid end to end, then padding. All arrays have one entry a position."""

    token_ids: np.ndarray  # int64
    positions: np.ndarray  # int64, restart at 0 with every document; padding is a document of its own
    documents: np.ndarray  # int64, index of the document in the micro-batch; padding: `num_documents`
    targets: np.ndarray  # int64
    weights: np.ndarray  # float32
    behaviour: np.ndarray  # float32
    advantages: np.ndarray  # float32
    staleness: np.ndarray  # int32
    behind_older: np.ndarray  # bool
    num_documents: int
    experts: np.ndarray | None = None  # int64 [positions, layers, experts of a token]
    reference: np.ndarray | None = None  # float32; None where the reference policy was not asked

    def __len__(self) -> int:
        return len(self.token_ids)


def collate(samples: Sequence[Sample], members: Bin, num_positions: int) -> MicroBatch:
    """The micro-batch of `members`, padded to `num_positions`."""
    chosen = [samples[i] for i in members]
    padding = num_positions - sum(map(len, chosen))

    def laid(name: str, dtype: type) -> np.ndarray:
        parts: list[np.ndarray] = [getattr(sample, name) for sample in chosen]
        return np.concatenate([*parts, np.zeros(padding, dtype)])

    lengths = [*map(len, chosen), padding]
    return MicroBatch(
        token_ids=laid("token_ids", np.int64),
        positions=np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]),
        documents=np.repeat(np.arange(len(lengths), dtype=np.int64), lengths),
        targets=laid("targets", np.int64),
        weights=laid("weights", np.float32),
        behaviour=laid("behaviour", np.float32),
        advantages=laid("advantages", np.float32),
        staleness=laid("staleness", np.int32),
        behind_older=laid("behind_older", bool),
        num_documents=len(chosen),
        experts=_experts(chosen, padding),
        reference=laid("reference", np.float32) if all(s.reference is not None for s in chosen) else None,
    )


def _experts(chosen: Sequence[Sample], padding: int) -> np.ndarray | None:
    known = next((sample.experts for sample in chosen if sample.experts is not None), None)
    if known is None:
        return None
    shape, parts = known.shape[1:], []
    for sample in chosen:
        if sample.experts is None:
            parts.append(np.full((len(sample), *shape), UNRECORDED, np.int64))
            continue
        recorded = sample.experts.astype(np.int64)
        recorded[sample.experts == np.iinfo(sample.experts.dtype).max] = UNRECORDED
        parts.append(recorded)
    whole: np.ndarray = np.concatenate([*parts, np.full((padding, *shape), UNRECORDED, np.int64)])
    return whole
