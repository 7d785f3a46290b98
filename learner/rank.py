"""One learner rank: fetch a batch, train, publish the weights, say that it is done.

Rank 0 talks to the replay server and to the generators' weight channel; the other ranks follow what it broadcasts.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from learner.checkpoints import checkpoint
from learner.checkpoints.writer import CheckpointWriter
from learner.objectives.samples import Sample, has_signal, make_samples
from learner.publishing.announcer import VersionAnnouncer
from learner.publishing.publisher import WeightPublisher
from learner.ranks.feed import BatchFeed
from learner.ranks.group import RankGroup
from learner.ranks.layout import sequence_parallel
from learner.step_records import StepRecords
from learner.teacher.grading import Teacher, proven_teacher
from learner.training.model import Policy
from learner.training.self_test import prove_packing, prove_sampling
from learner.training.trainer import Trainer
from protocol.config import Settings
from protocol.errors import LearnerError
from protocol.messages import Batch, BatchDone, CheckpointMark, CheckpointMarkReply, Message, Trajectory
from protocol.sockets import BlockingClient, Keys

_log = logging.getLogger(__name__)
_AGAIN_S = 5.0
_MAX_RECORDS = 1000


class LearnerRank:
    """A learner process: `start`, then `run` in a thread of its own; `status` and `stop` from any other thread.

    Args:
        settings: of the run.
        rank, world_size: this process and how many there are.
        master_addr, master_port: where rank 0 lets the others meet it.
        replay_endpoint, weights_endpoint: sockets of the replay server and of the weight channel (used by rank 0).
        run_dir: checkpoints go to `run_dir/checkpoints`.
        keys: of the run, for TCP beyond loopback.
        run: name of the run, unique on this host: it names the shared memory of the weights.
    """

    def __init__(
        self,
        settings: Settings,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        replay_endpoint: str,
        weights_endpoint: str,
        run_dir: Path,
        keys: Keys | None = None,
        run: str = "run",
    ) -> None:
        self.settings = settings
        self._run = run
        self.rank = rank
        self.world_size = world_size
        self.run_dir = Path(run_dir)
        self.version = 0
        self._meeting = (master_addr, master_port)
        self._endpoints = (replay_endpoint, weights_endpoint)
        self._keys = keys
        self._stop = threading.Event()
        self._records: deque[dict[str, float]] = deque(maxlen=_MAX_RECORDS)
        self._left_out: Counter[str] = Counter()
        self._sampling_difference: float | None = None  # from the generators' log-probs; None: not proved yet
        self._step_began: float | None = None  # of the step in hand
        self._bound = 0.0  # of the self-test: what rounding explains
        self._sent_bytes = 0.0  # of weights over sockets, until the last record
        self._resources = contextlib.ExitStack()
        self._feed: BatchFeed | None = None
        self._teacher: Teacher | None = None
        self._checkpoints: CheckpointWriter | None = None

    def start(self) -> int:
        """Meet the other ranks, load the model or the checkpoint, publish its weights; returns the policy version.

        Waits for the other ranks until `start_timeout_s`.

        Raises:
            ConfigError: model, heads and ranks do not go together (before anything is loaded).
            CheckpointError: the checkpoint to resume is damaged or of another model.
            DeadlineError: a rank did not come.
        """
        settings = self.settings
        torch.set_num_threads(settings.learner.threads)
        resumed = checkpoint.to_resume(settings, self.run_dir)
        self._group = RankGroup(
            self.rank,
            self.world_size,
            *self._meeting,
            sequence_parallel=sequence_parallel(settings, self.world_size),
            start_timeout_s=settings.start_timeout_s,
            timeout_s=settings.learner.step_timeout_s,
            keys=self._keys,
        )
        self._policy = Policy(settings, self._group)
        if resumed is not None:
            self.version = checkpoint.load(resumed, self._policy)
        if settings.learner.self_test:
            self._bound = prove_packing(self._policy, settings.model.path).bound
        self._trainer = Trainer(self._policy, settings)
        self._teacher = proven_teacher(settings, self._group, self._stop)
        self._replay: BlockingClient | None = None
        self._marks: BlockingClient | None = None  # as `_replay`, for the thread that writes checkpoints
        self._publisher: WeightPublisher | None = None
        self._step_records: StepRecords | None = None
        if self.rank == 0:
            self._connect()
        self._checkpoints = CheckpointWriter(settings, self.run_dir, self._policy, self._mark)
        self._resources.callback(self._checkpoints.close)
        self._feed = BatchFeed(self._group, self._replay, self._stop, silence_s=settings.start_timeout_s)
        self._publish()
        self._resources.callback(self._group.close)  # first of all, so that no rank waits for one that closes the rest
        return self.version

    def _connect(self) -> None:
        replay, weights = self._endpoints
        self._replay = BlockingClient(replay, self._keys)
        self._marks = BlockingClient(replay, self._keys)
        for client in (self._replay, self._marks):
            self._resources.callback(client.close)
        announcer = VersionAnnouncer(replay, self._keys)
        self._resources.callback(announcer.close)
        self._publisher = WeightPublisher(
            self.settings.weights,
            weights,
            self._run,
            self._keys,
            expected_generators=self.settings.generator.count,
            on_adopted=announcer.announce,
        )
        self._resources.callback(self._publisher.close)
        self._step_records = StepRecords(self.run_dir, self.settings.actors.trajectory_log_share)
        self._resources.callback(self._step_records.close)

    def run(self) -> None:
        """Train until `settings.steps` steps are done or `stop`; then save a checkpoint and leave the group.

        Waits for the replay server to have a batch; the server (or `stop`) unblocks it. Ranks other than 0 wait for
        rank 0's broadcast. A lost rank, or a step over `step_timeout_s`, raises `LearnerError` with the rank's name.
        """
        assert self._feed is not None and self._checkpoints is not None, "start() comes first"
        with self._resources:
            saved, saved_at = self.version, time.monotonic()
            while self.version < self.settings.steps:
                waiting_since = time.monotonic()
                batch = self._feed.next(self.version)
                if batch is None:
                    break
                came_at = time.monotonic()
                samples = self._samples_of(batch)
                if samples is None:
                    break
                self._step_began = time.monotonic()
                times = {"wait_s": came_at - waiting_since}
                if self._teacher is not None:
                    times["teacher_s"] = self._step_began - came_at
                self._train_on(batch, *samples, times)
                self._step_began = None
                if self._is_due(saved_at):
                    saved, saved_at = self.version, time.monotonic()
                    self._save()
            if saved != self.version:
                self._save()
            self._checkpoints.wait()

    def stop(self) -> None:
        """Let `run` end after the current step. On rank 0 it stops the other ranks too."""
        self._stop.set()

    @property
    def waiting_for(self) -> str:
        """What the learner waits for, in words; empty while it works."""
        of_teacher = self._teacher.waiting_for if self._teacher else ""
        return of_teacher or (self._feed.waiting_for if self._feed else "")

    def status(self) -> dict[str, float]:
        """Counters and gauges of now."""
        return {
            "learner_version": float(self.version),
            "learner_waiting": float(bool(self.waiting_for)),
            "running_step_s_max": 0.0 if (began := self._step_began) is None else time.monotonic() - began,
            "failed_checkpoints": float(self._checkpoints.num_failed if self._checkpoints else 0),
            "checkpoint_blocked_s": self._checkpoints.blocked_s if self._checkpoints else 0.0,
            **{f"left_out_{reason}": float(count) for reason, count in self._left_out.items()},
        }

    def pop_records(self) -> list[dict[str, float]]:
        """Figures of the steps since the last call, oldest first; `step` is the version that the step made."""
        records = []
        while self._records:
            records.append(self._records.popleft())
        return records

    def _samples_of(self, batch: Batch) -> tuple[list[Sample], Counter[str]] | None:
        """What is trained on, graded where a teacher at an endpoint does that, and what was left out; None to stop."""
        samples, left_out = make_samples(batch.trajectories, self.settings, self.version, self._policy.vocab_size)
        self._left_out.update(left_out)
        graded = samples if self._teacher is None else self._teacher.grade(samples)
        return None if graded is None else (graded, left_out)

    def _train_on(self, batch: Batch, samples: list[Sample], left_out: Counter[str], times: dict[str, float]) -> None:
        started = time.monotonic()
        figures = {f"left_out_{reason}": float(count) for reason, count in left_out.items()}
        if self.settings.learner.self_test and self._sampling_difference is None:
            settings = self.settings
            self._sampling_difference = prove_sampling(
                self._policy, samples, settings.micro_batch_tokens, settings.model.path, self._bound
            )
        learned = has_signal(samples, without_rewards=self._trainer.objective.learns_without_rewards)
        if learned:
            figures |= self._trainer.step(samples, self.version)
            self._check_parity(figures)
        else:
            figures["skipped_batches"] = 1.0  # the weights stay; the version still moves, or leases would end
        trained_s = time.monotonic() - started
        self.version += 1
        self._publish()
        if self._replay is not None:
            done = BatchDone(learner="learner", batch_id=batch.batch_id, version=self.version)
            self._tell(self._replay, done)
        if self._step_records is not None:
            self._step_records.write(self.version, batch, samples, self._trainer.logprobs if learned else [])
        self._records.append(
            figures
            | self._push_figures()
            | batch_figures(batch.trajectories, self.version - 1)
            | times
            | {
                "step": float(self.version),
                "train_s": trained_s,
                "publish_s": time.monotonic() - started - trained_s,
                "step_s": time.monotonic() - started,
                "tokens_per_s": figures.get("tokens", 0.0) / trained_s,
            }
        )

    def _check_parity(self, figures: dict[str, float]) -> None:
        bound, found = self.settings.strict_parity, figures.get("fresh_mismatch_abs_mean")
        if bound == "auto":
            bound = self._bound
        if bound is not None and found is not None and found > bound:
            raise LearnerError(
                f"log-probs of learner and generator differ by {found:.4g} on average over the tokens that version "
                f"{self.version} sampled; strict_parity allows {bound:.3g}",
                kind="parity",
            )

    def _push_figures(self) -> dict[str, float]:
        """Bytes of a version, and what went over sockets since the last record; the share that a delta was of its
        version, where one was sent."""
        if self._publisher is None:
            return {}
        status = self._publisher.status()
        sent, self._sent_bytes = status["sent_bytes"] - self._sent_bytes, status["sent_bytes"]
        figures = {"version_bytes": status["bytes"], "sent_bytes": sent}
        if "delta_share" in status:
            figures["delta_share"] = status["delta_share"]
        return figures

    def _publish(self) -> None:
        """Gather the weights, or the adapters, on all ranks, in buckets, and offer them to the generators."""
        leaving = self._policy.adapters if self.settings.pushes_adapters else self._policy.full_weights
        weights = leaving(self.settings.weights.bucket_mib << 20, copy=False)
        with self._group.doing(f"publishing version {self.version}"):
            try:
                if self._publisher is not None:
                    self._publisher.publish(self.version, weights)
            finally:
                for _ in weights:  # gathering is collective: a rank that stopped here would hold up the others
                    pass

    def _is_due(self, saved_at: float) -> bool:
        """Whether to save now: by the version or by rank 0's clock, so that it is the same on all ranks."""
        every, every_s = self.settings.checkpoint.every, self.settings.checkpoint.every_s
        of_evaluations = self.settings.eval.every if self.settings.checkpoint.keep_best else 0
        if any(number and self.version % number == 0 for number in (every, of_evaluations)):
            return True
        if not every_s:
            return False
        is_old = self.rank == 0 and time.monotonic() - saved_at >= every_s
        with self._group.doing("agreeing on a checkpoint"):
            return bool(self._group.sum(torch.tensor([float(is_old)], device=self._group.device)))

    def _save(self) -> None:
        assert self._checkpoints is not None
        with self._group.doing(f"saving a checkpoint of version {self.version}"):
            self._checkpoints.save(self.version)

    def _mark(self, version: int, path: Path) -> CheckpointMarkReply:
        """Tell the replay buffer of a complete checkpoint. From the writer's thread."""
        assert self._marks is not None
        reply = self._tell(self._marks, CheckpointMark(version=version, path=str(path)))
        assert isinstance(reply, CheckpointMarkReply)
        return reply

    def _tell(self, replay: BlockingClient, message: BatchDone | CheckpointMark) -> Message:
        """The buffer's answer. One that was killed with the message comes back, in its time, and hears it again."""
        return replay.request(message, self.settings.start_timeout_s, _AGAIN_S)


def batch_figures(trajectories: Sequence[Trajectory], version: int) -> dict[str, float]:
    """What the batch of the step from `version` looked like."""
    tasks = Counter(t.task_id for t in trajectories)
    ages = [version - t.oldest_version for t in trajectories if t.loss_mask.any()] or [0]
    return {
        "num_trajectories": float(len(trajectories)),
        "num_groups": float(len({t.group_id for t in trajectories})),
        "largest_task_share": max(tasks.values(), default=0) / max(len(trajectories), 1),
        "reward_mean": float(np.mean([t.reward for t in trajectories])),
        "resolved_share": float(np.mean([t.resolved for t in trajectories])),
        "turns_mean": float(np.mean([len(t.turns) for t in trajectories])),
        "trajectory_tokens_mean": float(np.mean([len(t.token_ids) for t in trajectories])),
        "branches_mean": float(np.mean([len(t.branches.leaves()) for t in trajectories])),
        "overlong_share": float(np.mean([t.overlong for t in trajectories])),
        "staleness_mean": float(np.mean(ages)),
        "staleness_max": float(max(ages)),
    }
