"""Small random models that wrap a language model beside an encoder of images: for tests of their text part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tiny.families import SHAPE, move_from_start
from tiny.model import build_tokenizer

_IMAGES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_IMAGES: dict[str, Any] = {
    "hidden_size": 64,
    "out_hidden_size": 64,
    "intermediate_size": 96,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 14,
}
_QWEN_TOKENS = {"image_token_id": 20, "video_token_id": 21, "vision_start_token_id": 22, "vision_end_token_id": 23}
_SECTIONS: dict[str, Any] = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}

WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {"sliding_window": 16, "query_pre_attn_scalar": 32},
        "vision_config": _IMAGES | {"model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_index": 20,
        "boi_token_index": 21,
        "eoi_token_index": 22,
        "tie_word_embeddings": True,
    },
    "llava": {
        "text_config": {"model_type": "llama"},
        "vision_config": _IMAGES | {"model_type": "clip_vision_model", "projection_dim": 64},
        "image_token_index": 20,
        "image_seq_length": 4,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "sliding_window": None},
        "vision_config": _IMAGES | {"model_type": "pixtral", "head_dim": 32},
        "image_token_index": 20,
    },
    "qwen2_5_vl": {
        "text_config": {"hidden_size": 128, "rope_parameters": _SECTIONS},
        "vision_config": _QWEN_IMAGES | {"out_hidden_size": 128, "fullatt_block_indexes": [1], "window_size": 56},
        **_QWEN_TOKENS,
    },
    "qwen3_vl": {
        "text_config": {"rope_parameters": _SECTIONS | {"mrope_interleaved": True}},
        "vision_config": _QWEN_IMAGES | {"deepstack_visual_indexes": [0]},
        **_QWEN_TOKENS,
    },
    "paligemma": {
        "text_config": {"model_type": "gemma"},
        "vision_config": _IMAGES | {"model_type": "siglip_vision_model", "projection_dim": 64},
        "image_token_index": 20,
    },
}


def wrapper_config(name: str) -> PreTrainedConfig:
    """The configuration of `WRAPPERS[name]`."""
    asked = WRAPPERS[name]
    tied = bool(asked.get("tie_word_embeddings", False))
    tokens = {"vocab_size": len(build_tokenizer()), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = SHAPE | tokens | {"tie_word_embeddings": tied} | asked["text_config"]
    config: PreTrainedConfig = CONFIG_MAPPING[name](**(asked | {"text_config": text, "tie_word_embeddings": tied}))
    return config


def save_random_wrapper(path: Path, name: str, seed: int = 0) -> Path:
    """Write a random model of `WRAPPERS[name]` as a Hugging Face directory."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(wrapper_config(name), attn_implementation="eager").float()
    move_from_start(model)
    model.save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path
