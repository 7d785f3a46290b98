"""How fast and in how much memory does the learner train long sequences, and is it exact?

`tok_s_L_spS`, `peak_gib_L_spS`: a full optimizer step (DAPO, AdamW, ZeRO-2, float32 on CPU) on one document of L tokens
shared by S ranks of one thread each; the peak is of one rank. `hf_tok_s_4k`, `trl_tok_s_4k`: a step of Hugging Face's
`Trainer` and TRL's `SFTTrainer` on the same model and as many tokens, one process with as many threads as S = 2 has.
`logprob_peak_mib_*`: the stage from hidden states to log-probs with a vocabulary of 8,192, in chunks of 1,024 tokens or
(naive) all at once. `packing_used`: share of positions that hold tokens when the paper's batches are packed.
`parity_max_rel_grad`: largest difference of a gradient from plain torch over the largest gradient. `mfu`, on a GPU: the
operations of a step on one document of 32k tokens over the GPU's peak, for a model of 1.3 billion parameters;
`mfu_131k`: the same of 131k tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import parser, report
from learner.packing import attention_length_of, plan_bins, used_share
from tiny.model import save_random_model
from tiny.trajectories import paper_lengths

LENGTHS = [4096, 16_384, 32_768]
VOCABULARY = 8192
CHUNK = 1024
ZERO_STAGE = 2
_TIMEOUT_S = 1800


GPU_LENGTHS = [32_768, 131_072]
GPU_SHAPE = {"hidden": 2048, "layers": 36, "heads": 16, "kv_heads": 4, "max_context": max(GPU_LENGTHS)}
_ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def run(module: str, *arguments: object, threads: int = 1, environment: Mapping[str, str] = _ON_CPU) -> str:
    """Last line that `python -m module arguments` prints. Raises `CalledProcessError`."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)} | environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        done.check_returncode()
    return done.stdout.splitlines()[-1]


def learner_figures(model: Path, folder: Path, steps: int) -> dict[str, float]:
    """Throughput, memory and parity of the learner itself."""
    runs = [{"sequence_parallel": s, "lengths": LENGTHS, "steps": steps} for s in (1, 2)]
    job = {"model": str(model), "zero_stage": ZERO_STAGE, "runs": runs, "parity_tokens": 256}
    (folder / "job.json").write_text(json.dumps(job))
    figures: dict[str, float] = json.loads(run("benchmarks.learner.ranks", folder / "job.json"))
    return figures


def peer_figures(model: Path, steps: int) -> tuple[dict[str, float | None], dict[str, str]]:
    """Tokens/s of the peers at 4k, and why one is missing."""
    figures: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for peer in ("hf", "trl"):
        name = f"{peer}_tok_s_4k"
        try:
            seconds = json.loads(run("benchmarks.learner.peers", peer, model, LENGTHS[0], steps, threads=2))
            figures[name] = LENGTHS[0] / min(seconds)
        except subprocess.CalledProcessError as error:
            figures[name] = None
            missing[name] = f"exit status {error.returncode}: {error.stderr.strip().splitlines()[-1][:200]}"
    return figures, missing


def gpu_figures(folder: Path) -> tuple[dict[str, float | None], dict[str, str]]:
    """Utilisation of a GPU, and why it is missing."""
    if not torch.cuda.is_available():
        return {"mfu": None, "mfu_131k": None}, {"mfu": "needs a GPU", "mfu_131k": "needs a GPU"}
    model = save_random_model(folder / "gpu-model", **GPU_SHAPE)
    figures = json.loads(run("benchmarks.learner.mfu", model, *GPU_LENGTHS, threads=8, environment={}))
    return figures | {"mfu": figures.get("mfu_32k"), "mfu_131k": figures.get("mfu_128k")}, {}


def logprob_figures() -> dict[str, float | None]:
    """MiB of the log-prob stage."""
    measured = {
        "logprob_peak_mib_4k": (4096, CHUNK),
        "logprob_peak_mib_16k": (16_384, CHUNK),
        "naive_logprob_peak_mib_16k": (16_384, 16_384),
    }
    return {
        name: float(run("benchmarks.learner.logprobs", length, VOCABULARY, chunk))
        for name, (length, chunk) in measured.items()
    }


def packing_used() -> float:
    """Over the batches of both stages of the paper, 16 data-parallel groups, as the 72B model balances them."""
    attention_length = attention_length_of(72_000_000_000, 80, 8192)
    shares = []
    for context, batch in ((65_536, 128), (131_072, 256)):
        for seed in range(5):
            lengths = paper_lengths(np.random.default_rng(seed), batch, context)
            shares.append(used_share(plan_bins(lengths, 16, 2 * context, attention_length), lengths, multiple=8))
    return float(np.mean(shares))


def main() -> None:
    """Measure and report."""
    flags = parser(__doc__)
    flags.add_argument("--save", action="store_true", help="also write benchmarks/results/learner.json")
    options = flags.parse_args()
    layers, steps = (1, 1) if options.quick else (2, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_random_model(folder / "model", layers=layers, max_context=2 * max(LENGTHS))
        figures: dict[str, float | None] = {**learner_figures(model, folder, steps)}
        peers, missing = peer_figures(model, steps + 1)
        gpu, missing_on_gpu = gpu_figures(folder)
    figures |= peers | logprob_figures() | {"packing_used": packing_used()} | gpu
    missing |= missing_on_gpu
    report(
        "learner",
        figures,
        {
            "zero_stage": ZERO_STAGE,
            "layers": layers,
            "hidden": 128,
            "vocabulary": 512,
            "steps": steps,
            "dtype": "float32",
        },
        missing,
        save=options.save,
    )


if __name__ == "__main__":
    main()
