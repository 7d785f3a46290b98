"""All settings of a run: declared, explained and validated here, and a message like the others (JSON both ways).

`launch.py` reads them from defaults, a TOML file and flags; every process of the run gets the same resolved object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(gt=0)]
Amount = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """One table of the settings file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class ModelSettings(Section):
    """The policy."""

    path: str = "assets/tiny"
    """Hugging Face model directory that the run starts from (weights, tokenizer, chat template)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the generators' weights and of the learner's compute copy; auto: float32 on CPU, bfloat16 on GPU."""
    max_context: Count = 2048
    """Most tokens of one episode, prompt and observations included."""


class TaskSettings(Section):
    """Which tasks are worked on."""

    source: str = "micro"
    """`micro` (made on the fly), the path of a task file (JSONL, Parquet), or a Hugging Face dataset: its name, or a
    directory of its files."""
    format: Literal["auto", "longhaul", "swe-bench", "swe-rebench", "swe-smith", "swe-gym", "r2e-gym"] = "auto"
    """Schema of the task file; auto recognises it by its fields."""
    split: str = "train"
    """Split of a Hugging Face dataset; for `micro`, `train` or `heldout` (other names, never seen in training)."""
    count: Count = 512
    """How many `micro` tasks there are; for a file, at most so many are taken."""
    difficulty: Amount = 0
    """Difficulty of `micro` tasks: 0 is one wrong sum in one file; each level adds files, families and steps."""
    seed: int = 0
    """Seed of the `micro` tasks."""
    cache_dir: Path = Path("~/.cache/longhaul")
    """Where the trees and test requirements of tasks are unpacked once and kept."""


class EpisodeSettings(Section):
    """Limits of one episode."""

    scaffold: Literal["react", "json"] = "react"
    """`react`: one fenced command a turn; `json`: shell only, JSON tool calls in the model's own chat format."""
    prompt: Literal["brief", "full"] = "brief"
    """`brief`: the issue alone, for a model that learned the tools by training; `full` teaches the tools first."""
    max_turns: Count = 8
    """T_max: an episode ends after so many model turns (40 then 80 in the paper)."""
    max_turn_tokens: Count = 128
    """Most tokens of one model turn."""
    max_observation_chars: Count = 2000
    """Longer tool output is shown as head and tail with the count of what was left out."""
    window_lines: Count = 100
    """Lines of a file that `open` and `scroll` show at once."""
    edit_context_lines: Amount = 0
    """Lines shown before and after a change that was made."""
    max_format_errors: Count = 3
    """So many unreadable actions in a row end the episode."""
    command_timeout_s: Seconds = 30
    """Deadline of one command of the agent."""
    wall_time_s: Seconds = 600
    """Deadline of a whole episode."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature. Training wants 1.0; log-probs are taken under the same temperature."""


class SandboxSettings(Section):
    """Where commands run."""

    backend: Literal["auto", "docker", "namespace", "unisolated-for-debugging"] = "auto"
    """`auto`: Docker for tasks with an image where a daemon answers, else namespaces. The last one isolates nothing."""
    docker_hosts: list[str] = []
    """Docker daemons (`unix:///var/run/docker.sock`, `https://host:2376`); empty: the local one."""
    docker_tls_dir: Path | None = None
    """Directory with ca.pem, cert.pem and key.pem for `https://` daemons."""
    memory_mib: Count = 512
    """Memory of one sandbox (swap is off)."""
    max_processes: Count = 128
    """Processes and threads in one sandbox."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPU share of one sandbox, in cores."""
    disk_mib: Count = 256
    """Most that a sandbox may write."""
    max_starts: Count = 4
    """Sandboxes that may be starting at the same time on one host."""
    warm: Amount = 1
    """Containers kept started ahead of need for each image in use (namespaces start in milliseconds)."""
    max_grading: Count = 2
    """Gradings that may run at the same time in one sandbox actor."""
    grading_timeout_s: Seconds = 300
    """Deadline of one run of the hidden tests."""
    share_verdicts: bool = True
    """Judge equal changes to one task once per sandbox actor, unless its tests are known to flake."""


