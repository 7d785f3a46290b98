"""A change to a tree, and whether it is one that can be put onto a tree. Pure; knows no sandbox."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

MAX_PATCH_BYTES = 8 << 20
MAX_PATCH_FILES = 2000
MAX_DIFF_CHARS = 64 << 20
_MAX_PATH_BYTES = 4095
_MAX_NAME_BYTES = 255


class Change(Struct, frozen=True, kw_only=True):
    """The new state of one path."""

    path: str
    kind: Literal["file", "link", "deleted"]
    content: bytes = b""  # of a link: its target
    executable: bool = False


class Patch(Struct, frozen=True, kw_only=True):
    """What an agent changed. A rename is a deletion and a new file."""

    changes: tuple[Change, ...] = ()
    diff: str = ""  # the same, as a git diff (`git apply` takes it)
    problem: str = ""  # why the change could not be taken as it is; such a patch earns nothing
    left_out: tuple[str, ...] = ()  # `path: reason`, of what differs from the given tree and is no part of the patch

    @property
    def num_changed_lines(self) -> int:
        """Lines added plus lines removed."""
        return sum(line[:1] in "+-" and line[:3] not in ("+++", "---") for line in self.diff.split("\n") if line)


def state_of(tree: Path, path: str) -> Change | None:
    """State of one path of a directory on this host; None where there is nothing."""
    here = tree / path
    if here.is_symlink():
        return Change(path=path, kind="link", content=os.fsencode(here.readlink()))
    if here.is_file():
        return Change(path=path, kind="file", content=here.read_bytes(), executable=bool(here.stat().st_mode & 0o100))
    return None


def is_inside(path: str) -> bool:
    """Whether a path is relative and stays inside the tree that it is relative to."""
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and posixpath.normpath(path) == path


def leads_outside(path: str, target: bytes) -> bool:
    """Whether a link at `path` with this target names something that is not in the tree."""
    text = os.fsdecode(target)
    way = posixpath.normpath(posixpath.join(posixpath.dirname(path), text))
    return text.startswith("/") or way == ".." or way.startswith("../")


def problem_of(patch: Patch) -> str:
    """Why a patch, whoever made it, cannot be put onto a tree; empty when it can.

    Whatever the fields hold: they may come from JSON, from another process, from a test.
    """
    if not isinstance(patch.problem, str) or not isinstance(patch.diff, str):
        return "the patch's problem and diff are not text"
    if patch.problem:
        return patch.problem
    if not isinstance(patch.changes, (tuple, list)):
        return "the patch's changes are no list"
    if len(patch.changes) > MAX_PATCH_FILES:
        return f"the change touches {len(patch.changes)} files, more than {MAX_PATCH_FILES}"
    if len(patch.diff) > MAX_DIFF_CHARS or not _is_text(patch.diff):
        return f"the patch's diff is longer than {MAX_DIFF_CHARS} characters, or no Unicode text"
    size = 0
    for change in patch.changes:
        if why := _problem_of_change(change):
            return why
        size += len(change.content)
    if size > MAX_PATCH_BYTES:
        return f"the change holds {size} bytes, more than {MAX_PATCH_BYTES}"
    return _conflict(patch)


def _problem_of_change(change: object) -> str:
    if not isinstance(change, Change) or not isinstance(change.path, str):
        return "one of the patch's changes is none, or its path is no text"
    path, content = change.path, change.content
    if "\0" in path or not _is_text(path) or not is_inside(path):
        return f"{path[:200]!r} is no path inside the tree"
    raw = path.encode()
    if len(raw) > _MAX_PATH_BYTES or any(len(name) > _MAX_NAME_BYTES for name in raw.split(b"/")):
        return f"the path {path[:100]!r}... is too long"
    if any(name.lower() == ".git" for name in path.split("/")):
        return f"{path[:200]!r} is git's own, not the tree's"
    if change.kind not in ("file", "link", "deleted") or not isinstance(change.executable, bool):
        return f"{path[:200]!r} has an unknown kind or mode"
    if not isinstance(content, bytes):
        return f"the content of {path[:200]!r} is not bytes"
    if change.kind == "link":
        if not content or b"\0" in content or len(content) > _MAX_PATH_BYTES:
            return f"the link {path[:200]!r} has no possible target"
        if leads_outside(path, content):
            return f"the link {path[:200]!r} leads out of the tree"
    return ""


def _conflict(patch: Patch) -> str:
    """A path twice, or a file where another path needs a directory."""
    kinds: dict[str, str] = {}
    for change in patch.changes:
        if change.path in kinds:
            return f"{change.path[:200]!r} is changed twice"
        kinds[change.path] = change.kind
    for path, kind in kinds.items():
        for parent in parents_of(path):
            if kind != "deleted" and kinds.get(parent, "deleted") != "deleted":
                return f"{parent[:200]!r} cannot be a {kinds[parent]} and hold {path[:200]!r}"
    return ""


def parents_of(path: str) -> Iterator[str]:
    """The directories above a relative path, the nearest first."""
    while path := posixpath.dirname(path):
        yield path


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
