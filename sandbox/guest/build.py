"""Builds the static programs that run in (`guest`) and start (`stage`) a sandbox; `python -m sandbox.guest.build`.

Once per content of the sources, into `build/` of the repository or, where that is not writable, the user's cache.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from protocol.errors import ConfigError

SOURCES = Path(__file__).parent
GUEST = ["guest.c", "jobs.c", "files.c", "tree.c", "sha256.c", "tunnel.c", "user.c", "filter.c", "door.c", "reach.c"]
PROGRAMS = {"guest": GUEST, "stage": ["stage.c"], "cover": ["cover.c"], "seal": ["seal.c"]}
FLAGS = ["-O2", "-static", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
DEADLINE_S = 120


def guest_binary() -> Path:
    """The command server; built when it is not there. Raises `ConfigError` where it cannot be built."""
    return _binary("guest")


def stage_binary() -> Path:
    """The program that prepares a namespace sandbox's mounts and drops privileges; see `guest_binary`."""
    return _binary("stage")


def cover_binary() -> Path:
    """The program that gives a container a disk of its own size; see `guest_binary`."""
    return _binary("cover")


def seal_binary() -> Path:
    """The program that makes paths of a container read-only from outside; see `guest_binary`."""
    return _binary("seal")


def _binary(name: str) -> Path:
    relative = _relative(name)
    caches = [SOURCES.parents[1] / "build", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "longhaul"]
    for cache in caches:
        if (cache / relative).exists():
            return cache / relative
    for cache in caches:
        try:
            (cache / relative).parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access((cache / relative).parent, os.W_OK):
            return _compile([SOURCES / file for file in PROGRAMS[name]], cache / relative)
    raise ConfigError(f"no place to build {name}: neither {caches[0]} nor {caches[1]} is writable", kind="no_cache")


@functools.cache  # a run's programs are those of its start
def _relative(name: str) -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in [*(SOURCES / file for file in PROGRAMS[name]), *sorted(SOURCES.glob("*.h"))]:
        digest.update(path.read_bytes())
    return f"guest/{name}-{digest.hexdigest()[:16]}"


def _compile(sources: list[Path], target: Path) -> Path:
    compiler = os.environ.get("CC", "gcc")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"{compiler} is needed to build {target.name}; type: apt-get install gcc libc6-dev", kind="no_gcc"
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        command = [compiler, *FLAGS, "-o", str(made), *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        if done.returncode:
            raise ConfigError(f"{compiler} could not build {target.name}:\n{done.stderr[-2000:]}", kind="build_failed")
        made.chmod(0o755)
        made.replace(target)  # atomic: another process may be building the same
    return target


def main() -> None:
    """Build all and print where they are."""
    for name in PROGRAMS:
        print(_binary(name))


if __name__ == "__main__":
    main()
