"""Routers that are steered: by recorded routes, and by the loss that balances their experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from learner.training.micro_batch import UNRECORDED
from learner.training.routing import Routing
from protocol.errors import ConfigError, LearnerError
from tiny.families import family_config

FAMILIES = ("qwen3_moe", "mixtral", "glm4_moe", "deepseek_v3")
TOKENS, TOP = 20, 2


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family_config(family), attn_implementation="eager").float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3 if ".gate.weight" in name else 0.1)
    return model


def ids() -> torch.Tensor:
    return torch.arange(3, 3 + TOKENS)[None]


def routers(model: Any) -> list[Any]:
    return [m for m in model.modules() if type(m).__name__.lower().endswith("topkrouter")]


def chosen_by(model: Any) -> torch.Tensor:
    """Routes of the model's own, [tokens, layers, experts of a token]."""
    seen: list[torch.Tensor] = []
    hooks = [gate.register_forward_hook(lambda _m, _i, out: seen.append(out[2])) for gate in routers(model)]
    model(input_ids=ids(), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_own_routes_change_nothing_and_others_do(family: str) -> None:
    model = model_of(family)
    own, plain = chosen_by(model), model(input_ids=ids(), use_cache=False).logits
    routing = Routing(model)
    routing.replay(own)
    torch.testing.assert_close(model(input_ids=ids(), use_cache=False).logits, plain, atol=1e-6, rtol=0)
    routing.replay((own + 1) % 4)
    changed = model(input_ids=ids(), use_cache=False).logits
    assert (changed - plain).abs().max() > 1e-3
    routing.replay(torch.full_like(own, UNRECORDED))
    torch.testing.assert_close(model(input_ids=ids(), use_cache=False).logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_tokens_with_routes_are_steered_and_later_ones_see_them(family: str) -> None:
    model = model_of(family)
    own, plain = chosen_by(model), model(input_ids=ids(), use_cache=False).logits
    routes = torch.full_like(own, UNRECORDED)
    routes[7] = (own[7] + 1) % 4
    routing = Routing(model)
    routing.replay(routes)
    apart = (model(input_ids=ids(), use_cache=False).logits - plain).abs().amax(-1)[0]
    assert apart[:7].max() < 1e-6 < apart[7]


def test_a_steered_router_weighs_by_its_own_scores() -> None:
    """Against the formulas, one token by one: softmax or sigmoid, of the chosen, to a sum of 1, scaled."""
    for family in FAMILIES:
        model = model_of(family)
        gate, routing = routers(model)[0], Routing(model)
        layers = len(routers(model))
        routes = torch.stack([torch.randperm(4)[:TOP] for _ in range(TOKENS * layers)]).view(TOKENS, layers, TOP)
        routing.replay(routes)
        hidden = torch.randn(TOKENS, 64)
        logits, scores, chosen = gate(hidden)
        assert chosen.equal(routes[:, 0])
        for row, expected, got in zip(logits.detach().double().numpy(), chosen.numpy(), scores.detach(), strict=True):
            every = 1 / (1 + np.exp(-row)) if family in ("glm4_moe", "deepseek_v3") else np.exp(row) / np.exp(row).sum()
            some = every[expected]
            if getattr(gate, "norm_topk_prob", True):
                some = some / some.sum()
            some = some * getattr(gate, "routed_scaling_factor", 1.0)
            np.testing.assert_allclose(got.numpy(), some, rtol=1e-5)


def test_gradients_flow_through_the_scores_of_replayed_routes() -> None:
    model = model_of("qwen3_moe")
    routing = Routing(model)
    routing.replay((chosen_by(model) + 1) % 4)
    model(input_ids=ids(), use_cache=False).logits.square().mean().backward()
    assert all(gate.weight.grad.abs().max() > 0 for gate in routers(model))


@pytest.mark.parametrize("recompute", [False, True])
def test_the_loss_that_balances_is_that_of_transformers(recompute: bool) -> None:
    model = model_of("qwen3_moe").train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    routing = Routing(model)
    routing.watch()
    logits = model(input_ids=ids(), use_cache=False).logits
    found = routing.balance_loss()
    seen: list[torch.Tensor] = []
    hooks = [gate.register_forward_hook(lambda _m, _i, out: seen.append(out[0])) for gate in routers(model)]
    with torch.no_grad():
        model(input_ids=ids(), use_cache=False)
    for hook in hooks:
        hook.remove()
    expected = load_balancing_loss_func(tuple(seen), num_experts=4, top_k=TOP)
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-5)
    slow = _slow_balance([logits.double().numpy() for logits in seen])
    assert float(found.detach()) == pytest.approx(slow, rel=1e-5)
    (found + 0 * logits.sum()).backward()
    assert all(gate.weight.grad.abs().max() > 0 for gate in routers(model))


def _slow_balance(layers: list[np.ndarray]) -> float:
    hits, mass, count = np.zeros(4), np.zeros(4), 0
    for layer in layers:
        for row in layer:
            probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            for expert in np.argsort(-row)[:TOP]:
                hits[expert] += 1
            mass += probabilities
            count += 1
    return float(4 * (hits / count * mass / count).sum())


def test_what_does_not_fit_the_model_is_refused() -> None:
    plain, experts, sigmoid = (Routing(model_of(name)) for name in ("qwen3", "qwen3_moe", "glm4_moe"))
    experts.check(replay=True, balance=True)
    sigmoid.check(replay=True, balance=False)
    plain.check(replay=False, balance=False)
    with pytest.raises(ConfigError, match="routing_replay: this model has no routers"):
        plain.check(replay=True, balance=False)
    for routing in (plain, sigmoid):
        with pytest.raises(ConfigError, match="router_aux_coef"):
            routing.check(replay=False, balance=True)
    for routes in (torch.zeros(5, 1, TOP).long(), torch.full((5, 2, TOP), 4)):
        with pytest.raises(LearnerError, match="are not of a model with 2 layers of 4 experts"):
            experts.replay(routes)
