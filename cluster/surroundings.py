"""The place a run starts in: what of it cannot work is refused in one line, what would mislead Ray is put aside."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from cluster.memory import needed_gib
from cluster.run_files import PREFIX, SHARED_MEMORY
from protocol.config import Settings
from protocol.errors import ConfigError

_LONGEST_SOCKET = 107  # bytes of a Unix socket's path
_LONGEST_BELOW = f"/{PREFIX}12345678/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_FOREIGN = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_TMPDIR")
_GIB = 1 << 30


def check_directories(settings: Settings) -> None:
    """Raises `ConfigError` where directories that a run needs are missing, or too deep for the sockets of its Ray."""
    _check_home()
    if not settings.ray_address:
        _check_temporary(tempfile.gettempdir())


def check_shared_memory(settings: Settings) -> None:
    """Raises `ConfigError` where published weights do not fit."""
    if settings.phase != "eval" and settings.weights.shares_memory and not settings.ray_address:
        _check_shared_memory(SHARED_MEMORY, needed_gib(settings).get("published weights", 0.0))


def put_foreign_ray_aside(settings: Settings) -> list[str]:
    """Take variables of another Ray out of this process's environment, which would have a run of its own join it; what
    they are. One that is asked to join a cluster keeps them."""
    found = [] if settings.ray_address else [name for name in _FOREIGN if name in os.environ]
    for name in found:
        del os.environ[name]
    return found


def _check_home() -> None:
    try:
        Path("~").expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"no home directory for user {os.getuid()} (HOME is not set): set HOME to a directory that may be written",
            kind="home",
        ) from error


def _check_temporary(directory: str) -> None:
    most = _LONGEST_SOCKET - len(_LONGEST_BELOW)
    if len(os.fsencode(directory)) > most:
        raise ConfigError(
            f"TMPDIR {directory}: sockets below it would have too long a name: set TMPDIR to a directory of at most "
            f"{most} characters, as /tmp",
            kind="tmpdir",
        )


def _check_shared_memory(directory: Path, needed: float) -> None:
    try:
        free = shutil.disk_usage(directory).free / _GIB
    except OSError:
        free = 0.0
    if free < needed:
        raise ConfigError(
            f"{directory} has {free:.2f} GiB free, published weights take {needed:.2f}: enlarge it (--shm-size of a "
            "container), or send weights with --weights.channel zmq",
            kind="shared_memory",
        )
