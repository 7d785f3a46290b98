"""The shape of a token tree against a tree of nodes that is obviously right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.branches import Branches


@st.composite
def shapes(draw: st.DrawFn) -> Branches:
    """Up to 8 segments, each leaving any earlier token, or none."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int32)
    parents = [-1, *(draw(st.integers(-1, int(start) - 1)) for start in starts[1:])]
    return Branches.of(starts, np.array(parents, np.int32), sum(lengths))


def slow_parents(shape: Branches) -> list[int]:
    """The token before every token."""
    first = dict(zip(shape.starts.tolist(), shape.parents.tolist(), strict=True))
    return [first.get(token, token - 1) for token in range(shape.num_tokens)]


@given(shapes())
def test_paths_are_those_of_a_tree_of_tokens(shape: Branches) -> None:
    parents = slow_parents(shape)
    leaves = [token for token in range(shape.num_tokens) if token not in parents]
    assert shape.leaves() == leaves
    seen: set[int] = set()
    for leaf, (path, new) in zip(leaves, shape.paths(), strict=True):
        slow = [leaf]
        while slow[0] >= 0:
            slow.insert(0, parents[slow[0]])
        assert path.tolist() == slow[1:]
        assert new.tolist() == [token not in seen for token in slow[1:]]
        seen |= set(slow[1:])
    assert seen == set(range(shape.num_tokens))
    assert shape.path_lengths() == [len(path) for path, _ in shape.paths()]


@given(shapes(), st.data())
def test_the_turn_before_is_the_last_on_the_path(shape: Branches, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, shape.num_tokens - 1))
    ends = sorted(data.draw(st.sets(st.integers(1, max(start, 1)), max_size=4)))
    path = shape.path(slow_parents(shape)[start]).tolist()
    assert shape.turn_before(start, ends) == max((i for i, e in enumerate(ends) if e - 1 in path), default=-1)


def test_a_straight_history_has_no_arrays() -> None:
    shape = Branches.of(None, None, 4)
    assert [path.tolist() for path, _ in shape.paths()] == [[0, 1, 2, 3]]
    assert shape.path_lengths() == [4]
    assert Branches.of(None, None, 0).leaves() == []


INT = np.int32


@pytest.mark.parametrize(
    ("starts", "parents", "named"),
    [
        ([0, 2], None, "both"),
        ([0, 2], [-1], "one length"),
        ([0, 2], np.array([-1, 0], np.int64), "int32"),
        ([[0, 2]], [[-1, 0]], "one length"),
        ([], [], "rise"),
        ([1, 2], [-1, 0], "rise"),
        ([0, 2, 2], [-1, 0, 0], "rise"),
        ([0, 5], [-1, 0], "rise"),
        ([0, 2], [-1, 2], "before it"),
        ([0, 2], [-2, 0], "before it"),
        ([0, 2], [0, 0], "before it"),
    ],
)
def test_what_is_no_tree_is_refused(starts: object, parents: object, named: str) -> None:
    def array(of: object) -> np.ndarray | None:
        return of if of is None or isinstance(of, np.ndarray) else np.array(of, INT)

    with pytest.raises(ValueError, match=named):
        Branches.of(array(starts), array(parents), 5)
