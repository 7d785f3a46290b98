"""Peak memory of one learner rank in a step, beside what `cluster.memory` says of it.

`python -m benchmarks.models.memory MODEL OUT.json CASE...`: a case is `tokens:dtype:ranks`, with `:checkpointed` behind
it if activations are recomputed. Ranks are forked, so that imports are counted but once; the peak is rank 0's.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peak_memory import peak_bytes, reset_peak
from cluster.memory import rank_gib
from learner.objectives.samples import make_samples
from learner.ranks.group import RankGroup
from learner.training.model import Policy, import_deepspeed
from learner.training.plan import GIB
from learner.training.trainer import Trainer
from protocol.config import Settings
from tiny.trajectories import random_batch


class _Watched(Policy):
    """Tells the peak of the passes from that of the optimizer."""

    passes = 0

    def update(self, learning_rate: float) -> float:
        self.passes = peak_bytes()
        reset_peak()
        return super().update(learning_rate)


def settings_of(model: Path, case: str) -> Settings:
    """Of a step whose micro-batch is one document of so many tokens."""
    tokens, dtype, ranks, *more = case.split(":")
    learner = {
        "ranks": int(ranks), "pack_tokens": int(tokens), "sequence_parallel": 1,
        "gradient_checkpointing": more == ["checkpointed"],
    }  # fmt: skip
    return Settings.model_validate(
        {"model": {"path": str(model), "max_context": int(tokens), "dtype": dtype}, "learner": learner}
    )


def measure(settings: Settings, rank: int, port: int) -> dict[str, float]:
    """GiB, of this process: while and after the model is loaded, and the peaks of a step."""
    ranks, tokens = settings.learner.ranks, settings.micro_batch_tokens
    group = RankGroup(rank, ranks, "127.0.0.1", port, sequence_parallel=1, start_timeout_s=120, timeout_s=1800)
    reset_peak()
    policy = _Watched(settings, group)
    trainer = Trainer(policy, settings)
    loading, resident = peak_bytes() / GIB, _resident() / GIB
    batch = random_batch(np.random.default_rng(0), [tokens] * max(2, ranks), group_size=2)
    samples, _ = make_samples(batch, settings, 0, policy.vocab_size)
    reset_peak()
    trainer.step(samples[:ranks], 0)
    passes, update = policy.passes / GIB, peak_bytes() / GIB
    group.close()
    return {
        "loading_gib": loading, "resident_gib": resident, "passes_gib": passes, "update_gib": update,
        "peak_gib": max(loading, passes, update),
    }  # fmt: skip


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(model: Path, case: str, out: Path) -> dict[str, Any]:
    """One case in forked ranks."""
    settings = settings_of(model, case)
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    children = []
    for rank in range(settings.learner.ranks):
        if (pid := os.fork()) == 0:
            try:
                torch.set_num_threads(1)
                found = measure(settings, rank, port)
                if rank == 0:
                    out.with_suffix(".part").write_text(json.dumps(found))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    if any(statuses):
        raise RuntimeError(f"{case}: a rank failed")
    found: dict[str, Any] = json.loads(out.with_suffix(".part").read_text())
    out.with_suffix(".part").unlink()
    return found | {"estimated_gib": rank_gib(settings, settings.learner.ranks, on_gpu=False)}


def main(arguments: list[str]) -> int:
    """Measure the cases one after another; the file keeps those of earlier calls."""
    model, out, cases = Path(arguments[0]), Path(arguments[1]), arguments[2:]
    import_deepspeed()
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for case in cases:
        found[case] = run(model, case, out)
        out.write_text(json.dumps(found, indent=2))
        print(case, found[case], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
