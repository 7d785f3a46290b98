"""Low-rank adapters: put into a model for training; they leave the learner alone, or merged into its weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_NAME = "longhaul"
_SCALE = 2


@dataclass(frozen=True)
class Export:
    """One tensor that leaves the learner: its Hugging Face name, the parameters it is made of, and how."""

    name: str
    parameters: list[nn.Parameter]
    value: Callable[[], Tensor]


def add_adapters(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze the model and put an adapter (peft LoRA) into every linear layer but the output projection."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)  # the same start on every rank
    config = LoraConfig(r=rank, lora_alpha=_SCALE * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    inject_adapter_in_model(config, model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{_NAME}." in name)


def exports(model: nn.Module) -> Iterator[Export]:
    """Everything that the model's Hugging Face checkpoint holds, in the model's order; adapters merged."""
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    inner = {id(p): name for name, module in adapted.items() for p in module.parameters()}
    for name, parameter in model.named_parameters():
        owner = inner.get(id(parameter))
        if owner is None:
            yield Export(name, [parameter], functools.partial(_itself, parameter))
        elif name == f"{owner}.base_layer.weight":
            yield _merged(f"{owner}.weight", adapted[owner])
        elif name.startswith(f"{owner}.base_layer."):
            plain = name.replace(".base_layer.", ".")
            yield Export(plain, [parameter], functools.partial(_itself, parameter))


def factors(model: nn.Module) -> Iterator[Export]:
    """The adapters alone, by peft's names without the adapter's own."""
    for name, parameter in model.named_parameters():
        if f".{_NAME}." in name:
            yield Export(name.replace(f".{_NAME}.", "."), [parameter], functools.partial(_itself, parameter))


def adapter_config(model: nn.Module, rank: int, base: str) -> dict[str, object]:
    """What peft's `adapter_config.json` says of them."""
    adapted = [name for name, module in model.named_modules() if hasattr(module, "get_delta_weight")]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _SCALE * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapted}),
    }


def _itself(parameter: nn.Parameter) -> Tensor:
    return parameter


def _merged(name: str, layer: Any) -> Export:
    weight = layer.base_layer.weight
    factors = [layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight]
    return Export(name, [weight, *factors], lambda: weight + layer.get_delta_weight(_NAME).to(weight.dtype))
