"""One frozen typed struct per wire message; data only.

Arrays (`numpy.ndarray` fields) travel as frames of their own and are decoded without a copy (see `wire.py`). Times are
seconds; `*_at` fields are wall-clock seconds since the epoch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from msgspec import Struct

from protocol.branches import Branches

EndReason = Literal["submitted", "max_turns", "context", "wall_time", "format_errors"]
FinishReason = Literal["stop", "length", "cancelled"]
Phase = Literal["rft", "rl", "eval"]
SubmitStatus = Literal["accepted", "duplicate", "late"]
ZeroReason = Literal["", "tests", "not_run", "time", "unchanged", "patch", "tampered"]
"""Why an episode has no reward: its tests failed, none of them ran (what the change broke), they took too long, there
was no change, or none that can be taken, or something was forged. Empty: it has one, or nobody knows."""

NOT_SAMPLED = -1
"""`Trajectory.versions` of a token that no generator sampled (prompt and observations)."""


class Message(Struct, frozen=True, kw_only=True, tag=True):
    """Base of everything that crosses a socket. The class name is the tag on the wire."""


# --- generators ---------------------------------------------------------------------------------------------------


NEWEST = -1
"""Stands for whatever version is the newest one where tokens are sampled."""


class Sampling(Struct, frozen=True, kw_only=True):
    """How tokens are drawn. The defaults sample from the policy itself; anything else biases behaviour log-probs."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 512
    seed: int | None = None
    version: int = NEWEST
    """By this version, where the generator serves versions as adapters and still holds it; else by the newest one. What
    sampled a token is stamped on it, whatever was asked for."""


class Generate(Message, frozen=True, kw_only=True):
    """Ask a generator to continue `token_ids`; answered by `Tokens` frames, the last of which has a finish reason."""

    request_id: str
    token_ids: np.ndarray  # int32 [prompt]
    sampling: Sampling
    stop_token_ids: list[int]
    cache_salt: str  # a policy version, at first that of the episode's start: older weights' KV is never shared with it
    timeout_s: float
    stream: bool = False  # send tokens as they come, so that a failover can continue from them


class Cancel(Message, frozen=True, kw_only=True):
    """Stop a generation; its stream ends with finish reason `cancelled`."""

    request_id: str


class Tokens(Message, frozen=True, kw_only=True):
    """Sampled tokens of one request, in order. `versions[i]` is the policy version whose weights sampled token i."""

    request_id: str
    token_ids: np.ndarray  # int32 [n]
    logprobs: np.ndarray  # float32 [n], of the sampled tokens, under the sampling distribution
    versions: np.ndarray  # int32 [n]
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0  # prompt tokens served from the prefix cache
    experts: np.ndarray | None = None  # with the last tokens: of the m before the very last, see `Trajectory`


class TakeApart(Message, frozen=True, kw_only=True):
    """Ask a generator what a sampled turn says, by vLLM's parsers; answered by `TakenApart`."""

    prompt_ids: np.ndarray  # int32 [prompt]: some templates begin the answer's reasoning for it
    token_ids: np.ndarray  # int32 [n]
    tools: str  # the schemas that the model was shown, as JSON; an empty list: no call is looked for
    tool_parser: str  # vLLM's name, or auto, or none
    reasoning_parser: str  # the same


class TakenApart(Message, frozen=True, kw_only=True):
    """What a turn says."""

    content: str
    reasoning: str = ""
    calls: list[tuple[str, str]] = []  # name, arguments as JSON
    num_reasoning_tokens: int = 0


class GeneratorStatusRequest(Message, frozen=True, kw_only=True):
    """Ask a generator how it is."""

    holds: int = NEWEST  # the version that will be asked for by its number: it is to be held until a later one is


class GeneratorStatus(Message, frozen=True, kw_only=True):
    """A generator's load, for placement and admission."""

    version: int
    running: int
    waiting: int
    kv_used_share: float
    generated_tokens: int
    prefix_hit_share: float = 0.0


# --- weights ------------------------------------------------------------------------------------------------------