class ActorSettings(Section):
    """The processes that host episodes."""

    processes: Amount = 0
    """Sandbox-actor processes; 0: one for every two cores. Each hosts its share of `num_actors` as asyncio tasks."""
    heartbeat_s: Seconds = 5
    """How often running leases are extended."""
    trajectory_log_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the episodes written, readable, to `trajectories/` in the run directory (docs/trajectories.md)."""


class GeneratorSettings(Section):
    """vLLM engines."""

    count: Count = 1
    """Number of engines."""
    tensor_parallel: Count = 1
    """GPUs of one engine."""
    kv_cache_mib: Amount = 0
    """KV cache of one engine; 0: 192 MiB on CPU, vLLM's own share of the GPU otherwise."""
    max_running: Count = 256
    """Sequences decoded at once by one engine."""
    max_waiting: Count = 1024
    """Requests queued past that before new ones are refused with a hint when to retry."""
    threads: Count = 1
    """CPU threads of one engine."""
    stream_tokens: Count = 64
    """Sampled tokens of one message: what a failover may have to sample again, against the cost of messages."""
    recompute_kv: bool = False
    """After a weight update, recompute the KV of running requests under the new weights (a fifth of the speed)."""
    reuse_versions: Annotated[int, Field(ge=0)] | None = None
    """An episode's next turn reuses the KV of its history unless that is more versions old than this; then the history
    is prefilled again. Default: for as long as the episode runs, which `max_staleness` bounds;
    `benchmarks/prefix_reuse.py` measures what either costs."""
    request_timeout_s: Seconds = 300
    """Deadline of one generation."""


class WeightSettings(Section):
    """How weights reach the generators."""

    channel: Literal["auto", "shm", "zmq", "nccl"] = "auto"
    """`auto`: shared memory on one host, ZMQ chunks between hosts; `nccl`: a broadcast to every generator, over the
    fabric of the GPUs (gloo without them). On GPUs, too, weights are staged in page-locked host memory while the engine
    decodes, and copied over in one pause."""
    delta: bool = True
    """Send only the elements that changed (lossless, checked by checksum after it is applied)."""
    full_every: Count = 20
    """Send all weights again every so many versions."""
    bucket_mib: Count = 64
    """Weights are gathered from ZeRO shards and sent in buckets of this size."""
    timeout_s: Seconds = 120
    """Deadline of one push to all generators."""

    @property
    def shares_memory(self) -> bool:
        """Whether generators on the publisher's host read its own copy."""
        return self.channel in ("auto", "shm")


class ReplaySettings(Section):
    """The replay buffer."""

    group_size: Annotated[int, Field(ge=2)] = 8
    """G: episodes of one task from which advantages are computed."""
    batch: Count = 64
    """Trajectories of one optimizer step (whole groups)."""
    lease_s: Seconds = 60
    """A lease without a heartbeat for so long expires and its member is leased again."""
    max_attempts: Count = 3
    """Attempts of one member before its group is closed without it."""
    fsync: Literal["always", "interval", "never"] = "interval"
    """When the journal is forced to disk: before every acknowledgement, every 50 ms, or by the OS."""
    skip_corrupt: bool = False
    """Go on behind a damaged record in the middle of the journal instead of refusing to start."""
    curriculum: bool = True
    """Prefer tasks whose pass rate carries signal; every task keeps a floor of probability."""
    pass_rates: Path | None = None
    """`pass_rates.json` of an earlier run's directory: how often its tasks were solved. Stages in a row pass it on."""
    drop_solved_above: Share = 1.0
    """Tasks solved at least this often leave the pool (the paper's stage 2: 0.667; 1.0 keeps all)."""
    drop_unsolved: bool = False
    """Tasks never solved in earlier stages leave the pool (the paper's stage 2)."""
    keep_no_signal: bool = False
    """Train on groups whose members all have the same reward, too (off: dynamic sample filtering)."""


