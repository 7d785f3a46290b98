"""Between a sandbox and a patch: hide history, take what an agent changed, put a patch onto a clean tree.

What changed is found by comparing two listings, of the tree as it was given and of the tree as it is, both made by our
own static program in the sandbox or by us on this host. Nothing that the agent may have touched has a say in it: no
program of the box, no state of git, no ignore rule, no link.
"""

from __future__ import annotations

import asyncio
import hashlib
import shlex
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from protocol.errors import SandboxError, TaskError
from sandbox.base import Sandbox
from sandbox.diffs import git_diff
from sandbox.listings import (
    MAX_FILE_BYTES,
    Difference,
    Listing,
    difference,
    in_order_of_importance,
    list_unchanging_tree,
    path_of,
)
from sandbox.patches import MAX_PATCH_BYTES, MAX_PATCH_FILES, Change, Patch, leads_outside, parents_of, state_of
from sandbox.tasks.task import Task

T = TypeVar("T")

_MAX_GIVEN_BYTES = 4 * MAX_PATCH_BYTES  # of what the changed files held before
_MOST_ASKED_FOR = 2 * MAX_PATCH_FILES
_MOST_NAMED = 100  # of what is left out
_MOST_GIVEN_TREES = 32
_TIMEOUT_S = 60.0
_FETCH_FAILURES = ("missing", "too_large", "not_a_file")

_GIT_COMMAND = (
    "git",
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "safe.directory=*"),
    *("-c", "user.name=base", "-c", "user.email=base@localhost"),
)
_GIT = shlex.join(_GIT_COMMAND)
_COMMIT = f"{_GIT} commit -q --allow-empty -m base --no-verify --no-gpg-sign"
# What was tracked stays so, whether or not it is ignored; what git does not add (a repository inside that has no
# commit, a submodule's place in the list) costs nothing of the rest.
HIDE_HISTORY = (
    f"kept=$(mktemp) && {{ {_GIT} ls-files -z -c -i --exclude-standard > $kept 2>/dev/null; rm -rf .git; }}"
    f" && {_GIT} init -q && {{ {_GIT} add -A --ignore-errors; {_GIT} update-index -q --add --remove -z --stdin < $kept;"
    f" }} >/dev/null 2>&1; rm -f $kept; {_COMMIT}"
)


class Given(Struct, frozen=True):
    """The tree that an agent was given: its records, and what has been asked for of its files."""

    records: frozenset[bytes]
    states: OrderedDict[str, Change]


_given_trees: OrderedDict[tuple[object, ...], Given] = OrderedDict()
_turns: weakref.WeakValueDictionary[tuple[object, ...], asyncio.Lock] = weakref.WeakValueDictionary()
# Two at a time, so that those who wait for hostile files leave the threads of all others alone.
_workers = ThreadPoolExecutor(2, thread_name_prefix="patches")


async def prepare(sandbox: Sandbox, task: Task, *, grading: bool = False) -> None:
    """Make a fresh sandbox what the agent may see, and hand it over; see `Sandbox.hand_over`.

    For a task with an image: without the files that the task hides, with its set-up patch, and as one commit without a
    past, so that no later commit, tag, reflog, remote or packed object is left to read. For `grading` the hidden
    files stay. Raises `SandboxError`, `TaskError`.
    """
    if task.image is not None:
        await _prepare_image(sandbox, task, grading)
    if not grading:
        await sandbox.hand_over()


async def _prepare_image(sandbox: Sandbox, task: Task, grading: bool) -> None:
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
    await hide_history(sandbox, task)


