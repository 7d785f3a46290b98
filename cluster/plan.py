"""`longhaul plan`: memory and time of a learner before there is one, and how a host's GPUs are split.

Throughput is arithmetic from an assumed utilisation, and says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.command_line.cli import read_file, settings_of
from cluster.command_line.presets import preset_for, under
from learner.ranks.layout import Heads
from learner.training.plan import GIB, Shape, estimate, step_flops
from learner.training.split import Split, choose
from protocol.config import Settings
from protocol.section import count, positive


def main(arguments: Sequence[str], program: str = "longhaul plan") -> int:
    """Print the plan of a configuration file, or of a model alone. Returns 2 for what cannot be."""
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, help="settings file (TOML; default: what suits the model)")
    parser.add_argument("--model", type=Path, help="directory with a config.json (default: model.path of the settings)")
    parser.add_argument("--gpus", type=count, help="split so many GPUs of one host between generators and learner")
    parser.add_argument("--tokens", type=count, help="tokens of a micro-batch (default: learner.pack_tokens)")
    parser.add_argument("--gpu-gib", type=positive, default=131.0, help="usable memory of a GPU (H200: 131 GiB)")
    parser.add_argument("--gpu-tflops", type=positive, default=989.0, help="its dense bfloat16 peak")
    parser.add_argument("--mfu", type=positive, default=0.4, help="assumed utilisation")
    options = parser.parse_args(arguments)
    if not options.config and not options.model:
        parser.error("give --config, --model, or both")
    try:
        content = read_file(options.config)
        given = settings_of(content)
        model = options.model or Path(given.model.path)
        context = content.get("model", {}).get("max_context")
        preset = preset_for(model, context, on_gpu=True)
        settings = settings_of(under(content, preset)) if preset else given
        shape = Shape.read(model)
        if options.tokens:
            settings = _with_learner(settings, pack_tokens=options.tokens)
        split = choose(shape, settings, options.gpus, options.gpu_gib) if options.gpus else None
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if split is not None:
        print(f"{options.gpus} GPUs of {options.gpu_gib:g} GiB: {split.line()}\n")
        settings = with_split(settings, split)
    ranks = settings.learner.ranks or 1
    tokens = settings.micro_batch_tokens
    print("\n".join(report(shape, settings, ranks, tokens, options.gpu_gib, options.gpu_tflops, options.mfu)))
    return 0


def with_split(settings: Settings, split: Split) -> Settings:
    """`settings` with the learner's part of the split."""
    chosen = {name.removeprefix("learner."): value for name, value in split.settings().items() if "learner." in name}
    return _with_learner(settings, **chosen)


def _with_learner(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"learner": settings.learner.model_copy(update=changes)})


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
