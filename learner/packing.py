"""Samples into micro-batches of a bounded number of tokens: pure, deterministic.

A plan is a list of rows; a row holds one bin for every data-parallel group, and all groups work through a row at the
same time, so it takes as long as its fullest bin. Bins are filled by the cost of attention and of the rest together
(longest processing time first), rows are made of bins of like length, and samples are then exchanged within a row until
both the tokens and the squares of the lengths are as even as exchanges make them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_ATTENTION_WEIGHT = 0.2
_MAX_EXCHANGES = 1000
_LEAST_CHANGE = 1e-9

Bin = list[int]
"""Indices of the samples in one micro-batch, in order."""


def plan_bins(
    lengths: Sequence[int], num_groups: int, budget: int, attention_length: float = math.inf
) -> list[list[Bin]]:
    """Rows of bins: `plan[row][group]` are sample indices; every sample is in exactly one bin.

    Args:
        lengths: tokens of each sample.
        num_groups: data-parallel groups.
        budget: most tokens of a bin.
        attention_length: sequence length at which attention costs as much as everything else (see
            `attention_length_of`); infinity balances by tokens alone.

    Raises:
        ValueError: a sample is longer than the budget.
    """
    if lengths and max(lengths) > budget:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit a micro-batch of {budget}")
    costs = [length * (1 + length / attention_length) for length in lengths]
    num_rows = max(1, math.ceil(sum(lengths) / (budget * num_groups)))
    while (bins := _fill(lengths, costs, num_rows * num_groups, budget)) is None:
        num_rows += 1
    bins.sort(key=lambda members: (-sum(lengths[i] for i in members), members))
    rows = [bins[r * num_groups : (r + 1) * num_groups] for r in range(num_rows)]
    return [[sorted(members) for members in _evened(row, lengths, budget)] for row in rows]


def _fill(lengths: Sequence[int], costs: Sequence[float], num_bins: int, budget: int) -> list[Bin] | None:
    """Every sample, dearest first, into the cheapest bin that has room; None if one finds no room."""
    bins: list[Bin] = [[] for _ in range(num_bins)]
    used, spent = [0] * num_bins, [0.0] * num_bins
    for index in sorted(range(len(lengths)), key=lambda i: (-costs[i], i)):
        room = [b for b in range(num_bins) if used[b] + lengths[index] <= budget]
        if not room:
            return None
        best = min(room, key=lambda b: (spent[b], b))
        bins[best].append(index)
        used[best] += lengths[index]
        spent[best] += costs[index]
    return bins


def _evened(row: list[Bin], lengths: Sequence[int], budget: int) -> list[Bin]:
    """Exchange samples between the bins of a row while that lowers the variance of their loads.

    The load is tokens and, with `_ATTENTION_WEIGHT`, squares of lengths, each in units of its mean over bins. Every bin
    also has an empty place: exchanging a sample for one is moving it.
    """
    members = [i for members in row for i in members]
    if len(row) == 1 or not members:
        return row
    tokens = np.array([lengths[i] for i in members] + [0] * len(row), dtype=np.float64)
    squares = tokens**2
    room = budget * len(row) / tokens.sum()
    tokens *= len(row) / tokens.sum()
    squares *= len(row) / squares.sum()
    where = np.array([b for b, some in enumerate(row) for _ in some] + list(range(len(row))))
    for _ in range(_MAX_EXCHANGES):
        used = np.bincount(where, tokens, len(row))[where]
        change = _variance_change(tokens, used)
        change += _ATTENTION_WEIGHT * _variance_change(squares, np.bincount(where, squares, len(row))[where])
        more = tokens[:, None] - tokens  # of the bin of the second, when first and second change places
        change[(where[:, None] == where) | (used + more > room) | (used[:, None] - more > room)] = 0
        first, second = np.unravel_index(change.argmin(), change.shape)
        if change[first, second] > -_LEAST_CHANGE:
            break
        where[first], where[second] = where[second], where[first]
    return [[i for i, b in zip(members, where, strict=False) if b == place] for place in range(len(row))]


def _variance_change(sizes: np.ndarray, loads: np.ndarray) -> np.ndarray:
    """Change of the sum of squared loads if i and j change places, [i, j]; `loads` of the bins they are in."""
    more = sizes[:, None] - sizes
    change: np.ndarray = 2 * more * (more + loads - loads[:, None])
    return change


def attention_length_of(num_parameters: int, num_layers: int, hidden: int) -> float:
    """Tokens at which causal attention costs as much as the matrix products of all weights.

    A token costs `2 P` in the weights and, causal, `2 L h` per layer in scores and values at length L (both directions
    of a step scale alike), so they are equal at `P / (layers h)`.
    """
    return num_parameters / (num_layers * hidden)


def used_share(plan: Sequence[Sequence[Bin]], lengths: Sequence[int], multiple: int = 1) -> float:
    """Share of computed positions that hold a token. All bins of a row are as long as the longest."""
    computed = sum(len(row) * row_length(row, lengths, multiple) for row in plan)
    return sum(lengths) / computed if computed else 1.0


def padded_length(num_tokens: int, multiple: int) -> int:
    """`num_tokens` rounded up to a multiple (at least one multiple: an empty bin is computed too)."""
    return max(1, math.ceil(num_tokens / multiple)) * multiple


def row_length(row: Sequence[Bin], lengths: Sequence[int], multiple: int) -> int:
    """Positions of every micro-batch of a row: its longest bin, rounded up to `multiple`.

    One length for all groups: at ZeRO-3 the ranks gather weights together, so all must do the same number of chunks.
    """
    return padded_length(max(sum(lengths[i] for i in members) for members in row), multiple)