async def hide_history(sandbox: Sandbox, task: Task) -> None:
    """Make the tree one commit without a past. Raises `SandboxError`."""
    result = await sandbox.exec(HIDE_HISTORY, timeout=_TIMEOUT_S)
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

    What cannot be part of a patch is left out, each path with its reason, and the rest is kept; see
    `listings.difference`. A tree that cannot be listed, and a change of which nothing is left, is a patch with a
    `problem`, never an error. Raises `SandboxError` when the sandbox itself fails.
    """
    await sandbox.kill_all()
    now = await sandbox.list_tree()
    if now.cut:
        return Patch(problem=f"the working directory cannot be compared: {now.cut}")
    given = await _given(sandbox, task)
    found = await _work(lambda: difference(given.records, now.records))
    left_out = list(found.left_out[:MAX_PATCH_FILES])
    changes = await _changes(sandbox, now, found, left_out)
    fresh = await _work(lambda: frozenset(found.new))
    before = await _states_given(sandbox, task, given, [c.path for c in changes if c.path not in fresh])
    kept: list[tuple[Change | None, Change]] = []
    for change in changes:
        old = before.get(change.path)
        if isinstance(old, str):
            left_out.append(f"{change.path}: what was given there {old}")
        else:
            kept.append((old, change))
    kept = await _work(lambda: _without_what_stands_in_the_way(kept, found, left_out))
    kept.sort(key=lambda pair: pair[1].path)
    left_out = sorted(left_out)
    if len(left_out) > _MOST_NAMED:
        left_out[_MOST_NAMED:] = [f"and {len(left_out) - _MOST_NAMED} more"]
    if not kept:
        over = [text for text in left_out if text.endswith("MiB") or "the patch is full" in text]
        return Patch(problem=f"nothing of the change can be taken: {over[0]}" if over else "", left_out=tuple(left_out))
    diff = await _work(lambda: git_diff(kept))
    return Patch(changes=tuple(change for _, change in kept), diff=diff, left_out=tuple(left_out))


async def _changes(sandbox: Sandbox, now: Listing, found: Difference, left_out: list[str]) -> list[Change]:
    """The new states, as many as a patch may hold, in their order of importance."""
    paths, hashes = await _work(lambda: _asked_for(now, found))
    changes: list[Change] = []
    left = MAX_PATCH_BYTES
    for number, path in enumerate(paths):
        if len(changes) >= MAX_PATCH_FILES or number >= _MOST_ASKED_FOR:
            full = f"the patch is full ({MAX_PATCH_FILES} files, {MAX_PATCH_BYTES >> 20} MiB)"
            left_out.append(f"{path}, and {len(paths) - number - 1} files more: {full}")
            break
        if (wanted := hashes.get(path)) is None:
            changes.append(Change(path=path, kind="deleted"))
            continue
        try:
            change = await sandbox.fetch(path, min(left, MAX_FILE_BYTES))
        except SandboxError as error:
            if error.kind not in _FETCH_FAILURES:
                raise
            why = f"the patch is full ({MAX_PATCH_BYTES >> 20} MiB)" if error.kind == "too_large" else "cannot be read"
            left_out.append(f"{path}: {why}")
            continue
        if await _work(partial(_hash_of, change.content)) != wanted:
            left_out.append(f"{path}: changed while it was read")
        elif change.kind == "link" and leads_outside(path, change.content):
            left_out.append(f"{path}: a link that leads out of the tree")
        else:
            changes.append(change)
            left -= len(change.content)
    return changes


def _without_what_stands_in_the_way(
    kept: list[tuple[Change | None, Change]], found: Difference, left_out: list[str]
) -> list[tuple[Change | None, Change]]:
    """The pairs without files and links in the place of a directory of which the patch does not take everything away:
    git would not apply it."""
    gone = {change.path for _, change in kept if change.kind == "deleted"}
    stay = {up for path in found.deleted if path not in gone for up in parents_of(path)}
    blocked = {change.path for _, change in kept if change.kind != "deleted" and change.path in stay}
    left_out += [f"{path}: stands where a directory was that the patch does not take away" for path in blocked]
    return [pair for pair in kept if pair[1].path not in blocked]


def _hash_of(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _asked_for(now: Listing, found: Difference) -> tuple[list[str], dict[str, bytes]]:
    """The paths that differ, in their order of importance, and the hashes of those that are there."""
    there = {path.encode(): path for path in (*found.changed, *found.new)}
    hashes = {there[raw]: record[1:65] for record in now.records if (raw := path_of(record)) in there}
    return in_order_of_importance(found), hashes


async def _given(sandbox: Sandbox, task: Task) -> Given:
    """What the agent was given: the task's tree on this host; of an image, what a twin of the sandbox holds."""
    source = sandbox.spec.source
    if task.image is None:
        assert source is not None
        return Given(await _work(lambda: list_unchanging_tree(source)), OrderedDict())
    key = await _key(sandbox, task)
    turn = _turns.setdefault(key, asyncio.Lock())
    async with turn:
        if key not in _given_trees:
            async with await sandbox.twin() as twin:
                await prepare(twin, task)
                listing = await twin.list_tree()
            if listing.cut:
                raise TaskError(f"task {task.task_id!r}: its tree cannot be listed: {listing.cut}", kind="tree")
            _given_trees[key] = Given(listing.records, OrderedDict())
            while len(_given_trees) > _MOST_GIVEN_TREES:
                _given_trees.popitem(last=False)
    given = _given_trees.setdefault(key, _given_trees[key])
    _given_trees.move_to_end(key)
    return given


