"""`[sandbox]`: where commands run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from protocol.config.sandbox.kubernetes import KubernetesSettings
from protocol.section import Amount, Count, Seconds, Section


class SandboxSettings(Section):
    """Where commands run."""

    backend: Literal["auto", "docker", "namespace", "kubernetes", "unisolated-for-debugging"] = "auto"
    """`auto`: Docker for tasks with an image where a daemon answers, else namespaces. `kubernetes`: a pod for each
    (docs/40-own-cluster.md). The last one isolates nothing."""
    docker_hosts: list[str] = []
    """Docker daemons (`unix:///var/run/docker.sock`, `https://host:2376`); empty: the local one."""
    docker_tls_dir: Path | None = None
    """Directory with ca.pem, cert.pem and key.pem for `https://` daemons."""
    user: Literal["root", "agent"] = "root"
    """As whom the agent works in a container: `agent` is a user without root, who owns the work directory, its home and
    `user_paths`, and can replace no program. In a namespace nobody ever has root; hidden tests run as before."""
    user_paths: list[str] = []
    """More directories of an image that `agent` owns: what its tests write to (an environment that they install into,
    caches). Absolute."""
    image_mirrors: list[str] = []
    """Registries that are asked first, each `registry=mirror`: `docker.io=mirror.example.org`."""
    image_disk_gib: Amount = 0
    """Disk for images that the run pulled, on each daemon: beyond it those that no sandbox uses are removed, first
    those that were not used for longest (0: they stay)."""
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
    survive_restart: bool = False
    """Keep a snapshot of every half-done episode's files on disk, taken anew after each of its turns, so that it goes
    on at its turn when its sandbox is gone: after a whole machine has stopped, and with `--resume auto`. Processes that
    it had left running are gone. Built-in loops in namespaces only; needs up to `disk_mib` of disk for each episode."""
    share_verdicts: bool = True
    """Judge equal changes to one task once per sandbox actor, unless its tests are known to flake."""

    kubernetes: KubernetesSettings = KubernetesSettings()

    @field_validator("user_paths")
    @classmethod
    def _absolute(cls, paths: list[str]) -> list[str]:
        for path in paths:
            if not path.startswith("/") or path.strip("/") == "" or ".." in path.split("/"):
                raise ValueError(f"expected absolute directories below the root, got {path!r}")
        return paths

    @field_validator("image_mirrors")
    @classmethod
    def _name_two_places(cls, mirrors: list[str]) -> list[str]:
        for mirror in mirrors:
            registry, _, place = mirror.partition("=")
            if not registry or not place or "://" in mirror:
                raise ValueError(f"expected `registry=mirror` without a scheme, got {mirror!r}")
        return mirrors
