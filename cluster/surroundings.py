"""The place a run starts in: what of it cannot work is refused in one line, what would mislead Ray is put aside."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path

from cluster.memory import needed_gib
from cluster.run_files import PREFIX, SHARED_MEMORY
from protocol.config import Settings
from protocol.errors import ConfigError
from sandbox.tasks.sources import usable_cache

_LONGEST_SOCKET = 107  # bytes of a Unix socket's path
_LONGEST_BELOW = f"/{PREFIX}12345678/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_FOREIGN = (
    # another cluster, or a job in it: a pod of KubeRay and a job's shell have them
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_TMPDIR", "RAY_CLIENT_MODE"),
    # where it keeps what it knows
    *("RAY_REDIS_ADDRESS", "RAY_external_storage_namespace", "RAY_object_spilling_config", "RAY_GCS_SERVER_PORT"),
    # what its hosts are told to be, and its jobs to run in
    *(
        "RAY_OVERRIDE_RESOURCES",
        "RAY_OVERRIDE_LABELS",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING",
        "RAY_OVERRIDE_DASHBOARD_URL",
    ),
    *("RAY_RUNTIME_ENV", "RAY_RUNTIME_ENV_HOOK", "RAY_NAMESPACE"),
)
_FOREIGN_ON_LOOPBACK = ("RAY_USE_TLS",)  # where nobody else can reach Ray it needs none, and has no certificate for it
_GIB = 1 << 30
_FILES = 512  # of Ray, sockets, journals and logs
_FILES_OF_EPISODE = 6  # its sandbox, its grading's, its journal, its socket


def check_directories(settings: Settings) -> None:
    """Raises `ConfigError` where directories that a run needs are missing, take no files, or are too deep for the
    sockets of its Ray."""
    _check_current()
    _check_home()
    usable_cache(settings.tasks.cache_dir, "--tasks.cache-dir")
    if not settings.ray_address:
        _check_temporary(_temporary())


def check_shared_memory(settings: Settings) -> None:
    """Raises `ConfigError` where published weights do not fit."""
    if settings.phase != "eval" and settings.weights.shares_memory and not settings.ray_address:
        _check_shared_memory(SHARED_MEMORY, needed_gib(settings).get("published weights", 0.0))


def allow_open_files(settings: Settings) -> None:
    """Let this process and those that it starts have as many files open as the run may need. Raises `ConfigError` where
    the hard limit forbids it."""
    if settings.ray_address:  # who starts Ray on a host gives its limits
        return
    needed = _FILES + _FILES_OF_EPISODE * settings.num_actors
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{hard} files may be open at once, and {settings.num_actors} episodes may need {needed}: raise the limit "
            "(ulimit -Hn, LimitNOFILE of a service, --ulimit nofile of a container), or lower --num-actors",
            kind="files",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def put_foreign_ray_aside(settings: Settings) -> list[str]:
    """Take variables of another Ray out of this process's environment, which would have a run of its own join it, or
    not start; what they are. One that is asked to join a cluster keeps them."""
    if settings.ray_address:
        return []
    foreign = _FOREIGN if settings.network.bind != "127.0.0.1" else (*_FOREIGN, *_FOREIGN_ON_LOOPBACK)
    found = [name for name in foreign if name in os.environ]
    for name in found:
        del os.environ[name]
    return found


def _check_current() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the current directory cannot be used ({error.strerror}): it was removed, or is hidden; start elsewhere",
            kind="current",
        ) from error


def _check_home() -> None:
    try:
        Path("~").expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"no home directory for user {os.getuid()} (HOME is not set): set HOME to a directory that may be written",
            kind="home",
        ) from error


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise ConfigError(
            f"there is no place for temporary files ({error.strerror}): set TMPDIR to a directory that may be written",
            kind="tmpdir",
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
