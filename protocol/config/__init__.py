"""All settings of a run: declared, explained and validated here, and a message like the others (JSON both ways).

`launch.py` reads them from defaults, a TOML file and flags; every process of the run gets the same resolved object. One
file a section: a new one is written in the folder of the package that reads it, and named in `Settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from protocol.config.actors.agent import AgentSettings
from protocol.config.actors.episode import EpisodeSettings
from protocol.config.actors.generator import GeneratorSettings
from protocol.config.actors.processes import ActorSettings
from protocol.config.cluster.console import ConsoleSettings
from protocol.config.cluster.evaluation import EvalSettings
from protocol.config.cluster.hosts import HostSettings
from protocol.config.cluster.network import NetworkSettings
from protocol.config.cluster.trackers import MetricsSettings
from protocol.config.learner.checkpoint import CheckpointSettings
from protocol.config.learner.learner import LearnerSettings
from protocol.config.learner.loss import LossSettings
from protocol.config.learner.replay import ReplaySettings
from protocol.config.learner.weights import WeightSettings
from protocol.config.model import ModelSettings
from protocol.config.sandbox.grading import GradingSettings
from protocol.config.sandbox.sandbox import SandboxSettings
from protocol.config.sandbox.tasks import TaskSettings
from protocol.section import Amount, Count, Seconds, Section

__all__ = [
    "ActorSettings",
    "AgentSettings",
    "CheckpointSettings",
    "ConsoleSettings",
    "EpisodeSettings",
    "EvalSettings",
    "GeneratorSettings",
    "GradingSettings",
    "HostSettings",
    "LearnerSettings",
    "LossSettings",
    "MetricsSettings",
    "ModelSettings",
    "NetworkSettings",
    "ReplaySettings",
    "SandboxSettings",
    "Settings",
    "TaskSettings",
    "WeightSettings",
]


class Settings(Section):
    """Longhaul: asynchronous reinforcement learning of software-engineering agents."""

    num_actors: Count = 512
    """Episodes that may run at once, over all sandbox-actor processes."""
    phase: Literal["rft", "rl", "eval"] = "rl"
    """rft: fine-tune on own successes; rl: modified DAPO; eval: score only, no learner."""
    steps: Count = 20
    """Optimizer steps of the run."""
    max_staleness: Amount = 8
    """A trajectory may be trained on when its oldest token is at most so many versions old; 0: fully synchronous."""
    seed: int = 0
    """Seed of everything that is drawn outside the engines."""
    run_dir: Path | None = None
    """Directory of the run (default: runs/<date-time>)."""
    resume: str | None = None
    """`auto`: continue the newest checkpoint of the run directory; or the path of a checkpoint; or a URL as of
    `checkpoint.url`: the newest one there."""
    stages: list[Path] = []
    """Settings files, relative to this one, that are run in its place one after another, each from the model that the
    one before left; flags apply to all of them."""
    ray_address: str | None = None
    """Join this Ray cluster instead of starting one here."""
    strict_parity: float | Literal["auto"] | None = None
    """Fail the run when learner and generator log-probs differ by more than this, on average over a step's tokens that
    the version in force sampled; `auto`: more than the self-test found rounding to explain, in any precision."""
    start_timeout_s: Seconds = 300
    """Every process must report ready within this time."""
    stuck_after_s: Seconds = 120
    """A process of the run that says nothing of itself for so long, or a generator whose requests get no token, is
    named, killed and started again. Longer than any honest pause (the prefill of a full context, new weights)."""
    restarts_per_hour: Amount = 5
    """How often each process may be started again within an hour; one more ends the run, saved."""
    stop_timeout_s: Seconds = 60
    """Longest wait, once the run is told to stop, for the step in hand and its checkpoint; a second signal ends it."""
    model: ModelSettings = ModelSettings()
    tasks: TaskSettings = TaskSettings()
    episode: EpisodeSettings = EpisodeSettings()
    agent: AgentSettings = AgentSettings()
    sandbox: SandboxSettings = SandboxSettings()
    grading: GradingSettings = GradingSettings()
    actors: ActorSettings = ActorSettings()
    generator: GeneratorSettings = GeneratorSettings()
    weights: WeightSettings = WeightSettings()
    replay: ReplaySettings = ReplaySettings()
    learner: LearnerSettings = LearnerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    eval: EvalSettings = EvalSettings()
    network: NetworkSettings = NetworkSettings()
    hosts: HostSettings = HostSettings()
    console: ConsoleSettings = ConsoleSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def micro_batch_tokens(self) -> int:
        """Token budget of one packed micro-batch, resolved."""
        return self.learner.pack_tokens or 2 * self.model.max_context

    @property
    def pushes_adapters(self) -> bool:
        """Whether generators receive adapters alone."""
        return self.phase != "eval" and self.learner.lora_rank > 0 and self.weights.adapters == "alone"

    @property
    def records_routes(self) -> bool:
        """Whether generators record which experts served each token."""
        return self.phase != "eval" and self.learner.routing_replay

    @property
    def held_out(self) -> TaskSettings | None:
        """The source of the tasks that are scored while the run trains; None: none are, or a share of the run's own."""
        if self.phase == "eval" or not self.eval.every or (self.eval.held_out_share and not self.eval.tasks):
            return None
        source = self.eval.tasks or self.tasks.source
        changes: dict[str, Any] = {"source": source, "sources": [], "count": self.eval.tasks_in_training}
        return self.tasks.model_copy(update=changes | ({"split": "heldout"} if source == "micro" else {}))

    def episode_limits(self, source: str) -> tuple[int, int]:
        """Most turns and most tokens of an episode on a task of `source`."""
        own = self.tasks.of_source(source)
        turns, context = self.episode.max_turns, self.model.max_context
        return (own.max_turns or turns, own.max_context or context) if own else (turns, context)

    def sandbox_of(self, source: str) -> SandboxSettings:
        """Settings of the sandboxes of a task of `source`."""
        own = self.tasks.of_source(source)
        names = ("memory_mib", "cpus", "disk_mib", "max_processes")
        changes = {name: getattr(own, name) for name in names if own and getattr(own, name) is not None}
        return self.sandbox.model_copy(update=changes) if changes else self.sandbox

    @model_validator(mode="after")
    def _check_together(self) -> Settings:
        if self.replay.batch % self.replay.group_size:
            raise ValueError(
                f"replay.batch ({self.replay.batch}) must be a multiple of replay.group_size ({self.replay.group_size})"
            )
        if (self.eval.endpoint is None) != (self.eval.model is None):
            raise ValueError(
                "eval.endpoint and eval.model, the model's name at that endpoint, go together; a model directory is "
                "given as model.path"
            )
        if self.held_out and not self.eval.tasks and (self.tasks.sources or self.tasks.source != "micro"):
            raise ValueError(
                "eval.every needs held-out tasks, which the run does not train on: name some (eval.tasks), or have a "
                "part of the run's own held out (eval.held_out_share = 0.1)"
            )
        if self.eval.held_out_share and (self.eval.tasks or (self.tasks.source == "micro" and not self.tasks.sources)):
            other = "eval.tasks names held-out tasks" if self.eval.tasks else "micro has a held-out split of its own"
            raise ValueError(f"eval.held_out_share is not needed: {other}")
        if self.checkpoint.keep_best and not self.eval.every and self.phase != "eval":
            raise ValueError("checkpoint.keep_best goes by the scores of held-out tasks: set eval.every")
        for source in self.tasks.sources:
            turns, context = source.max_turns or 1, source.max_context or self.model.max_context
            if turns > self.episode.max_turns or context > self.model.max_context:
                raise ValueError(
                    f"tasks source {source.name!r}: max_turns and max_context are at most episode.max_turns "
                    f"({self.episode.max_turns}) and model.max_context ({self.model.max_context})"
                )
            if self.episode.max_turn_tokens >= context:
                raise ValueError(
                    f"tasks source {source.name!r}: max_context ({context}) must be above episode.max_turn_tokens "
                    f"({self.episode.max_turn_tokens})"
                )
        if self.sandbox.survive_restart and self.sandbox.backend not in ("auto", "namespace"):
            raise ValueError(
                f"sandbox.survive_restart keeps files of namespace sandboxes, not of sandbox.backend "
                f"{self.sandbox.backend!r}"
            )
        if self.sandbox.survive_restart and not self.agent.is_built_in:
            raise ValueError(
                "sandbox.survive_restart goes on with episodes of the built-in loops, not with those of agent.harness "
                f"{self.agent.harness!r}"
            )
        if self.strict_parity == "auto" and not self.learner.self_test:
            raise ValueError("strict_parity auto takes its bound from the self-test: leave learner.self_test on")
        if self.episode.max_turn_tokens >= self.model.max_context:
            raise ValueError(
                f"episode.max_turn_tokens ({self.episode.max_turn_tokens}) must be below model.max_context "
                f"({self.model.max_context})"
            )
        if 0 < self.learner.pack_tokens < self.model.max_context:
            raise ValueError(
                f"learner.pack_tokens ({self.learner.pack_tokens}) must hold an episode of model.max_context "
                f"({self.model.max_context})"
            )
        return self
