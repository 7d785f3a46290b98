"""Before anything is trained: the learner's log-probs are the model's own, and the generators sampled from them.

A family of models may scale its logits, carry a state over document borders, or add noise in training; then training
would go wrong without an error. So every run compares, on its own weights and layout, what the learner computes of
packed documents with the plain model on one document at a time, and the first tokens that were sampled by the first
version in force with what it makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from learner.objectives.samples import Sample
from learner.packing import plan_bins, row_length
from learner.ranks.group import RankGroup
from learner.training.micro_batch import collate
from learner.training.model import Policy
from protocol.errors import ConfigError

_LENGTHS = (48, 37, 64, 43)  # of the documents; the last is padding for other ranks' shares, too
_FLOAT32_BOUND = 1e-4
_ROUNDINGS = 4.0
"""What is allowed beyond float32, in units of the rounding measured on the plain model. Between a real engine and the
learner 1.1 were measured (SmolLM2-135M in bfloat16: 0.061 against 0.054)."""
_LEAST_ROUNDING = 1e-3


class Proof(NamedTuple):
    """What was found: mean absolute difference of log-probs, the bound that it had to keep to, and in lower precision
    the rounding that the bound was made from (0 in float32).

    In float32 the bound is fixed; in lower precision it comes from the rounding that is measured on the plain model,
    between two attentions that compute the same.
    """

    difference: float
    bound: float
    rounding: float


def prove_packing(policy: Policy, path: str) -> Proof:
    """Compare log-probs of packed documents with the plain model's. Collective.

    Raises:
        ConfigError: they differ by more than rounding; the message names what differs and likely causes.
    """
    documents = _random_documents(policy.vocab_size, policy.group.sequence_parallel)
    with policy.group.doing("proving the log-probs of packed documents"), torch.no_grad():
        packed = _packed(policy, documents, path)
        with _plain_attention(policy, "eager"):
            plain = [_alone(policy, document) for document in documents]
        rounding = _LEAST_ROUNDING if policy.dtype != torch.float32 else 0.0
        if policy.dtype != torch.float32:
            with _plain_attention(policy, "sdpa"):
                again = [_alone(policy, document) for document in documents]
            rounding = max(rounding, float((torch.cat(plain) - torch.cat(again)).abs().mean()))
        differences = [
            float((p - q).abs().mean()) for p, q in zip(_documents_of(packed, documents), plain, strict=True)
        ]
    bound = _ROUNDINGS * rounding if rounding else _FLOAT32_BOUND
    worst = max(differences)
    if not worst <= bound:
        raise ConfigError(
            f"{path}: refused before training: log-probs of packed documents are not the model's own (mean differences "
            f"by document {', '.join(f'{d:.2g}' for d in differences)}; allowed {bound:.1g}). "
            f"{_cause(differences, bound)}",
            kind="self_test",
        )
    return Proof(float(np.mean(differences)), bound, rounding)


def prove_sampling(policy: Policy, samples: Sequence[Sample], budget: int, path: str, bound: float) -> float | None:
    """Compare the generators' log-probs of tokens that only the present version sampled with the learner's. Collective:
    every rank has the same samples. Returns the mean absolute difference, None where there are no such tokens.

    Args:
        bound: of `prove_packing`.

    Raises:
        ConfigError: they differ by more than rounding.
    """
    chosen = _fresh(samples, budget)
    if not chosen:
        return None
    group = policy.group
    lengths = [len(sample) for sample in chosen]
    row = plan_bins(lengths, group.data_parallel, budget)[0]
    batch = collate(chosen, row[group.data_index], row_length(row, lengths, group.sequence_parallel))
    ids, positions, targets, behaviour, weights = (
        _share(torch.from_numpy(array).to(group.device), group)
        for array in (batch.token_ids, batch.positions, batch.targets, batch.behaviour, batch.weights)
    )
    with group.doing("comparing log-probs with the generators'"), torch.no_grad():
        policy.engine.train()
        experts = None
        if batch.experts is not None:
            experts = _share(torch.from_numpy(batch.experts).to(group.device), group)
        logprobs, *_ = policy.logprobs(ids, positions, targets, experts)
        trained = weights > 0
        distance = (logprobs - behaviour).abs()[trained].double().sum()
        sums = group.sum(torch.stack([distance, trained.double().sum()]))
    difference = float(sums[0] / sums[1].clamp(min=1))
    if not difference <= bound:
        raise ConfigError(
            f"{path}: refused before training: over {int(sums[1])} tokens that the generators sampled with the version "
            f"in force, the learner's log-probs differ by {difference:.2g} on average (allowed {bound:.1g}). "
            "Generator and learner do not compute the same model: look at its attention kernels, rope settings and "
            "logit scales, or lower precision in only one of the two",
            kind="self_test",
        )
    return difference


def _random_documents(vocab_size: int, multiple: int) -> list[Tensor]:
    """Documents of fixed lengths whose sum is a multiple of `multiple`; the same on every rank and in every run."""
    drawn = np.random.default_rng(0)
    lengths = [*_LENGTHS[:-1], _LENGTHS[-1] + -sum(_LENGTHS) % multiple]
    return [torch.from_numpy(drawn.integers(0, vocab_size, length)) for length in lengths]


def _packed(policy: Policy, documents: Sequence[Tensor], path: str) -> Tensor:
    """Log-probs of every document's tokens but its last position, as a training step computes them, end to end."""
    group = policy.group
    ids = torch.cat(list(documents)).to(group.device)
    positions = torch.cat([torch.arange(len(d)) for d in documents]).to(group.device)
    targets = torch.cat([d.roll(-1) for d in documents]).to(group.device)
    policy.engine.train()
    try:
        own, *_ = policy.logprobs(*(_share(array, group) for array in (ids, positions, targets)))
    except (AssertionError, AttributeError, TypeError, ValueError) as error:  # a model's own code on our attention
        raise ConfigError(
            f"{path}: the learner cannot compute packed documents: {error!r}", kind="self_test"
        ) from error
    whole = torch.zeros(len(ids), dtype=torch.float64, device=group.device)
    _share(whole, group).copy_(own)
    return group.sum(whole).float() / group.data_parallel


