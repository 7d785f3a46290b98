"""Which reference models are taken, and which are refused before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from learner.training.reference import checked_reference
from protocol.config import Settings
from protocol.errors import ConfigError
from tiny.model import build_tokenizer, save_random_model


def run_with(start: Path, **loss: object) -> Settings:
    return Settings.model_validate({"model": {"path": str(start)}, "learner": {"loss": loss}})


def test_the_reference_is_the_start_or_the_model_that_was_named_and_only_where_a_loss_asks(tmp_path: Path) -> None:
    start, other = save_random_model(tmp_path / "start"), save_random_model(tmp_path / "other", layers=1)
    assert checked_reference(run_with(start), 1) is None
    assert checked_reference(run_with(start, kl_coef=0.1), 1) == start
    assert checked_reference(run_with(start, kl_coef=0.1, reference=other), 2) == other
    assert checked_reference(run_with(start, name="distill", reference=other), 2) == other


def test_another_tokenizer_other_heads_under_ulysses_and_no_model_are_refused(tmp_path: Path) -> None:
    start, other = save_random_model(tmp_path / "start"), save_random_model(tmp_path / "other", kv_heads=4)
    asked = run_with(start, kl_coef=0.1, reference=other)
    assert checked_reference(asked, 1) == other
    with pytest.raises(ConfigError, match="other attention heads"):
        checked_reference(asked, 2)
    build_tokenizer(["quite another text, with other words"] * 9, vocab_size=300).save_pretrained(other)
    with pytest.raises(ConfigError, match="its tokenizer is not that of"):
        checked_reference(asked, 1)
    shutil.rmtree(other)
    with pytest.raises(ConfigError, match="to be a tokenizer"):
        checked_reference(asked, 1)
