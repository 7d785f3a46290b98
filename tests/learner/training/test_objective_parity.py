"""Every objective's gradient through the learner, packed and on several ranks, against plain torch, one trajectory at a
time, driven by the objective's slow reference."""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from learner.objectives.registry import averaging_of, objective_named
from protocol.config import LossSettings, Settings
from protocol.objectives import objectives
from tests.learner.objectives.slow import Tokens, gae
from tests.learner.teacher.fake_server import FakeTeacher, serving
from tests.learner.training.learner_ranks import head_weights
from tests.learner.training.test_parity import run_ranks
from tiny.model import save_random_model
from tiny.trajectories import random_batch

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(900)]

LENGTHS = [50, 81, 120, 33, 90, 64]
GROUP_SIZE = 3
MAX_CONTEXT = 128
LAYOUTS = {"one_by_one": (1, 1, 128), "packed_2_groups": (2, 1, 256), "packed_2_ulysses": (2, 2, 256)}
ALWAYS = {"length_threshold": 100}
LOSSES: dict[str, dict[str, object]] = {
    label: options | ALWAYS
    for label, options in {
        **{name: {"name": name} for name in objectives()},
        "dapo_truncated_by_sequence": {"name": "dapo", "truncate_importance": 1.1, "averaging": "sequence"},
        "distill_endpoint": {"name": "distill"},
        "gspo_truncated_constant": {"name": "gspo", "truncate_importance": 1.1, "averaging": "constant"},
    }.items()
}


