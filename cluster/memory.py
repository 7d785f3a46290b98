"""What a run needs of this host's memory, by part, before anything is started: one estimate for every phase."""

from __future__ import annotations

from pathlib import Path

from actors.generator.engine import has_gpu, kv_cache_bytes
from learner.ranks import layout
from learner.training.plan import GIB, Memory, Shape, estimate
from protocol.config import Settings
from protocol.model_family import ModelFamily

# Measured on CPU with the tiny model (resident memory of one process, imports included).
_GENERATOR_GIB, _RANK_GIB, ACTOR_GIB, _RAY_GIB = 2.2, 1.1, 0.4, 1.2
_RANK_IMPORTS_GIB = 0.3
SANDBOX_GIB = 0.002
_FILE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def needed_gib(settings: Settings, *, on_gpu: bool | None = None) -> dict[str, float]:
    """GiB of host memory by part. An evaluation has no learner, one of an endpoint no generator either.

    Args:
        on_gpu: whether engines and ranks keep weights, keys and values, and activations on devices; found out if None.
    """
    on_gpu = has_gpu() if on_gpu is None else on_gpu
    parts = {
        "sandboxes": ACTOR_GIB * max(1, settings.actors.processes) + settings.num_actors * SANDBOX_GIB,
        "Ray": _RAY_GIB,
    }
    if settings.phase == "eval" and settings.eval.endpoint:
        return parts
    directory = Path(settings.model.path)
    family = ModelFamily.read(directory)
    weights = num_parameters(family) * compute_bytes(settings, on_gpu) / GIB
    pushed = 0.0 if settings.phase == "eval" else weights
    if settings.pushes_adapters:
        adapters = Shape.read(directory).adapter_parameters(settings.learner.lora_rank)
        pushed = adapters * compute_bytes(settings, on_gpu) / GIB
    generator = _GENERATOR_GIB + (
        pushed if on_gpu else weights + pushed + kv_cache_bytes(settings, family) / GIB  # staged beside those in force
    )
    parts["generators"] = settings.generator.count * generator
    if settings.phase != "eval":
        ranks = layout.num_ranks(settings, num_gpus=0)
        parts["learner"] = ranks * rank_gib(settings, ranks, on_gpu=on_gpu)
        parts["published weights"] = 2 * pushed
    return parts


def rank_gib(settings: Settings, ranks: int, *, on_gpu: bool) -> float:
    """Host memory of one of `ranks` learner ranks."""
    if on_gpu:
        return _RANK_GIB
    memory = rank_memory(settings, ranks, on_gpu=False)
    return max(_RANK_GIB, memory.total / GIB + _RANK_IMPORTS_GIB)


def rank_memory(settings: Settings, ranks: int, *, on_gpu: bool) -> Memory:
    """Where a rank's tensors are: `learner.training.plan`'s estimate with a full micro-batch."""
    return estimate(
        Shape.read(Path(settings.model.path)),
        settings,
        stage=settings.learner.zero_stage,
        sequence_parallel=layout.sequence_parallel(settings, ranks),
        ranks=ranks,
        tokens=settings.micro_batch_tokens,
        compute_bytes=compute_bytes(settings, on_gpu),
    )


def compute_bytes(settings: Settings, on_gpu: bool) -> int:
    """Bytes of an element in the precision that a model is served and trained in."""
    if settings.model.dtype == "auto":
        return 2 if on_gpu else 4
    return _FILE_BYTES[settings.model.dtype]


def num_parameters(family: ModelFamily) -> int:
    """From the size of the weights' files and the precision that the configuration names; without files, its shape."""
    named = str(family.text.get("dtype") or family.text.get("torch_dtype") or "float32")
    size = sum(file.stat().st_size for file in family.directory.glob("*.safetensors"))
    return size // _FILE_BYTES.get(named, 2) or Shape.read(family.directory).parameters