class TensorEntry(Struct, frozen=True, kw_only=True):
    """One tensor of a set of weights: `num_bytes` at `offset`, C-contiguous, little-endian."""

    name: str  # Hugging Face parameter name
    dtype: str  # float32, bfloat16, float16
    shape: list[int]
    offset: int
    num_bytes: int
    checksum: str = ""


class Manifest(Struct, frozen=True, kw_only=True):
    """What one version of the weights consists of, and where its bytes are."""

    version: int
    tensors: list[TensorEntry]
    num_bytes: int
    checksum: str  # over names, dtypes, shapes and the tensors' checksums
    run: str = ""
    segment: str = ""  # file in shared memory of the publisher's host; empty: only over the socket
    segment_identity: str = ""  # of that file: whoever finds the same one at that path shares its memory
    bucket_bytes: int = 64 << 20
    generation: int = 0  # of the learner process that publishes it: an older one's weights are nobody's any more

    @property
    def is_complete(self) -> bool:
        """Whether all of it is written. Before, the tensors have no checksums yet, and `checksum` proves nothing."""
        return all(entry.checksum for entry in self.tensors)


class WeightsPoll(Message, frozen=True, kw_only=True):
    """A generator serves `version`, proved by `checksum`, and asks for a newer one. Also its sign of life.

    `version` -1: it serves what it loaded from disk and knows of no version. `taking`: the version that it is
    receiving; such a poll is only a sign of life. `failure`: why it gives up.
    """

    generator: str
    version: int
    checksum: str = ""
    taking: int = -1
    failure: str = ""


class WeightsOffer(Message, frozen=True, kw_only=True):
    """Newer weights are ready, or (a manifest that is not complete) on their way into its segment."""

    manifest: Manifest


class WeightsAwait(Message, frozen=True, kw_only=True):
    """Answered with the complete manifest of `version`, or `WeightsNone` while it is still being written."""

    generator: str
    version: int


class WeightsNone(Message, frozen=True, kw_only=True):
    """Nothing newer yet; ask again now. `version` is the newest published one, -1 before the first."""

    version: int


class WeightsFetch(Message, frozen=True, kw_only=True):
    """Ask for one bucket of a version. `base_version` -1: the generator holds no bytes that a delta could change."""

    generator: str
    version: int
    bucket: int
    base_version: int = -1


class WeightsBucket(Message, frozen=True, kw_only=True):
    """One bucket: all its bytes, or (`base_version` >= 0) what changed since that version (`manifest.py`)."""

    version: int
    bucket: int
    data: np.ndarray  # uint8 [n]
    base_version: int = -1


class WeightsCall(Message, frozen=True, kw_only=True):
    """Ask for a broadcast of a version to this generator, over the pair that is there (`has_met`) or a new one."""

    generator: str
    version: int
    has_met: bool


class WeightsMeeting(Message, frozen=True, kw_only=True):
    """The broadcast begins; `name` says where to meet, empty where both have met."""

    version: int
    name: bytes = b""


# --- replay buffer: leases ----------------------------------------------------------------------------------------


class TaskRef(Struct, frozen=True, kw_only=True):
    """What the replay buffer knows of a task. Its content stays with the sandbox actors."""

    task_id: str
    source: str  # micro, injected, release, swebench, ...
    repository: str
    difficulty: int = 0


class Lease(Struct, frozen=True, kw_only=True):
    """The right to run one episode until `deadline_at` (extended by heartbeats)."""

    lease_id: str
    episode_id: str  # stable over attempts: group id and member
    task_id: str
    group_id: str
    member: int
    attempt: int
    version: int  # policy version when it was given
    deadline_at: float
    sampling: Sampling
    max_turns: int
    max_context: int
    evaluates: int = -1  # the version whose evaluation it belongs to: nothing of it is trained on; -1: to none


class LeaseRequest(Message, frozen=True, kw_only=True):
    """A sandbox actor has room for `capacity` more episodes."""

    actor: str
    capacity: int


class LeaseReply(Message, frozen=True, kw_only=True):
    """Leases given now (maybe none). When fewer than asked, `waiting_for` says why and `retry_after_s` when to ask."""

    leases: list[Lease]
    retry_after_s: float = 0.0
    waiting_for: str = ""
    done: bool = False  # the run needs no more episodes
    soon: tuple[str, ...] = ()  # tasks of the leases to come, the next one first, as far as is known now