def policy_of(label: str) -> str:
    """Which policy an objective wants: plain, with a value head, or beside a teacher."""
    objective = objective_named(str(LOSSES[label]["name"]))
    return "valued" if objective.targets is not None else "taught" if objective.needs_reference else "plain"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gradients of every objective in every layout: one process start, one policy a layout."""
    folder = tmp_path_factory.mktemp("objectives")
    model = save_random_model(folder / "model")
    taught = {"reference": str(save_random_model(folder / "teacher", seed=1))}
    with serving(served_by(folder / "teacher")) as server:
        elsewhere = {"reference_endpoint": server.address, "reference_name": "teacher"}
        write_job(folder, model, {"distill": taught, "distill_endpoint": elsewhere})
        run_ranks(folder / "job.json")
        assert len(server.asked) == len(LAYOUTS) * (1 + len(LENGTHS)), "rank 0 asks, once an episode"
    return folder


def served_by(teacher: Path) -> FakeTeacher:
    """A server that scores as plain torch does."""
    causal_lm = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)

    def score(ids: list[int]) -> list[float]:
        row = torch.tensor([ids])
        with torch.no_grad():
            logprobs = causal_lm(row).logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]
        return logprobs.clamp(max=0).tolist()

    return FakeTeacher(Tokenizer.from_file(str(teacher / "tokenizer.json")), score)


def write_job(folder: Path, model: Path, teachers: dict[str, dict[str, str]]) -> None:
    """What the ranks are to do, for `run_ranks`."""
    job = []
    for name, (world, sequence_parallel, pack_tokens) in LAYOUTS.items():
        learner: dict[str, object] = {
            "sequence_parallel": sequence_parallel,
            "pack_tokens": pack_tokens,
            "lr": 0.0,
            "logprob_chunk": 48,
        }
        cases = []
        for policy in ("plain", "valued", "taught"):
            losses = {label: LOSSES[label] for label in LOSSES if policy_of(label) == policy}
            if policy == "taught":
                losses = {label: loss | teachers[label] for label, loss in losses.items()}
            learner["loss"] = next(iter(losses.values()))
            start = {"path": str(model), "max_context": MAX_CONTEXT}
            settings = Settings.model_validate({"model": start, "episode": {"max_turn_tokens": 32}, "learner": learner})
            case = {
                "name": f"{name}-{policy}",
                "settings": settings.model_dump(mode="json"),
                "batches": [LENGTHS],
                "group_size": GROUP_SIZE,
                "losses": losses,
            }
            cases.append(case)
        job.append({"world": world, "sequence_parallel": sequence_parallel, "cases": cases})
    (folder / "job.json").write_text(json.dumps(job))


@cache
def expected(model: Path, label: str) -> tuple[dict[str, torch.Tensor], float]:
    """Gradient and loss of the batch in plain torch: the slow reference's slopes, pushed back through the model."""
    settings = LossSettings.model_validate(LOSSES[label])
    slow = import_module(f"tests.learner.objectives.table.test_{settings.name}")
    averaging, cap = averaging_of(settings), settings.truncate_importance
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    taught = policy_of(label) == "taught"
    teacher = policy
    if taught:
        teacher = AutoModelForCausalLM.from_pretrained(model.with_name("teacher"), dtype=torch.float32)
    head = head_weights(policy.config.hidden_size).requires_grad_()
    batch = random_batch(np.random.default_rng(0), LENGTHS, GROUP_SIZE)
    num_trained = [int(t.loss_mask[1:].sum()) for t in batch]
    total = 0.0
    for index, trajectory in enumerate(batch):
        group = [t for t in batch if t.group_id == trajectory.group_id]
        advantage = slow.advantages([t.reward for t in group])[trajectory.member]
        ids = torch.from_numpy(trajectory.token_ids.astype(np.int64))[None]
        output = policy(ids, output_hidden_states=True)
        logprobs = output.logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].double()
        values = (output.hidden_states[-1][0, :-1] @ head.T)[:, 0].double()
        trained = np.flatnonzero(trajectory.loss_mask[1:])
        behaviour, count = torch.tensor(trajectory.logprobs[1:]).double(), len(logprobs)
        weight = (logprobs.detach() - behaviour).exp().clamp(max=cap) if cap else torch.ones(count).double()
        with torch.no_grad():
            reference = teacher(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].double()
        advantages, returns = np.full(count, advantage), np.zeros(count)
        if policy_of(label) == "valued":
            targets = gae(values[trained].tolist(), advantage, settings.gamma, settings.gae_lambda)
            advantages[trained], returns[trained] = targets
        tokens = Tokens(
            logp=logprobs.tolist(),
            behaviour=logprobs.tolist() if cap else behaviour.tolist(),
            proximal=logprobs.tolist(),
            advantage=advantages.tolist(),
            sequence=[0] * count,
            weight=trajectory.loss_mask[1:].astype(float).tolist(),
            value=values.tolist(),
            returns=returns.tolist(),
            reference=reference.tolist(),
        )
        losses, slopes = torch.tensor([slow.reference(tokens, t, settings) for t in trained]).double().T
        divisor = {
            "token": sum(num_trained),
            "sequence": len(batch) * num_trained[index],
            "constant": len(batch) * MAX_CONTEXT,
        }[averaging]
        surrogate = (logprobs * weight)[trained].mul(slopes)
        if policy_of(label) == "valued":
            surrogate = surrogate + settings.value_coef * (values - torch.from_numpy(returns))[trained].square() / 2
        surrogate.sum().div(divisor).backward()
        divisor = divisor if averaging != "constant" else sum(num_trained)  # the figure is a mean over weights
        total += float((losses * weight[trained]).sum()) / divisor
    gradients = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    if policy_of(label) == "valued":
        assert head.grad is not None
        gradients["value_head.weight"] = head.grad
    return gradients, total


@pytest.mark.parametrize("label", LOSSES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_and_loss_equal_plain_torch(results: Path, layout: str, label: str) -> None:
    name = f"{layout}-{policy_of(label)}"
    got = load_file(results / f"{name}.safetensors")
    figures = json.loads((results / f"{name}.json").read_text())[label]
    gradients, loss = expected(results / "model", label)
    largest = max(float(g.abs().max()) for g in gradients.values())
    for parameter, gradient in gradients.items():
        assert float((got[f"{label}|{parameter}"] - gradient).abs().max()) <= 2e-6 * largest, parameter
    assert figures["loss_mean"] == pytest.approx(loss, abs=1e-6)
