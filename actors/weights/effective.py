"""The weights that a vLLM model really multiplies with, under their Hugging Face names.

vLLM fuses projections (q, k and v into one matrix, gate and up into another), pads the vocabulary, splits layers over
devices. The parts given here undo that without copying: writing into a part's view changes vLLM's own tensor.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import torch
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from protocol.errors import WeightsError


@dataclass(frozen=True, eq=False)
class Part:
    """What this device holds of one Hugging Face tensor of `shape`: `view` is that tensor's `[index]`."""

    view: torch.Tensor
    shape: tuple[int, ...]
    index: tuple[slice, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether this device holds all of it."""
        return tuple(self.view.shape) == self.shape


def unique_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters of `model` by vLLM's name; tied ones once, under the first name."""
    return dict(model.named_parameters(remove_duplicate=True))


def effective_weights(
    model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], names_in_files: Container[str] = ()
) -> dict[str, Part]:
    """Parts of `tensors` by Hugging Face name.

    Args:
        tensors: storage for each of `unique_parameters(model)`, by the same names and of the same shapes.
        names_in_files: what the model's files hold; what is fused there stays fused.

    Raises:
        WeightsError: the model has fused layers whose parts it does not declare.
    """
    modules = dict(model.named_modules())
    parts: dict[str, Part] = {}
    for name, tensor in tensors.items():
        prefix, _, leaf = name.rpartition(".")
        module = modules[prefix]
        if name in names_in_files and isinstance(module, QKVParallelLinear | MergedColumnParallelLinear):
            parts[name] = _whole(name, module.tp_size, tensor)
        else:
            parts.update(_parts(model, prefix, module, leaf, tensor))
    return parts


def _whole(name: str, num_devices: int, tensor: torch.Tensor) -> Part:
    """A projection that the model's own files fuse, too."""
    if num_devices > 1:
        raise WeightsError(f"{name} is fused in the model's files: generator.tensor_parallel must be 1", kind="name")
    return Part(tensor, tuple(tensor.shape))


def _parts(
    model: torch.nn.Module, prefix: str, module: torch.nn.Module, leaf: str, tensor: torch.Tensor
) -> Iterator[tuple[str, Part]]:
    own_name = f"{prefix}.{leaf}"
    match module:
        case VocabParallelEmbedding():
            held = module.shard_indices
            rows = slice(held.org_vocab_start_index, held.org_vocab_end_index)
            view = tensor[: rows.stop - rows.start]
            yield own_name, Part(view, (module.org_vocab_size, *tensor.shape[1:]), (rows,))
        case RowParallelLinear() if leaf == "weight":
            width = tensor.shape[1]
            columns = slice(module.tp_rank * width, (module.tp_rank + 1) * width)
            yield own_name, Part(tensor, (tensor.shape[0], width * module.tp_size), (slice(None), columns))
        case RoutedExperts():
            yield from _parts_of_experts(prefix, module, leaf, tensor)
        case QKVParallelLinear() | MergedColumnParallelLinear():
            yield from _fused_parts(model, prefix, module, leaf, tensor)
        case ColumnParallelLinear():
            yield own_name, _rows_of(tensor, module.tp_rank, module.tp_size)
        case _:
            yield own_name, Part(tensor, tuple(tensor.shape))


def _parts_of_experts(
    prefix: str, module: RoutedExperts, leaf: str, tensor: torch.Tensor
) -> Iterator[tuple[str, Part]]:
    """vLLM holds all experts of a layer in two tensors; files hold three for each expert."""
    sharding = module.moe_config.moe_parallel_config
    if sharding.use_ep or not module.moe_config.is_act_and_mul or leaf not in ("w13_weight", "w2_weight"):
        raise WeightsError(f"{prefix}.{leaf}: experts of this kind do not take new weights", kind="name")
    parent = prefix.removesuffix(".routed_experts")
    width = module.moe_config.intermediate_size_per_partition_unpadded or module.intermediate_size_per_partition
    held = slice(sharding.tp_rank * width, (sharding.tp_rank + 1) * width)
    full, half = width * sharding.tp_size, tensor.shape[1] // 2
    for expert in range(module.global_num_experts):
        own = tensor[expert]
        if leaf == "w2_weight":
            name = f"{parent}.{expert}.{module.ckpt_down_proj_name}.weight"
            yield name, Part(own[:, :width], (own.shape[0], full), (slice(None), held))
            continue
        for start, projection in ((0, module.ckpt_gate_proj_name), (half, module.ckpt_up_proj_name)):
            view = own[start : start + width]
            yield f"{parent}.{expert}.{projection}.weight", Part(view, (full, own.shape[1]), (held,))


def _fused_parts(
    model: torch.nn.Module,
    prefix: str,
    module: QKVParallelLinear | MergedColumnParallelLinear,
    leaf: str,
    tensor: torch.Tensor,
) -> Iterator[tuple[str, Part]]:
    parent, _, fused = prefix.rpartition(".")
    names = getattr(model, "packed_modules_mapping", {}).get(fused, [])
    sizes = _rows_of_parts(module)
    if len(names) != len(sizes):
        raise WeightsError(f"{prefix} fuses {len(sizes)} layers, but the model names {names}", kind="name")
    for position, (name, view) in enumerate(zip(names, tensor.split(sizes), strict=True)):
        # keys and values of few heads are held by several devices alike
        copies = module.num_kv_head_replicas if isinstance(module, QKVParallelLinear) and position else 1
        yield f"{parent}.{name}.{leaf}", _rows_of(view, module.tp_rank // copies, module.tp_size // copies)


def _rows_of_parts(module: QKVParallelLinear | MergedColumnParallelLinear) -> list[int]:
    """Rows of every fused layer on this device."""
    if isinstance(module, QKVParallelLinear):
        queries, keys = module.num_heads * module.head_size, module.num_kv_heads * module.head_size
        return [queries, keys, module.num_kv_heads * module.v_head_size]
    return [size // module.tp_size for size in module.output_sizes]


def _rows_of(view: torch.Tensor, rank: int, size: int) -> Part:
    """The `rank`-th of `size` equal blocks of rows."""
    rows = view.shape[0]
    return Part(view, (rows * size, *view.shape[1:]), (slice(rank * rows, (rank + 1) * rows),))
