"""A generator adopts weights: poll the publisher, receive into shared memory while serving, swap in one short pause.

    poll -> offer -> receive (the publisher's shared memory, or what its receiver brings)
         -> stage beside the weights in force, and hash what was staged -> pause, exchange, label, resume
         -> report the checksum with the next poll

Out of shared memory a version is staged while it is still being written there; its checksums come when it is complete.
Nothing is aborted. Weights that do not arrive as the learner has them are fetched again, and never put in force; after
several tries the generator stops and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Container, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from actors.weights.receiver import WeightReceiver
from protocol.config import WeightSettings
from protocol.errors import DeadlineError, LonghaulError, WeightsError, WireError
from protocol.messages import (
    Manifest,
    TensorEntry,
    WeightsAwait,
    WeightsNone,
    WeightsOffer,
    WeightsPoll,
)
from protocol.sockets import Client, Keys
from protocol.weights.manifest import TensorSpec, verify_manifest, weights_checksum
from protocol.weights.segments import file_identity

_log = logging.getLogger(__name__)
_ANSWER_S = 10.0
_POLL_S = 4.0  # the publisher answers within one; a fresh one does not know of what its predecessor was asked
_SIGN_EVERY_S = 1.0
_MAX_TRIES = 3
NO_VERSION = -1


class WeightHolder(Protocol):
    """The engine as seen from here: it holds weights and can swap them."""

    async def layout(self) -> list[TensorSpec]:
        """The tensors that the model holds."""
        ...

    async def stage(self, path: Path, version: int, num_bytes: int, entries: Sequence[TensorEntry]) -> list[str]:
        """Copy tensors from a shared-memory file beside the weights in force, as far as it holds `version`, waiting for
        the rest. Checksums of the copies. Raises `WeightsError` (`withdrawn` if there will be no rest).
        """
        ...

    async def swap(self, version: int) -> None:
        """Put the staged weights in force between two decoding steps and label every later token with `version`."""
        ...

    async def label(self, version: int) -> None:
        """Label every later token with `version`; the weights stay."""
        ...

    async def checksums(self, names: Sequence[str]) -> list[str]:
        """Checksums of the weights in force."""
        ...


class WeightAdopter:
    """Keeps one generator on the newest published weights.

    Attributes:
        version: what is in force; -1 before the publisher was heard of.
    """

    def __init__(
        self,
        holder: WeightHolder,
        name: str,
        endpoint: str,
        settings: WeightSettings,
        *,
        tied: dict[str, str],
        keys: Keys | None = None,
    ) -> None:
        self._holder = holder
        self._name = name
        self._settings = settings
        self._tied = tied
        self._client = Client(endpoint, keys)
        self._expected: dict[str, TensorSpec] = {}
        self._receiver = WeightReceiver(self._client, name, settings)
        self._generation = 0  # of the newest publisher heard of
        self.version = NO_VERSION
        self.checksum = ""
        self.num_adopted = 0
        self.num_refetched = 0
        self.stage_s = 0.0
        self.swap_s = 0.0

    async def run(self) -> None:
        """Adopt every version that is offered.

        Waits for the publisher's next offer, seconds at a time, for as long as there is none (the learner may be
        starting or restarting); cancellation unblocks it.

        Raises:
            WeightsError: the weights in force are not the published ones, or did not arrive after several tries.
        """
        while True:
            try:
                await self.poll()
            except DeadlineError:
                _log.info("%s: the weight publisher does not answer; serving version %d", self._name, self.version)
            except WeightsError as error:
                await self._report_failure(error)
                raise

    async def poll(self) -> bool:
        """Ask once, and adopt what is offered. True if the publisher had anything new.

        Raises:
            DeadlineError: no answer.
            WeightsError: as `run`.
        """
        poll = WeightsPoll(generator=self._name, version=self.version, checksum=self.checksum)
        reply = await self._client.request(poll, timeout_s=_POLL_S)
        if isinstance(reply, WeightsNone):
            return False
        if not isinstance(reply, WeightsOffer):
            raise WireError(f"expected WeightsOffer, got {type(reply).__name__}", kind="unexpected")
        async with self._signs_of_life(reply.manifest.version):
            try:
                await self._adopt(reply.manifest)
            except WeightsError as error:
                if error.kind != "withdrawn":
                    raise
                _log.info("%s: version %d was withdrawn: %s", self._name, reply.manifest.version, error)
        return True

    async def close(self) -> None:
        """Drop the connection and the staging memory."""
        await self._client.close()
        self._receiver.close()

    async def _adopt(self, manifest: Manifest) -> None:
        if manifest.generation < self._generation:
            _log.warning("%s: version %d is of a publisher that was replaced", self._name, manifest.version)
            await asyncio.sleep(_SIGN_EVERY_S)
            return
        self._generation = manifest.generation
        if manifest.version < self.version or (manifest.version, manifest.checksum) == (self.version, self.checksum):
            _log.warning("%s: version %d came late, serving %d", self._name, manifest.version, self.version)
            return
        if not self._expected:
            self._expected = {s.name: s for s in await self._holder.layout()}
        verify_manifest(manifest, self._expected, self._tied)
        if self.version == NO_VERSION:
            manifest = await self._completed(manifest)
        if self.version == NO_VERSION and await self._checksum_in_force(manifest) == manifest.checksum:
            await self._holder.label(manifest.version)  # it is what was loaded from disk
        else:
            started = time.monotonic()
            manifest = await self._stage(manifest)
            staged = time.monotonic()
            await self._holder.swap(manifest.version)
            self.stage_s, self.swap_s = staged - started, time.monotonic() - staged
        self.version, self.checksum = manifest.version, manifest.checksum
        self.num_adopted += 1

    async def _stage(self, manifest: Manifest) -> Manifest:
        """Have the engine hold the weights of `manifest` beside those in force, proved tensor by tensor by the complete
        manifest, which is returned.
        """
        for attempt in range(_MAX_TRIES):
            try:
                segment = self._map_published(manifest)
                if segment is None:
                    manifest = await self._completed(manifest)
                    segment = await self._receiver.receive(manifest)
                entries = [e for e in manifest.tensors if e.name in self._expected]
                staging = self._holder.stage(segment, manifest.version, manifest.num_bytes, entries)
                checksums, complete = await asyncio.gather(staging, self._completed(manifest), return_exceptions=True)
                if isinstance(complete, BaseException):  # the first to ask: it knows of a version that was withdrawn
                    raise complete
                if isinstance(checksums, BaseException):
                    raise checksums
                _compare(complete, checksums, self._expected)
                return complete
            except WeightsError as error:
                if error.kind == "withdrawn":
                    raise
                self.num_refetched += 1
                self._receiver.forget()
                _log.warning("%s: try %d: %s", self._name, attempt + 1, error)
                last = error
        raise WeightsError(f"{self._name}: gave up after {_MAX_TRIES} tries: {last}", kind=last.kind)

    async def _completed(self, manifest: Manifest) -> Manifest:
        """`manifest` with its checksums, once the publisher has written all of it.

        Raises `WeightsError` (`withdrawn`) if it never will be, and `DeadlineError`.
        """
        deadline = time.monotonic() + self._settings.timeout_s
        while not manifest.is_complete:
            request = WeightsAwait(generator=self._name, version=manifest.version)
            try:
                reply = await self._client.request(request, timeout_s=_ANSWER_S)
            except WireError as error:
                raise WeightsError(str(error), kind="withdrawn") from error
            if isinstance(reply, WeightsOffer):
                verify_manifest(reply.manifest, self._expected, self._tied)
                manifest = reply.manifest
            elif time.monotonic() > deadline:
                raise DeadlineError(
                    f"version {manifest.version} was not written within {self._settings.timeout_s:g} s", kind="weights"
                )
        return manifest

    def _map_published(self, manifest: Manifest) -> Path | None:
        """The publisher's own segment, if it may be used and is what this process finds at that path."""
        if not manifest.segment or not self._settings.shares_memory:
            return None
        path = Path(manifest.segment)
        return path if file_identity(path) == manifest.segment_identity else None

    async def _checksum_in_force(self, manifest: Manifest) -> str:
        """Checksum over the weights in force, in the words of `manifest`."""
        names = [e.name if e.name in self._expected else self._tied[e.name] for e in manifest.tensors]
        sums = await self._holder.checksums(names)
        return weights_checksum(
            msgspec.structs.replace(e, checksum=c) for e, c in zip(manifest.tensors, sums, strict=True)
        )

    @contextlib.asynccontextmanager
    async def _signs_of_life(self, taking: int) -> AsyncIterator[None]:
        """Keep telling the publisher that `taking` is on its way."""

        async def tell() -> None:
            poll = WeightsPoll(generator=self._name, version=self.version, checksum=self.checksum, taking=taking)
            while True:
                await asyncio.sleep(_SIGN_EVERY_S)
                with contextlib.suppress(LonghaulError):
                    await self._client.request(poll, timeout_s=_SIGN_EVERY_S)

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            telling.cancel()

    async def _report_failure(self, error: WeightsError) -> None:
        failure = WeightsPoll(generator=self._name, version=self.version, checksum=self.checksum, failure=str(error))
        with contextlib.suppress(LonghaulError):
            await self._client.request(failure, timeout_s=2.0)


def _compare(manifest: Manifest, checksums: Sequence[str], staged: Container[str]) -> None:
    """Raise `WeightsError` naming the first of the `staged` tensors that is not what `manifest` says."""
    entries = [e for e in manifest.tensors if e.name in staged]
    for entry, got in zip(entries, checksums, strict=True):
        if got != entry.checksum:
            raise WeightsError(
                f"version {manifest.version}: {entry.name} arrived with checksum {got}, the learner has "
                f"{entry.checksum}",
                kind="checksum",
            )
