"""Runs learner ranks for tests: `python learner_ranks.py JOB.json` forks the ranks of one layout after another.

Importing torch, transformers and DeepSpeed takes longer than the tests, so it happens once and the ranks are forked.
The job is a list of layouts: {"world", "sequence_parallel", "cases": [{"name", "settings", "lengths", ...}]}; rank 0
writes `NAME.safetensors` (gradients and weights after each step) and `NAME.json` (figures) beside the job. A case with
"losses" ({label: loss settings}) takes the first batch once with each of them, on one policy whose learning rate is 0.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from learner.checkpoints.state import full_state
from learner.objectives.samples import make_samples
from learner.ranks.group import RankGroup
from learner.teacher.grading import proven_teacher
from learner.training.model import Policy, import_deepspeed
from learner.training.self_test import prove_packing
from learner.training.trainer import Trainer
from protocol.config import LossSettings, Settings
from protocol.errors import ConfigError
from tests.ports import free_port
from tiny.trajectories import random_batch


class RecordingPolicy(Policy):
    """Keeps the gradients that an update is made of."""

    gradients: dict[str, torch.Tensor]

    def update(self, learning_rate: float) -> float:
        from deepspeed.utils import safe_get_full_grad

        self.gradients = {
            name: (p.grad if self.zero_stage == 0 else safe_get_full_grad(p)).detach().float().clone()
            for name, p in self.trained_parameters()
        }
        self.gradient_bytes = self._count_gradients()
        return super().update(learning_rate)

    def _count_gradients(self) -> int:
        optimizer = self.engine.optimizer
        if self.zero_stage < 2:
            return num_bytes(p.grad for p in self.module.parameters() if p.grad is not None)
        if self.zero_stage == 2:
            return num_bytes(g for some in optimizer.averaged_gradients.values() for g in some)
        return num_bytes([optimizer.grad_partitions_flat_buffer])

    def state_bytes(self) -> list[int]:
        """Bytes that this rank holds: weights, gradients before the update, optimizer state with master weights."""
        weights = num_bytes(getattr(p, "ds_tensor", p) for p in self.module.parameters())
        moments = [t for state in self.optimizer.state.values() for name, t in state.items() if name != "step"]
        masters = list(self.optimizer.state) if self.zero_stage else []
        return [weights, self.gradient_bytes, num_bytes([*moments, *masters])]


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def prove(group: RankGroup, case: dict, folder: Path) -> None:
    """The self-test of a run's start: its figure, or the line with which the run is refused."""
    settings = Settings.model_validate(case["settings"])
    policy = Policy(settings, group)
    try:
        found = prove_packing(policy, settings.model.path)
        assert prove_packing(policy, settings.model.path) == found, "the self-test leaves the model as it was"
        assert found.difference <= found.bound
        said = found.difference
    except ConfigError as error:
        said = str(error)
    if group.rank == 0:
        (folder / f"{case['name']}.json").write_text(json.dumps(said))
    policy.engine.destroy()


def run_case(group: RankGroup, case: dict, folder: Path) -> None:
    if case.get("self_test"):
        prove(group, case, folder)
        return
    settings = Settings.model_validate(case["settings"])
    policy = RecordingPolicy(settings, group)
    trainer = Trainer(policy, settings)
    tensors, figures = {}, []
    for version, lengths in enumerate(case["batches"]):
        batch = random_batch(np.random.default_rng(version), lengths, case["group_size"])
        samples, _ = make_samples(batch, settings, version, policy.vocab_size)
        figures.append(trainer.step(samples, version))
        tensors |= {f"gradient{version}|{name}": g for name, g in policy.gradients.items()}
    for name, parts in full_state(policy):
        tensors[f"weight|{name}"] = parts["master"]
    if group.rank == 0:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / f"{case['name']}.safetensors")
        (folder / f"{case['name']}.json").write_text(json.dumps(figures))
        (folder / f"{case['name']}-bytes.json").write_text(json.dumps(policy.state_bytes()))
    policy.engine.destroy()


def head_weights(hidden: int) -> torch.Tensor:
    """Weights of a value head that is not zero: [1, hidden]."""
    return torch.linspace(-0.1, 0.2, hidden)[None]


def run_losses(group: RankGroup, case: dict, folder: Path) -> None:
    settings = Settings.model_validate(case["settings"])
    assert settings.learner.lr == 0, "every objective is to see the same weights"
    policy = RecordingPolicy(settings, group)
    batch = random_batch(np.random.default_rng(0), case["batches"][0], case["group_size"])
    tensors, figures = {}, {}
    for label, loss in case["losses"].items():
        learner = settings.learner.model_copy(update={"loss": LossSettings.model_validate(loss)})
        some = settings.model_copy(update={"learner": learner})
        samples, _ = make_samples(batch, some, 0, policy.vocab_size)
        teacher = proven_teacher(some, group, threading.Event())
        samples = samples if teacher is None else teacher.grade(samples) or []
        if policy.module.value_head is not None:
            policy.module.value_head.weight.data.copy_(head_weights(policy.config.hidden_size))
        figures[label] = Trainer(policy, some).step(samples, 0)
        tensors |= {f"{label}|{name}": g for name, g in policy.gradients.items()}
    kept = {name for name, _ in full_state(policy)}
    assert ("value_head.weight" in kept) == (policy.module.value_head is not None), "a checkpoint keeps the head"
    exported = [name for name, _ in policy.full_weights(1 << 20)]
    assert not any("value_head" in name for name in exported), "generators know no value head"
    if group.rank == 0:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / f"{case['name']}.safetensors")
        (folder / f"{case['name']}.json").write_text(json.dumps(figures))
    policy.engine.destroy()


def run_rank(rank: int, port: int, layout: dict, folder: Path) -> None:
    torch.set_num_threads(1)
    group = RankGroup(
        rank,
        layout["world"],
        "127.0.0.1",
        port,
        sequence_parallel=layout["sequence_parallel"],
        start_timeout_s=300,
        timeout_s=300,
    )
    for case in layout["cases"]:
        (run_losses if "losses" in case else run_case)(group, case, folder)
    group.close()


def main() -> int:
    job = Path(sys.argv[1])
    import_deepspeed()
    status = 0
    for layout in json.loads(job.read_text()):
        port = free_port()
        children = []
        for rank in range(layout["world"]):
            if (pid := os.fork()) == 0:
                try:
                    run_rank(rank, port, layout, job.parent)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(pid)
        for pid in children:
            status |= os.waitpid(pid, 0)[1]
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
