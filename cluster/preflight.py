"""Everything that can be known to fail is refused here, in seconds, before any process is started."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import psutil

from actors.generator import engine
from cluster.files.mirror import check_url
from cluster.memory import needed_gib
from cluster.reporting.trackers import table as trackers
from cluster.surroundings import check_shared_memory
from learner.objectives.registry import checked_objective, loss_settings
from learner.ranks import layout
from learner.teacher.grading import check_teacher
from learner.training.reference import checked_reference
from protocol.config import Settings
from protocol.errors import ConfigError
from sandbox.backends import open_backend
from sandbox.datasets.of_run import RunTasks, tasks_of_run

_GIB = 1 << 30


async def check(settings: Settings, run: str) -> RunTasks:
    """Refuse a run that cannot work.

    Returns:
        The tasks of the run, loaded and validated, and those that it is scored on.

    Raises:
        ConfigError: with one line that says what to change.
    """
    check_model(settings)
    check_port(settings)
    trackers.check(settings)
    check_url(settings)
    check_shared_memory(settings)
    check_memory(settings, psutil.virtual_memory().available)
    await check_teacher(settings)
    backend = await open_backend(settings.sandbox, run)
    await backend.close()
    tasks = tasks_of_run(settings)
    check_images(settings, tasks)
    return tasks


def check_images(settings: Settings, tasks: RunTasks) -> None:
    """Every task has an image where a sandbox is made of nothing else."""
    if settings.sandbox.backend != "kubernetes" or settings.sandbox.kubernetes.image:
        return
    without = next((task.task_id for task in (*tasks.tasks, *tasks.held_out) if task.image is None), "")
    if without:
        raise ConfigError(
            f"task {without} names no image, of which sandbox.backend kubernetes makes its pods: set "
            "--sandbox.kubernetes.image to one with bash, python3 and git",
            kind="no_image",
        )


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
    if not has_chat_template(directory):
        raise ConfigError(
            f"--model.path {directory}: no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json): take an instruct model, or give it the template of the one it was made from",
            kind="model",
        )
    on_gpu = engine.has_gpu() or bool(settings.ray_address)  # other hosts are not seen from here
    family = engine.check(settings, directory, on_gpu=on_gpu)
    if settings.phase != "eval":
        family.check_trained(settings.model.max_context, settings.learner.lora_rank)
        family.check_pushed()
        checked_objective(loss_settings(settings))
        sequence_parallel = layout.sequence_parallel(settings, layout.num_ranks(settings, num_gpus=0))
        checked_reference(settings, sequence_parallel)


def has_chat_template(directory: Path) -> bool:
    """Whether a model directory says how messages become tokens."""
    if (directory / "chat_template.jinja").is_file():
        return True
    try:
        configuration = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(configuration, dict) and bool(configuration.get("chat_template"))


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
