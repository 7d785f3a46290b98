"""Which experts served a token: kept with its tree, in the episode's journal, and as far as an engine knows them."""

from __future__ import annotations

import numpy as np
import pytest

from actors.agent.journal import Turned
from actors.agent.tree import ROOT, TokenTree
from actors.generator.requests import routes_before_last
from actors.policy import Sampled
from learner.objectives.samples import make_samples
from learner.training.micro_batch import UNRECORDED, collate
from protocol.config import Settings
from protocol.errors import GeneratorError
from tiny.trajectories import random_trajectory

LAYERS, TOP = 3, 2


def sampled(n: int, experts: np.ndarray | None) -> Sampled:
    return Sampled(
        token_ids=np.arange(n, dtype=np.int32),
        logprobs=np.zeros(n, np.float32),
        versions=np.zeros(n, np.int32),
        finish_reason="stop",
        experts=experts,
    )


def routes(n: int, value: int) -> np.ndarray:
    return np.full((n, LAYERS, TOP), value, np.uint8)


def values(tree: TokenTree) -> list[int]:
    assert tree.experts is not None
    return [int(row[0, 0]) for row in tree.experts]


def test_a_straight_history_knows_all_but_what_a_cache_had() -> None:
    tree = TokenTree()
    tree.add_given(ROOT, np.arange(4, dtype=np.int32))
    tree.add_sampled(3, sampled(2, None))
    assert tree.experts is None
    tree.add_given(5, np.arange(2, dtype=np.int32))
    tree.add_sampled(7, sampled(3, routes(7, 1)))  # of 11 tokens in all: the first 3 came from a cache
    assert values(tree) == [255] * 3 + [1] * 7 + [255]
    tree.add_given(10, np.arange(1, dtype=np.int32))
    tree.add_sampled(11, sampled(1, routes(4, 2)))
    assert values(tree) == [255] * 3 + [1] * 7 + [2, 2, 255], "what served a token first stays"


def test_a_branch_gets_its_own_and_the_shared_context_keeps_what_it_had() -> None:
    tree = TokenTree()
    tree.add_given(ROOT, np.arange(3, dtype=np.int32))
    tree.add_sampled(2, sampled(2, routes(4, 1)))
    tree.add_given(1, np.arange(2, dtype=np.int32))  # from the second token another way: places 5, 6
    tree.add_sampled(6, sampled(2, routes(5, 2)))
    assert values(tree) == [1, 1, 1, 1, 255, 2, 2, 2, 255]


def test_more_routes_than_context_or_of_another_model_are_refused() -> None:
    tree = TokenTree()
    tree.add_given(ROOT, np.arange(3, dtype=np.int32))
    with pytest.raises(GeneratorError, match="do not fit a context of 5 tokens"):
        tree.add_sampled(2, sampled(2, routes(5, 1)))
    tree = TokenTree()
    tree.add_sampled(ROOT, sampled(2, routes(1, 1)))
    with pytest.raises(GeneratorError, match="do not fit"):
        tree.add_sampled(1, sampled(2, np.zeros((2, LAYERS + 1, TOP), np.uint8)))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_journal_gives_back_the_routes(kind: type) -> None:
    experts = np.arange(5 * LAYERS * TOP).astype(kind).reshape(5, LAYERS, TOP)
    for given in (experts, None):
        turned = Turned.of(sampled(4, given), is_last=False, cached_version=None, generate_s=0.0, elapsed_s=0.0)
        found = turned.sampled.experts
        assert (found is None) == (given is None)
        if found is not None:
            assert found.dtype == kind and np.array_equal(found, experts)


def test_an_engines_routes_end_before_the_last_token() -> None:
    data = np.arange(6 * LAYERS * TOP, dtype=np.uint8)
    shape = [6, LAYERS, TOP]
    exact = routes_before_last(4, shape, data.tobytes(), 11)
    assert exact is not None and np.array_equal(exact.ravel(), data)
    ahead = routes_before_last(4, shape, data.tobytes(), 10)
    assert ahead is not None and len(ahead) == 5
    assert routes_before_last(4, shape, data.tobytes(), 12) is None
    wide = data.astype(np.uint16)
    found = routes_before_last(4, shape, wide.tobytes(), 11)
    assert found is not None and found.dtype == np.uint16 and np.array_equal(found.ravel(), wide)


def test_a_micro_batch_holds_routes_of_its_own_tokens_and_leaves_the_rest_to_the_model() -> None:
    from msgspec.structs import replace

    rng = np.random.default_rng(0)
    bare, full = random_trajectory(rng, 9, member=0, resolved=True), random_trajectory(rng, 7, member=1, resolved=False)
    experts = np.arange(7 * LAYERS * TOP, dtype=np.uint8).reshape(7, LAYERS, TOP)
    experts[2] = 255
    samples, _ = make_samples([bare, replace(full, experts=experts)], Settings(), 0, 512)
    batch = collate(samples, [0, 1], 20)
    assert batch.experts is not None and batch.experts.shape == (20, LAYERS, TOP)
    assert (batch.experts[:9] == UNRECORDED).all() and (batch.experts[16:] == UNRECORDED).all()
    assert (batch.experts[11] == UNRECORDED).all()
    assert np.array_equal(np.delete(batch.experts[9:16], 2, 0), np.delete(experts.astype(np.int64), 2, 0))
    assert collate(samples, [0], 12).experts is None
