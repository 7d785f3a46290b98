"""Between a sandbox and a patch: hide history, take what an agent changed, put a patch onto a clean tree."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from protocol.errors import SandboxError, TaskError
from sandbox.base import ExecResult, Sandbox
from sandbox.patches import (
    NOT_PART_OF_A_TREE,
    Change,
    Entry,
    Manifest,
    Patch,
    git_diff,
    manifest_of,
    state_of,
)
from sandbox.tasks.task import Task

T = TypeVar("T")

MAX_PATCH_BYTES = 8 << 20
MAX_PATCH_FILES = 2000
_MAX_LISTING_BYTES = 16 << 20
_TIMEOUT_S = 60.0
_ARGUMENTS_AT_ONCE = 500

_PRUNE = r"\( " + " -o ".join(f"-name {name}" for name in NOT_PART_OF_A_TREE) + r" \) -prune -o "
_LIST_TREE = (
    f"find . {_PRUNE} \\( -type f -printf 'f %m %P\\0\\0' -o -type l -printf 'l 0 %P\\0%l\\0' \\) && printf '\\0'"
    f" && find . {_PRUNE} -type f -exec sha256sum -z -- {{}} +"
)
_GIT_COMMAND = (
    "git",
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "safe.directory=*"),
    *("-c", "user.name=base", "-c", "user.email=base@localhost"),
)
_GIT = shlex.join(_GIT_COMMAND)
_COMMIT = f"{_GIT} commit -q --allow-empty -m base --no-verify --no-gpg-sign"
_HIDE_HISTORY = f"rm -rf .git && {_GIT} init -q && {_GIT} add -A && {_COMMIT}"
_LISTED = re.compile(rb"(?P<kind>[fl]) (?P<mode>[0-7]{1,6}) (?P<path>.+)", re.DOTALL)
_ROOT_COMMIT = f"{_GIT} rev-list --max-parents=0 HEAD"
_STAGED = f"{_GIT} add -A && {_GIT} diff --cached --no-renames --no-ext-diff --no-textconv "


async def prepare(sandbox: Sandbox, task: Task, *, grading: bool = False) -> None:
    """Make a fresh sandbox what the agent may see; nothing to do for a task without an image.

    For a task with an image: without the files that the task hides, with its set-up patch, and as one commit without a
    past, so that no later commit, tag, reflog, remote or packed object is left to read. For `grading` the hidden
    files stay. Raises `SandboxError`, `TaskError`.
    """
    if task.image is None:
        return
    if task.checkout:
        await run_checked(sandbox, [*_GIT_COMMAND, "checkout", "-q", "-f", task.checkout])
    if task.removed and not grading:
        await run_checked(sandbox, ["rm", "-rf", "--", *task.removed])
    if task.hidden_from and grading:
        files = sorted({test.partition("::")[0] for test in (*task.fail_to_pass, *task.pass_to_pass)})
        await run_checked(sandbox, [*_GIT_COMMAND, "checkout", "-q", task.hidden_from, "--", *files])
    if task.setup_patch:
        await git_apply(sandbox, task.setup_patch, f"task {task.task_id!r}: setup_patch")
    if task.tests.applies_tests and grading:  # such commands check test files out of the history
        return
    result = await sandbox.exec(_HIDE_HISTORY, timeout=_TIMEOUT_S)
    if result.exit_code != 0:
        raise SandboxError(f"task {task.task_id!r}: cannot reset git in {task.workdir}: {result.text}", kind="git")


async def git_apply(sandbox: Sandbox, diff: str, what: str) -> None:
    """Apply a trusted diff with the sandbox's own git. Raises `TaskError` naming `what`."""
    await sandbox.write("/tmp/.task.diff", diff.encode())
    result = await sandbox.exec([*_GIT_COMMAND, "apply", "--whitespace=nowarn", "/tmp/.task.diff"], timeout=_TIMEOUT_S)
    await sandbox.exec(["rm", "-f", "/tmp/.task.diff"], timeout=_TIMEOUT_S)
    if result.exit_code != 0:
        raise TaskError(f"{what} does not apply: {result.text}", kind="patch")


async def take_patch(sandbox: Sandbox, task: Task) -> Patch:
    """What the agent changed in the working directory. Every process of the sandbox is ended first.

    What the sandbox answers is data: too much of it, or nonsense, is a patch with a `problem`, never an error.
    Raises `SandboxError` when the sandbox itself fails.
    """
    await sandbox.kill_all()
    return await (_take_by_git(sandbox) if task.image else _take_by_manifest(sandbox))


async def _take_by_manifest(sandbox: Sandbox) -> Patch:
    source = sandbox.spec.source
    assert source is not None
    listing = await sandbox.exec(_LIST_TREE, timeout=_TIMEOUT_S, max_output=_MAX_LISTING_BYTES)
    if listing.truncated or listing.timed_out:
        return Patch(problem="the working directory holds too many files to compare")
    now = _parse_listing(listing.head + listing.tail)
    if listing.exit_code != 0 or now is None:
        return Patch(problem="the working directory cannot be read")
    before = manifest_of(source)
    paths = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    if len(paths) > MAX_PATCH_FILES:
        return Patch(problem=f"the change touches {len(paths)} files, more than {MAX_PATCH_FILES}")
    changes = await _read_states(sandbox, {path: now.get(path) for path in paths})
    if isinstance(changes, str):
        return Patch(problem=changes)
    return Patch(changes=tuple(changes), diff=git_diff((state_of(source, c.path), c) for c in changes))


