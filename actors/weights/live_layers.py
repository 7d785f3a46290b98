"""CPU layers of vLLM that multiply with their parameters themselves.

vLLM repacks weights for its CPU kernels at the first load and drops the originals: later loads then change nothing
(tied heads, experts), or fail midway. torch's own products use the same libraries without the copy.
"""

from __future__ import annotations

from typing import Any

import torch

from protocol.errors import WeightsError

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


def keep_live_weights() -> None:
    """Make this process's CPU layers, experts included, use live weights. Before a model is built."""
    from vllm.model_executor.layers import utils

    utils.dispatch_cpu_unquantized_gemm = _use_live_weight
    _keep_live_experts()


def _use_live_weight(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


def _keep_live_experts() -> None:
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    experts: Any = cpu_moe.CPUUnquantizedExperts
    for kernel in (experts, *experts.__subclasses__()):  # which of them is taken depends on the processor
        kernel.process_weights_after_loading = _leave_as_loaded
        kernel._supports_grouped_gemm = classmethod(lambda _cls, _config: (True, None))
        kernel.apply = _apply_experts


def _leave_as_loaded(self: Any, layer: torch.nn.Module) -> None:
    """Takes the place of packing."""
    if self.w1_bias is not None or self.moe_config.activation.value not in _ACTIVATIONS:
        raise WeightsError(
            f"experts with biases, or with {self.moe_config.activation.value}, do not take new weights on CPU",
            kind="name",
        )


def _apply_experts(
    self: Any,
    *,
    output: torch.Tensor,  # [tokens, hidden]
    hidden_states: torch.Tensor,
    w1: torch.Tensor,  # [experts, 2 x intermediate, hidden]: gate above up
    w2: torch.Tensor,  # [experts, hidden, intermediate]
    topk_weights: torch.Tensor,  # [tokens, k]
    topk_ids: torch.Tensor,
    activation: Any,
    expert_map: torch.Tensor | None,
    apply_router_weight_on_input: bool,
    **_not_used: object,
) -> None:
    """Every expert's own tokens through its gated MLP, added up in the order of the experts."""
    assert expert_map is None, "experts are not split over devices"
    from vllm.model_executor.layers.fused_moe.activation import apply_moe_activation

    total = torch.zeros_like(hidden_states)
    for expert in topk_ids.unique().tolist():
        tokens, slots = (topk_ids == expert).nonzero(as_tuple=True)
        projected = torch.nn.functional.linear(hidden_states[tokens], w1[expert])
        inner = projected.new_empty(len(tokens), projected.shape[1] // 2)
        apply_moe_activation(activation, inner, projected)
        share = topk_weights[tokens, slots, None].to(inner.dtype)
        result = torch.nn.functional.linear(inner, w2[expert])
        total.index_add_(0, tokens, result if apply_router_weight_on_input else result * share)
    output.copy_(total)
