"""The shape of a token tree, in two small arrays over a trajectory's tokens. Pure arithmetic.

The tokens of a tree lie one after another in the order in which they came. They fall into segments: segment k is
`starts[k]` up to `starts[k + 1]`, and what the model saw before its first token is the path that ends with token
`parents[k]` (-1: nothing). A segment may leave another one anywhere, so none is ever split. A straight history is one
segment and has no such arrays.

A path is what one context window of the model held: from a root to a leaf, the end of a segment that no other
continues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Branches(NamedTuple):
    """Segments of `num_tokens` tokens."""

    starts: np.ndarray  # int32 [segments], rising from 0
    parents: np.ndarray  # int32 [segments], an earlier token or -1
    num_tokens: int

    @staticmethod
    def of(starts: np.ndarray | None, parents: np.ndarray | None, num_tokens: int) -> Branches:
        """Those of a trajectory. Raises `ValueError` if the arrays describe no tree."""
        if starts is None and parents is None:
            only = int(num_tokens > 0)
            return Branches(np.zeros(only, np.int32), np.full(only, -1, np.int32), num_tokens)
        if starts is None or parents is None:
            raise ValueError("a tree has both starts and parents of its segments, a straight history neither")
        found = Branches(starts, parents, num_tokens)
        found._check()
        return found

    def _check(self) -> None:
        starts, parents = self.starts, self.parents
        if starts.dtype != np.int32 or parents.dtype != np.int32 or starts.ndim != 1 or starts.shape != parents.shape:
            raise ValueError(
                f"expected two int32 arrays of one length, got {starts.dtype} {starts.shape} and "
                f"{parents.dtype} {parents.shape}"
            )
        rising = starts.size > 0 and starts[0] == 0 and bool((np.diff(starts) > 0).all())
        if not rising or starts[-1] >= self.num_tokens:
            raise ValueError(f"segments must begin at 0 and rise below the {self.num_tokens} tokens")
        if (parents < -1).any() or (parents >= starts).any():
            raise ValueError("a segment must continue a token before it, or nothing (-1)")

    @property
    def ends(self) -> np.ndarray:
        """One past the last token of every segment, int64 [segments]."""
        return np.append(self.starts[1:], self.num_tokens).astype(np.int64)[: len(self.starts)]

    def segment_of(self, token: int) -> int:
        """The segment that a token lies in."""
        return int(np.searchsorted(self.starts, token, side="right")) - 1

    def path(self, last: int) -> np.ndarray:
        """The tokens from the root to `last`, int64 [tokens of the path]; -1: none."""
        parts = []
        while last >= 0:
            segment = self.segment_of(last)
            parts.append(np.arange(self.starts[segment], last + 1, dtype=np.int64))
            last = int(self.parents[segment])
        return np.concatenate(parts[::-1]) if parts else np.empty(0, np.int64)

    def leaves(self) -> list[int]:
        """The last tokens of the paths, rising."""
        continued = set(self.parents.tolist())
        return [end - 1 for end in self.ends.tolist() if end - 1 not in continued]

    def path_lengths(self) -> list[int]:
        """Tokens of every path, in the order of `leaves`."""
        before: list[int] = []  # tokens on the path to a segment's first token
        for parent in self.parents.tolist():
            above = self.segment_of(parent)
            before.append(before[above] + parent + 1 - int(self.starts[above]) if parent >= 0 else 0)
        segments = [(self.segment_of(leaf), leaf) for leaf in self.leaves()]
        return [before[s] + leaf + 1 - int(self.starts[s]) for s, leaf in segments]

    def turn_before(self, start: int, ends: Sequence[int]) -> int:
        """Index of the turn that the one beginning at `start` goes on from, -1 if none: the last on its path.

        `ends` are one past the last token of the turns before it, rising.
        """
        on_path = np.flatnonzero(np.isin(np.array(ends, np.int64) - 1, self.path(self._before(start))))
        return int(on_path[-1]) if on_path.size else -1

    def _before(self, token: int) -> int:
        """The token that the model saw last before this one."""
        segment = self.segment_of(token)
        return int(self.parents[segment]) if token == self.starts[segment] else token - 1

    def paths(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every path (int64 [n]) with which of its tokens no path before it had (bool [n]): each token is new once."""
        seen = np.zeros(self.num_tokens, bool)
        for leaf in self.leaves():
            path = self.path(leaf)
            yield path, ~seen[path]
            seen[path] = True
