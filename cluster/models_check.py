"""`longhaul models check DIR`: what a model is and needs, what will be exact, what is refused; nothing is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from actors.generator import engine
from cluster.command_line.cli import settings_of
from cluster.memory import compute_bytes, needed_gib, num_parameters, rank_memory
from cluster.preflight import has_chat_template
from learner.ranks import layout
from learner.training.plan import GIB
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.model_family import ModelFamily
from protocol.section import amount, count


def main(arguments: Sequence[str], program: str = "longhaul models check") -> int:
    """Print the verdict. Returns 0 if the model can be served and trained, 1 if not, 2 where there is no model."""
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("directory", type=Path, help="a Hugging Face model directory")
    parser.add_argument("--max-context", type=count, default=2048, help="most tokens of an episode (default: 2048)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--lora-rank", type=amount, default=0, help="with adapters of this rank")
    options = parser.parse_args(arguments)
    try:
        settings = settings_for(options.directory, options.max_context, options.dtype, options.lora_rank)
        family = ModelFamily.read(options.directory)
    except ValueError as error:
        print(error)
        return 2
    refused = dict(refusals(settings, family))
    print("\n".join(verdict(settings, family, refused)))
    return 1 if refused else 0


def settings_for(directory: Path, max_context: int, dtype: str = "auto", lora_rank: int = 0) -> Settings:
    """Defaults for this model. Raises `ConfigError` for impossible values."""
    content: dict[str, Any] = {
        "model": {"path": str(directory), "max_context": max_context, "dtype": dtype},
        "learner": {"lora_rank": lora_rank},
    }
    return settings_of(content)


def refusals(settings: Settings, family: ModelFamily) -> Iterator[tuple[str, str]]:
    """What cannot be done with the model, and why: the checks that a run makes before it starts."""
    directory, context = family.directory, settings.model.max_context
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("serving", lambda: engine.check(settings, directory, on_gpu=engine.has_gpu())),
        ("training", lambda: family.check_trained(context, settings.learner.lora_rank)),
        ("pushes to generators", family.check_pushed),
        ("ranks", lambda: layout.sequence_parallel(settings, layout.num_ranks(settings, num_gpus=0))),
    )
    for what, check in checks:
        try:
            check()
        except ConfigError as error:
            yield what, str(error)
    if not (directory / "tokenizer.json").is_file():
        yield "tokenizer", f"{directory}/tokenizer.json is missing"
    elif not has_chat_template(directory):
        yield "chat template", f"{directory} has none: take an instruct model, or give it one"


def verdict(settings: Settings, family: ModelFamily, refused: dict[str, str]) -> list[str]:
    """Lines for people."""
    on_gpu = engine.has_gpu()
    parameters = num_parameters(family)
    bits = 8 * compute_bytes(settings, on_gpu)
    lines = [
        f"{family.directory}: {family.architecture or family.model_type}, {parameters / 1e6:,.0f}M parameters, "
        f"{family.layers} layers, {family.heads} heads of {family.head_size} over {family.kv_heads} key-value heads, "
        f"{family.vocab_size:,} tokens, {family.max_positions:,} positions"
        + (f", {family.num_experts} experts a layer" if family.num_experts else ""),
    ]
    if family.wraps:
        lines.append("its text part is what a run has; a checkpoint keeps all the rest as it is")
    if parameters:
        lines += memory_lines(settings, family, on_gpu)
    lines += ["", "Exact, and proved again at the start of every run:" if not refused else "Refused:"]
    if refused:
        return [*lines, *(f"  {what}: {why}" for what, why in refused.items())]
    bound = "to 1e-4" if bits == 32 else f"to the rounding of {bits}-bit numbers"
    return [
        *lines,
        f"  log-probs of packed documents are the model's own, and generators sample from them ({bound})",
        "  pushed weights are compared by checksum, tensor by tensor, in the names of the model's files",
    ]


def memory_lines(settings: Settings, family: ModelFamily, on_gpu: bool) -> list[str]:
    """GiB by part, of training and of an evaluation."""
    ranks = layout.num_ranks(settings, num_gpus=0)
    try:
        training = needed_gib(settings, on_gpu=on_gpu)
        rank = rank_memory(settings, ranks, on_gpu=on_gpu)
    except ConfigError:  # heads that no ranks can share: the refusal below says so
        return []
    evaluation = needed_gib(settings.model_copy(update={"phase": "eval"}), on_gpu=on_gpu)
    per_token = engine.kv_bytes_per_token(family, engine.resolve_dtype(settings))
    split = {
        "weights": rank.weights,
        "gradients": rank.gradients,
        "optimizer": rank.optimizer,
        "activations and logits": rank.activations,
    }
    return [
        "",
        f"Host memory, context {settings.model.max_context:,}, GiB:",
        f"  training {sum(training.values()):.1f}: {_listed(training)}",
        f"  evaluation {sum(evaluation.values()):.1f}: {_listed(evaluation)}",
        f"  one of {ranks} ranks: {_listed({name: size / GIB for name, size in split.items()})}",
        f"  keys and values: {per_token / 1024:.0f} KiB a token, "
        f"{per_token * settings.model.max_context / GIB:.2f} for the longest episode",
    ]


def _listed(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {gib:.1f}" for name, gib in parts.items())
