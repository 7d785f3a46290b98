"""The learner publishes weights; the generators come and get them.

`publish` copies and hashes one version into one of two shared-memory segments and returns; everything that involves a
generator happens in the publisher's own thread. A segment is only overwritten once no generator can be reading it.
A version is offered as soon as its first byte is to be written, so that generators on this machine read close behind;
what they have read counts for nothing until the complete manifest, with the checksums, is published (`WeightsAwait`).
Generators ask (`WeightsPoll`); each poll says which version they serve, with its checksum, so that one message is
registration, sign of life, acknowledgement and proof.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from learner.publishing.buffers import WeightBuffers
from learner.publishing.caster import WeightCaster
from learner.publishing.roster import Roster
from protocol.config import WeightSettings
from protocol.errors import DeadlineError, WeightsError
from protocol.messages import (
    Manifest,
    Message,
    TensorEntry,
    WeightsAwait,
    WeightsBucket,
    WeightsCall,
    WeightsFetch,
    WeightsMeeting,
    WeightsNone,
    WeightsOffer,
    WeightsPoll,
)
from protocol.server_thread import ServerThread
from protocol.sockets import Keys, host_of
from protocol.weights.manifest import weights_checksum
from protocol.weights.segments import file_identity

_log = logging.getLogger(__name__)
_PARK_S = 1.0


class WeightPublisher:
    """Lives in the process of learner rank 0. Thread-safe: `publish` and `wait_adopted` from the training thread.

    Args:
        endpoint: ZMQ address to bind; the attribute `endpoint` holds the bound one.
        run: names the segments: `/dev/shm/longhaul-<run>-weights-*`.
        expected_generators: the first version counts as adopted only when so many have joined.
        dtype: what the generators compute in; tensors of another dtype are converted while they are copied.
        on_adopted: called with a version once every live generator serves it; from the publisher's thread.
    """

    def __init__(
        self,
        settings: WeightSettings,
        endpoint: str,
        run: str,
        keys: Keys | None = None,
        *,
        expected_generators: int = 1,
        dtype: torch.dtype | None = None,
        on_adopted: Callable[[int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._run = run
        self._generation = keys.member.generation if keys and keys.member else 0
        self._buffers = WeightBuffers(
            run, dtype, with_delta=settings.delta, full_every=settings.full_every, patience_s=settings.timeout_s
        )
        self._roster = Roster(expected_generators)
        self._on_adopted = on_adopted
        self._current: Manifest | None = None  # the newest complete one
        self._previous: Manifest | None = None  # the one before, whose bytes a slow generator may still be taking
        self._coming: Manifest | None = None  # newer, not complete yet
        self._changed = threading.Condition()  # guards the roster and the manifests
        self._announced = asyncio.Event()  # replaced whenever the manifests change
        self._announced_at = 0.0
        self._warned_of = -1
        self._blocked_s = 0.0
        self._sent_bytes = 0
        self._server = ServerThread(
            endpoint,
            keys,
            name="weight publisher",
            answer=self._answer,
            look_around=self._watch,
            look_every_s=_PARK_S,
            on_failure=self._tell_waiters,
        )
        self.endpoint = self._server.endpoint
        self._caster = WeightCaster(self._buffers, host_of(self.endpoint), settings.timeout_s)

    def publish(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copy `tensors` (Hugging Face names) as `version` and offer them, without waiting for anybody to take them.

        The iterable is consumed one tensor at a time, so a sharded model never has to be whole in memory.

        Raises:
            WeightsError: `version` is not newer than the last one; a name, shape or dtype changed; no memory.
        """
        started = time.monotonic()
        with self._changed:
            self._raise_own_failure()
            if self._current is not None and version <= self._current.version:
                raise WeightsError(
                    f"version {version} is not newer than {self._current.version}, which is published", kind="version"
                )
        self._wait_for_free_buffer()
        try:
            entries = self._buffers.fill(version, tensors, on_begin=lambda: self._offer_early(version))
        except BaseException:
            self._set_coming(None)
            raise
        self._offer(self._manifest(version, entries))
        self._blocked_s = time.monotonic() - started

    def wait_adopted(self, version: int, timeout_s: float) -> None:
        """Return once every live generator serves `version` or a newer one, with the learner's checksum.

        Raises:
            WeightsError: a generator serves something else or gave up; the message names it and says why.
            DeadlineError: not within `timeout_s`; the message names who is late.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._roster.adopted(version):
                self._raise_failure()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DeadlineError(
                        f"version {version} was not adopted within {timeout_s:g} s: {self._roster.missing(version)}",
                        kind="weights",
                    )
                self._changed.wait(min(left, _PARK_S))
                self._roster.drop_silent(time.monotonic())
            self._raise_failure()

    def status(self) -> dict[str, float]:
        """Counters and gauges by metric name."""
        with self._changed:
            return {
                "version": float(self._current.version if self._current else -1),
                "num_generators": float(len(self._roster)),
                "num_lost": float(self._roster.num_lost),
                "bytes": float(self._current.num_bytes if self._current else 0),
                "learner_blocked_s": self._blocked_s,
                "sent_bytes": float(self._sent_bytes + self._caster.sent_bytes),
            } | ({} if self._buffers.delta_share is None else {"delta_share": self._buffers.delta_share})

    def close(self) -> None:
        """Stop listening and remove the segments."""
        self._server.close()
        self._caster.close()
        self._buffers.unlink()

    def _raise_own_failure(self) -> None:
        if (failure := self._server.failure) is not None:
            raise WeightsError(f"the weight publisher failed: {failure!r}", kind="publisher") from failure

    def _raise_failure(self) -> None:
        self._raise_own_failure()
        if failure := self._roster.failure():
            raise WeightsError(failure, kind="generator")

    def _wait_for_free_buffer(self) -> None:
        """Waits until no generator reads the older segment; its next poll or its silence unblocks it."""
        deadline = time.monotonic() + self._settings.timeout_s
        with self._changed:
            while readers := self._roster.readers_of(self._buffers.oldest_version):
                self._roster.drop_silent(time.monotonic())
                if time.monotonic() > deadline:
                    _log.warning("%s did not finish taking weights in time and are given up", ", ".join(readers))
                    self._roster.drop(readers)
                    return
                self._changed.wait(0.1)

    def _offer_early(self, version: int) -> None:
        """Let generators on this machine follow the copying; others can only fetch what is complete."""
        if self._settings.shares_memory:
            self._set_coming(self._manifest(version, self._buffers.entries))

    def _set_coming(self, manifest: Manifest | None) -> None:
        with self._changed:
            self._coming = manifest
        self._server.call_soon(self._wake)

    def _offer(self, manifest: Manifest) -> None:
        """Publish the complete manifest of the newest version."""
        with self._changed:
            self._previous, self._current, self._coming = self._current, manifest, None
            self._roster.published(manifest.version, manifest.checksum)
            self._announced_at = time.monotonic()
            self._changed.notify_all()
        self._server.call_soon(self._wake)

    def _manifest(self, version: int, entries: list[TensorEntry]) -> Manifest:
        segment = self._buffers.path_of(version) if self._settings.shares_memory else ""
        return Manifest(
            version=version,
            tensors=entries,
            num_bytes=self._buffers.num_bytes,
            checksum=weights_checksum(entries),
            run=self._run,
            segment=segment,
            segment_identity=file_identity(Path(segment)) if segment else "",
            bucket_bytes=self._settings.bucket_mib << 20,
            generation=self._generation,
        )

    # --- the publisher's own thread -------------------------------------------------------------------------------

    async def _answer(self, message: Message) -> Message:
        match message:
            case WeightsPoll():
                return await self._poll(message)
            case WeightsAwait():
                return await self._await_complete(message)
            case WeightsFetch():
                return await self._fetch(message)
            case WeightsCall():
                return await self._cast(message)
            case _:
                raise WeightsError(f"a publisher does not take {type(message).__name__}", kind="unexpected")

    def _watch(self) -> None:
        """Forget silent generators, and say who has kept a version waiting for too long."""
        self._look_around()
        with self._changed:
            version = self._current.version if self._current else -1
            missing = self._roster.missing(version)
            late = time.monotonic() - self._announced_at > self._settings.timeout_s
        if version > self._warned_of and missing and late:
            self._warned_of = version
            _log.warning("version %d is not adopted after %g s: %s", version, self._settings.timeout_s, missing)

    async def _poll(self, poll: WeightsPoll) -> WeightsOffer | WeightsNone:
        """Waits for a newer version for at most a second, so that every generator is heard of at least so often."""
        self._hear(poll)
        offered: Manifest | None = None

        def offer() -> bool:
            nonlocal offered
            newest = self._coming or self._current
            if newest is None or newest.version < poll.version:
                return False
            if newest.version == poll.version and (not newest.is_complete or newest.checksum == poll.checksum):
                return False  # else: ranks that started again elsewhere have rounded it differently
            self._roster.offered(poll.generator, newest.version)
            offered = newest
            return True

        if not poll.failure and poll.taking < 0 and await self._until(offer):
            assert offered is not None
            return WeightsOffer(manifest=offered)
        return WeightsNone(version=self._current.version if self._current else -1)

    async def _await_complete(self, message: WeightsAwait) -> WeightsOffer | WeightsNone:
        """Waits, for at most a second, until the version is complete or withdrawn."""

        def is_over() -> bool:
            return self._coming is None or self._coming.version != message.version

        await self._until(is_over)
        with self._changed:
            if self._current is not None and self._current.version == message.version:
                return WeightsOffer(manifest=self._current)
            if not is_over():
                return WeightsNone(version=self._current.version if self._current else -1)
        raise WeightsError(f"version {message.version} is not on its way any more", kind="version")

    async def _until(self, condition: Callable[[], bool]) -> bool:
        """Whether `condition`, a question about the manifests, comes true within a second."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PARK_S):
                while True:
                    announced = self._announced
                    with self._changed:
                        if condition():
                            return True
                    await announced.wait()
        return False

    def _wake(self) -> None:
        announced, self._announced = self._announced, asyncio.Event()
        announced.set()

    def _hear(self, poll: WeightsPoll) -> None:
        with self._changed:
            self._roster.heard(poll, time.monotonic())
        if poll.failure:
            _log.error("generator %s gives up: %s", poll.generator, poll.failure)
        self._look_around()

    def _look_around(self) -> None:
        """Forget silent generators, and tell of a version that everybody serves since the last look."""
        with self._changed:
            self._roster.drop_silent(time.monotonic())
            newly = self._roster.newly_adopted()
            self._changed.notify_all()
        if newly is not None and self._on_adopted is not None:
            self._on_adopted(newly)

    def _manifest_of(self, version: int) -> Manifest:
        """Of a version whose bytes are there. The buffers refuse one that is overwritten meanwhile."""
        with self._changed:
            for manifest in (self._current, self._previous):
                if manifest is not None and manifest.version == version:
                    return manifest
        raise WeightsError(f"version {version} is not there any more", kind="version")

    async def _fetch(self, fetch: WeightsFetch) -> WeightsBucket:
        manifest = self._manifest_of(fetch.version)
        reply = await asyncio.to_thread(self._buffers.bucket, manifest, fetch.bucket, fetch.base_version)
        self._sent_bytes += reply.data.nbytes
        return reply

    async def _cast(self, call: WeightsCall) -> WeightsMeeting:
        return WeightsMeeting(
            version=call.version, name=await self._caster.begin(call, self._manifest_of(call.version))
        )

    def _tell_waiters(self) -> None:
        with self._changed:
            self._changed.notify_all()
