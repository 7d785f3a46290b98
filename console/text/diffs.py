"""A git diff as two columns."""

from __future__ import annotations

import re
from typing import NamedTuple

_MOST_ROWS = 2000
_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")


class Row(NamedTuple):
    """One line on each side; None where a side has none. A `head` row spans both."""

    kind: str  # head, hunk, same, change
    left: str | None = None
    right: str | None = None
    left_number: int = 0
    right_number: int = 0


class Diff(NamedTuple):
    """Rows to show, and how many are not."""

    rows: list[Row]
    num_hidden: int
    num_added: int
    num_removed: int


def side_by_side(patch: str) -> Diff:
    """What is removed beside what takes its place."""
    rows: list[Row] = []
    removed: list[str] = []
    added: list[str] = []
    numbers = [0, 0]
    counts = [0, 0]
    in_hunk = False

    def flush() -> None:
        for place in range(max(len(removed), len(added))):
            left = removed[place] if place < len(removed) else None
            right = added[place] if place < len(added) else None
            rows.append(Row("change", left, right, *numbers))
            numbers[0] += left is not None
            numbers[1] += right is not None
        removed.clear()
        added.clear()

    for line in patch.split("\n"):
        hunk = _HUNK.match(line)
        if line.startswith("diff --git ") or hunk:
            flush()
            in_hunk = bool(hunk)
            rows.append(Row("hunk" if hunk else "head", line))
            if hunk:
                numbers[:] = [int(hunk[1]), int(hunk[2])]
        elif in_hunk and line[:1] == "-":
            if added:
                flush()
            removed.append(line[1:])
            counts[1] += 1
        elif in_hunk and line[:1] == "+":
            added.append(line[1:])
            counts[0] += 1
        elif in_hunk and line[:1] == " ":
            flush()
            rows.append(Row("same", line[1:], line[1:], *numbers))
            numbers[0] += 1
            numbers[1] += 1
        elif line and not line.startswith(("index ", "--- ", "+++ ")):
            flush()
            rows.append(Row("head", line))
    flush()
    return Diff(rows[:_MOST_ROWS], max(len(rows) - _MOST_ROWS, 0), *counts)