class LossSettings(Section):
    """The objective."""

    name: Literal["dapo", "decoupled", "gspo", "icepop", "rft"] = "dapo"
    """dapo: token-level clip; decoupled: proximal log-probs; gspo: sequence-level; icepop: band mask."""
    eps_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip: ratios under 1 - eps_low get no gradient where the advantage is negative."""
    eps_high: Annotated[float, Field(gt=0)] = 0.3
    """Upper clip (0.26 in stage 2)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the loss of large ratios with negative advantages (off: none)."""
    truncate_weight: Annotated[float, Field(gt=0)] = 2.0
    """`decoupled`: cap of the importance weight proximal / behaviour."""
    band_low: Annotated[float, Field(gt=0)] = 0.5
    """`icepop`: tokens whose learner / behaviour probability ratio is under this are masked."""
    band_high: Annotated[float, Field(gt=0)] = 5.0
    """`icepop`: the same, above."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the starting policy (0: no reference model is loaded)."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    format_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Step-wise shaping: the tokens of a turn whose action could not be read lose so much advantage (0: off)."""
    shuffle_rewards: bool = False
    """Self-check: deal each group's rewards out to its members at random. A policy that still gets better learns from
    something else than the reward."""
    length_threshold: Amount = 6
    """L_thr: turns from which the length penalty grows linearly to -1 at max_turns; at or above max_turns: off."""


class LearnerSettings(Section):
    """DeepSpeed ranks and the optimizer."""

    ranks: Amount = 0
    """Learner processes; 0: two on CPU with two cores or more, else one a GPU."""
    sequence_parallel: Amount = 0
    """Ulysses ranks that share one sequence; 0: as many as the ranks and the model's heads allow."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage."""
    threads: Count = 1
    """CPU threads of one rank."""
    pack_tokens: Amount = 0
    """Token budget of one packed micro-batch; 0: the model's max_context times two."""
    lr: Annotated[float, Field(ge=0)] = 5e-4
    """Peak learning rate (right for the tiny model; 1e-6 in the paper's RL, for a 72B model)."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW betas (0.9, 0.999 in the paper, whose runs are hundreds of steps long)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW weight decay."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Clip on the norm of the whole gradient."""
    warmup_steps: Amount = 0
    """Linear warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    logprob_chunk: Count = 1024
    """Tokens whose logits are in memory at once."""
    mlp_tile: Amount = 0
    """Tokens of one MLP tile (0: the whole sequence at once)."""
    lora_rank: Amount = 0
    """Train low-rank adapters of this rank through peft (0: all weights)."""
    step_timeout_s: Seconds = 1800
    """A step that takes longer is an error that names the rank."""
    loss: LossSettings = LossSettings()
    """The objective."""


class CheckpointSettings(Section):
    """What is saved."""

    every: Amount = 10
    """Save a checkpoint every so many steps (0: only at the end; the replay journal keeps every batch until then)."""
    keep: Count = 2
    """Checkpoints kept; older ones are deleted after a newer one is complete."""


class EvalSettings(Section):
    """`--phase eval`."""

    tasks: str | None = None
    """Task source of the evaluation (default: that of the run, held-out split)."""
    runs: Count = 10
    """Independent runs over all tasks; pass@1 is their mean."""
    endpoint: str | None = None
    """OpenAI-compatible endpoint to evaluate instead of a model directory (`http://host:port/v1`)."""
    model: str | None = None
    """Model name at that endpoint."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key, if it wants one."""


class NetworkSettings(Section):
    """Where sockets listen."""

    bind: Literal["127.0.0.1", "0.0.0.0"] = "127.0.0.1"
    """`127.0.0.1`: sockets are files in a private directory of this host. `0.0.0.0`: every process listens on the
    address under which Ray knows its host, with encrypted, authenticated TCP."""
    dashboard_port: Annotated[int, Field(ge=0, le=65535)] = 8265
    """Port of the Ray dashboard on loopback (0: any free one)."""


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
    """`auto`: continue the newest checkpoint of the run directory; or the path of a checkpoint."""
    stages: list[Path] = []
    """Settings files, relative to this one, that are run in its place one after another, each from the model that the
    one before left; flags apply to all of them."""
    ray_address: str | None = None
    """Join this Ray cluster instead of starting one here."""
    strict_parity: float | None = None
    """Fail the run when learner and generator log-probs differ by more than this, on average over a step's tokens."""
    start_timeout_s: Seconds = 300
    """Every process must report ready within this time."""
    stop_timeout_s: Seconds = 60
    """Longest wait, once the run is told to stop, for the step in hand and its checkpoint; a second signal ends it."""
    model: ModelSettings = ModelSettings()
    tasks: TaskSettings = TaskSettings()
    episode: EpisodeSettings = EpisodeSettings()
    sandbox: SandboxSettings = SandboxSettings()
    actors: ActorSettings = ActorSettings()
    generator: GeneratorSettings = GeneratorSettings()
    weights: WeightSettings = WeightSettings()
    replay: ReplaySettings = ReplaySettings()
    learner: LearnerSettings = LearnerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    eval: EvalSettings = EvalSettings()
    network: NetworkSettings = NetworkSettings()

    @property
    def micro_batch_tokens(self) -> int:
        """Token budget of one packed micro-batch, resolved."""
        return self.learner.pack_tokens or 2 * self.model.max_context

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
