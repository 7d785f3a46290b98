"""Everything that can be known to fail is refused here, in seconds, before any process is started."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil

from learner.objectives.registry import checked_objective, loss_settings
from learner.ranks import layout
from learner.training.reference import checked_reference
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.model_family import ModelFamily
from sandbox.backends import open_backend
from sandbox.datasets.loading import load_tasks
from sandbox.tasks.task import Task

_GIB = 1 << 30
# Measured on CPU with the tiny model (resident memory of one process, imports included).
_PROCESS_GIB = {"generator": 2.2, "learner rank": 1.1, "sandbox actor": 0.4, "Ray and dashboard": 1.2}
_SANDBOX_GIB = 0.002


async def check(settings: Settings, run: str) -> list[Task]:
    """Refuse a run that cannot work.

    Returns:
        The tasks of the run, loaded and validated.

    Raises:
        ConfigError: with one line that says what to change.
    """
    check_model(settings)
    check_port(settings)
    check_memory(settings, psutil.virtual_memory().available)
    backend = await open_backend(settings.sandbox, run)
    await backend.close()
    return load_tasks(settings.tasks)


def check_model(settings: Settings) -> None:
    """The model directory holds a model and a tokenizer that fit the settings."""
    directory = Path(settings.model.path)
    if settings.phase == "eval" and settings.eval.endpoint:
        return
    if not directory.is_dir():
        raise ConfigError(f"--model.path {directory}: no such directory", kind="model")
    for file, meaning in (("config.json", "a Hugging Face model"), ("tokenizer.json", "its tokenizer")):
        if not (directory / file).is_file():
            raise ConfigError(f"--model.path {directory}: {file} ({meaning}) is missing", kind="model")
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(f"--model.path {directory}: no *.safetensors weights there", kind="model")
    family = ModelFamily.read(directory)
    if settings.phase == "eval":
        family.check_served(settings.model.max_context)
    else:
        family.check_trained(settings.model.max_context, settings.learner.lora_rank)
        checked_objective(loss_settings(settings))
        sequence_parallel = layout.sequence_parallel(settings, layout.num_ranks(settings, num_gpus=0))
        checked_reference(settings, sequence_parallel)


def check_port(settings: Settings) -> None:
    """The dashboard's port is free."""
    port = settings.network.dashboard_port
    if port == 0 or settings.ray_address:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"--network.dashboard-port {port} is taken ({error.strerror}): choose another, or 0 for any free one",
                kind="port",
            ) from error


def check_memory(settings: Settings, available_bytes: int) -> None:
    """This host has the memory that the processes of the run need (a cluster's hosts are Ray's to judge)."""
    if settings.ray_address:
        return
    needed = needed_gib(settings)
    total = sum(needed.values())
    if total <= available_bytes / _GIB:
        return
    parts = ", ".join(f"{name} {gib:.1f}" for name, gib in needed.items())
    raise ConfigError(
        f"too little memory: {total:.1f} GiB needed ({parts}), {available_bytes / _GIB:.1f} GiB available; "
        f"lower --generator.count, --generator.kv-cache-mib, --learner.ranks or --num-actors",
        kind="memory",
    )


def needed_gib(settings: Settings) -> dict[str, float]:
    """Estimated host memory by part, in GiB."""
    weights = sum(f.stat().st_size for f in Path(settings.model.path).glob("*.safetensors")) / _GIB
    kv_cache = (settings.generator.kv_cache_mib or 192) / 1024
    ranks = settings.learner.ranks or 2
    return {
        "generators": settings.generator.count * (_PROCESS_GIB["generator"] + kv_cache + 2 * weights),
        "learner": ranks * (_PROCESS_GIB["learner rank"] + 8 * weights),
        "sandboxes": _PROCESS_GIB["sandbox actor"] * max(1, settings.actors.processes)
        + settings.num_actors * _SANDBOX_GIB,
        "Ray": _PROCESS_GIB["Ray and dashboard"],
    }
