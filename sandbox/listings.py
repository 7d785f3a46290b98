"""What a tree holds: a record of every file and link, made by the guest in a sandbox, by `list_tree` on this host.

A record is `kind` `hex SHA-256` ` ` `path`, as bytes. Kinds: `f` file, `x` executable file, `l` link (of its target);
`F` and `X`: a file over `MAX_FILE_BYTES` (of its size and both ends); `u`: what cannot be read; `d`: a directory that
is not looked into. Two trees differ where their sets of records do.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from sandbox.patches import parents_of

NOT_PART_OF_A_TREE = (
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
)
"""Names of directories and files that no patch carries: version control, and caches that would be read as code."""
MAX_FILE_BYTES = 4 << 20
"""Size past which a file is part of no patch."""
_EDGE_BYTES = 1 << 16
_MADE_DIRECTORIES = frozenset(
    (
        *(".venv", "venv", "node_modules", ".tox", ".nox", ".eggs", ".cache", ".npm", ".gradle", ".ipynb_checkpoints"),
        *("htmlcov", ".cargo", ".m2", "bower_components"),
    )
)
_MADE_AT_THE_TOP = frozenset(("build", "dist", "target"))
_MADE_ENDINGS = (".egg-info", ".dist-info")
_MADE_FILES = (".pyc", ".pyo", ".pyd", ".o", ".so", ".a", ".obj", ".dll", ".dylib", ".class", ".swp")
_LOOKS_LIKE_GIT = re.compile(rb"(?:\.git|git~1)[. ]*(?::.*)?", re.IGNORECASE | re.DOTALL)
"""Names that `git apply` refuses, and the whole patch with them (`core.protectNTFS`, on everywhere)."""
_MADE_NAMES = frozenset((".coverage", ".DS_Store", "nohup.out"))


class Listing(Struct, frozen=True):
    """A tree at one moment. `cut` says why it is not whole; then nothing follows from what is missing."""

    records: frozenset[bytes]
    cut: str = ""


def path_of(record: bytes) -> bytes:
    """The path in a record."""
    return record[66:]


def list_tree(tree: Path) -> frozenset[bytes]:
    """Records of a directory on this host, as the guest makes them."""
    records: set[bytes] = set()
    _walk(os.fsencode(tree), b"", records)
    return frozenset(records)


@functools.lru_cache(maxsize=4096)
def list_unchanging_tree(tree: Path) -> frozenset[bytes]:
    """`list_tree`, remembered: for trees that are made once."""
    return list_tree(tree)


def _walk(top: bytes, inside: bytes, records: set[bytes]) -> None:
    skipped = {os.fsencode(name) for name in NOT_PART_OF_A_TREE}
    with os.scandir(top + b"/" + inside) as entries:
        for entry in entries:
            path = inside + entry.name
            if entry.name in skipped:
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                _walk(top, path + b"/", records)
            elif stat.S_ISLNK(mode):
                records.add(b"l" + _hex(os.fsencode(Path(os.fsdecode(entry.path)).readlink())) + b" " + path)
            elif stat.S_ISREG(mode):
                records.add(_file_record(entry.path, path))


def _file_record(place: bytes, path: bytes) -> bytes:
    with Path(os.fsdecode(place)).open("rb") as file:
        status = os.fstat(file.fileno())
        runs = bool(status.st_mode & 0o100)
        if status.st_size <= MAX_FILE_BYTES:
            return (b"x" if runs else b"f") + _hex(file.read()) + b" " + path
        ends = status.st_size.to_bytes(8, "little") + file.read(_EDGE_BYTES)
        file.seek(-_EDGE_BYTES, os.SEEK_END)
        return (b"X" if runs else b"F") + _hex(ends + file.read()) + b" " + path


def _hex(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


class Difference(Struct, frozen=True, kw_only=True):
    """How a tree differs from the one that was given. Paths are relative and UTF-8; each list is sorted."""

    changed: tuple[str, ...] = ()  # given, and otherwise now
    new: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # `path: reason`, of what differs but is part of no patch


def difference(given: frozenset[bytes], now: frozenset[bytes]) -> Difference:
    """What differs, without what tools make and leave: the rule by which the second is told from the first.

    What was given and is otherwise now is part of the difference whatever its name. What is new is left out when it is
    in a directory that was not there before and is named as tools name theirs (`node_modules`, `.tox`, `*.egg-info`,
    `build` at the top, one that holds a `pyvenv.cfg`), or when its own name is a compiled file's. Nothing is taken that
    is over `MAX_FILE_BYTES`, cannot be read, or has a name that is not UTF-8 or that git refuses.
    """
    gone, come = given - now, now - given
    old = {path_of(record): record for record in gone}
    new = {path_of(record): record for record in come}
    reasons: dict[str, str] = {}
    changed: list[str] = []
    fresh: list[str] = []
    directories = _directories(given) if new.keys() - old.keys() else frozenset()
    environments = {path.removesuffix(b"pyvenv.cfg") for path in new if path.endswith(b"/pyvenv.cfg")}
    for raw, record in new.items():
        path, why = _readable(raw), _not_taken(record)
        if not why and raw not in old:
            why_made = _made_by_tools(raw, directories, environments)
            if why_made:
                reasons[why_made[0]] = why_made[1]
                continue
        if why:
            reasons[path] = why
        else:
            (changed if raw in old else fresh).append(path)
    unseen = tuple(path_of(record) + b"/" for record in come if record[:1] == b"d")
    deleted = []
    for raw in old.keys() - new.keys():
        if raw.startswith(unseen):
            continue
        if _is_utf8(raw):
            deleted.append(raw.decode())
        else:
            reasons[_readable(raw)] = "deleted, and its name is not UTF-8"
    return Difference(
        changed=tuple(sorted(changed)),
        new=tuple(sorted(fresh)),
        deleted=tuple(sorted(deleted)),
        left_out=tuple(f"{path}: {why}" for path, why in sorted(reasons.items())),
    )


def in_order_of_importance(found: Difference) -> list[str]:
    """Every path of a difference, those first of which a patch that cannot hold all should hold.

    A file that makes way for a directory comes before what is in it; what tools write, given or not, comes last. In
    between: what was given and is otherwise now, what is new (top of the tree first), what is gone.
    """
    kinds = ((0, found.changed), (1, found.new), (2, found.deleted))
    in_the_way = set(found.deleted) & {up for path in (*found.changed, *found.new) for up in parents_of(path)}
    ranks = {
        path: (path not in in_the_way, _named_as_made(path), kind, path.count("/") if kind == 1 else 0, path)
        for kind, paths in kinds
        for path in paths
    }
    return sorted(ranks, key=lambda path: ranks[path])


def _named_as_made(path: str) -> bool:
    *parents, name = path.split("/")
    return any(_is_made_directory(label, depth) for depth, label in enumerate(parents, 1)) or _is_made_file(name)


def _is_made_directory(label: str, depth: int) -> bool:
    made = label in _MADE_DIRECTORIES or label.endswith(_MADE_ENDINGS)
    return made or (depth == 1 and label in _MADE_AT_THE_TOP)


def _is_made_file(label: str) -> bool:
    return label.endswith(_MADE_FILES) or label in _MADE_NAMES


def _not_taken(record: bytes) -> str:
    kind = record[:1]
    if kind in b"FX":
        return f"over {MAX_FILE_BYTES >> 20} MiB"
    if kind == b"u":
        return "cannot be read"
    if kind == b"d":
        return "a directory that cannot be looked into, or too deep"
    path = path_of(record)
    if any(_LOOKS_LIKE_GIT.fullmatch(part) for part in re.split(rb"[/\\]", path)):
        return "git takes no such name, which other systems read as .git"
    if kind == b"l" and path.rpartition(b"/")[2].lower() == b".gitmodules":
        return "git takes no link of this name"
    return "" if _is_utf8(path) else "its name is not UTF-8"


def _made_by_tools(path: bytes, directories: frozenset[bytes], environments: set[bytes]) -> tuple[str, str] | None:
    """The path to name, and why a new file is left out; None for one that is not."""
    *parents, name = path.split(b"/")
    for depth in range(1, len(parents) + 1):
        folder = b"/".join(parents[:depth]) + b"/"
        if folder in directories:
            continue
        if _is_made_directory(parents[depth - 1].decode(errors="replace"), depth) or folder in environments:
            return _readable(folder), "a new directory of the kind that tools make"
    if _is_made_file(name.decode(errors="replace")):
        return _readable(path), "a new file of the kind that tools make"
    return None


def _directories(records: Iterable[bytes]) -> frozenset[bytes]:
    found: set[bytes] = set()
    for record in records:
        path = path_of(record)
        at = path.rfind(b"/")
        while at > 0 and (folder := path[: at + 1]) not in found:
            found.add(folder)
            at = path.rfind(b"/", 0, at)
    return frozenset(found)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _readable(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")