class Heartbeat(Message, frozen=True, kw_only=True):
    """The actor still runs these leases."""

    actor: str
    lease_ids: list[str]


class HeartbeatReply(Message, frozen=True, kw_only=True):
    """`unknown` leases are no longer the actor's: it drops those episodes."""

    unknown: list[str]


class Turn(Struct, frozen=True, kw_only=True, gc=False):
    """One model action inside a trajectory: sampled tokens are `token_ids[start:end]`.

    Numbers only, so that the collector of cycles never looks at the dozens that come with every trajectory.
    """

    start: int
    end: int
    format_error: bool = False
    cached_version: int | None = None  # oldest policy version whose KV this turn's prefix may have reused
    generate_s: float = 0.0
    execute_s: float = 0.0


class Trajectory(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished episode. The four arrays have one entry per token of the whole history, in the order in which the
    tokens came; nothing of it ever changes.

    A history is a tree where the agent rewrote its past or started sub-agents, and most are trees of one path. What has
    its default is not written: a straight history takes no more bytes than without branches.
    """

    episode_id: str
    lease_id: str
    task_id: str
    group_id: str
    member: int
    attempt: int
    resolved: bool
    reward: float  # unpenalised; step-wise rewards and penalties are the learner's
    end_reason: EndReason
    turns: list[Turn]
    token_ids: np.ndarray  # int32 [tokens]
    loss_mask: np.ndarray  # uint8 [tokens]: 1 where the policy sampled the token
    logprobs: np.ndarray  # float32 [tokens]: behaviour log-prob where sampled, else 0
    versions: np.ndarray  # int32 [tokens]: policy version where sampled, else NOT_SAMPLED
    started_at: float
    finished_at: float
    tampered: bool = False  # the judge caught an attempt to forge the reward
    overlong: bool = False  # ended by a limit, kept on purpose
    segment_starts: np.ndarray | None = None  # int32 [segments], see `protocol/branches.py`; None: a straight history
    segment_parents: np.ndarray | None = None  # int32 [segments], the token that each segment continues
    drift: dict[str, int] = {}  # tokens of the history that prompts held anew, by cause (`actors/history/`)
    experts: np.ndarray | None = None
    """uint8 or uint16 [tokens, layers with experts, experts of a token]: which ones served each token as context; the
    largest number where that was not recorded (`learner.routing_replay`)."""
    zero_because: ZeroReason = ""

    @property
    def branches(self) -> Branches:
        """The shape of its history. Raises `ValueError` if the segments are none of a tree."""
        return Branches.of(self.segment_starts, self.segment_parents, len(self.token_ids))

    @property
    def oldest_version(self) -> int:
        """Oldest policy version that sampled a token of this trajectory."""
        sampled = self.versions[self.loss_mask == 1]
        return int(sampled.min()) if sampled.size else NOT_SAMPLED


class Submit(Message, frozen=True, kw_only=True):
    """A finished episode. Acknowledged only after the journal has it."""

    actor: str
    trajectory: Trajectory


class SubmitReply(Message, frozen=True, kw_only=True):
    """What became of a submission; all three mean that the actor may forget it."""

    status: SubmitStatus


class Fail(Message, frozen=True, kw_only=True):
    """An episode could not be run through (infrastructure, never the agent): the member is leased again."""

    actor: str
    lease_id: str
    kind: str  # LonghaulError.label
    reason: str


class FailReply(Message, frozen=True, kw_only=True):
    """The failure is recorded."""


class Refused(Message, frozen=True, kw_only=True):
    """The peer broke a rule. `kind` and `reason` are for the log; the sender decides what to do."""

    kind: str
    reason: str
    retry_after_s: float | None = None


# --- replay buffer: batches ---------------------------------------------------------------------------------------


class BatchRequest(Message, frozen=True, kw_only=True):
    """The learner, holding weights of `version`, wants the batch of step `version + 1`."""

    learner: str
    version: int


class Batch(Message, frozen=True, kw_only=True):
    """Complete groups for one step. The same batch is given again until it is acknowledged."""

    batch_id: int
    trajectories: list[Trajectory]


class BatchWait(Message, frozen=True, kw_only=True):
    """No batch yet."""

    retry_after_s: float
    waiting_for: str


class BatchDone(Message, frozen=True, kw_only=True):
    """A checkpointable state of the learner includes this batch: the buffer may forget it after that checkpoint."""

    learner: str
    batch_id: int
    version: int  # version that the step produced


class BatchDoneReply(Message, frozen=True, kw_only=True):
    """Recorded."""


class VersionReady(Message, frozen=True, kw_only=True):
    """Every generator serves `version`: the staleness bound moves."""

    version: int


class VersionReadyReply(Message, frozen=True, kw_only=True):
    """Recorded."""


class CheckpointMark(Message, frozen=True, kw_only=True):
    """The learner saved a checkpoint of `version` at `path`: journal entries before it are needed no more."""

    version: int
    path: str


class CheckpointMarkReply(Message, frozen=True, kw_only=True):
    """Journal position that belongs to the checkpoint, and versions whose nearest checkpoints evaluations want."""

    journal_offset: int
    wanted: tuple[int, ...] = ()


class Pressure(Message, frozen=True, kw_only=True):
    """How full something is that episodes fill: 1 is the most it should be. Repeated while it is watched."""

    source: str  # who says so: a generator, a sandbox host
    levels: dict[str, float]  # kv_cache, cpu, memory, ...


class PressureReply(Message, frozen=True, kw_only=True):
    """Noted."""

    limit: int  # episodes that may run at once now


class ReplayStatusRequest(Message, frozen=True, kw_only=True):
    """Ask the buffer for its counters."""


class ReplayStatus(Message, frozen=True, kw_only=True):
    """Counters and gauges by metric name."""

    metrics: dict[str, float]
    waiting_for: str = ""


# --- hosts --------------------------------------------------------------------------------------------------------


class HostBeat(Message, frozen=True, kw_only=True):
    """The reaper of a host asks the launcher whether the run goes on there."""

    host: str
    is_clear: bool = False  # nothing of the run is left there: the last thing that it says


class HostLease(Message, frozen=True, kw_only=True):
    """Whether it does; if not, everything of the run on that host has to end."""

    goes_on: bool
    to_end: list[str] = []  # parts that are stuck there: these alone


class FileFetch(Message, frozen=True, kw_only=True):
    """A host asks the launcher for a piece of a file, by the hash of its content."""

    sha256: str
    offset: int


class FilePiece(Message, frozen=True, kw_only=True):
    """What stands there, some megabytes at most; nothing at the file's end."""

    sha256: str
    offset: int
    data: np.ndarray  # uint8 [n]


# --- the learner's ranks ------------------------------------------------------------------------------------------


class StoreAsk(Message, frozen=True, kw_only=True):
    """One action on the key-value store in which ranks find each other."""

    action: Literal["set", "look", "add", "exchange", "delete"]
    key: str
    value: bytes = b""
    expected: bytes = b""
    amount: int = 0


class StoreAnswer(Message, frozen=True, kw_only=True):
    """What stands under that key after it."""

    is_there: bool
    was_there: bool  # before
    value: bytes
    keys: int  # how many there are


Wire = (
    Generate
    | Cancel
    | Tokens
    | TakeApart
    | TakenApart
    | GeneratorStatusRequest
    | GeneratorStatus
    | WeightsPoll
    | WeightsOffer
    | WeightsAwait
    | WeightsNone
    | WeightsFetch
    | WeightsBucket
    | WeightsCall
    | WeightsMeeting
    | LeaseRequest
    | LeaseReply
    | Heartbeat
    | HeartbeatReply
    | Submit
    | SubmitReply
    | Fail
    | FailReply
    | Refused
    | BatchRequest
    | Batch
    | BatchWait
    | BatchDone
    | BatchDoneReply
    | VersionReady
    | VersionReadyReply
    | CheckpointMark
    | CheckpointMarkReply
    | Pressure
    | PressureReply
    | ReplayStatusRequest
    | ReplayStatus
    | HostBeat
    | HostLease
    | FileFetch
    | FilePiece
    | StoreAsk
    | StoreAnswer
)
"""Every message that a socket accepts."""
