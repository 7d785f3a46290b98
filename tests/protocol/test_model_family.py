"""What a `config.json` says of a model, in the spellings that are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from protocol.errors import ConfigError
from protocol.model_family import ModelFamily, wrapper_type

PLAIN: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def family(folder: Path, **changes: Any) -> ModelFamily:
    (folder / "config.json").write_text(json.dumps(PLAIN | changes))
    return ModelFamily.read(folder)


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, 1024),
        ({"rope_scaling": YARN}, 4096),  # as model cards say
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 4096),  # as they said before
        ({"rope_parameters": YARN | {"rope_theta": 1e6}}, 4096),  # as transformers 5 writes
        ({"rope_parameters": YARN, "max_position_embeddings": 4096}, 4096),  # already stretched
        ({"rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}}, 4096),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}}, 1024),
        ({"rope_scaling": {"rope_type": "default"}, "rope_parameters": None}, 1024),
        ({"rope_scaling": None}, 1024),
    ],
)
def test_positions_in_every_spelling(tmp_path: Path, changes: dict[str, Any], positions: int) -> None:
    model = family(tmp_path, **changes)
    assert model.max_positions == positions
    model.check_trained(positions, lora_rank=0)
    with pytest.raises(ConfigError, match=f"the model knows {positions} positions"):
        model.check_served(positions + 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention layers carry a state"),
        ({"model_type": "zamba2", "mamba_d_state": 64}, "recurrent layers"),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "conv layers carry a state"),
        ({"quantization_config": {"quant_method": "awq"}}, "its weights are awq"),
        ({"attention_chunk_size": 8192}, "attention in chunks"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}, "needs code of its own"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "opt"}, "counts positions by itself"),
        ({"model_type": "roberta", "is_decoder": False}, "sees the tokens behind the one that it predicts"),
    ],
)
def test_what_would_train_wrongly_is_refused_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        family(tmp_path, **changes).check_trained(1024, lora_rank=0)


def test_a_wrapper_is_read_by_its_text_part_and_served_but_trained_where_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["SomeVisionModel"], "text_config": PLAIN, "vision_config": {}})
    )
    model = ModelFamily.read(tmp_path)
    assert (model.architecture, model.heads, model.wraps) == ("SomeVisionModel", 4, "unknown")
    model.check_served(1024)
    with pytest.raises(
        ConfigError,
        match="SomeVisionModel wraps a language model beside other inputs, whose text part is trained for gemma3",
    ):
        model.check_trained(1024, lora_rank=0)
    for known in ({"model_type": "mistral3", "text_config": PLAIN}, PLAIN | {"model_type": "qwen2_5_vl"}):
        (tmp_path / "config.json").write_text(json.dumps(known))
        model = ModelFamily.read(tmp_path)
        assert model.wraps == known["model_type"] == wrapper_type(tmp_path)
        model.check_trained(1024, lora_rank=0)


@pytest.mark.parametrize("kind", ["gemma3_text", "llama"])
def test_what_a_wrappers_configuration_leaves_out_is_filled_in_as_transformers_does(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": {"model_type": kind}}))
    found, filled_in = ModelFamily.read(tmp_path), CONFIG_MAPPING[kind]()
    assert (found.hidden, found.layers, found.heads) == (
        filled_in.hidden_size,
        filled_in.num_hidden_layers,
        filled_in.num_attention_heads,
    )
    assert (found.kv_heads, found.intermediate, found.vocab_size) == (
        filled_in.num_key_value_heads or filled_in.num_attention_heads,
        filled_in.intermediate_size,
        filled_in.vocab_size,
    )
    assert (found.max_positions, found.head_size) == (filled_in.max_position_embeddings, filled_in.head_dim)


def test_adapters_and_experts_do_not_go_together(tmp_path: Path) -> None:
    model = family(tmp_path, num_experts=8)
    model.check_trained(1024, lora_rank=0)
    with pytest.raises(ConfigError, match="leave out its 8 experts"):
        model.check_trained(1024, lora_rank=8)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"num_attention_heads": "x"}', '{"text_config": 3}', "\xff"])
def test_what_is_no_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        ModelFamily.read(tmp_path)
    assert "\n" not in str(caught.value)
