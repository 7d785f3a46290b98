"""How many learner ranks there are and how many of them share a sequence: arithmetic, before anything is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.model_family import ModelFamily


@dataclass(frozen=True)
class Heads:
    """Attention heads of a model."""

    queries: int
    keys: int

    def allow(self, ranks: int) -> bool:
        """Whether Ulysses can split these heads over so many ranks."""
        return self.queries % ranks == 0 and (self.keys % ranks == 0 or ranks % self.keys == 0)


def num_ranks(settings: Settings, num_gpus: int) -> int:
    """`learner.ranks`, or what 0 stands for: one a GPU; without GPUs two, or one on a single core."""
    if settings.learner.ranks:
        return settings.learner.ranks
    if num_gpus:
        return num_gpus
    return 2 if (os.cpu_count() or 1) >= 2 else 1


def sequence_parallel(settings: Settings, ranks: int) -> int:
    """`learner.sequence_parallel`, or what 0 stands for: the most that divides the ranks and the model's heads.

    Raises:
        ConfigError: ranks, heads and key-value heads do not go together; the message has the numbers that would.
    """
    heads = heads_of(Path(settings.model.path))
    possible = [n for n in range(1, ranks + 1) if ranks % n == 0 and heads.allow(n)]
    wanted = settings.learner.sequence_parallel
    if wanted == 0:
        return max(possible)
    if wanted not in possible:
        raise ConfigError(
            f"learner.sequence_parallel = {wanted} does not go with {ranks} ranks and a model of {heads.queries} heads "
            f"and {heads.keys} key-value heads: it must divide the ranks and the heads, and divide or be a multiple of "
            f"the key-value heads. With {ranks} ranks these work: {', '.join(map(str, possible))}",
            kind="sequence_parallel",
        )
    return wanted


def heads_of(model: Path) -> Heads:
    """Heads from a model's `config.json`, without loading the model. Raises `ConfigError`."""
    family = ModelFamily.read(model)
    return Heads(queries=family.heads, keys=family.kv_heads)
