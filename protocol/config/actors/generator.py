"""`[generator]`: vLLM engines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.section import Amount, Count, Seconds, Section


class GeneratorSettings(Section):
    """vLLM engines."""

    count: Count = 1
    """Number of engines."""
    tensor_parallel: Count = 1
    """GPUs of one engine."""
    kv_cache_mib: Amount = 0
    """KV cache of one engine; 0: 192 MiB on CPU, vLLM's own share of the GPU otherwise."""
    fp8: Literal["off", "kv_cache", "weights"] = "off"
    """`kv_cache`: keys and values in FP8, for twice the episodes; `weights`: those, too, in evaluations only, since
    pushed weights are not quantised. On GPUs; the metrics have the mismatch that it costs, and `learner.self_test`
    refuses it beyond rounding, unless it is off."""
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
