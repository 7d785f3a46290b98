"""Memory and time of a learner before there is one.

Bytes are per GPU with a full micro-batch; every line of the estimate is a formula below, and tests hold the formulas
against tensors counted in real engines. Throughput is arithmetic from an assumed utilisation, and says so.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.ranks.layout import Heads
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

    @property
    def layer_parameters(self) -> int:
        """Parameters of one decoder layer with grouped-query attention and a gated MLP."""
        query, key = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = self.hidden * (2 * query + 2 * key) + (query + 2 * key) * self.qkv_bias
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    @staticmethod
    def read(path: Path) -> Shape:
        """From a Hugging Face `config.json` (or its directory). Raises `ConfigError`."""
        family = ModelFamily.read(path if path.is_dir() else path.parent)
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


def state_bytes(parameters: int, stage: int, ranks: int, compute_bytes: int) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state on one of `ranks` GPUs.

    Gradients are accumulated in float32. Stage 0 in float32 keeps no second copy of the weights.
    """
    share = -(-parameters // ranks)
    weights = compute_bytes * (share if stage == 3 else parameters)
    gradients = GRADIENT_BYTES * (share if stage >= 2 else parameters)
    if stage == 0:
        master = 0 if compute_bytes == 4 else MASTER_BYTES
        return weights, gradients, (master + MOMENT_BYTES) * parameters
    return weights, gradients, (MASTER_BYTES + MOMENT_BYTES) * share


def layer_activation_elements(shape: Shape, tile: int, tokens: int) -> int:
    """Elements that one layer keeps for its backward pass over `tokens` tokens of one rank.

    Two norms keep input, normalised input and output (6 h); attention keeps queries, keys and values spread over all
    heads, its output and that output laid out again (5 q); the MLP keeps gate, its activation, up and product (4 i), of
    one tile only if it is tiled.
    """
    query = shape.heads * shape.head_size
    wide = min(tile, tokens) if tile else tokens
    return tokens * (6 * shape.hidden + 5 * query) + 4 * shape.intermediate * wide


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
    weights, gradients, optimizer = state_bytes(shape.parameters, stage, ranks, compute_bytes)
    bucket = min(_BUCKET_ELEMENTS, shape.parameters)
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

    `6 P` a token for weights and `6 L h` a token and layer for causal attention of length L; a third more to recompute.
    """
    query = shape.heads * shape.head_size
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    flops = 6.0 * shape.parameters * tokens + 6.0 * query * shape.layers * squares
    return flops * (4 / 3 if recompute else 1)


def memory_table(shape: Shape, settings: Settings, ranks: int, gpu_gib: float, tokens: int) -> list[str]:
    """Markdown: one row a ZeRO stage and number of Ulysses ranks; GiB per GPU with a micro-batch of `tokens`."""
    heads = Heads(shape.heads, shape.kv_heads)
    lines = [
        "| ZeRO | Ulysses | weights | gradients | optimizer | activations | buffers | total GiB | fits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stage in (1, 2, 3):
        for sequence_parallel in (n for n in (1, 2, 4, 8, 16) if ranks % n == 0 and heads.allow(n)):
            memory = estimate(
                shape, settings, stage=stage, sequence_parallel=sequence_parallel, ranks=ranks,
                tokens=tokens,
            )  # fmt: skip
            cells = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.buffers]
            numbers = " | ".join(f"{cell / GIB:.1f}" for cell in cells)
            fits = "yes" if memory.total / GIB <= gpu_gib else "no"
            lines.append(f"| {stage} | {sequence_parallel} | {numbers} | {memory.total / GIB:.1f} | {fits} |")
    return lines


def report(
    shape: Shape, settings: Settings, ranks: int, tokens: int, gpu_gib: float, gpu_tflops: float, mfu: float
) -> list[str]:
    """The whole plan as Markdown lines, for micro-batches of `tokens`."""
    learner, context = settings.learner, settings.model.max_context
    recompute = learner.gradient_checkpointing
    mean = int(0.45 * context)
    flops = step_flops(shape, [mean] * settings.replay.batch, recompute)
    seconds = flops / (ranks * gpu_tflops * 1e12 * mfu)
    return [
        f"{shape.parameters / 1e9:.2f}B parameters, {ranks} GPUs of {gpu_gib:g} GiB, micro-batches of {tokens:,} "
        f"tokens, gradient checkpointing {'on' if recompute else 'off'}, MLP tile {learner.mlp_tile or 'off'}, "
        f"log-prob chunk {learner.logprob_chunk}. GiB per GPU:",
        "",
        *memory_table(shape, settings, ranks, gpu_gib, tokens),
        "",
        f"A step of {settings.replay.batch} trajectories of {mean:,} tokens on average is {flops:.2e} operations: "
        f"{seconds:.0f} s at an assumed utilisation of {mfu:.0%} of {gpu_tflops:g} TFLOP/s, "
        f"{settings.replay.batch * mean / seconds:,.0f} tokens/s.",
    ]


def main(arguments: Sequence[str], program: str = "python -m learner.training.plan") -> int:
    """Print the plan of a configuration file."""
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="settings file (TOML)")
    parser.add_argument("--model", type=Path, help="directory with a config.json (default: model.path of the settings)")
    parser.add_argument("--tokens", type=int, help="tokens of a micro-batch (default: learner.pack_tokens)")
    parser.add_argument("--gpu-gib", type=float, default=131.0, help="usable memory of a GPU (H200: 131 GiB)")
    parser.add_argument("--gpu-tflops", type=float, default=989.0, help="its dense bfloat16 peak")
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed utilisation")
    options = parser.parse_args(arguments)
    try:
        settings = Settings.model_validate(tomllib.loads(options.config.read_text()))
        shape = Shape.read(options.model or Path(settings.model.path))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    ranks = settings.learner.ranks or 1
    tokens = options.tokens or settings.micro_batch_tokens
    print("\n".join(report(shape, settings, ranks, tokens, options.gpu_gib, options.gpu_tflops, options.mfu)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
