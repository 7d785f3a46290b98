"""Released packages through the ordinary pip client: source distributions, and the packages that tests need."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import TaskError

_PIP_TIMEOUT_S = 600.0
PYTHON = "python3"
"""The interpreter inside a sandbox that our own runners use."""


def fetch_sdist(requirement: str, cache_dir: Path, sha256: str = "") -> Path:
    """The source distribution of a pinned requirement (`boltons==25.0.0`), from the cache or from the index.

    Raises `TaskError` when there is none, or when it is not the file that `sha256` names.
    """
    found = made_once(cache_dir / "sdists" / _safe_name(requirement), lambda into: _download(requirement, into))
    archives = [path for path in found.iterdir() if path.suffix in (".gz", ".zip", ".bz2", ".xz")]
    if len(archives) != 1:
        raise TaskError(f"sdist {requirement}: expected one archive, found {len(archives)} in {found}", kind="sdist")
    if sha256 and file_sha256(archives[0]) != sha256:
        raise TaskError(
            f"sdist {requirement}: {archives[0].name} is not the file that the task was made from", kind="sdist"
        )
    return archives[0]


def unpack_sdist(archive: Path, into: Path) -> None:
    """Extract the one directory inside an sdist as `into`. Nothing in it may point outside (`TaskError`)."""
    scratch = Path(tempfile.mkdtemp(dir=into.parent))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        roots = [path for path in scratch.iterdir() if path.is_dir()]
        if len(roots) != 1:
            raise TaskError(f"sdist {archive.name}: expected one directory inside, found {len(roots)}", kind="sdist")
        if into.exists():
            into.rmdir()
        roots[0].rename(into)
    except (tarfile.TarError, OSError) as error:
        raise TaskError(f"sdist {archive.name}: cannot be unpacked: {error}", kind="sdist") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def test_environment(requirements: tuple[str, ...], cache_dir: Path) -> Path:
    """A directory of installed packages, made once, to bind read-only into sandboxes. Raises `TaskError`."""
    return made_once(environment_path(requirements, cache_dir), lambda into: _install(requirements, into))


def environment_path(requirements: tuple[str, ...], cache_dir: Path) -> Path:
    """Where `test_environment` keeps the packages of these requirements."""
    key = hashlib.sha256("\n".join(sorted(requirements)).encode()).hexdigest()[:16]
    return cache_dir.resolve() / "environments" / key


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(requirement: str, into: Path) -> None:
    name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    _pip("download", "--no-deps", "--no-binary", name, "--dest", str(into), "--", requirement)


def _install(requirements: tuple[str, ...], into: Path) -> None:
    _pip("install", "--quiet", "--target", str(into), "--", *requirements)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    what = f"pip {arguments[0]} {arguments[-1]}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise TaskError(f"{what} did not end within {_PIP_TIMEOUT_S:g} s", kind="pip") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise TaskError(f"{what} failed: {lines[-1] if lines else 'no message'}", kind="pip")


def _safe_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in ".-_=" else "_" for c in text)


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, filled by `make(empty directory)` if it is not there yet: whole or not at all, once among processes."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(target.name + ".lock")):
        if target.is_dir():
            return target
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
        try:
            scratch.chmod(0o755)
            make(scratch)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
