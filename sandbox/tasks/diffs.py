"""What a unified diff does to files, by its headers alone: quoted names, renames, deletions, binary files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11, '"': 34, "\\": 92}
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)


class DiffFile(Struct):
    """One file of a diff: its path before and after; None where it does not exist."""

    before: str | None
    after: str | None


def files_of_diff(diff: str) -> list[DiffFile]:
    """Every file that a diff touches, in order. Lines inside hunks are never taken for headers."""
    files: list[DiffFile] = []
    opened = False  # by a `diff --git` line, and its `---` is still to come
    for line in _headers(diff):
        if line.startswith("diff --git "):
            files.append(DiffFile(*_both(line.removeprefix("diff --git "))))
            opened = True
        elif line.startswith("--- "):
            if not opened:
                files.append(DiffFile(None, None))
            opened = False
            files[-1].before = _side(line[4:])
        elif line.startswith("+++ ") and files:
            files[-1].after = _side(line[4:])
        elif files:
            _extended(files[-1], line)
    return files


def files_after(diff: str) -> list[str]:
    """Paths that exist once a diff is applied, of those that it touches."""
    return sorted({file.after for file in files_of_diff(diff) if file.after})


def files_gone(diff: str) -> set[str]:
    """Paths that a diff deletes or renames away."""
    files = files_of_diff(diff)
    return {file.before for file in files if file.before} - {file.after for file in files}


def _headers(diff: str) -> Iterator[str]:
    """The lines of a diff that are outside hunks."""
    old = new = 0
    for line in diff.split("\n"):
        if old > 0 or new > 0:
            old -= line[:1] in ("-", " ", "")
            new -= line[:1] in ("+", " ", "")
            continue
        if hunk := _HUNK.match(line):
            old, new = (1 if count is None else int(count) for count in hunk.groups())
            continue
        yield line


def _extended(file: DiffFile, line: str) -> None:
    for head, side in (("rename from ", "before"), ("rename to ", "after"), ("copy to ", "after")):
        if line.startswith(head):
            setattr(file, side, _unquoted(line.removeprefix(head)))
    if line.startswith("copy from "):
        file.before = None  # the origin of a copy stays
    elif line.startswith("new file mode"):
        file.before = None
    elif line.startswith("deleted file mode"):
        file.after = None


def _both(names: str) -> tuple[str | None, str | None]:
    """Both paths of a `diff --git` line. Unquoted ones can be told apart where they are the same: without a rename."""
    quoted = _QUOTED.findall(names)
    if len(quoted) == 2:
        return _side(f'"{quoted[0]}"'), _side(f'"{quoted[1]}"')
    half = names[: (len(names) - 1) // 2], names[(len(names) + 1) // 2 :]
    if half[0].partition("/")[2] == half[1].partition("/")[2]:
        return _side(half[0]), _side(half[1])
    before, _, after = names.partition(" ")
    return _side(before), _side(after)


def _side(name: str) -> str | None:
    """A path of a header without its prefix (`git apply` takes off one directory); None for /dev/null."""
    path = _unquoted(name if name.startswith('"') else name.split("\t")[0].rstrip("\r"))
    return None if path == "/dev/null" else path.partition("/")[2] or path


def _unquoted(name: str) -> str:
    """A path as git writes it: in quotes, with octal escapes of its bytes, where it is unusual."""
    match = _QUOTED.match(name)
    if match is None:
        return name.rstrip("\r")

    def byte(found: re.Match[bytes]) -> bytes:
        code = found[1].decode("latin-1")
        return bytes([int(code, 8) & 255 if len(code) == 3 else _ESCAPES.get(code, ord(code) & 255)])

    return _ESCAPE.sub(byte, match[1].encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
