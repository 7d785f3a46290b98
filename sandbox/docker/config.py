"""What the daemon is told of a new container, and what is copied into it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from sandbox.base import SandboxSpec
from sandbox.docker.seccomp import seccomp_profile

GUEST = "/.longhaul-guest"
# What builds and tests of an image's root need; among the dropped: SYS_*, NET_*, SETUID, MKNOD, AUDIT_WRITE.
CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL"]
# With these the command server starts what an agent calls as a user without root; nothing else has them.
USER_CAPABILITIES = ["SETUID", "SETGID", "SETPCAP"]
WAIT_FOR_OWNER = 'mkdir -p -- "$0"; exec cat > /dev/null'


def container_configuration(
    spec: SandboxSpec,
    image: str,
    labels: dict[str, str],
    guest: Path | None,
    shares_files: bool,
    bounded_at_once: bool = False,
) -> dict[str, Any]:
    """The daemon's `containers/create`.

    Args:
        guest: the command server; None: a shell that waits for the end of its stdin takes its place.
        bounded_at_once: whether it gets a disk of its own size.
        shares_files: whether the daemon sees this machine's files; else they are in `container_archive`.
    """
    limits = spec.limits
    memory = limits.memory_mib << 20
    shown = dict(spec.read_only_binds) if shares_files else {}
    if guest is not None and shares_files:
        shown[str(guest)] = GUEST
    mounts = [{"Type": "bind", "Source": out, "Target": inside, "ReadOnly": True} for out, inside in shown.items()]
    command = [GUEST, str(max(1, round(spec.ttl_s))), "0", "0", spec.workdir]
    security = ["no-new-privileges"]
    if not bounded_at_once:
        command.append("no-fallocate")
    if guest is None:
        command = ["sh", "-c", WAIT_FOR_OWNER, spec.workdir]
        security.append(f"seccomp={seccomp_profile()}")
    return {
        "Image": image,
        "Entrypoint": command,
        "Cmd": [],
        "User": "0:0",
        "Hostname": "sandbox",
        "WorkingDir": "/",
        "Labels": labels,
        "Env": ["HOME=/root", "LANG=C.UTF-8", "PAGER=cat", "TERM=dumb"],
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "AutoRemove": True,
            "NetworkMode": "none",
            "Memory": memory,
            "MemorySwap": memory,
            "PidsLimit": limits.max_processes + 2,
            "NanoCpus": round(limits.cpus * 1e9),
            "ShmSize": min(64, limits.disk_mib) << 20,
            "SecurityOpt": security,
            "CapDrop": ["ALL"],
            "CapAdd": [*CAPABILITIES, *([] if spec.user_paths is None else USER_CAPABILITIES)],
            "LogConfig": {"Type": "none"},
            "IpcMode": "private",
            "Mounts": mounts,
            "Ulimits": [
                {"Name": "fsize", "Soft": limits.disk_mib << 20, "Hard": limits.disk_mib << 20},
                {"Name": "nofile", "Soft": 4096, "Hard": 4096},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
        },
    }


def container_archive(spec: SandboxSpec, guest: Path | None, shares_files: bool) -> bytes:
    """A tar of what is copied into a new container; empty when nothing is."""
    source = spec.source if spec.from_snapshot is None else None
    if source is None and shares_files:
        return b""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if guest is not None and not shares_files:
            tar.add(guest, GUEST, filter=_owned_by_root)
        if not shares_files:
            for outside, inside in spec.read_only_binds.items():
                tar.add(outside, inside, filter=_owned_by_root)
        if source is not None:
            tar.add(source, spec.workdir, filter=_owned_by_root)
    return buffer.getvalue()


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry if entry.isreg() or entry.isdir() or entry.issym() or entry.islnk() else None
