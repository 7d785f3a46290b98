"""`[weights]`: how weights reach the generators."""

from __future__ import annotations

from typing import Literal

from protocol.section import Count, Seconds, Section


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
    adapters: Literal["alone", "merged"] = "alone"
    """With `learner.lora_rank`: `alone`, generators load the base once, and a version is an adapter in vLLM beside it,
    a hundredth of the bytes; `merged`: whole weights with the adapter in them, which CPUs sample from faster."""
    bucket_mib: Count = 64
    """Weights are gathered from ZeRO shards and sent in buckets of this size."""
    timeout_s: Seconds = 120
    """Deadline of one push to all generators."""

    @property
    def shares_memory(self) -> bool:
        """Whether generators on the publisher's host read its own copy."""
        return self.channel in ("auto", "shm")
