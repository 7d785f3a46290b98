"""Checkpoints: one directory per kept version, complete or absent, loadable by any layout of ranks.

    run_dir/checkpoints/step-12/
        checkpoint.json      written last: version, model, what the run needs to go on
        state-00000.safetensors, ...   master weights and moments; rank r writes every `ranks`-th parameter
        hf/                  the policy as a Hugging Face directory, with its tokenizer
        adapter/             with learner.lora_rank: the adapter alone, in peft's form
        replay.json          journal position that belongs to it
        held_out.json        of one that `best` leads, or led, to: the evaluation that made it so
    run_dir/checkpoints/best     with `checkpoint.keep_best`: a link to the one with the best held-out score

Everything is written into `step-12.partial`, forced to disk and renamed (learner/checkpoints/writer.py): a directory
without the suffix is complete.
The rest of the run's state (groups in flight, leases, task cursor, curriculum) is the replay buffer's journal; it keeps
every event since the oldest kept checkpoint, and replays them up to the version that is resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from learner.checkpoints.state import PARTS, set_full_state
from learner.training.model import Policy
from protocol.config import Settings
from protocol.errors import CheckpointError

FORMAT = 1
MANIFEST = "checkpoint.json"
PARTIAL = ".partial"
BEST = "best"


def directory(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(run_dir) / "checkpoints"


def kept(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p.parent for p in directory(run_dir).glob(f"step-*/{MANIFEST}") if p.parent.name[5:].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The version that a checkpoint's directory is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def best_step(run_dir: Path) -> int | None:
    """Step of the checkpoint that the link `best` leads to; None where there is no such link."""
    try:
        name = (directory(run_dir) / BEST).readlink().name
    except OSError:
        return None
    return int(name[5:]) if name.startswith("step-") and name[5:].isdigit() else None


def latest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    return next(reversed(kept(run_dir)), None)


def to_resume(settings: Settings, run_dir: Path) -> Path | None:
    """The checkpoint that `settings.resume` names; None to start from the model.

    Raises:
        CheckpointError: a path was given and there is no complete checkpoint in it.
    """
    if settings.resume is None:
        return None
    if settings.resume == "auto":
        return latest(run_dir)
    path = Path(settings.resume)
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} is no complete checkpoint: it has no {MANIFEST}", kind="incomplete")
    return path


def load(path: Path, policy: Policy) -> int:
    """Put a checkpoint into a freshly built policy; returns its policy version.

    Raises:
        CheckpointError: it is damaged (kind `damaged`) or of another model (kind `model`).
    """
    manifest = read_manifest(path)
    if manifest["model"] != fingerprint(policy):
        raise CheckpointError(
            f"{path} is a checkpoint of another model than {policy.config.name_or_path}: parameters differ in name or "
            "shape (objective ppo has a value head, lora_rank adapters). Resume with the model, learner.loss.name and "
            "learner.lora_rank that the run started with",
            kind="model",
        )
    try:
        with contextlib.ExitStack() as files:
            opened = [
                files.enter_context(safe_open(path / name, framework="pt", device="cpu"))
                for name in manifest["state_files"]
            ]
            where = {key: file for file in opened for key in file.keys()}  # noqa: SIM118 (no mapping)

            def read(name: str) -> dict[str, Tensor]:
                keys = {part: f"{name}|{part}" for part in PARTS}
                if missing := [key for key in keys.values() if key not in where]:
                    raise CheckpointError(f"{path} lacks {missing[0]}", kind="damaged")
                return {part: where[key].get_tensor(key) for part, key in keys.items()}

            set_full_state(policy, read, manifest["num_updates"])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Resume an older one", kind="damaged") from error
    policy.num_updates = manifest["num_updates"]
    torch.set_rng_state(torch.tensor(manifest["rng"], dtype=torch.uint8))
    return int(manifest["version"])


def read_manifest(path: Path) -> dict[str, Any]:
    """`checkpoint.json` of a checkpoint. Raises `CheckpointError`."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} has no readable {MANIFEST}: {error}", kind="damaged") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected checkpoint format {FORMAT}", kind="damaged")
    for name, size in manifest["state_files"].items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            raise CheckpointError(
                f"{path}/{name} is missing or not {size} bytes long. Resume an older one", kind="damaged"
            )
    return manifest


def fingerprint(policy: Policy) -> str:
    """Hash of the names and shapes of what is trained."""
    shapes = [(name, list(getattr(p, "ds_shape", p.shape))) for name, p in policy.trained_parameters()]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]
