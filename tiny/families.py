"""Two-layer random models of the families that people train, with the tiny tokenizer: for tests of what is exact.

`FAMILIES` names each by its `model_type`, with a suffix where one type has several forms. Shapes are small but not
degenerate: two key-value heads under four query heads, windows shorter than a document, four experts of which two work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tiny.model import build_tokenizer

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
_SHARED: dict[str, Any] = _EXPERTS | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_GATED_DELTA: dict[str, Any] = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"],
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2-yarn": {"max_position_embeddings": 128, "rope_parameters": _YARN},
    "qwen2-windowed": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "qwen3": {},
    "llama": {},
    "mistral": {"sliding_window": None},
    "mistral-windowed": {"sliding_window": 16},
    "ministral": {"sliding_window": 16},
    "olmo2": {},
    "olmo3": {"sliding_window": 16},
    "smollm3": {},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.2},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 16},
    "gemma": {},
    "gemma2": {"sliding_window": 16, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 32},
    "phi3": {"resid_pdrop": 0.1, "sliding_window": None},
    "seed_oss": {"attention_dropout": 0.1, "residual_dropout": 0.1},
    "starcoder2": {"residual_dropout": 0.1},
    "glm4": {},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "qwen3_moe": {"num_experts": 4, **_EXPERTS},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 3.0},
    "glm4_moe": _SHARED,
    "deepseek_v3": _SHARED
    | {
        "topk_method": "noaux_tc",  # with a correction of scores: vLLM makes room for it only where this is said
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "num_key_value_heads": 4,
        "head_dim": 32,
    },
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": {"num_experts": 4, "shared_expert_intermediate_size": 48, **_EXPERTS, **_GATED_DELTA},
    "qwen3_5_text": _GATED_DELTA,
    "mamba": {},
    "bloom": {},
    "opt": {},
    "llama4_text": {"attention_chunk_size": 16, "num_local_experts": 4},
}


NOISY = frozenset(("phimoe",))
"""Those that no configuration gives away: they add noise while they train, and a run's self-test refuses them."""


def family_config(name: str) -> PreTrainedConfig:
    """The configuration of `FAMILIES[name]`."""
    tokens = {"vocab_size": len(build_tokenizer()), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    tied = {"tie_word_embeddings": name.startswith(("gemma", "cohere"))}
    config: PreTrainedConfig = CONFIG_MAPPING[name.partition("-")[0]](**(SHAPE | tokens | tied | FAMILIES[name]))
    return config


def save_random_family(path: Path, name: str, seed: int = 0) -> Path:
    """Write a random model of `FAMILIES[name]` as a Hugging Face directory, every kind of parameter away from its start
    (sinks and correction biases included, which begin at zero).
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family_config(name), attn_implementation="eager").float()
    move_from_start(model)
    model.save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path


def move_from_start(model: torch.nn.Module) -> None:
    """Draw every matrix anew, and what begins at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
            elif not bool(parameter.any()):
                parameter.normal_(0, 0.5)
