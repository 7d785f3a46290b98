"""Memory and time of a learner before there is one.

Bytes are per GPU with a full micro-batch; every line of the estimate is a formula below, and tests hold the formulas
against tensors counted in real engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.config import Settings
from protocol.model_family import ModelFamily

GIB = 1 << 30
MASTER_BYTES, MOMENT_BYTES, GRADIENT_BYTES = 4, 8, 4
_LOGIT_COPIES = 5
"""Logits, their log-softmax, the terms of the entropy, and the gradients of the first two, float32."""
_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's default size of a bucket in which gradients are reduced and parameters prefetched."""


@dataclass(frozen=True)
class Shape:
    """What a decoder's memory and arithmetic depend on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    experts: int = 0  # of a layer that has them
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0  # of experts that every token passes
    dense_layers: int = 0  # first layers without experts

    @property
    def attention_parameters(self) -> int:
        """Of one layer's grouped-query attention and its two norms."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        return self.hidden * (2 * query + 2 * key) + (query + 2 * key) * self.qkv_bias + 2 * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Parameters of the largest kind of decoder layer, with a gated MLP or experts and their router."""
        return self._layer(self.experts) if self.experts else self._dense_layer

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self._whole(self.layer_parameters)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes."""
        return self._whole(self._layer(self.experts_per_token) if self.experts else self._dense_layer)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of adapters of `rank` on every linear layer of a model without experts; 0 of rank 0."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        ends = 4 * self.hidden + 2 * query + 2 * key + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * ends

    @property
    def wide(self) -> int:
        """Elements of a token between the two halves of the MLP of a layer of the largest kind."""
        if not self.experts:
            return self.intermediate
        return self.experts_per_token * self.expert_intermediate + self.shared_intermediate

    @property
    def _dense_layer(self) -> int:
        return self.attention_parameters + 3 * self.hidden * self.intermediate

    def _layer(self, experts: int) -> int:
        wide = experts * self.expert_intermediate + self.shared_intermediate
        return self.attention_parameters + 3 * self.hidden * wide + self.hidden * self.experts

    def _whole(self, layer: int) -> int:
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        dense = self.dense_layers if self.experts else 0
        return (self.layers - dense) * layer + dense * self._dense_layer + embeddings + self.hidden

    @staticmethod
    def read(path: Path) -> Shape:
        """From a Hugging Face `config.json` (or its directory). Raises `ConfigError`."""
        family = ModelFamily.read(path if path.is_dir() else path.parent)
        expert = int(family.text.get("moe_intermediate_size") or family.intermediate)
        return Shape(
            hidden=family.hidden,
            layers=family.layers,
            heads=family.heads,
            kv_heads=family.kv_heads,
            head_size=family.head_size,
            intermediate=family.intermediate,
            vocabulary=family.vocab_size,
            tied=family.tied,
            qkv_bias=bool(family.text.get("attention_bias", family.model_type == "qwen2")),
            experts=family.num_experts,
            experts_per_token=int(family.text.get("num_experts_per_tok") or 0),
            expert_intermediate=expert if family.num_experts else 0,
            shared_intermediate=int(family.text.get("n_shared_experts") or 0) * expert,
            dense_layers=int(family.text.get("first_k_dense_replace") or 0),
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


def state_bytes(
    parameters: int, stage: int, ranks: int, compute_bytes: int, trained: int | None = None
) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state on one of `ranks` GPUs; `trained`: of adapters beside a frozen
    model (None: the model itself).

    Gradients are accumulated in float32. Stage 0 in float32 keeps no second copy of the weights.
    """
    held = parameters + (trained or 0)
    trained = parameters if trained is None else trained
    share = -(-trained // ranks)
    weights = compute_bytes * (-(-held // ranks) if stage == 3 else held)
    gradients = GRADIENT_BYTES * (share if stage >= 2 else trained)
    if stage == 0:
        master = 0 if compute_bytes == 4 else MASTER_BYTES
        return weights, gradients, (master + MOMENT_BYTES) * trained
    return weights, gradients, (MASTER_BYTES + MOMENT_BYTES) * share


def layer_activation_elements(shape: Shape, tile: int, tokens: int) -> int:
    """Elements that one layer keeps for its backward pass over `tokens` tokens of one rank.

    Two norms keep input, normalised input and output (6 h); attention keeps queries, keys and values spread over all
    heads, its output and that output laid out again (5 q); the MLP keeps gate, its activation, up and product (4 i), of
    one tile only if it is tiled. Experts keep their copy of a token and what they make of it, too (2 h each).
    """
    query = shape.heads * shape.head_size
    wide = min(tile, tokens) if tile else tokens
    copies = 2 * shape.experts_per_token * shape.hidden if shape.experts else 0
    return tokens * (6 * shape.hidden + 5 * query) + (4 * shape.wide + copies) * wide


def activation_bytes(shape: Shape, settings: Settings, tokens: int, compute_bytes: int) -> int:
    """Bytes kept for the backward pass of `tokens` tokens on one rank, and the logits of one chunk.

    With gradient checkpointing a layer keeps its input, and one layer at a time is there in full.
    """
    learner = settings.learner
    layer = layer_activation_elements(shape, learner.mlp_tile, tokens)
    if learner.gradient_checkpointing:
        elements = shape.layers * tokens * shape.hidden + layer
    else:
        elements = shape.layers * layer
    logits = _LOGIT_COPIES * 4 * min(learner.logprob_chunk, tokens) * shape.vocabulary
    return compute_bytes * elements + logits


def estimate(
    shape: Shape,
    settings: Settings,
    *,
    stage: int,
    sequence_parallel: int,
    ranks: int,
    tokens: int,
    compute_bytes: int = 2,
) -> Memory:
    """Memory of one of `ranks` GPUs while it trains on one sequence of `tokens` shared by `sequence_parallel`."""
    adapters = shape.adapter_parameters(settings.learner.lora_rank) or None
    weights, gradients, optimizer = state_bytes(shape.parameters, stage, ranks, compute_bytes, adapters)
    bucket = min(_BUCKET_ELEMENTS, adapters or shape.parameters)
    prefetched = min(2 * shape.layer_parameters, shape.parameters) if stage == 3 else 0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activation_bytes(shape, settings, -(-tokens // sequence_parallel), compute_bytes),
        buffers=compute_bytes * (bucket + prefetched),
    )


def step_flops(shape: Shape, lengths: list[int], recompute: bool) -> float:
    """Floating-point operations of one step over sequences of these lengths.

    `6 P` a token for the weights that it passes, `6 L h` a token and layer for causal attention of length L; a third
    more to recompute.
    """
    query = shape.heads * shape.head_size
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    flops = 6.0 * shape.active_parameters * tokens + 6.0 * query * shape.layers * squares
    return flops * (4 / 3 if recompute else 1)
