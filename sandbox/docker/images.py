"""The images of one daemon: pulled once however many ask, within a budget of disk, and again where one is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
from aiodocker import Docker, DockerError

from protocol.errors import SandboxError
from sandbox.docker.registry import credentials, full_name, is_limited, names_to_try

log = logging.getLogger(__name__)

PULL_DEADLINE_S = 1800.0
PULL_ATTEMPTS = 4
PULLS_AT_ONCE = 2
FIRST_BACKOFF_S = 0.5
LIMITED_PAUSE_S = 60.0
LONGEST_LIMITED_S = 6 * 3600.0

Failures = (DockerError, aiohttp.ClientError, OSError, TimeoutError)


class Images:
    """What is there, what is being pulled, and what may go.

    Args:
        url: of the daemon, for errors.
        client: gives its client.
        mirrors: registry -> mirror, asked first.
        budget_bytes: images that were pulled here and that no sandbox uses go, the longest unused first, while those
            pulled here take more; 0: they stay.
        limited_pause_s: first wait where a registry limits its pulls; later ones are longer.
    """

    def __init__(
        self,
        url: str,
        client: Callable[[], Docker],
        mirrors: Mapping[str, str] | None = None,
        budget_bytes: int = 0,
        limited_pause_s: float = LIMITED_PAUSE_S,
    ) -> None:
        self._url, self._client = url, client
        self._mirrors = mirrors or {}
        self._budget_bytes = budget_bytes
        self._limited_pause_s = limited_pause_s
        self._there: set[str] = set()
        self._pulled: OrderedDict[str, int] = OrderedDict()  # by us: bytes, the longest unused first
        self._used: Counter[str] = Counter()  # by living sandboxes
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(PULLS_AT_ONCE)

    def has(self, image: str) -> bool:
        """Whether it is known to be there."""
        return image in self._there

    def add(self, image: str) -> None:
        """Note that it is there."""
        self._there.add(image)

    def forget(self, image: str) -> None:
        """Somebody removed it."""
        self._there.discard(image)
        self._pulled.pop(image, None)

    def use(self, image: str, change: int) -> None:
        """A sandbox of it began (1) or ended (-1)."""
        self._used[image] += change
        if image in self._pulled:
            self._pulled.move_to_end(image)

    async def ensure(self, image: str) -> None:
        """Have it there; one pull, however many ask. Raises `SandboxError`: `no_image` where no registry has it,
        `rate_limit`, or `image`."""
        if image in self._there:
            return
        task = self._pulls.get(image)
        if task is None:
            task = self._pulls[image] = asyncio.create_task(self._have(image), name=f"pull-{image}")
            task.add_done_callback(lambda done: self._ended(image, done))
        await asyncio.shield(task)
        self._there.add(image)

    async def close(self) -> None:
        """End the pulls."""
        for task in list(self._pulls.values()):
            task.cancel()

    async def make_room(self) -> None:
        """Remove pulled images that nothing uses, the longest unused first, until the rest is within the budget."""
        if not self._budget_bytes:
            return
        for image in list(self._pulled):
            if sum(self._pulled.values()) <= self._budget_bytes:
                return
            if self._used[image] > 0:
                continue
            self.forget(image)
            with contextlib.suppress(*Failures):  # in use by somebody else, or gone already
                await self._client().images.delete(image)
                log.info("image %s is removed: it is not in use, and sandbox.image_disk_gib is full", image)

    def _ended(self, image: str, task: asyncio.Task[None]) -> None:
        self._pulls.pop(image, None)
        if not task.cancelled():
            task.exception()  # seen: all who asked may have gone

    async def _have(self, image: str) -> None:
        try:
            await self._client().images.inspect(image)
            return
        except DockerError as error:
            if error.status != 404:
                raise SandboxError(f"{self._url} on image {image}: {error}", kind="image") from error
        async with self._slots:
            await self._pull_patiently(image)
        with contextlib.suppress(*Failures):
            self._pulled[image] = int((await self._client().images.inspect(image)).get("Size", 0))
            self._used[image] += 1  # whoever asked is about to use it
            try:
                await self.make_room()
            finally:
                self._used[image] -= 1

    async def _pull_patiently(self, image: str) -> None:
        """Pull; failures are tried again, and a registry's rate limit is waited for."""
        attempt, pause, limited_until = 0, self._limited_pause_s, time.monotonic() + LONGEST_LIMITED_S
        while True:
            try:
                await self._pull_from_any(image)
                return
            except Failures as error:
                status, said = getattr(error, "status", 0), str(error)
                if is_limited(status, said):
                    if time.monotonic() >= limited_until:
                        raise SandboxError(f"{self._url} cannot pull {image}: {said}", kind="rate_limit") from error
                    registry = full_name(image).partition("/")[0]
                    hint = "`docker login` raises it, sandbox.image_mirrors goes around it"
                    log.warning("%s limits pulls (%s): waiting %.0f s; %s", registry, said[:200], pause, hint)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 15 * self._limited_pause_s)
                    continue
                attempt += 1
                if status in (400, 404):
                    raise SandboxError(f"{self._url} cannot pull {image}: {error}", kind="no_image") from error
                if attempt == PULL_ATTEMPTS:
                    raise SandboxError(f"{self._url} cannot pull {image}: {error}", kind="image") from error
                await asyncio.sleep(FIRST_BACKOFF_S * 2 ** (attempt - 1))

    async def _pull_from_any(self, image: str) -> None:
        """From the mirror, if there is one and it has the image; else from the registry itself."""
        *mirrored, own = names_to_try(image, self._mirrors)
        for name in mirrored:
            try:
                await self._pull(name)
                repository, tag = _split(image)
                await self._client().images.tag(name, repo=repository, tag=tag)
                return
            except Failures as error:
                log.warning("mirror: no %s (%s): asking the registry", name, error)
        await self._pull(own)

    async def _pull(self, name: str) -> None:
        auth: dict[str, Any] | None = await asyncio.to_thread(credentials, name)
        async with asyncio.timeout(PULL_DEADLINE_S):
            await self._client().images.pull(full_name(name) if auth else name, auth=auth)


def _split(image: str) -> tuple[str, str | None]:
    """Repository and tag; a digest is no tag."""
    if "@" in image:
        return image.partition("@")[0], None
    head, colon, tag = image.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (image, None)
