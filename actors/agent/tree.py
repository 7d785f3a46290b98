"""The tokens of one episode as a tree: what was sampled stays as it was sampled, and nothing is ever changed.

A straight history is a tree of one segment (`protocol/branches.py` has the form).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from actors.policy import Sampled
from protocol.branches import Branches
from protocol.errors import GeneratorError
from protocol.messages import NOT_SAMPLED

ROOT = -1
"""The place before the first token."""


class TokenTree:
    """Ids, mask, log-probs and versions, one entry per token, in the order in which they came. A place is the index of
    the token that it follows."""

    def __init__(self) -> None:
        self.token_ids = np.empty(0, np.int32)
        self.loss_mask = np.empty(0, np.uint8)
        self.logprobs = np.empty(0, np.float32)
        self.versions = np.empty(0, np.int32)
        self.experts: np.ndarray | None = None  # see `Trajectory`
        self._starts: list[int] = []
        self._parents: list[int] = []

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def segment_starts(self) -> np.ndarray | None:
        """`Trajectory.segment_starts`: None while the history is straight."""
        return np.array(self._starts, np.int32) if len(self._starts) > 1 else None

    @property
    def segment_parents(self) -> np.ndarray | None:
        """`Trajectory.segment_parents`: None while the history is straight."""
        return np.array(self._parents, np.int32) if len(self._parents) > 1 else None

    @property
    def branches(self) -> Branches:
        """The shape."""
        return Branches(np.array(self._starts, np.int32), np.array(self._parents, np.int32), len(self))

    def path_ids(self, place: int) -> np.ndarray:
        """Ids (int32) of the context that ends at `place`."""
        found: np.ndarray = self.token_ids[self.branches.path(place)]
        return found

    def follow(self, place: int, ids: np.ndarray) -> tuple[int, int]:
        """How far the tree already goes on from `place` with `ids`: the place there, and how many of them it has."""
        best, far = place, 0
        reached: list[tuple[int, int, Iterable[tuple[int, int]]]] = [(place, 0, self._runs(place))]
        while reached:
            at, num, runs = reached.pop()
            if num > far:
                best, far = at, num
            for start, end in runs:
                equal = _num_equal(self.token_ids[start:end], ids[num:])
                last = start + equal - 1
                for parent in {p for p in self._parents if start <= p <= last} | ({last} if equal else set()):
                    reached.append((parent, num + parent - start + 1, self._attached(parent)))
        return best, far

    def add_given(self, place: int, ids: np.ndarray) -> int:
        """Continue `place` with tokens that nobody sampled here; the place after them."""
        n = len(ids)
        if not n:
            return place
        return self._add(place, ids, np.zeros(n, np.uint8), np.zeros(n, np.float32), np.full(n, NOT_SAMPLED, np.int32))

    def add_sampled(self, place: int, sampled: Sampled) -> tuple[int, int]:
        """Continue `place` with a model turn; the half-open range of its tokens.

        Raises `GeneratorError` if it is not well-formed.
        """
        check_sampled(sampled)
        n = len(sampled.token_ids)
        self._add(place, sampled.token_ids, np.ones(n, np.uint8), sampled.logprobs, sampled.versions)
        if sampled.experts is not None:
            self._note_experts(sampled.experts)
        return len(self) - n, len(self)

    def disown(self, start: int, end: int) -> None:
        """Tokens `start:end` are context from now on, as if nobody had sampled them."""
        self.loss_mask[start:end] = 0
        self.logprobs[start:end] = 0
        self.versions[start:end] = NOT_SAMPLED

    def _note_experts(self, experts: np.ndarray) -> None:
        """Of the tokens before the last one. What served a token when its keys and values were made stays."""
        context = self.branches.path(len(self) - 1)[:-1][-len(experts) :] if len(experts) else np.empty(0, np.int64)
        if len(context) != len(experts) or (self.experts is not None and experts.shape[1:] != self.experts.shape[1:]):
            raise GeneratorError(
                f"experts of shape {experts.shape} do not fit a context of {len(context) + 1} tokens", kind="malformed"
            )
        if self.experts is None:
            self.experts = _unknown(experts, len(self))
        fresh = self.experts[context, 0, 0] == np.iinfo(experts.dtype).max
        self.experts[context[fresh]] = experts[fresh]

    def _add(self, place: int, ids: np.ndarray, mask: np.ndarray, logprobs: np.ndarray, versions: np.ndarray) -> int:
        assert ROOT <= place < len(self)
        if place != len(self) - 1 or not self._starts:
            self._starts.append(len(self))
            self._parents.append(place)
        self.token_ids = np.concatenate([self.token_ids, ids], dtype=np.int32, casting="same_kind")
        self.loss_mask = np.concatenate([self.loss_mask, mask])
        self.logprobs = np.concatenate([self.logprobs, logprobs], dtype=np.float32, casting="same_kind")
        self.versions = np.concatenate([self.versions, versions], dtype=np.int32, casting="same_kind")
        if self.experts is not None:
            self.experts = np.concatenate([self.experts, _unknown(self.experts, len(ids))])
        return len(self) - 1

    def _runs(self, place: int) -> list[tuple[int, int]]:
        """Ranges of tokens that follow `place`, each up to the end of its segment."""
        runs = list(self._attached(place))
        if place >= 0:
            end = int(self.branches.ends[self.branches.segment_of(place)])
            runs += [(place + 1, end)] if place + 1 < end else []
        return runs

    def _attached(self, place: int) -> Iterator[tuple[int, int]]:
        ends = [*self._starts[1:], len(self)]
        return ((self._starts[k], ends[k]) for k, parent in enumerate(self._parents) if parent == place)


def check_sampled(sampled: Sampled) -> None:
    """Raise `GeneratorError` unless every token has its log-prob and version, and there is one."""
    n = len(sampled.token_ids)
    if not 0 < n == len(sampled.logprobs) == len(sampled.versions):
        raise GeneratorError(
            f"expected as many log-probs and versions as sampled tokens and at least one, got {n} tokens, "
            f"{len(sampled.logprobs)} log-probs, {len(sampled.versions)} versions",
            kind="malformed",
        )


def _unknown(like: np.ndarray, num_tokens: int) -> np.ndarray:
    return np.full((num_tokens, *like.shape[1:]), np.iinfo(like.dtype).max, like.dtype)


def _num_equal(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the common beginning."""
    n = min(len(left), len(right))
    differs = np.flatnonzero(left[:n] != right[:n])
    return int(differs[0]) if differs.size else n
