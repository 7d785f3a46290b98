"""The ranks of a rerun as processes of their own: started together, ended together."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from learner.rerun.job import Figures, Job
from protocol.config import Settings
from protocol.errors import LearnerError

_ROOT = Path(__file__).parents[2]
_LOOK_S = 0.1


def run_ranks(
    run_dir: Path, step: int, start: Path | None, settings: Settings, what_if: Settings, world_size: int
) -> Figures:
    """Figures of `step`, trained again by `world_size` processes from `start` on.

    Waits for them, and ends all when one fails or the deadline of their steps is over. Raises `LearnerError`.
    """
    first = int(start.name.removeprefix("step-")) if start is not None else 0
    deadline_s = settings.start_timeout_s + (step - first) * settings.learner.step_timeout_s
    with tempfile.TemporaryDirectory(prefix="longhaul-rerun-") as made:
        out = Path(made) / "figures.json"
        jobs = [
            Job(
                run_dir=str(run_dir),
                step=step,
                start=None if start is None else str(start),
                settings=settings.model_dump_json(),
                what_if=what_if.model_dump_json(),
                rank=rank,
                world_size=world_size,
                port=port,
                out=str(out),
            )
            for port in (_free_port(),)
            for rank in range(world_size)
        ]
        _run(jobs, Path(made), settings.learner.threads, deadline_s)
        return msgspec.json.decode(out.read_bytes(), type=Figures)


def _run(jobs: Sequence[Job], directory: Path, threads: int, deadline_s: float) -> None:
    started = time.monotonic()
    with contextlib.ExitStack() as running:
        ranks = []
        for job in jobs:
            path, log = directory / f"rank-{job.rank}.json", directory / f"rank-{job.rank}.log"
            path.write_bytes(msgspec.json.encode(job))
            output = running.enter_context(log.open("wb"))
            command = [sys.executable, "-m", "learner.rerun.rank", str(path)]
            ranks.append(
                subprocess.Popen(
                    command,
                    cwd=_ROOT,
                    env=_environment(job.rank, threads),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            )
            running.callback(_end, ranks[-1])
        while any(rank.poll() is None for rank in ranks):
            if failed := [number for number, rank in enumerate(ranks) if rank.poll()]:
                raise LearnerError(_last_words(directory, failed[0]), kind="rerun")
            if time.monotonic() - started > deadline_s:
                raise LearnerError(f"the step was not trained again within {deadline_s:g} s", kind="rerun")
            time.sleep(_LOOK_S)
        if failed := [number for number, rank in enumerate(ranks) if rank.returncode]:
            raise LearnerError(_last_words(directory, failed[0]), kind="rerun")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _last_words(directory: Path, rank: int) -> str:
    lines = (directory / f"rank-{rank}.log").read_text(errors="replace").strip().splitlines()
    return f"rank {rank}: {lines[-1] if lines else 'it said nothing'}"


def _environment(rank: int, threads: int) -> dict[str, str]:
    """As a run gives it to its ranks: one device each, and so many threads, on which a sum's order depends."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    mine = devices[rank] if rank < len(devices) and devices[rank] else str(rank)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CUDA_VISIBLE_DEVICES": mine,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