async def _key(sandbox: Sandbox, task: Task) -> tuple[object, ...]:
    spec = sandbox.spec
    return (
        await sandbox.image_id(),
        spec.source,
        spec.workdir,
        task.image,
        task.checkout,
        task.removed,
        task.setup_patch,
    )


async def _states_given(sandbox: Sandbox, task: Task, given: Given, paths: list[str]) -> dict[str, Change | str]:
    """What paths held at first, or why that is no part of a diff."""
    if task.image is None:
        source = sandbox.spec.source
        assert source is not None
        return await _work(lambda: _states_on_host(source, paths))
    wanted = [path for path in paths if path not in given.states]
    states: dict[str, Change | str] = {path: given.states[path] for path in paths if path in given.states}
    if not wanted:
        return states
    left = _MAX_GIVEN_BYTES
    async with await sandbox.twin() as twin:
        await prepare(twin, task)
        for path in wanted:
            try:
                state = await twin.fetch(path, min(left, MAX_FILE_BYTES))
            except SandboxError as error:
                if error.kind not in _FETCH_FAILURES:
                    raise
                states[path] = "is too large to be told" if error.kind == "too_large" else "is no file"
                continue
            states[path] = given.states[path] = state
            left -= len(state.content)
    while sum(len(state.content) for state in given.states.values()) > MAX_PATCH_BYTES:
        given.states.popitem(last=False)
    return states


def _states_on_host(source: Path, paths: list[str]) -> dict[str, Change | str]:
    states: dict[str, Change | str] = {}
    left = _MAX_GIVEN_BYTES
    for path in paths:
        size = (source / path).lstat().st_size
        if size > min(left, MAX_FILE_BYTES):
            states[path] = "is too large to be told"
        elif (state := state_of(source, path)) is not None:
            states[path] = state
            left -= size
    return states


async def _work(job: Callable[[], T]) -> T:
    """Work on an agent's files: off the loop, few at a time."""
    return await asyncio.get_running_loop().run_in_executor(_workers, job)


class BlockedError(Exception):
    """A path cannot be put onto a tree: a link or a file stands where it needs a directory."""


async def put_changes(sandbox: Sandbox, changes: Iterable[Change]) -> None:
    """Bring a tree into the state that `changes` say, through no link of either.

    Raises `BlockedError` when tree and changes do not fit together, `SandboxError` when the sandbox fails.
    """
    for change in sorted(changes, key=lambda change: change.kind != "deleted"):
        try:
            await sandbox.place(change)
        except SandboxError as error:
            if error.kind == "blocked" and change.kind == "deleted":
                continue  # what a link or a file has taken the place of is gone
            if error.kind == "blocked":
                raise BlockedError(f"{change.path!r} does not fit the tree: something stands in its way") from error
            raise


async def run_checked(sandbox: Sandbox, command: str | list[str]) -> None:
    """Run a command that cannot fail in a healthy sandbox; a string goes to bash."""
    result = await sandbox.exec(command, timeout=_TIMEOUT_S)
    if result.exit_code != 0:
        name = "bash" if isinstance(command, str) else command[0]
        raise SandboxError(f"{name} failed in a fresh sandbox: {result.text[:500]}", kind="command")
