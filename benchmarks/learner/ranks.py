"""Learner ranks that the benchmark measures: `python -m benchmarks.learner.ranks JOB.json`, results as one JSON line.

The ranks are forked from one process that has imported everything. A job: {"model", "zero_stage", "runs":
[{"sequence_parallel", "lengths", "steps"}], "parity_tokens"}.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad

from benchmarks.peak_memory import peak_bytes, reset_peak
from learner.objectives.samples import make_samples
from learner.ranks.group import RankGroup
from learner.training.model import Policy
from learner.training.trainer import Trainer
from protocol.config import Settings
from tiny.trajectories import random_batch


class _Recording(Policy):
    """Keeps the gradients that an update is made of."""

    def update(self, learning_rate: float) -> float:
        self.gradients = {name: safe_get_full_grad(p).clone() for name, p in self.trained_parameters()}
        return super().update(learning_rate)


def settings_of(job: dict[str, Any], sequence_parallel: int, length: int) -> Settings:
    """Of a step on two documents of half of `length` tokens: the smallest group."""
    learner = {"zero_stage": job["zero_stage"], "sequence_parallel": sequence_parallel, "pack_tokens": length}
    return Settings.model_validate({"model": {"path": job["model"], "max_context": length}, "learner": learner})


def measure(job: dict[str, Any], run: dict[str, Any], group: RankGroup) -> dict[str, float]:
    """Tokens/s and peak memory of a full step on one document of each length."""
    figures: dict[str, float] = {}
    settings = settings_of(job, run["sequence_parallel"], max(run["lengths"]))
    policy = Policy(settings, group)
    trainer = Trainer(policy, settings)
    for length in run["lengths"]:
        batch = random_batch(np.random.default_rng(0), [length, 8], group_size=2)
        samples, _ = make_samples(batch, settings, 0, policy.vocab_size)
        reset_peak()
        seconds = []
        for _ in range(run["steps"]):
            group.barrier()
            started = time.perf_counter()
            trainer.step(samples[:1], 0)
            group.barrier()
            seconds.append(time.perf_counter() - started)
        name = f"{length // 1024}k_sp{run['sequence_parallel']}"
        figures[f"tok_s_{name}"] = length / min(seconds)
        figures[f"peak_gib_{name}"] = peak_bytes() / 2**30
    return figures


def parity(job: dict[str, Any], group: RankGroup) -> dict[str, float]:
    """Largest difference of any gradient from plain torch, relative to the largest gradient."""
    settings = settings_of(job, group.sequence_parallel, job["parity_tokens"])
    policy = _Recording(settings, group)
    batch = random_batch(np.random.default_rng(1), [job["parity_tokens"] // 2] * 4, group_size=2)
    samples, _ = make_samples(batch, settings, 0, policy.vocab_size)
    Trainer(policy, settings).step(samples, 0)
    if group.rank:
        return {}
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="eager")
    total = sum(sample.weights.sum() for sample in samples)
    for sample in samples:
        logprobs = model(torch.from_numpy(sample.token_ids)[None]).logits[0].log_softmax(-1)
        chosen = logprobs.gather(1, torch.from_numpy(sample.targets)[:, None])[:, 0]
        ratio, advantage = (chosen - torch.from_numpy(sample.behaviour)).exp(), torch.from_numpy(sample.advantages)
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
        (-(surrogate * torch.from_numpy(sample.weights)).sum() / total).backward()
    plain = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    worst = max(float((policy.gradients[name] - gradient).abs().max()) for name, gradient in plain.items())
    return {"parity_max_rel_grad": worst / largest}


def run_rank(job: dict[str, Any], run: dict[str, Any], rank: int, port: int, result: Path) -> None:
    """One forked rank."""
    torch.set_num_threads(1)
    ranks = run["sequence_parallel"]
    group = RankGroup(
        rank, ranks, "127.0.0.1", port, sequence_parallel=ranks, start_timeout_s=120, timeout_s=1800
    )  # fmt: skip
    figures = measure(job, run, group)
    if ranks > 1:
        figures |= parity(job, group)
    if rank == 0:
        result.write_text(json.dumps(figures))
    group.close()


def main() -> int:
    """Run the job; print its figures."""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text())
    figures: dict[str, float] = {}
    for run in job["runs"]:
        with socket.socket() as some:
            some.bind(("127.0.0.1", 0))
            port = some.getsockname()[1]
        result = path.with_name(f"sp{run['sequence_parallel']}.json")
        children = []
        for rank in range(run["sequence_parallel"]):
            if (pid := os.fork()) == 0:
                try:
                    run_rank(job, run, rank, port, result)
                    os._exit(0)
                except BaseException as error:
                    print(f"rank {rank}: {error!r}", file=sys.stderr, flush=True)
                    os._exit(1)
            children.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in children]
        if any(statuses):
            return 1
        figures |= json.loads(result.read_text())
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
