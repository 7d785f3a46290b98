"""Share of a GPU's arithmetic that a learner's step uses: `python -m benchmarks.learner.mfu MODEL LENGTH...`.

One rank, one document a step, bfloat16 beside float32 master weights, gradient checkpointing. The operations counted
are the model's own (`learner.training.plan.step_flops`), not those of recomputation. Prints one JSON line,
figures by length.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import numpy as np
import torch

from learner.objectives.samples import make_samples
from learner.ranks.group import RankGroup
from learner.training.model import Policy, import_deepspeed
from learner.training.plan import Shape, step_flops
from learner.training.trainer import Trainer
from protocol.config import Settings
from tiny.trajectories import random_batch

PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0, "A100": 312.0}
"""Dense bfloat16, from the vendor's data sheets, by a part of the device's name, the first that fits."""
_STEPS = 4  # the first of them warms up


def peak_flops() -> float | None:
    """Of this machine's GPU; None if there is none, or none that is known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def step_seconds(policy: Policy, settings: Settings, length: int) -> float:
    """Of the fastest step on one document of `length` tokens."""
    trainer = Trainer(policy, settings)
    batch = random_batch(np.random.default_rng(0), [length, 8], group_size=2)
    samples, _ = make_samples(batch, settings, 0, policy.vocab_size)
    seconds = []
    for _ in range(_STEPS):
        policy.group.barrier()
        started = time.perf_counter()
        trainer.step(samples[:1], 0)  # ends with figures on the host, so that the device is done
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def main() -> None:
    """Measure and print."""
    model, lengths = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
    import_deepspeed()
    learner = {"zero_stage": 1, "sequence_parallel": 1, "gradient_checkpointing": True, "pack_tokens": max(lengths)}
    settings = Settings.model_validate(
        {"model": {"path": str(model), "max_context": max(lengths), "dtype": "bfloat16"}, "learner": learner}
    )
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    group = RankGroup(0, 1, "127.0.0.1", port, sequence_parallel=1, start_timeout_s=120, timeout_s=1800)
    policy, shape, peak = Policy(settings, group), Shape.read(model), peak_flops()
    figures: dict[str, float] = {}
    for length in lengths:
        seconds = step_seconds(policy, settings, length)
        flops = step_flops(shape, [length], recompute=False) / seconds
        figures |= {f"gpu_tok_s_{length // 1024}k": length / seconds, f"gpu_tflops_{length // 1024}k": flops / 1e12}
        if peak is not None:
            figures[f"mfu_{length // 1024}k"] = flops / peak
    if torch.cuda.is_available():
        figures["gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    group.close()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
