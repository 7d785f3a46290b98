"""One rank that trains steps again: `python -m learner.rerun.rank JOB.json`. Nothing is published and nothing saved."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

import msgspec
import torch

from learner.checkpoints import checkpoint
from learner.objectives.samples import has_signal, make_samples
from learner.rank import batch_figures
from learner.ranks.group import RankGroup
from learner.ranks.layout import sequence_parallel
from learner.replay.service.batches import KeptBatches
from learner.rerun.job import Figures, Job
from learner.teacher.grading import Teacher, proven_teacher
from learner.training.model import Policy
from learner.training.trainer import Trainer
from protocol.config import Settings
from protocol.errors import LonghaulError
from protocol.messages import Batch


def train_again(job: Job) -> Figures:
    """The figures of the job's last step, the same on every rank."""
    settings, what_if = (Settings.model_validate_json(text) for text in (job.settings, job.what_if))
    torch.set_num_threads(settings.learner.threads)
    group = RankGroup(
        job.rank,
        job.world_size,
        "127.0.0.1",
        job.port,
        sequence_parallel=sequence_parallel(what_if, job.world_size),
        start_timeout_s=settings.start_timeout_s,
        timeout_s=settings.learner.step_timeout_s,
    )
    try:
        batches = KeptBatches(Path(job.run_dir))
        policy = Policy(what_if, group)  # it may need more than the run's: a reference, gradients of the entropy
        version = checkpoint.load(Path(job.start), policy) if job.start else 0
        figures: Figures = {}
        for step in range(version + 1, job.step + 1):
            chosen = what_if if step == job.step else settings
            teacher = proven_teacher(chosen, group, threading.Event())
            batch = batches.load(step, settings.phase)
            figures = _step(Trainer(policy, chosen), teacher, chosen, batch, step - 1)
        return figures
    finally:
        group.close()


def _step(trainer: Trainer, teacher: Teacher | None, settings: Settings, batch: Batch, version: int) -> Figures:
    samples, left_out = make_samples(batch.trajectories, settings, version, trainer.policy.vocab_size)
    if teacher is not None:
        samples = teacher.grade(samples) or []  # nothing stops it, so that None does not come
    figures: Figures = {f"left_out_{reason}": float(count) for reason, count in left_out.items()}
    if has_signal(samples, without_rewards=trainer.objective.learns_without_rewards):
        figures |= trainer.step(samples, version)
    else:
        figures["skipped_batches"] = 1.0
    return figures | batch_figures(batch.trajectories, version)


def main(path: Path) -> int:
    """Returns 0, or 1 with one line on stderr."""
    logging.basicConfig(level=logging.WARNING)
    job = msgspec.json.decode(path.read_bytes(), type=Job)
    try:
        figures = train_again(job)
    except LonghaulError as error:
        print(error, file=sys.stderr)
        return 1
    if job.rank == 0:
        job.out_path.write_bytes(msgspec.json.encode(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
