"""Trajectories that branch: each sampled token trained once, with the gradient that it has alone in its own context."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.objectives.loss import token_losses
from learner.objectives.parts.objective import TokenTensors
from learner.objectives.registry import loss_settings
from learner.objectives.samples import Sample, make_samples
from protocol.branches import Branches
from protocol.config import Settings
from protocol.messages import NOT_SAMPLED, Trajectory, Turn
from tiny.model import build_model
from tiny.trajectories import random_trajectory

VOCABULARY = 64
SETTINGS = Settings.model_validate(
    {"model": {"max_context": 64}, "episode": {"max_turn_tokens": 8}, "learner": {"loss": {"length_threshold": 100}}}
)


def with_loss(**changes: object) -> Settings:
    learner = SETTINGS.learner.model_copy(update={"loss": SETTINGS.learner.loss.model_copy(update=changes)})
    return SETTINGS.model_copy(update={"learner": learner})


def branching(rng: np.random.Generator, num_segments: int, resolved: bool, member: int) -> Trajectory:
    """A prompt, then segments of given and sampled tokens that leave any token before them."""
    lengths = rng.integers(3, 7, num_segments)
    starts = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int32)
    parents = np.array([-1, *(rng.integers(-1, start) for start in starts[1:])], np.int32)
    n = int(lengths.sum())
    straight = random_trajectory(rng, n, resolved=resolved, member=member, vocab_size=VOCABULARY)
    turns = [Turn(start=int(s) + 1, end=int(s + length)) for s, length in zip(starts, lengths, strict=True)]
    mask = np.zeros(n, np.uint8)
    for turn in turns:
        mask[turn.start : turn.end] = 1
    return msgspec.structs.replace(
        straight,
        turns=turns,
        loss_mask=mask,
        logprobs=np.where(mask, rng.normal(-4, 0.3, n), 0).astype(np.float32),
        versions=np.where(mask, 0, NOT_SAMPLED).astype(np.int32),
        segment_starts=starts if num_segments > 1 else None,
        segment_parents=parents if num_segments > 1 else None,
    )


def model() -> torch.nn.Module:
    return build_model(VOCABULARY, hidden=32, heads=1, kv_heads=1, layers=1).double()


def logprobs_of(policy: torch.nn.Module, ids: np.ndarray) -> torch.Tensor:
    """Log-prob of every token but the first, float64 [n - 1]."""
    whole = torch.from_numpy(ids.astype(np.int64))[None]
    scores = policy(whole).logits[0, :-1].log_softmax(-1)
    chosen: torch.Tensor = scores.gather(1, whole[0, 1:, None])[:, 0]
    return chosen


def sample_loss(policy: torch.nn.Module, sample: Sample, chosen: Settings) -> torch.Tensor:
    """Weighted loss of one sample, as the learner sums it."""
    logprobs = torch.cat([logprobs_of(policy, sample.token_ids), torch.zeros(1, dtype=torch.float64)])
    weights = torch.from_numpy(sample.weights).double()
    behaviour = torch.from_numpy(sample.behaviour).double()
    trained = (weights > 0).double()
    ratio = ((logprobs.detach() - behaviour) * trained).sum() / trained.sum().clamp(min=1)
    tokens = TokenTensors(
        logprobs=logprobs,
        behaviour=behaviour,
        advantages=torch.from_numpy(sample.advantages).double(),
        weights=weights,
        sequence_log_ratio=ratio.expand_as(logprobs),
    )
    total: torch.Tensor = (weights * token_losses(tokens, loss_settings(chosen))).sum()
    return total


def alone(policy: torch.nn.Module, trajectory: Trajectory, advantage: float) -> torch.Tensor:
    """Loss of a trajectory's turns, one by one and by hand: the tokens of each after what the model saw then."""
    total = torch.zeros((), dtype=torch.float64)
    for turn in trajectory.turns:
        path = trajectory.branches.path(turn.end - 1)
        assert trajectory.token_ids[path[-(turn.end - turn.start) :]].tolist() == (
            trajectory.token_ids[turn.start : turn.end].tolist()
        )
        logprobs = logprobs_of(policy, trajectory.token_ids[path])[-(turn.end - turn.start) :]
        behaviour = torch.from_numpy(trajectory.logprobs[turn.start : turn.end]).double()
        ratio = (logprobs - behaviour).exp()
        total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage).sum()
    return total


