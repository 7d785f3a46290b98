"""MLPs that work through a long sequence tile by tile, so that their wide activations are never whole in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def tile_mlps(causal_lm: Any, tile: int) -> None:
    """Let every decoder layer's MLP take `tile` tokens at once; each tile is recomputed in the backward pass.

    A tile is an ordinary part of the graph, so gradients are exact at every ZeRO stage and for every length.
    """
    for layer in causal_lm.get_decoder().layers:
        layer.mlp.forward = functools.partial(_tiled, layer.mlp.forward, tile)


def _tiled(forward: Callable[[Tensor], Tensor], tile: int, hidden: Tensor) -> Tensor:
    parts = [checkpoint(forward, part, use_reentrant=False) for part in hidden.split(tile, 1)]
    return torch.cat(parts, 1)
