"""One host's GPUs between generators and learner: the split that fits, chosen by the plan's estimate."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from learner.ranks.layout import Heads
from learner.training.plan import GIB, Shape, estimate
from protocol.config import Settings
from protocol.errors import ConfigError

SPLIT_SETTINGS = frozenset(
    ("generator.count", "generator.tensor_parallel", "learner.ranks", "learner.sequence_parallel", "learner.zero_stage")
)
"""What a split decides about; `learner.gradient_checkpointing` besides."""
_USED = 0.9
"""Part of a GPU's memory that is planned with: kernels' workspaces and fragments take the rest."""
_EPISODES = 4
"""Longest episodes whose keys and values a generator has room for, at least."""
_HALF = 2
_BYTES = 2  # bfloat16


@dataclass(frozen=True)
class Split:
    """How many GPUs do what.

    Attributes:
        tensor_parallel: GPUs of one generator.
        rank_gib: expected memory of one learner rank.
    """

    generators: int
    tensor_parallel: int
    ranks: int
    sequence_parallel: int
    zero_stage: int
    gradient_checkpointing: bool
    rank_gib: float

    def settings(self) -> dict[str, Any]:
        """By dotted name."""
        return {
            "generator.count": self.generators,
            "generator.tensor_parallel": self.tensor_parallel,
            "learner.ranks": self.ranks,
            "learner.sequence_parallel": self.sequence_parallel,
            "learner.zero_stage": self.zero_stage,
            "learner.gradient_checkpointing": self.gradient_checkpointing,
        }

    def line(self) -> str:
        """For people."""
        recompute = "activations recomputed" if self.gradient_checkpointing else "activations kept"
        return (
            f"{self.generators} generators of {self.tensor_parallel} GPUs; {self.ranks} learner ranks, ZeRO-"
            f"{self.zero_stage}, {self.sequence_parallel} Ulysses ranks a sequence, {recompute}: "
            f"{self.rank_gib:.1f} GiB a rank"
        )


def choose(shape: Shape, settings: Settings, num_gpus: int, gpu_gib: float) -> Split:
    """The split of a host with `num_gpus` GPUs of `gpu_gib` GiB for micro-batches of `settings.micro_batch_tokens`.

    Generators are of as few GPUs as hold the weights and a few longest episodes. The learner takes half of the GPUs, or
    the next larger part that fits; among its layouts the first that fits in the order of what each costs: recomputing
    activations most, then gathering weights (ZeRO-3), then exchanging heads (Ulysses).

    Raises:
        ConfigError: no split fits; the message has the smallest that was tried (kind `memory`).
    """
    usable = _USED * gpu_gib
    tensor_parallel = next(
        (
            n
            for n in (1, 2, 4, 8)
            if n < num_gpus and shape.kv_heads % n == 0 and _generator_gib(shape, settings, n) <= usable
        ),
        0,
    )
    least = float("inf")
    if tensor_parallel:
        for ranks in _shares(num_gpus, tensor_parallel):
            for split in _layouts(shape, settings, ranks, (num_gpus - ranks) // tensor_parallel, tensor_parallel):
                least = min(least, split.rank_gib)
                if split.rank_gib <= usable:
                    return split
    needed = f"a learner rank {least:.0f} GiB at least" if tensor_parallel else "already one generator more than that"
    raise ConfigError(
        f"{shape.parameters / 1e9:.1f}B parameters with micro-batches of {settings.micro_batch_tokens:,} tokens do not "
        f"fit on {num_gpus} GPUs of {gpu_gib:.0f} GiB: {needed}. Lower model.max_context or learner.pack_tokens, set "
        "learner.lora_rank, or join more hosts (ray_address)",
        kind="memory",
    )


def _shares(num_gpus: int, tensor_parallel: int) -> Iterator[int]:
    """Numbers of learner ranks to try: half of the GPUs, then more, as long as whole generators are left."""
    for ranks in range(num_gpus // _HALF, num_gpus - tensor_parallel + 1):
        if ranks and (num_gpus - ranks) % tensor_parallel == 0:
            yield ranks


def _layouts(shape: Shape, settings: Settings, ranks: int, generators: int, tensor_parallel: int) -> Iterator[Split]:
    heads = Heads(shape.heads, shape.kv_heads)
    possible = [n for n in range(1, ranks + 1) if ranks % n == 0 and heads.allow(n)]
    for recompute, stage, sequence_parallel in itertools.product((False, True), (2, 3), possible):
        learner = settings.learner.model_copy(update={"gradient_checkpointing": recompute})
        memory = estimate(
            shape,
            settings.model_copy(update={"learner": learner}),
            stage=stage,
            sequence_parallel=sequence_parallel,
            ranks=ranks,
            tokens=settings.micro_batch_tokens,
            compute_bytes=_BYTES,
        )
        yield Split(
            generators, tensor_parallel, ranks, sequence_parallel, stage, recompute, rank_gib=memory.total / GIB
        )


def _generator_gib(shape: Shape, settings: Settings, gpus: int) -> float:
    """Of one GPU: its part of the weights, and of the keys and values of a few longest episodes."""
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_size * _BYTES
    episodes = _EPISODES * settings.model.max_context * per_token
    return (_BYTES * shape.parameters + episodes) / gpus / GIB
