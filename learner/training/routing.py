"""Routers of a mixture of experts, as the learner steers them: replayed routes, and the loss that balances experts.

Engine and learner round differently, so that a router may choose other experts in one than in the other: the log-probs
of such tokens differ by far more than rounding. With the routes that the engine recorded the learner takes the same
experts and weighs them by its own scores, which is what gradients flow through (R3, arXiv 2510.11370).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from learner.training.micro_batch import UNRECORDED
from protocol.errors import ConfigError, LearnerError


class Routing:
    """Hooks on every router of `causal_lm`, in the order of its layers; without routers it does nothing."""

    def __init__(self, causal_lm: nn.Module) -> None:
        self._gates: list[Any] = [
            module for module in causal_lm.modules() if type(module).__name__.lower().endswith("topkrouter")
        ]
        self._experts: Tensor | None = None
        self._seen: list[tuple[Tensor, Tensor]] | None = None  # logits and choices by layer; None: nobody wants them
        for index, gate in enumerate(self._gates):
            gate.register_forward_hook(functools.partial(self._steer, index))

    def check(self, *, replay: bool, balance: bool) -> None:
        """Raise `ConfigError` where this model's routers cannot be steered so."""
        if replay and not self._gates:
            raise ConfigError(
                "learner.routing_replay: this model has no routers that the learner knows: turn it off", kind="model"
            )
        if balance and (not self._gates or any(_by_sigmoid(gate) for gate in self._gates)):
            raise ConfigError(
                "learner.router_aux_coef: this model has no router with a softmax to balance (others are balanced by "
                "their score corrections): set it to 0",
                kind="model",
            )

    def replay(self, experts: Tensor | None) -> None:
        """Route so, int64 [positions, layers, experts of a token], until the next call: a backward pass that recomputes
        activations routes as its forward pass did.

        Raises `LearnerError` if the routes are not of this model.
        """
        if experts is not None:
            fits = experts.shape[1:] == (len(self._gates), self._gates[0].top_k if self._gates else 0)
            if not fits or (experts.numel() and int(experts.max()) >= self._num):
                raise LearnerError(
                    f"routes of shape {tuple(experts.shape)} are not of a model with {len(self._gates)} layers of "
                    f"{self._num} experts",
                    kind="routes",
                )
        self._experts = experts

    def watch(self) -> None:
        """Keep what the next forward pass chooses, for `balance_loss`."""
        self._seen = []

    def balance_loss(self) -> Tensor:
        """How unevenly the watched pass used its experts, 1 if evenly: `E sum_e f_e P_e`, f_e the share of choices that
        fell on e, times the choices of a token, P_e its mean probability, over the tokens of all layers (Switch
        Transformers, arXiv 2101.03961, eq. 4, as transformers has it)."""
        assert self._seen, "watch, then compute log-probs"
        seen, self._seen = self._seen, None
        probabilities = torch.cat([logits.float().softmax(-1) for logits, _ in seen])
        chosen = torch.cat([choice for _, choice in seen])
        hits = torch.zeros_like(probabilities).scatter_(1, chosen, 1.0)
        return self._num * (hits.mean(0) * probabilities.mean(0)).sum()

    @property
    def _num(self) -> int:
        return int(self._gates[0].num_experts) if self._gates else 0

    def _steer(self, index: int, gate: Any, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        logits, scores, chosen = output
        if self._experts is not None:
            rows = self._experts[:, index]
            chosen = torch.where(rows == UNRECORDED, chosen, rows)
            output = logits, _scores_of(gate, logits, chosen).to(scores.dtype), chosen
        if self._seen is not None and len(self._seen) < len(self._gates):  # not again while activations are recomputed
            self._seen.append((logits, chosen))
        return output


def _by_sigmoid(gate: Any) -> bool:
    """Of the two kinds of routers: DeepSeek's scores experts one by one."""
    return hasattr(gate, "e_score_correction_bias")


def _scores_of(gate: Any, logits: Tensor, chosen: Tensor) -> Tensor:
    """What the router gives the chosen experts, as its own forward pass does."""
    every = logits.float().sigmoid() if _by_sigmoid(gate) else logits.float().softmax(-1)
    some = every.gather(1, chosen)
    if getattr(gate, "norm_topk_prob", True):
        some = some / (some.sum(-1, keepdim=True) + (1e-20 if _by_sigmoid(gate) else 0.0))
    return some * float(getattr(gate, "routed_scaling_factor", 1.0))