async def _take_by_git(sandbox: Sandbox) -> Patch:
    root = await sandbox.exec(_ROOT_COMMIT, timeout=_TIMEOUT_S)
    base = root.head.decode(errors="replace").strip()
    if root.exit_code != 0 or not (len(base) == 40 and base.isalnum()):
        return Patch(problem="the repository's first commit is gone")
    listing = await sandbox.exec(f"{_STAGED} --raw -z {base}", timeout=_TIMEOUT_S, max_output=_MAX_LISTING_BYTES)
    diff = await sandbox.exec(f"{_STAGED} --binary {base}", timeout=_TIMEOUT_S, max_output=MAX_PATCH_BYTES)
    if listing.truncated or diff.truncated or _failed(listing) or _failed(diff):
        return Patch(problem="git could not tell what changed")
    states = _parse_raw(listing.head + listing.tail)
    if states is None:
        return Patch(problem="git could not tell what changed")
    if len(states) > MAX_PATCH_FILES:
        return Patch(problem=f"the change touches {len(states)} files, more than {MAX_PATCH_FILES}")
    for path, entry in states.items():
        if entry is not None and entry.kind == "link":
            target = await sandbox.exec(["readlink", "-n", "--", path], timeout=_TIMEOUT_S)
            states[path] = Entry(kind="link", identity=os.fsdecode(target.head))
    changes = await _read_states(sandbox, states)
    if isinstance(changes, str):
        return Patch(problem=changes)
    return Patch(changes=tuple(changes), diff=(diff.head + diff.tail).decode(errors="replace"))


def _failed(result: ExecResult) -> bool:
    return result.exit_code != 0 or result.timed_out


async def _read_states(sandbox: Sandbox, states: dict[str, Entry | None]) -> list[Change] | str:
    """Current state of each path, or why it cannot be had."""
    changes: list[Change] = []
    left = MAX_PATCH_BYTES
    for path, entry in states.items():
        if entry is None:
            changes.append(Change(path=path, kind="deleted"))
        elif entry.kind == "link":
            changes.append(Change(path=path, kind="link", content=os.fsencode(entry.identity)))
        else:
            try:
                content = await sandbox.read(path, max_bytes=left)
            except SandboxError as error:
                if error.kind not in ("missing", "too_large", "not_a_file"):
                    raise
                return f"changed file {path!r} cannot be taken ({error.kind}); a patch may hold {MAX_PATCH_BYTES} bytes"
            left -= len(content)
            changes.append(Change(path=path, kind="file", content=content, executable=entry.executable))
    return changes


def _parse_listing(output: bytes) -> Manifest | None:
    """What `_LIST_TREE` printed: `type mode path NUL target NUL` of each entry, an empty field, then the hashes."""
    fields = output.split(b"\0")
    end = next((place for place in range(0, len(fields), 2) if not fields[place]), None)
    if end is None:
        return None
    entries: dict[str, Entry] = {}
    files: dict[str, bool] = {}
    for head, target in zip(fields[0:end:2], fields[1:end:2], strict=True):
        entry = _LISTED.fullmatch(head)
        if entry is None:
            return None
        name = os.fsdecode(entry["path"])
        if entry["kind"] == b"l":
            entries[name] = Entry(kind="link", identity=os.fsdecode(target))
        else:
            files[name] = bool(int(entry["mode"], 8) & 0o100)
    for field in filter(None, fields[end + 1 :]):
        identity, _, path = field.partition(b" ")
        name = os.fsdecode(path[1:]).removeprefix("./")
        if name not in files:
            return None
        entries[name] = Entry(kind="file", identity=identity.decode("ascii", "replace"), executable=files.pop(name))
    return None if files or not all(is_inside(name) for name in entries) else entries


def _parse_raw(output: bytes) -> dict[str, Entry | None] | None:
    """What `git diff --raw -z` printed."""
    fields = output.split(b"\0")
    states: dict[str, Entry | None] = {}
    for head, path in zip(fields[0::2], fields[1::2], strict=False):
        modes = head.split()
        name = os.fsdecode(path)
        if len(modes) != 5 or not is_inside(name):
            return None
        if modes[1] == b"160000":  # a nested repository: its files are not part of this one
            continue
        kind = {b"120000": "link", b"000000": "gone"}.get(modes[1], "file")
        states[name] = (
            None
            if kind == "gone"
            else Entry(kind="link" if kind == "link" else "file", identity="", executable=modes[1] == b"100755")
        )
    return states


def is_inside(path: str) -> bool:
    """Whether a path is relative and stays inside the tree that it is relative to."""
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and posixpath.normpath(path) == path


async def put_changes(sandbox: Sandbox, changes: Iterable[Change]) -> None:
    """Bring a clean tree into the state that `changes` say. Raises `SandboxError`."""
    changes = list(changes)
    for gone in _chunks([c.path for c in changes if c.kind != "file"], _ARGUMENTS_AT_ONCE):
        await run_checked(sandbox, ["rm", "-rf", "--", *gone])
    for change in changes:
        if change.kind == "file":
            await sandbox.write(change.path, change.content, mode=0o755 if change.executable else 0o644)
        elif change.kind == "link":
            if parent := posixpath.dirname(change.path):
                await run_checked(sandbox, ["mkdir", "-p", "--", parent])
            await run_checked(sandbox, ["ln", "-s", "--", os.fsdecode(change.content), change.path])


async def run_checked(sandbox: Sandbox, command: list[str]) -> None:
    """Run a command that cannot fail in a healthy sandbox."""
    result = await sandbox.exec(command, timeout=_TIMEOUT_S)
    if result.exit_code != 0:
        raise SandboxError(f"{command[0]} failed in a fresh sandbox: {result.text[:500]}", kind="command")


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
