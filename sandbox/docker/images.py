"""The images of one daemon: pulled once however many ask, within a budget of disk, and again where one is gone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import aiohttp
from aiodocker import Docker, DockerError

from protocol.errors import SandboxError
from sandbox.docker.pulled import OwnPulled, Pulled
from sandbox.docker.registry import credentials, final_refusal, full_name, is_limited, named_wait_s, names_to_try

log = logging.getLogger(__name__)

PULL_DEADLINE_S = 1800.0
PULL_ATTEMPTS = 4
PULLS_AT_ONCE = 2
FIRST_BACKOFF_S = 0.5
LIMITED_PAUSE_S = 60.0
LEAST_LIMITED_S = 1.0
LONGEST_LIMITED_S = 6 * 3600.0
_NO_SPACE = "no space left on device"

Failures = (DockerError, aiohttp.ClientError, OSError, TimeoutError)
_UNREACHABLE = 900  # aiodocker's own status, of an error that it makes of a connection's


def is_of_daemon(error: BaseException) -> bool:
    """Whether the daemon gave no answer: of one of `Failures`."""
    return not isinstance(error, DockerError) or error.status == _UNREACHABLE


class Images:
    """What is there, what is being pulled, and what may go.

    Args:
        url: of the daemon, for errors.
        client: gives its client.
        mirrors: registry -> mirror, asked first.
        budget_bytes: images that were pulled here and that no sandbox uses go, the longest unused first, while those
            pulled here take more; 0: they stay.
        limited_pause_s: first wait where a registry limits its pulls; later ones are longer.
        pulled: the account of what was pulled here, which other processes may share.
    """

    def __init__(
        self,
        url: str,
        client: Callable[[], Docker],
        mirrors: Mapping[str, str] | None = None,
        budget_bytes: int = 0,
        limited_pause_s: float = LIMITED_PAUSE_S,
        pulled: Pulled | None = None,
    ) -> None:
        self._url, self._client = url, client
        self._mirrors = mirrors or {}
        self._budget_bytes = budget_bytes
        self._limited_pause_s = limited_pause_s
        self._there: dict[str, str] = {}  # and under which name: a mirror's, where no tag can give it its own
        self._pulled = pulled or OwnPulled()
        self._used: Counter[str] = Counter()  # by living sandboxes
        self._pulls: dict[str, asyncio.Task[str]] = {}
        self._slots = asyncio.Semaphore(PULLS_AT_ONCE)
        self._shrinking = asyncio.Lock()
        self._soon: list[str] = []  # that will be wanted
        self._pulling_ahead: asyncio.Task[None] | None = None
        self._not_ahead: set[str] = set()  # of which a pull ahead of need failed: who needs one hears why

    def has(self, image: str) -> bool:
        """Whether it is known to be there."""
        return image in self._there

    def add(self, image: str) -> None:
        """Note that it is there."""
        self._there[image] = image

    def forget(self, image: str) -> None:
        """It may be gone: somebody may have removed it. Whether its disk is free again is seen when room is made."""
        self._there.pop(image, None)

    def use(self, image: str, change: int) -> None:
        """A sandbox of it began (1) or ended (-1)."""
        self._used[image] += change
        self._pulled.touch(image)

    @contextlib.contextmanager
    def in_use(self, image: str | None) -> Iterator[None]:
        """Whatever is done meanwhile, it does not go for the budget."""
        if image is None:
            yield
            return
        self.use(image, 1)
        try:
            yield
        finally:
            self.use(image, -1)

    async def ensure(self, image: str) -> str:
        """Have it there; one pull, however many ask. The name under which the daemon knows it.

        Raises one of `Failures` where the daemon gives no answer, and `SandboxError`: `no_image` where no registry has
        it, `login` where one does not take who asks, `rate_limit`, or `image`.
        """
        if image in self._there:
            return self._there[image]
        task = self._pulls.get(image)
        if task is None:
            self._not_ahead.discard(image)
            task = self._pulls[image] = asyncio.create_task(self._have(image, self._slots), name=f"pull-{image}")
            task.add_done_callback(functools.partial(self._ended, image))
        self._there[image] = await asyncio.shield(task)
        return self._there[image]

    def expect(self, images: Sequence[str]) -> None:
        """These will be wanted soon, the first one first. They are pulled one after another beside the pulls that
        somebody waits for, as long as they fit into the budget beside what is in use; in place of those said before."""
        self._soon = list(dict.fromkeys(images))
        if self._pulling_ahead is None or self._pulling_ahead.done():
            self._pulling_ahead = asyncio.create_task(self._pull_ahead(), name="pulls ahead of need")

    async def close(self) -> None:
        """End the pulls."""
        self._soon = []
        tasks = [*self._pulls.values(), *([self._pulling_ahead] if self._pulling_ahead else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _pull_ahead(self) -> None:
        while image := self._next_ahead():
            task = self._pulls[image] = asyncio.create_task(
                self._have(image, asyncio.Semaphore(1)), name=f"pull-ahead-{image}"
            )
            task.add_done_callback(functools.partial(self._ended, image))
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is None:
                self._there[image] = task.result()
            else:
                self._not_ahead.add(image)

    def _next_ahead(self) -> str | None:
        """The next image to pull before it is needed; None when there is none, or no room for it."""
        known = self._there.keys() | self._pulls.keys() | self._not_ahead
        image = next((image for image in self._soon if image not in known), None)
        if image is None or not self._budget_bytes:
            return image
        sizes = self._pulled.sizes()
        staying = [size for name, size in sizes.items() if self._used[name] > 0 or name in self._soon]
        largest = max(sizes.values(), default=0)  # how large the next one will be is not known before
        return image if sum(staying) + largest <= self._budget_bytes else None

    async def make_room(self) -> None:
        """Remove pulled images that nothing uses, the longest unused first, until the rest is within the budget."""
        if self._budget_bytes:
            await self._shrink(self._budget_bytes)

    async def _shrink(self, most_bytes: int) -> None:
        async with self._shrinking:  # what another one is about to remove counts no more
            for image in self._pulled.sizes():
                if sum(self._pulled.sizes().values()) <= most_bytes:
                    return
                if self._used[image] <= 0:
                    await self._remove(image)

    async def _remove(self, image: str) -> None:
        """One that stays, because another process uses it, say, still takes its room, and is tried again."""
        name = self._there.pop(image, image)
        try:
            await self._client().images.delete(name)
            log.info("image %s is removed: it is not in use, and sandbox.image_disk_gib is full", image)
        except Failures as error:
            if getattr(error, "status", 0) != 404:
                return
        self._pulled.drop(image)

    def _ended(self, image: str, task: asyncio.Task[str]) -> None:
        self._pulls.pop(image, None)
        if not task.cancelled():
            task.exception()  # seen: all who asked may have gone

    async def _have(self, image: str, slots: asyncio.Semaphore) -> str:
        if name := await self._found(image):
            return name
        with self.in_use(image):  # whoever asked is about to use it
            name, size = await self._pull_patiently(image, slots)
            self._pulled.add(image, size)
            await self.make_room()
        return name

    async def _found(self, image: str) -> str:
        """Under which of its names it is there; empty: under none. A digest keeps the name that it was pulled by."""
        mirrored = [name for name in names_to_try(image, self._mirrors) if name != image and "@" in image]
        for name in [image, *mirrored]:
            try:
                await self._client().images.inspect(name)
                return name
            except DockerError as error:
                if is_of_daemon(error):
                    raise
                if error.status != 404:
                    raise SandboxError(f"{self._url} on image {image}: {error}", kind="image") from error
        return ""

    async def _pull_patiently(self, image: str, slots: asyncio.Semaphore) -> tuple[str, int]:
        """Pull; failures are tried again, and a registry's rate limit is waited for. Its name there and its bytes.

        A slot is held while it pulls and not while it waits: other registries have no part in one's limit.
        """
        attempt, pause, limited_until = 0, self._limited_pause_s, time.monotonic() + LONGEST_LIMITED_S
        while True:
            try:
                async with slots:
                    return await self._pull_from_any(image)
            except Failures as error:
                status, said = getattr(error, "status", 0), str(error) or repr(error)
                if is_limited(status, said):
                    if time.monotonic() >= limited_until:
                        raise SandboxError(f"{self._url} cannot pull {image}: {said}", kind="rate_limit") from error
                    await self._wait_for_registry(image, said, pause)
                    pause = min(2 * pause, 15 * self._limited_pause_s)
                    continue
                attempt += 1
                if attempt == PULL_ATTEMPTS and status == _UNREACHABLE:
                    raise
                if (kind := final_refusal(status, said)) or attempt == PULL_ATTEMPTS:
                    why = f"{self._url} cannot pull {image}: {said}{_hint(image, kind, said)}"
                    raise SandboxError(why, kind=kind or "image") from error
                if _NO_SPACE in said and self._budget_bytes:
                    await self._shrink(0)
                await asyncio.sleep(FIRST_BACKOFF_S * 2 ** (attempt - 1))

    async def _wait_for_registry(self, image: str, said: str, pause: float) -> None:
        named = named_wait_s(said)
        pause = pause if named is None else max(named, min(LEAST_LIMITED_S, pause))
        hint = "`docker login` raises it, sandbox.image_mirrors goes around it"
        log.warning("%s limits pulls (%s): waiting %.0f s; %s", _registry(image), said[:200], pause, hint)
        await asyncio.sleep(pause)

    async def _pull_from_any(self, image: str) -> tuple[str, int]:
        """From the mirror, if there is one and it has the image; else from the registry itself. Its name and bytes."""
        *mirrored, own = names_to_try(image, self._mirrors)
        for name in mirrored:
            try:
                size = await self._pull(name)
                return await self._rename(name, image), size
            except Failures as error:
                log.warning("mirror: no %s (%s): asking the registry", name, error)
        return own, await self._pull(own)

    async def _rename(self, name: str, image: str) -> str:
        """Let an image have its own name, and no other, with which it would stay when that goes; the name it has."""
        if "@" in image:  # no tag makes a name with a digest
            return name
        repository, tag = _split(image)
        await self._client().images.tag(name, repo=repository, tag=tag)
        if name not in self._there:
            with contextlib.suppress(*Failures):
                await self._client().images.delete(name)
        return image

    async def _pull(self, name: str) -> int:
        """Pull an image; its bytes. Raises one of `Failures`, also where the daemon's word broke off in the middle."""
        auth: dict[str, Any] | None = await asyncio.to_thread(credentials, name)
        images = self._client().images
        try:
            async with asyncio.timeout(PULL_DEADLINE_S):
                await images.pull(full_name(name) if auth else name, auth=auth)
        except ValueError as error:  # half a line of JSON
            raise DockerError(0, f"the pull broke off: {error}") from error
        try:
            return int((await images.inspect(name)).get("Size", 0))
        except DockerError as error:  # aiodocker takes a broken connection for the end of the pull
            raise DockerError(0, f"the pull ended before the image was there: {error}") from error


def _registry(image: str) -> str:
    return full_name(image).partition("/")[0]


def _hint(image: str, kind: str, said: str) -> str:
    """What to do about a refusal."""
    if kind == "login":
        return f"; `docker login {_registry(image)}`, as the user who runs this, and again where the login runs out"
    return "; sandbox.image_disk_gib bounds the disk of images" if _NO_SPACE in said else ""


def _split(image: str) -> tuple[str, str | None]:
    """Repository and tag; a digest is no tag."""
    if "@" in image:
        return image.partition("@")[0], None
    head, colon, tag = image.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (image, None)