def _documents_of(packed: Tensor, documents: Sequence[Tensor]) -> Iterator[Tensor]:
    for part in packed.split([len(d) for d in documents]):
        yield part[:-1]


def _alone(policy: Policy, document: Tensor) -> Tensor:
    """Log-probs of one document by the model's own forward pass, the logits as it gives them."""
    ids = document.to(policy.group.device)[None]
    logits: Tensor = policy.module.causal_lm(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return (logits / policy.module.temperature).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


@contextmanager
def _plain_attention(policy: Policy, name: str) -> Iterator[None]:
    """The model in eval mode with an attention of transformers' own."""
    causal_lm: Any = policy.module.causal_lm
    before = causal_lm.config._attn_implementation
    causal_lm.set_attn_implementation(name)
    causal_lm.eval()
    try:
        yield
    finally:
        causal_lm.set_attn_implementation(before)
        causal_lm.train()


def _share(array: Tensor, group: RankGroup) -> Tensor:
    """This rank's slice of a row."""
    size = len(array) // group.sequence_parallel
    return array[group.sequence_index * size : (group.sequence_index + 1) * size]


def _fresh(samples: Sequence[Sample], budget: int) -> list[Sample]:
    """The shortest samples whose trained tokens are all of the present version, as are the keys and values behind them;
    as many as one micro-batch holds."""
    chosen: list[Sample] = []
    for sample in sorted(samples, key=len):
        trained = sample.weights > 0
        if trained.any() and not (sample.staleness.any() or sample.behind_older.any()):
            if sum(map(len, chosen)) + len(sample) > budget:
                break
            chosen.append(sample)
    return chosen


def _cause(differences: Sequence[float], bound: float) -> str:
    if differences[0] <= bound:
        return (
            "The first document is right and a later one is not: some layer carries a state across document borders "
            "(recurrent or convolutional layers), or counts positions by itself"
        )
    return (
        "Already the first document is wrong: likely causes are logits that are scaled or capped outside of the output "
        "projection, noise that stays on in training (dropout, router jitter), or attention with sinks or biases that "
        "the kernel at hand leaves out"
    )
