"""Snapshots of namespace sandboxes: what one has written, layer by layer, to be the lower layers of others.

`layers/0` is the newest; `rest/` holds home and temporary files; `source` links to the tree below all layers. Snapshots
of branches share files with their ancestors by hard links, so each may be deleted alone.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from msgspec import Struct

from protocol.errors import SandboxError

COPY_DEADLINE_S = 300.0


class Layers(Struct, frozen=True, kw_only=True):
    """Where the files of a new sandbox come from."""

    lowers: tuple[Path, ...] = ()  # read-only layers of the work tree, topmost first; the source comes last
    has_source: bool = False
    rest: Path | None = None  # home and temporary files to start with


def layers_of_source(source: Path | None) -> Layers:
    """The layers of a sandbox that starts from a tree, or from nothing."""
    return Layers() if source is None else Layers(lowers=(source.resolve(),), has_source=True)


def layers_of_snapshot(path: Path) -> Layers:
    """The layers of a sandbox that starts from a snapshot. Raises `SandboxError` (kind: snapshot)."""
    if not (path / "layers").is_dir():
        raise SandboxError(f"there is no snapshot {path.name}", kind="snapshot")
    lowers = sorted((path / "layers").iterdir(), key=lambda layer: int(layer.name))
    source = path / "source"
    if source.is_symlink():
        lowers.append(source.readlink())
    return Layers(lowers=tuple(lowers), has_source=source.is_symlink(), rest=path / "rest")


def write_snapshot(path: Path, sandbox_root: Path, below: Layers) -> None:
    """Copy what a sandbox has written. All its commands must be stopped: its files are an attacker's, and links that
    change under a copy could lead anywhere. Blocking. Raises `SandboxError` (kind: snapshot).

    Args:
        path: directory to make.
        sandbox_root: the `/tmp` of the sandbox's own mounts (see `guest/stage.c`).
        below: what the sandbox itself started from.
    """
    layers, rest = path / "layers", path / "rest"
    layers.mkdir(parents=True)
    rest.mkdir()
    _copy(sandbox_root / ("upper" if below.lowers else "work"), layers / "0")
    for name in ("home", "tmp"):
        _copy(sandbox_root / name, rest / name)
    ancestors = below.lowers[:-1] if below.has_source else below.lowers
    for n, layer in enumerate(ancestors, start=1):
        _copy(layer, layers / str(n), "--link")
    if below.has_source:
        (path / "source").symlink_to(below.lowers[-1])


def force_to_disk(path: Path) -> None:
    """Have all of a snapshot outlive the loss of power. Blocking. Raises `SandboxError` (kind: snapshot)."""
    command = ["sync", "--file-system", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COPY_DEADLINE_S, check=False)
    if done.returncode:
        raise SandboxError(f"cannot force snapshot {path.name} to disk: {done.stderr[:500]}", kind="snapshot")


def _copy(origin: Path, target: Path, *flags: str) -> None:
    command = ["cp", "--archive", "--no-target-directory", *flags, "--", str(origin), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COPY_DEADLINE_S, check=False)
    if done.returncode:
        raise SandboxError(f"cannot copy {origin.name} into a snapshot: {done.stderr[:500]}", kind="snapshot")
