"""One Docker daemon: its client, how many sandboxes may start on it at once, its images, and whether it is well."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiodocker import Docker

from protocol.errors import ConfigError
from sandbox.docker.images import Failures, Images, is_of_daemon
from sandbox.docker.pulled import account_of
from sandbox.tasks.images import ensure_host_image

DEFAULT_SOCKET = "unix:///var/run/docker.sock"
REQUEST_DEADLINE_S = 60.0
UNWELL_S = 10.0  # a daemon that failed is left alone for so long

__all__ = ["DockerHost", "Failures", "default_url", "is_of_daemon"]


class DockerHost:
    """A daemon by its URL.

    Args:
        accounts: directory of what the run's processes pulled, if they share one.
    """

    def __init__(
        self,
        url: str,
        tls_dir: Path | None,
        max_starts: int,
        mirrors: Mapping[str, str] | None = None,
        image_disk_gib: int = 0,
        accounts: Path | None = None,
    ) -> None:
        self.url = url
        self.starts = asyncio.Semaphore(max_starts)
        self.num_alive = 0
        self.shares_files = url.startswith("unix://")  # whether it sees this machine's files, as far as is known
        self.no_cover = ""  # why containers have no disk of their own size there, once that was tried
        self.has_started = False  # whether a container has
        self._tls_dir = tls_dir
        self._client: Docker | None = None
        self._own_image: str | None = None
        self._making_own_image = asyncio.Lock()
        pulled = account_of(url, accounts)
        self.images = Images(url, lambda: self.client, mirrors, image_disk_gib << 30, pulled=pulled)
        self._unwell_until = 0.0

    @property
    def is_well(self) -> bool:
        """Whether it has not failed a moment ago."""
        return time.monotonic() >= self._unwell_until

    @property
    def unwell_s(self) -> float:
        """For how long it is left alone."""
        return max(0.0, self._unwell_until - time.monotonic())

    @property
    def client(self) -> Docker:
        """The client, made when it is first needed. Raises `ConfigError` for an unusable URL."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    def failed(self) -> None:
        """Leave this daemon alone for a while."""
        self._unwell_until = time.monotonic() + UNWELL_S

    async def info(self) -> dict[str, Any]:
        """What the daemon says of itself. Raises one of `Failures`."""
        async with asyncio.timeout(REQUEST_DEADLINE_S):
            return dict(await self.client.system.info())

    async def ensure_image(self, image: str | None) -> str:
        """Have an image there (None: one made from this host's programs); its name there. Raises `SandboxError`."""
        if image is not None:
            return await self.images.ensure(image)
        async with self._making_own_image:
            if self._own_image is None:
                self._own_image = await ensure_host_image(self.client)
            return self._own_image

    async def close(self) -> None:
        """Close the client."""
        await self.images.close()
        if self._client is not None:
            connector = self._client.connector
            await self._client.close()
            await connector.close()
            self._client = None

    def _connect(self) -> Docker:
        scheme, _, place = self.url.partition("://")
        # aiohttp's own limit of 100 connections would hang the 101st attached sandbox.
        if scheme == "unix":
            return Docker(url="unix://localhost", connector=aiohttp.UnixConnector(place, limit=0))
        if scheme == "https":
            return Docker(url=self.url, connector=aiohttp.TCPConnector(limit=0, ssl=self._tls()))
        raise ConfigError(
            f"docker host {self.url!r}: expected unix:///path or https://host:port (plain tcp is not authenticated)",
            kind="docker_host",
        )

    def _tls(self) -> ssl.SSLContext:
        if self._tls_dir is None:
            raise ConfigError(f"docker host {self.url} needs --sandbox.docker-tls-dir", kind="docker_tls")
        try:
            context = ssl.create_default_context(cafile=str(self._tls_dir / "ca.pem"))
            context.load_cert_chain(self._tls_dir / "cert.pem", self._tls_dir / "key.pem")
        except OSError as error:
            raise ConfigError(f"docker_tls_dir {self._tls_dir}: {error}", kind="docker_tls") from error
        return context


def default_url() -> str:
    """The local daemon."""
    url = os.environ.get("DOCKER_HOST", DEFAULT_SOCKET)
    return url if "://" in url else DEFAULT_SOCKET
