"""A tensor of the model as its files and the generators name it.

transformers packs what files keep apart (the experts of a layer, gate and up) and may rename modules. Checkpoints and
pushes speak the files' names, which vLLM and other readers know.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from protocol.errors import ConfigError, border


class FileNames:
    """Translates one tensor at a time; remembers those that are the same in both."""

    def __init__(self, causal_lm: Any) -> None:
        self._causal_lm = causal_lm
        self._same: set[str] = set()

    def of(self, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """Names and tensors that files hold instead, views where possible.

        Raises:
            ConfigError: transformers has no way back to the files of this model.
        """
        if name in self._same:
            return [(name, tensor)]
        with border(ConfigError, f"{name} to be put into the names of the model's files", kind="model"):
            translated = list(revert_weight_conversion(self._causal_lm, {name: tensor}).items())
        if len(translated) == 1 and translated[0][0] == name and translated[0][1] is tensor:
            self._same.add(name)
        return translated


def kept_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that belong to the model's files, such as the correction that routers add to scores."""
    named = dict(model.named_buffers())
    return [(name, named[name]) for name in model.state_dict(keep_vars=True) if name in named]


def mark_expert_lists(model: nn.Module, set_leaf_modules: Any) -> None:
    """Tell ZeRO-3 to gather a list of experts whole: which of them work differs from rank to rank."""
    kinds = {
        type(module)
        for module in model.modules()
        if any(isinstance(child, nn.ModuleList) and name == "experts" for name, child in module.named_children())
    }
    if kinds:
        set_leaf_modules(model, sorted(kinds, key=lambda kind: kind.__name__))