def gradients(policy: torch.nn.Module, loss: torch.Tensor) -> list[np.ndarray]:
    return [g.numpy() for g in torch.autograd.grad(loss, list(policy.parameters()))]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_the_gradient_is_the_sum_over_nodes_one_by_one(seed: int, num_segments: int) -> None:
    rng = np.random.default_rng(seed)
    group = [branching(rng, num_segments, resolved=i == 0, member=i) for i in range(2)]
    samples, left_out = make_samples(group, SETTINGS, 0, VOCABULARY)
    assert not left_out
    policy = model()
    expected = torch.zeros((), dtype=torch.float64)
    num_trained = 0
    for trajectory, advantage in zip(group, (1.0, -1.0), strict=True):
        expected = expected + alone(policy, trajectory, advantage)
        num_trained += sum(turn.end - turn.start for turn in trajectory.turns)
    got = sum(sample_loss(policy, sample, SETTINGS) for sample in samples)
    assert isinstance(got, torch.Tensor)
    assert sum(int((s.weights > 0).sum()) for s in samples) == num_trained
    assert sum(int(t.loss_mask.sum()) for t in group) == num_trained
    for left, right in zip(gradients(policy, got), gradients(policy, expected), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)  # norms are taken in float32


@given(st.integers(0, 10_000), st.integers(2, 64))
def test_a_straight_history_gives_the_sample_that_its_arrays_are(seed: int, length: int) -> None:
    """As it was before there were trees, and as a tree of one segment."""
    rng = np.random.default_rng(seed)
    group = [random_trajectory(rng, length, resolved=i == 0, member=i, num_turns=2) for i in range(2)]
    one = {"segment_starts": np.zeros(1, np.int32), "segment_parents": np.full(1, -1, np.int32)}
    for given_group in (group, [msgspec.structs.replace(t, **one) for t in group]):
        samples, _ = make_samples(given_group, SETTINGS, 3, 512)
        for trajectory, sample, advantage in zip(group, samples, (1, -1), strict=True):
            mask = trajectory.loss_mask == 1
            for name, expected in {
                "token_ids": trajectory.token_ids,
                "targets": np.append(trajectory.token_ids[1:], 0),
                "weights": np.append(mask[1:], 0),
                "behaviour": np.append(np.where(mask, trajectory.logprobs, 0)[1:], 0),
                "advantages": np.append(np.full(length - 1, advantage), 0),
                "staleness": np.append(np.where(mask, 3 - trajectory.versions, 0)[1:], 0),
            }.items():
                array = getattr(sample, name)
                assert array.tolist() == expected.astype(array.dtype).tolist(), name
            assert sample.share == 1.0


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_every_episode_weighs_the_same_in_a_mean_of_sequences(seed: int, num_segments: int) -> None:
    rng = np.random.default_rng(seed)
    group = [branching(rng, num_segments, resolved=True, member=0), branching(rng, 1, resolved=False, member=1)]
    samples, _ = make_samples(group, with_loss(name="gspo"), 0, VOCABULARY)
    *paths, straight = samples
    assert sum(float(s.weights.sum()) for s in paths) == pytest.approx(1)
    assert sum(s.share for s in paths) == pytest.approx(1)
    assert float(straight.weights.sum()) == pytest.approx(1)


def test_each_path_is_held_against_the_context() -> None:
    rng = np.random.default_rng(0)
    num = 63
    tree = msgspec.structs.replace(
        random_trajectory(rng, 2 * num, vocab_size=VOCABULARY),
        segment_starts=np.array([0, num], np.int32),
        segment_parents=np.array([-1, 0], np.int32),
    )
    samples, left_out = make_samples([tree], SETTINGS, 0, VOCABULARY)
    assert not left_out
    assert [len(s) for s in samples] == [63, 64]
    longer = msgspec.structs.replace(tree, segment_parents=np.array([-1, 1], np.int32))
    assert make_samples([longer], SETTINGS, 0, VOCABULARY)[1] == {"too_long": 1}
    broken = msgspec.structs.replace(tree, segment_parents=np.array([-1, 90], np.int32))
    assert make_samples([broken], SETTINGS, 0, VOCABULARY)[1] == {"malformed": 1}


def test_a_path_in_which_nothing_is_trained_costs_nothing() -> None:
    rng = np.random.default_rng(1)
    tree = branching(rng, 2, resolved=True, member=0)
    shape = Branches.of(np.array([0, 4], np.int32), np.array([-1, 0], np.int32), len(tree.token_ids))
    turns = [Turn(start=1, end=4), Turn(start=5, end=len(tree.token_ids), format_error=True)]
    tree = msgspec.structs.replace(tree, turns=turns, segment_starts=shape.starts, segment_parents=shape.parents)
    rft = SETTINGS.model_copy(update={"phase": "rft"})
    (sample,), _ = make_samples([tree], rft, 0, VOCABULARY)
    assert sample.token_ids.tolist() == tree.token_ids[:4].tolist()
