"""Families of models: trained exactly, or refused with the reason. Learner's own path, packed, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.models.in_learner import learner_differences
from benchmarks.models.table import table
from protocol.errors import ConfigError
from protocol.model_family import ModelFamily
from tiny.families import FAMILIES, NOISY, save_random_family

REFUSED = {
    "qwen3_next": "linear_attention layers carry a state",
    "qwen3_5_text": "linear_attention layers carry a state",
    "mamba": "recurrent layers",
    "bloom": "num_attention_heads",
    "opt": "counts positions by itself",
    "llama4_text": "attention in chunks",
}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else save_random_family(path, name)

    return make


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(REFUSED) - NOISY))
def test_packed_log_probs_are_the_models_own(model_of, name: str) -> None:
    path = model_of(name)
    ModelFamily.read(path).check_trained(max_context=512, lora_rank=0)
    assert max(learner_differences(path)) < 2e-5


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_family_that_would_train_wrongly_is_refused_by_its_configuration(model_of, name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]):
        ModelFamily.read(model_of(name)).check_trained(max_context=512, lora_rank=0)


@pytest.mark.parametrize("name", sorted(NOISY))
def test_what_no_configuration_tells_is_wrong_indeed(model_of, name: str) -> None:
    path = model_of(name)
    ModelFamily.read(path).check_trained(max_context=512, lora_rank=0)
    assert max(learner_differences(path)) > 1e-3


def test_the_docs_table_of_families_is_what_the_checks_say() -> None:
    said = table()
    refused = {line.split("`")[1] for line in said[2:] if "| refused: " in line.rpartition("| -")[0]}
    assert refused == {*REFUSED, "paligemma"}, "what is trained wrongly is refused, and nothing else"
    page = Path(__file__).parents[3] / "docs" / "30-own-model.md"
    assert "\n".join(said) in page.read_text(), "python -m benchmarks.models.table"
