"""The plan's formulas against counted parameters and tensors, and the paper's recipe in configs/."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.training import plan
from learner.training.adapters import add_adapters
from learner.training.attention import register_document_attention
from learner.training.logprobs import TokenLogprobs
from learner.training.mlp import tile_mlps
from protocol.config import Settings
from tiny.families import save_random_family
from tiny.model import build_model

ROOT = Path(__file__).parents[3]
MODEL_72B = ROOT / "configs" / "models" / "qwen2.5-72b"


def shape_of(model: torch.nn.Module, folder: Path) -> plan.Shape:
    model.config.save_pretrained(folder)
    return plan.Shape.read(folder)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_parameters_are_counted_exactly(tmp_path: Path, tied: bool, kv_heads: int) -> None:
    model = build_model(tied=tied, kv_heads=kv_heads, layers=3)
    assert shape_of(model, tmp_path).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("rank", [1, 8])
def test_adapters_are_counted_exactly_and_they_alone_have_gradients_and_moments(tmp_path: Path, rank: int) -> None:
    model = build_model(layers=3)
    shape = shape_of(model, tmp_path)
    add_adapters(model, rank, seed=0)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.adapter_parameters(rank) == count
    settings = Settings.model_validate({"model": {"path": str(tmp_path)}, "learner": {"lora_rank": rank}})
    whole = sum(p.numel() for p in model.parameters())
    memory = plan.estimate(shape, settings, stage=0, sequence_parallel=1, ranks=1, tokens=64, compute_bytes=4)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * whole, 4 * count, 8 * count)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "glm4_moe"])
def test_experts_are_counted(tmp_path: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_random_family(tmp_path, name))
    shape = plan.Shape.read(tmp_path)
    assert shape.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)
    idle = 2 * 3 * shape.hidden * shape.expert_intermediate * (shape.layers - shape.dense_layers)
    assert shape.parameters - shape.active_parameters == idle, "two of the four experts work"


def test_the_72b_model_has_its_parameters() -> None:
    assert plan.Shape.read(MODEL_72B).parameters == 72_706_203_648


def bytes_kept_for_backward(policy: TokenLogprobs, num_tokens: int) -> int:
    """Storage of every activation that autograd keeps after a forward pass, each counted once."""
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no storage is freed and its address used again
        return tensor

    ids = torch.randint(0, 512, (1, num_tokens))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy(ids, torch.arange(num_tokens)[None], ids)
    return sum(kept.values())


@pytest.mark.parametrize("num_tokens", [512, 1024])
def test_activations_without_checkpointing_are_what_autograd_keeps(tmp_path: Path, num_tokens: int) -> None:
    model = build_model(hidden=256, heads=8, kv_heads=4, layers=4)
    model.set_attn_implementation(register_document_attention())
    shape = shape_of(model, tmp_path)
    measured = bytes_kept_for_backward(TokenLogprobs(model.train(), chunk=64), num_tokens)
    estimated = 4 * shape.layers * plan.layer_activation_elements(shape, tile=0, tokens=num_tokens)
    assert measured == pytest.approx(estimated, rel=0.1)


def test_checkpointing_and_tiles_save_what_the_plan_says(tmp_path: Path) -> None:
    model = build_model(hidden=256, heads=8, kv_heads=4, layers=4)
    model.set_attn_implementation(register_document_attention())
    shape, num_tokens = shape_of(model, tmp_path), 1024
    tile_mlps(model, 128)
    tiled = bytes_kept_for_backward(TokenLogprobs(model.train(), chunk=64), num_tokens)
    wide = 4 * shape.layers * 4 * shape.intermediate * num_tokens
    whole = 4 * shape.layers * plan.layer_activation_elements(shape, tile=0, tokens=num_tokens)
    assert tiled == pytest.approx(whole - wide, rel=0.12)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = bytes_kept_for_backward(TokenLogprobs(model.train(), chunk=64), num_tokens)
    inputs = 4 * (shape.layers + 3) * num_tokens * shape.hidden  # and around the last norm
    assert checkpointed == pytest.approx(inputs, rel=0.15)


def test_flops_of_short_sequences_are_six_a_parameter_and_token() -> None:
    shape = plan.Shape.read(MODEL_72B)
    assert plan.step_flops(shape, [100] * 50, recompute=False) == pytest.approx(6 * shape.parameters * 5000, rel=0.01)
    one, two = (plan.step_flops(shape, lengths, False) for lengths in ([131_072], [65_536] * 2))
    attention = one - 6 * shape.parameters * 131_072
    assert attention == pytest.approx(2 * (two - 6 * shape.parameters * 131_072))


@pytest.mark.parametrize(
    ("name", "context", "turns", "lr", "eps_high"),
    [("rft", 65_536, 40, 5e-6, 0.3), ("stage1", 65_536, 40, 1e-6, 0.3), ("stage2", 131_072, 80, 1e-6, 0.26)],
)
def test_the_papers_recipe_is_valid_and_fits(name: str, context: int, turns: int, lr: float, eps_high: float) -> None:
    run = Settings.model_validate(tomllib.loads((ROOT / "configs" / f"paper-{name}.toml").read_text()))
    assert (run.model.max_context, run.episode.max_turns, run.learner.lr) == (context, turns, lr)
    assert (run.learner.loss.eps_low, run.learner.loss.eps_high) == (0.2, eps_high)
    assert (run.replay.group_size, run.episode.temperature, run.learner.grad_clip) == (10, 1.0, 1.0)
    learner = run.learner
    memory = plan.estimate(
        plan.Shape.read(MODEL_72B),
        run,
        stage=learner.zero_stage,
        sequence_parallel=learner.sequence_parallel,
        ranks=learner.ranks,
        tokens=learner.pack_tokens,
    )
    assert memory.total < 100 * plan.GIB
