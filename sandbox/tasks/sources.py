"""The tree that an agent starts from: made once a task, read-only, without gold patch, hidden tests or history."""

from __future__ import annotations

import hashlib
import os
import posixpath
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from protocol.errors import ConfigError, TaskError
from protocol.section import expanded
from sandbox.base import Limits, SandboxSpec
from sandbox.tasks.packages import fetch_sdist, made_once, test_environment, unpack_sdist
from sandbox.tasks.task import Task
from sandbox.tasks.test_paths import is_test_file, paths_of_diff

ENVIRONMENT_INSIDE = "/opt/longhaul-tests"
"""Where a task's test requirements appear in a sandbox."""
_GIT_TIMEOUT_S = 60.0
_NEVER_SHOWN = (".git", ".hg", ".svn")


def usable_cache(directory: Path, flag: str) -> Path:
    """The directory for what tasks unpack, given by `flag`, made and proved to take files. Raises `ConfigError`."""
    directory = expanded(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"{flag} {directory}: trees of tasks cannot be kept there ({error.strerror}): name a directory that may be "
            "written",
            kind="cache_dir",
        ) from error
    return directory


def materialise(task: Task, cache_dir: Path) -> Path | None:
    """Directory that `SandboxSpec.source` names, or None for a task whose repository is in its image.

    Blocking (the first time, it may fetch and unpack a package). Safe for concurrent callers. Raises `TaskError`.
    """
    if task.image is not None:
        return None
    made_from = (task.files, task.sdist, task.sdist_sha256, task.removed, task.setup_patch)
    key = hashlib.sha256(msgspec.msgpack.encode(made_from)).hexdigest()[:32]
    return made_once(cache_dir.resolve() / "sources" / key[:2] / key, lambda into: _build(task, into, cache_dir))


def sandbox_spec(task: Task, run: str, lease: str, limits: Limits, cache_dir: Path) -> SandboxSpec:
    """What to start for an episode, or a grading, of `task`. Blocking the first time, as `materialise`."""
    binds: dict[str, str] = {}
    if task.tests.requirements:
        binds[str(test_environment(task.tests.requirements, cache_dir))] = ENVIRONMENT_INSIDE
    return SandboxSpec(
        run=run,
        lease=lease,
        image=task.image,
        source=materialise(task, cache_dir),
        workdir=task.workdir,
        read_only_binds=binds,
        absent_packages=packages_of(task),
        places=_places(task),
        limits=limits,
    )


def _places(task: Task) -> tuple[str, ...]:
    """Directories at the root that hold tests and what tests write (harbor's `/tests` and `/logs`)."""
    outside = {f"/{path.split('/')[1]}" for path in task.test_files if path.startswith("/")}
    return tuple(sorted({*outside, "/logs"})) if outside else ()


def packages_of(task: Task) -> tuple[str, ...]:
    """Import names of what the gold patch of a task from a released package changes: another release of them, in sight
    of the agent, would be the solution."""
    if task.sdist is None:
        return ()
    roots = sorted((f"{posixpath.normpath(path)}/" for path in task.tests.import_paths), key=len, reverse=True)
    names = set()
    for path in paths_of_diff(task.gold_patch):
        inside = next((path.removeprefix(root) for root in roots if path.startswith(root)), path)
        name = inside.split("/")[0].removesuffix(".py")
        if path.endswith(".py") and name.isidentifier() and not is_test_file(path):
            names.add(name)
    return tuple(sorted(names - {"setup"}))


def apply_diff(diff: str, tree: Path, what: str) -> None:
    """Apply a git diff to a directory on this host; trusted task data only.

    Raises `TaskError` naming `what`, `ConfigError` without git.
    """
    if shutil.which("git") is None:
        raise ConfigError(
            "git is missing, and patches of tasks are applied with it; type: apt-get install git", kind="git"
        )
    # without an absolute ceiling git takes a tree inside some repository for a part of it, and skips every file
    settings = {"GIT_CEILING_DIRECTORIES": str(tree.resolve().parent), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    command = ["git", "apply", "--verbose", "--whitespace=nowarn", "-"]
    done = subprocess.run(
        command,
        cwd=tree,
        input=diff.encode(),
        env={**os.environ, **settings},
        capture_output=True,
        timeout=_GIT_TIMEOUT_S,
        check=False,
    )
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode or "Skipped patch" in said:
        raise TaskError(f"{what} does not apply: {said}", kind="patch")


def _build(task: Task, into: Path, cache_dir: Path) -> None:
    if task.files is not None:
        for path, content in task.files.items():
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).write_text(content)
    else:
        assert task.sdist is not None
        unpack_sdist(fetch_sdist(task.sdist, cache_dir, task.sdist_sha256), into)
    for path in (*_NEVER_SHOWN, *task.removed):
        if (into / path).is_dir():
            shutil.rmtree(into / path)
        else:
            (into / path).unlink(missing_ok=True)
    if task.setup_patch:
        apply_diff(task.setup_patch, into, f"task {task.task_id!r}: setup_patch")
    _make_readable(into)


def _make_readable(tree: Path) -> None:
    """Sandboxes run as another user: everything is readable, directories can be entered."""
    tree.chmod(0o755)
    for path in tree.rglob("*"):
        if not path.is_symlink():
            runs = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if runs else 0o644)
