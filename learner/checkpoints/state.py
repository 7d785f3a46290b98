"""Master weights and optimizer moments by parameter name, independent of how ZeRO spreads them.

DeepSpeed's own checkpoints are tied to the number of ranks and to the ZeRO stage. Reading and writing one parameter at
a time through its tensor-fragment calls gives a form that any layout of ranks loads, bit for bit in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from learner.training.model import Policy

MOMENTS = ("exp_avg", "exp_avg_sq")
PARTS = ("master", *MOMENTS)
"""What is kept of a parameter: its float32 weight and AdamW's two moments."""


def full_state(policy: Policy) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Name and parts of every trained parameter: float32, full shape, on CPU. Collective: every rank drains it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    for name, parameter in policy.trained_parameters():
        if policy.zero_stage == 0:
            parts = {"master": parameter, **{key: policy.optimizer.state[parameter][key] for key in MOMENTS}}
        else:
            parts = {"master": safe_get_full_fp32_param(parameter)}
            parts |= {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        yield name, {key: part.detach().to("cpu", torch.float32, copy=True) for key, part in parts.items()}


def set_full_state(policy: Policy, read: Callable[[str], dict[str, Tensor]], num_updates: int) -> None:
    """Give every trained parameter the parts that `read(name)` returns, and the optimizer its count of updates."""
    for state in policy.optimizer.state.values():
        state["step"].fill_(num_updates)
    for name, parameter in policy.trained_parameters():
        parts = read(name)
        if policy.zero_stage == 0:
            parameter.data.copy_(parts["master"])
            for key in MOMENTS:
                policy.optimizer.state[parameter][key].copy_(parts[key])
        elif policy.zero_stage == 3:
            _set_shard(parameter, parts, policy.group.rank, policy.group.world_size)
        else:
            _set_fragments(parameter, parts)


def _set_fragments(parameter: nn.Parameter, parts: dict[str, Tensor]) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    parameter.data.copy_(parts["master"])
    safe_set_full_fp32_param(parameter, parts["master"])
    for key in MOMENTS:
        safe_set_full_optimizer_state(parameter, parts[key], key)


def _set_shard(parameter: nn.Parameter, parts: dict[str, Tensor], rank: int, ranks: int) -> None:
    """ZeRO-3 keeps equal parts of the flattened tensor, the end padded with zeros."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    def shard(full: Tensor) -> Tensor:
        size = -(-full.numel() // ranks)
        padded = nn.functional.pad(full.flatten(), (0, size * ranks - full.numel()))
        return padded[rank * size : (rank + 1) * size]

    held: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]  # DeepSpeed's shard of it
    held.data.copy_(shard(parts["master"]))
    safe_set_local_fp32_param(parameter, shard(parts["master"]))
    for key in MOMENTS:
        safe_set_local_optimizer_state(parameter, shard(parts[key]), key)
