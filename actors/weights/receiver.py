"""How a version that lies elsewhere comes into shared memory of this host: in buckets over the publisher's socket, as
deltas where it can be, or as a collective broadcast to this generator (`protocol/weights/broadcast.py`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from protocol.config import WeightSettings
from protocol.errors import WeightsError, WireError
from protocol.messages import Manifest, Message, WeightsBucket, WeightsCall, WeightsFetch, WeightsMeeting
from protocol.sockets import Client
from protocol.weights.manifest import apply_delta, bucket_range, num_buckets
from protocol.weights.segments import Segment, segment_path

if TYPE_CHECKING:
    from protocol.weights.broadcast import Pair

_NO_VERSION = -1
_VERSION_IS_GONE = "weights.version"


class WeightReceiver:
    """Owns the segment that versions are received into.

    Attributes:
        segment: None before the first version.
    """

    def __init__(self, client: Client, name: str, settings: WeightSettings) -> None:
        self._client = client
        self._name = name
        self._timeout_s = settings.timeout_s
        self._by_broadcast = settings.channel == "nccl"
        self._pair: Pair | None = None
        self._held_version = _NO_VERSION  # what the segment holds all of
        self.segment: Segment | None = None

    async def receive(self, manifest: Manifest) -> Path:
        """All bytes of a complete version; the file that holds them. Raises `WeightsError` and `DeadlineError`."""
        if self.segment is None or self.segment.num_bytes != manifest.num_bytes:
            path = segment_path(manifest.run, f"{self._name}-staging")
            self.segment = await asyncio.to_thread(Segment.create, path, manifest.num_bytes)
            self.forget()
        base, self._held_version = self._held_version, _NO_VERSION  # until all of it is there
        target = np.frombuffer(self.segment.buffer, np.uint8)
        if self._by_broadcast:
            await self._take_broadcast(manifest, target)
        else:
            await self._fetch(manifest, target, base)
        self.segment.begin(manifest.version)
        self.segment.advance(manifest.num_bytes)
        self._held_version = manifest.version
        return self.segment.path

    def forget(self) -> None:
        """What was received is not to be trusted: the next version comes whole, and over a new connection."""
        self._held_version = _NO_VERSION
        self._part()

    def close(self) -> None:
        """Remove the segment."""
        self._part()
        if self.segment is not None:
            self.segment.unlink()

    async def _fetch(self, manifest: Manifest, target: np.ndarray, base: int) -> None:
        for bucket in range(num_buckets(manifest)):
            request = WeightsFetch(generator=self._name, version=manifest.version, bucket=bucket, base_version=base)
            reply = await self._ask(request)
            if not isinstance(reply, WeightsBucket) or (reply.version, reply.bucket) != (manifest.version, bucket):
                raise WeightsError(
                    f"asked for bucket {bucket} of version {manifest.version}, got another", kind="bucket"
                )
            await asyncio.to_thread(_write_bucket, target[bucket_range(manifest, bucket)], reply)

    async def _take_broadcast(self, manifest: Manifest, target: np.ndarray) -> None:
        import torch  # not above: a generator's environment is made before torch is loaded

        from protocol.weights.broadcast import attend

        call = WeightsCall(generator=self._name, version=manifest.version, has_met=self._pair is not None)
        reply = await self._ask(call)
        if not isinstance(reply, WeightsMeeting):
            raise WeightsError(f"asked for a meeting, got {type(reply).__name__}", kind="pair")
        try:
            if self._pair is None:
                self._pair = await asyncio.to_thread(attend, reply.name, self._timeout_s)
            for bucket in range(num_buckets(manifest)):
                part = torch.from_numpy(target[bucket_range(manifest, bucket)])
                await asyncio.to_thread(self._pair.receive, part)
        except WeightsError:
            self._part()
            raise

    async def _ask(self, request: Message) -> Message:
        try:
            return await self._client.request(request, timeout_s=self._timeout_s)
        except WireError as error:
            moved_on = error.kind == _VERSION_IS_GONE
            raise WeightsError(str(error), kind="withdrawn" if moved_on else "refused") from error

    def _part(self) -> None:
        if self._pair is not None:
            self._pair.close()
            self._pair = None


def _write_bucket(target: np.ndarray, bucket: WeightsBucket) -> None:
    if bucket.base_version >= 0:
        apply_delta(target, bucket.data)
        return
    if bucket.data.shape != target.shape:
        raise WeightsError(
            f"bucket {bucket.bucket} has {bucket.data.size} bytes, expected {target.size}", kind="bucket"
        )
    target[:] = bucket.data
