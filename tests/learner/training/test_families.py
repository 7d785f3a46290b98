"""Families of models: trained exactly, or refused with the reason. Learner's own path, packed, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.models.table import table
from learner.training.attention import register_document_attention
from learner.training.logprobs import TokenLogprobs
from learner.training.noise import silence
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
LENGTHS = (40, 33, 64)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else save_random_family(path, name)

    return make


def learner_differences(path: Path) -> list[float]:
    """Largest difference of log-probs in each packed document, as the learner computes them, from the plain model's."""
    plain = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    trained = AutoModelForCausalLM.from_pretrained(path, attn_implementation=register_document_attention()).train()
    silence(trained)
    drawn = torch.Generator().manual_seed(1)
    documents = [torch.randint(3, plain.config.vocab_size, (n,), generator=drawn) for n in LENGTHS]
    ids, positions = torch.cat(documents), torch.cat([torch.arange(n) for n in LENGTHS])
    targets = torch.cat([d.roll(-1) for d in documents])
    with torch.no_grad():
        packed, *_ = TokenLogprobs(trained, chunk=50)(ids[None], positions[None], targets[None])
        alone = [
            plain(input_ids=d[None]).logits[0, :-1].log_softmax(-1).gather(1, d[1:, None])[:, 0] for d in documents
        ]
    return [float((p[:-1] - a).abs().max()) for p, a in zip(packed[0].split(LENGTHS), alone, strict=True)]


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
    assert refused == set(REFUSED), "what is trained wrongly is refused, and nothing else"
    page = Path(__file__).parents[3] / "docs" / "30-own-model.md"
    assert "\n".join(said) in page.read_text(), "python -m benchmarks.models.table"
