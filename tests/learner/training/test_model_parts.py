"""Log-probs in chunks, the schedule, and which ranks share a sequence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.objectives.loss import token_losses
from learner.objectives.parts.objective import TokenTensors
from learner.objectives.samples import Sample
from learner.ranks.layout import Heads, num_ranks, sequence_parallel
from learner.schedule import learning_rate
from learner.training.diagnostics import Diagnostics
from learner.training.logprobs import TokenLogprobs
from learner.training.micro_batch import collate
from learner.training.model import checked_config, vocabulary_of
from protocol.config import LearnerSettings, LossSettings, Settings
from protocol.errors import ConfigError
from tiny.model import build_model, build_tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_log_probs_in_chunks_equal_those_of_the_whole_logits(tied: bool, chunk: int) -> None:
    model = build_model(tied=tied, vocab_size=99)
    ids, targets = torch.randint(0, 99, (2, 1, 20))
    positions = torch.arange(20)[None]
    logprobs, entropy = TokenLogprobs(model, chunk, temperature=0.7, entropy_gradient=True)(ids, positions, targets)
    (logprobs.sum() + entropy.sum()).backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    whole = (model(ids).logits / 0.7).log_softmax(-1)
    expected, plain_entropy = whole.gather(-1, targets[..., None])[..., 0], -(whole.exp() * whole).sum(-1)
    (expected.sum() + plain_entropy.sum()).backward()
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropy, plain_entropy)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_schedule_warms_up_and_follows_half_a_cosine_to_zero() -> None:
    learner = LearnerSettings(lr=1.0, warmup_steps=10, schedule="cosine")
    rates = [learning_rate(step, 110, learner) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0)
    constant = learner.model_copy(update={"schedule": "constant"})
    assert {learning_rate(step, 110, constant) for step in range(10, 110)} == {1.0}


@pytest.mark.parametrize(
    ("heads", "possible"), [(Heads(28, 4), [1, 2, 4]), (Heads(32, 8), [1, 2, 4, 8]), (Heads(64, 8), [1, 2, 4, 8])]
)
def test_ulysses_splits_heads_evenly(heads: Heads, possible: list[int]) -> None:
    assert [n for n in (1, 2, 3, 4, 8) if heads.allow(n)] == possible


def test_as_many_ranks_share_a_sequence_as_the_heads_allow(tmp_path: Path) -> None:
    path = write_config(tmp_path, heads=28, kv_heads=4)
    run = Settings.model_validate({"model": {"path": str(path)}})
    assert [sequence_parallel(run, ranks) for ranks in (1, 2, 3, 4, 8, 12)] == [1, 2, 1, 4, 4, 4]


def test_ranks_that_do_not_go_with_the_heads_are_refused_with_numbers_that_do(tmp_path: Path) -> None:
    path = write_config(tmp_path, heads=28, kv_heads=4)
    run = Settings.model_validate({"model": {"path": str(path)}, "learner": {"sequence_parallel": 8}})
    with pytest.raises(ConfigError, match=r"28 heads and 4 key-value heads.*With 8 ranks these work: 1, 2, 4"):
        sequence_parallel(run, 8)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    run = Settings.model_validate({"model": {"path": str(tmp_path)}})
    with pytest.raises(ConfigError, match=r"no Hugging Face model directory: config\.json"):
        sequence_parallel(run, 2)


def test_ranks_default_to_the_gpus() -> None:
    assert num_ranks(Settings(), num_gpus=8) == 8
    assert num_ranks(Settings.model_validate({"learner": {"ranks": 3}}), num_gpus=8) == 3
    assert num_ranks(Settings(), num_gpus=0) in (1, 2)


def test_diagnostics_say_what_the_tokens_were() -> None:
    logprobs = torch.tensor([-1.0, -1.0, -1.0, -1.0, -9.0])
    behaviour = logprobs - torch.tensor([0.0, 0.5, -0.5, 0.1, 0.0])
    tokens = TokenTensors(
        logprobs, behaviour, torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    )
    loss_settings = LossSettings(eps_low=0.2, eps_high=0.3, band_low=0.65, band_high=1.5)
    two_ranks = [Diagnostics(torch.device("cpu")) for _ in range(2)]
    age = torch.tensor([0, 1, 1, 0, 0])
    losses = token_losses(tokens, loss_settings)
    for diagnostics, part in zip(two_ranks, (slice(0, 2), slice(2, 5)), strict=True):
        some = TokenTensors(logprobs[part], behaviour[part], tokens.advantages[part], tokens.weights[part])
        diagnostics.add(some, torch.full((5,), 2.0)[part], age[part], losses[part], loss_settings)
    two_ranks[0].sums.add_(two_ranks[1].sums)
    figures = two_ranks[0].figures()
    ratios = [1.0, 1.6487, 0.6065, 1.1052]
    assert figures["trained_tokens"] == 4
    assert figures["entropy_mean"] == pytest.approx(2.0)
    assert figures["loss_mean"] == pytest.approx(-(1.0 + 1.3 - 0.8 + 1.1052) / 4, abs=1e-4)
    assert figures["mismatch_abs_mean"] == pytest.approx(1.1 / 4)
    assert figures["fresh_mismatch_abs_mean"] == pytest.approx(0.05)
    assert figures["clipped_high_share"] == figures["clipped_low_share"] == 0.25
    assert figures["outside_band_share"] == 0.5
    assert figures["effective_sample_share"] == pytest.approx(
        sum(ratios) ** 2 / sum(r * r for r in ratios) / 4, abs=1e-4
    )
    assert figures["token_staleness_mean"] == 0.5
    assert figures["ratio_age0_p99"] == pytest.approx(1.1052, rel=0.011)
    assert figures["mismatch_age0_abs_max"] == pytest.approx(0.1, abs=0.006)
    assert [figures[f"mismatch_age1_abs_{of}"] for of in ("mean", "max")] == pytest.approx([0.5, 0.5], abs=0.006)
    assert figures["ratio_age1_p01"] == pytest.approx(0.6065, rel=0.011)


def test_diagnostics_say_how_far_values_are_off_where_there_are_values() -> None:
    three = torch.tensor([1.0, 1.0, 0.0])
    tokens = TokenTensors(three, three, three, three, values=torch.tensor([1.0, 2.0, 9.0]), returns=torch.zeros(3))
    for seen, figure in ((tokens, pytest.approx(2.5**0.5)), (replace(tokens, values=None), None)):
        diagnostics = Diagnostics(torch.device("cpu"))
        diagnostics.add(seen, three, torch.zeros(3), three, LossSettings())
        assert diagnostics.figures().get("value_error_rms") == figure


@pytest.mark.parametrize(
    ("shape", "changes", "kind"),
    [
        ({"vocab_size": 300}, {}, "tokenizer"),
        ({"max_context": 1024}, {}, "context"),
        ({}, {"quantization_config": {"quant_method": "fp8"}}, "model"),
        ({}, {"layer_types": ["linear_attention", "full_attention"]}, "model"),
        ({}, {"attention_chunk_size": 8192}, "model"),
    ],
)
def test_a_model_that_cannot_be_trained_exactly_is_refused_before_it_is_loaded(
    tmp_path: Path, shape: dict[str, int], changes: dict[str, object], kind: str
) -> None:
    build_model(**shape).config.save_pretrained(tmp_path)
    build_tokenizer(["a b c d e f g h i j"] * 3).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    if kind == "tokenizer":
        config["vocab_size"] = vocabulary_of(tmp_path) - 1
        (tmp_path / "config.json").write_text(json.dumps(config))
    run = Settings.model_validate({"model": {"path": str(tmp_path), "max_context": 2048}})
    with pytest.raises(ConfigError) as caught:
        checked_config(tmp_path, run)
    assert caught.value.kind == kind


def write_config(folder: Path, heads: int, kv_heads: int) -> Path:
    config = build_model(max_context=512).config.to_dict() | {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_fresh_tokens_behind_older_ones_are_counted_apart_and_no_token_has_no_figure() -> None:
    def figures_of(ages: list[int], behind: list[bool]) -> dict[str, float]:
        count = len(ages)
        batch = collate([sample_of(ages, behind)], [0], count)
        zeros, ones = torch.zeros(count), torch.ones(count)
        seen = TokenTensors(zeros - 0.5, zeros - 0.3, ones, ones)
        diagnostics = Diagnostics(torch.device("cpu"))
        older = torch.from_numpy(batch.behind_older)
        diagnostics.add(seen, zeros, torch.tensor(ages), zeros, LossSettings(), older)
        return diagnostics.figures()

    def sample_of(ages: list[int], behind: list[bool]) -> Sample:
        zeros, ones = np.zeros(len(ages), np.float32), np.ones(len(ages), np.float32)
        ids = np.ones(len(ages), np.int64)
        return Sample(ids, ids, ones, zeros, ones, np.array(ages, np.int32), np.array(behind))

    mixed = figures_of([0, 2, 0, 0], [False, False, True, True])
    assert mixed["fresh_mismatch_abs_mean"] == pytest.approx(0.2)
    assert mixed["fresh_behind_older_mismatch_abs_mean"] == pytest.approx(0.2)
    assert "fresh_behind_older_mismatch_abs_mean" not in figures_of([0, 0, 1], [False] * 3)
    assert not any(name.startswith("fresh") for name in figures_of([1, 1, 2], [False] * 3))
