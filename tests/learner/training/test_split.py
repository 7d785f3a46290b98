"""A host's GPUs are split so that both halves fit; what fits nowhere is refused with numbers."""

from __future__ import annotations

import pytest

from learner.training.plan import Shape, estimate
from learner.training.split import choose
from protocol.config import Settings
from protocol.errors import ConfigError

SHAPE_7B = Shape(
    hidden=3584, layers=28, heads=28, kv_heads=4, head_size=128, intermediate=18944, vocabulary=152064, tied=False,
    qkv_bias=True,
)  # fmt: skip
SHAPE_72B = Shape(
    hidden=8192, layers=80, heads=64, kv_heads=8, head_size=128, intermediate=29568, vocabulary=152064, tied=False,
    qkv_bias=True,
)  # fmt: skip


def settings(context: int = 32_768, **learner: object) -> Settings:
    return Settings.model_validate(
        {"model": {"max_context": context}, "learner": {"pack_tokens": context, "logprob_chunk": 64, **learner}}
    )


@pytest.mark.parametrize("gpu_gib", [74, 131])
def test_one_host_of_eight_gpus_is_halved_for_a_7b(gpu_gib: int) -> None:
    split = choose(SHAPE_7B, settings(), 8, gpu_gib)
    assert (split.generators * split.tensor_parallel, split.ranks) == (4, 4)
    assert split.tensor_parallel == 1
    assert split.rank_gib < 0.9 * gpu_gib
    chosen = settings(gradient_checkpointing=split.gradient_checkpointing)
    memory = estimate(
        SHAPE_7B, chosen, stage=split.zero_stage, sequence_parallel=split.sequence_parallel, ranks=4, tokens=32_768
    )
    assert split.rank_gib == memory.total / 2**30


def test_smaller_gpus_and_longer_episodes_cost_recomputing_and_more_ulysses_ranks() -> None:
    large, small = (choose(SHAPE_7B, settings(131_072), 8, gib) for gib in (131, 74))
    assert small.gradient_checkpointing
    assert (small.zero_stage, small.sequence_parallel) >= (large.zero_stage, large.sequence_parallel)
    assert choose(SHAPE_7B, settings(2048), 8, 131).gradient_checkpointing is False


def test_whole_generators_are_left() -> None:
    for gpus in range(4, 9):
        split = choose(SHAPE_7B, settings(), gpus, 131)
        assert split.ranks + split.generators * split.tensor_parallel == gpus


def test_what_fits_nowhere_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"72.7B parameters .* do not fit on 8 GPUs of 74 GiB"):
        choose(SHAPE_72B, settings(), 8, 74)
    with pytest.raises(ConfigError, match="already one generator"):
        choose(SHAPE_72B, settings(), 2, 74)
