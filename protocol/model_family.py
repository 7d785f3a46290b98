"""What a model is, told from its `config.json` alone, and why it could not be trained or served exactly.

Checks before the start, the engine and the learner all ask here, so that they never disagree. What no configuration
tells is found by the learner's self-test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError

_STATEFUL_KEYS = (
    *("linear_num_value_heads", "linear_attn_config", "mamba_d_state", "mamba_d_ssm", "state_size", "ssm_state_size"),
    *("lru_width", "conv_L_cache", "time_step_rank", "rwkv_hidden_size", "attention_window_size"),
)
_STATEFUL_LAYERS = ("linear", "mamba", "recurrent", "conv", "rwkv", "ssm", "lightning")
_STATEFUL_TYPES = frozenset(("minimax", "minimax_text_01", "rwkv", "mamba", "mamba2", "recurrent_gemma", "kimi_linear"))
_COUNTS_POSITIONS_ITSELF = frozenset(("bloom", "mpt", "opt", "xglm", "gpt_bigcode", "biogpt"))
_READS_BOTH_WAYS = frozenset(
    (
        *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
        *("modernbert", "nezha", "qdqbert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
        *("xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"),
    )
)
_STRETCHED_FROM_ORIGINAL = frozenset(("yarn", "dynamic", "linear"))
_EXPERTS_PUSHED = frozenset(("qwen3_moe", "mixtral", "glm4_moe"))
"""Mixtures of experts whose pushes were held against transformers, tensor by tensor."""
TEXT_PARTS: Mapping[str, str] = {
    "gemma3": "gemma3_text",
    "llava": "",
    "mistral3": "",
    "qwen2_5_vl": "qwen2",
    "qwen3_vl": "qwen3",
}
"""Wrappers of a language model beside other inputs whose text part is trained, held against transformers; by their
`model_type` the text part's as a plain model, empty where that is `text_config`'s own."""
_SPARSE: Mapping[str, Mapping[str, Any]] = {
    "gemma3_text": {
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "llama": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
}
"""What wrappers leave out of a `text_config`: as transformers fills it in."""
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class ModelFamily:
    """A causal language model as its configuration describes it.

    Attributes:
        text: the configuration of the language model itself (`text_config` where the model wraps one).
        wraps: `model_type` of the model that wraps this one beside other inputs; empty where none does.
        max_positions: positions that it knows, stretched by its rope settings (both spellings).
    """

    directory: Path
    architecture: str
    text: Mapping[str, Any]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab_size: int
    max_positions: int
    tied: bool
    num_experts: int
    wraps: str

    @property
    def model_type(self) -> str:
        """Hugging Face's name of the family, such as `qwen3_moe`."""
        return str(self.text.get("model_type", ""))

    @staticmethod
    def read(directory: Path) -> ModelFamily:
        """The family of a model directory. Raises `ConfigError` if its `config.json` describes no language model."""
        whole = _read_json(directory / "config.json")
        kind = str(whole.get("model_type", ""))
        text = whole.get("text_config", whole)
        try:
            if text is not whole and isinstance(text, Mapping):
                text = {**_SPARSE.get(str(text.get("model_type", "")), {}), **text}
            heads = int(text["num_attention_heads"])
            return ModelFamily(
                directory=directory,
                architecture=str(next(iter(whole.get("architectures") or text.get("architectures") or ()), "")),
                text=text,
                hidden=int(text["hidden_size"]),
                layers=int(text["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(text.get("num_key_value_heads") or heads),
                head_size=_head_size(text, heads),
                intermediate=int(text.get("intermediate_size") or 4 * text["hidden_size"]),
                vocab_size=int(text["vocab_size"]),
                max_positions=_max_positions(text),
                tied=bool(text.get("tie_word_embeddings", whole.get("tie_word_embeddings", False))),
                num_experts=next((int(text[key]) for key in _EXPERT_COUNTS if text.get(key)), 0),
                wraps="" if text is whole and kind not in TEXT_PARTS else kind or "unknown",
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                f"{directory}/config.json: expected the configuration of a causal language model (num_attention_heads, "
                f"hidden_size, num_hidden_layers, vocab_size, max_position_embeddings): {error!r}",
                kind="model",
            ) from error

    def check_served(self, max_context: int) -> None:
        """Raise `ConfigError` with every reason why no generator could serve this model to `max_context` tokens."""
        self._refuse(list(self._cannot_be_read()))
        self._refuse(list(self._too_short(max_context)), kind="context")

    def check_trained(self, max_context: int, lora_rank: int) -> None:
        """Raise `ConfigError` with every reason why the learner would not train this model exactly."""
        self._refuse([*self._cannot_be_read(), *self._trained_wrongly(lora_rank)])
        self._refuse(list(self._too_short(max_context)), kind="context")

    def check_pushed(self) -> None:
        """Raise `ConfigError` with every reason why a generator could not take this model's weights as they change."""
        self._refuse(list(self._not_pushed()))

    def _refuse(self, reasons: list[str], kind: str = "model") -> None:
        if reasons:
            raise ConfigError(f"{self.directory} ({self.model_type}): {'; '.join(reasons)}", kind=kind)

    def _cannot_be_read(self) -> Iterator[str]:
        if self.text.get("is_encoder_decoder"):
            yield "encoder-decoder models have no append-only history of tokens: choose a decoder"
        if self.model_type in _READS_BOTH_WAYS and not self.text.get("is_decoder"):
            yield "it sees the tokens behind the one that it predicts (is_decoder is off): choose a decoder"
        if auto_map := self.text.get("auto_map"):
            yield f"it needs code of its own ({min(map(str, auto_map))}), which is never run from a model directory"

    def _not_pushed(self) -> Iterator[str]:
        if self.num_experts and self.model_type not in _EXPERTS_PUSHED:
            yield (
                f"the names of its {self.num_experts} experts are not translated between learner and generators "
                f"(they are for {', '.join(sorted(_EXPERTS_PUSHED))}): evaluate it, or train one of those"
            )
        layers = int(self.text.get("max_window_layers") or self.layers)
        if self.model_type.startswith("qwen2") and self.text.get("use_sliding_window") and layers < self.layers:
            yield "vLLM takes windows on all of its layers or on none (use_sliding_window with max_window_layers)"

    def _too_short(self, max_context: int) -> Iterator[str]:
        if max_context > self.max_positions:
            yield (
                f"model.max_context is {max_context}, but the model knows {self.max_positions} positions: lower it, or "
                "extend the model (rope_scaling of type yarn in its config.json)"
            )

    def _trained_wrongly(self, lora_rank: int) -> Iterator[str]:
        """Reasons that are known; the self-test at the start of a run finds the others."""
        if self.wraps and self.wraps not in TEXT_PARTS:
            yield (
                f"{self.architecture or self.wraps} wraps a language model beside other inputs, whose text part is "
                f"trained for {', '.join(sorted(TEXT_PARTS))}: take one of those, or save its text part as a model of "
                "its own"
            )
        if quantised := self.text.get("quantization_config"):
            method = quantised.get("quant_method", "quantised") if isinstance(quantised, Mapping) else "quantised"
            yield f"its weights are {method}: train from weights that are not quantised"
        if layers := self._stateful_layers():
            yield (
                f"{layers} carry a state from one packed document into the next, so log-probs behind the first would "
                "be wrong: choose a model whose layers all attend"
            )
        if self.text.get("attention_chunk_size"):
            yield "attention in chunks restarts by place in the row, not by document"
        if self.model_type in _COUNTS_POSITIONS_ITSELF:
            yield "it counts positions by itself, across packed documents"
        if lora_rank and self.num_experts:
            yield f"adapters (learner.lora_rank {lora_rank}) leave out its {self.num_experts} experts: set it to 0"

    def _stateful_layers(self) -> str:
        kinds = self.text.get("layer_types") or ()
        if named := sorted({str(kind) for kind in kinds if any(word in str(kind) for word in _STATEFUL_LAYERS)}):
            return f"{', '.join(named)} layers"
        if kinds and all("attention" in str(kind) for kind in kinds):
            return ""
        found = next((key for key in _STATEFUL_KEYS if self.text.get(key)), "")
        if found or self.model_type in _STATEFUL_TYPES:
            return f"recurrent layers ({found or self.model_type})"
        return ""


def _head_size(text: Mapping[str, Any], heads: int) -> int:
    """Of queries and keys; latent attention (DeepSeek) puts it together from a part with and one without positions."""
    if text.get("qk_nope_head_dim"):
        return int(text["qk_nope_head_dim"]) + int(text["qk_rope_head_dim"])
    return int(text.get("head_dim") or text["hidden_size"] // heads)


def _max_positions(text: Mapping[str, Any]) -> int:
    """Positions with the rope's stretching, as vLLM counts them.

    Model cards say `rope_scaling = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": n}` and leave
    `max_position_embeddings` at n; transformers 5 writes `rope_parameters`, and may write the stretched number.
    """
    known = int(text["max_position_embeddings"])
    for rope in _ropes(text.get("rope_scaling")), _ropes(text.get("rope_parameters")):
        for settings in rope:
            if settings.get("rope_type", settings.get("type")) in _STRETCHED_FROM_ORIGINAL:
                original = int(settings.get("original_max_position_embeddings") or known)
                known = max(known, int(original * float(settings.get("factor") or 1.0)))
    return known


def _ropes(given: Any) -> list[Mapping[str, Any]]:
    """One rope, or one for each kind of layer."""
    if not isinstance(given, Mapping):
        return []
    nested = [value for value in given.values() if isinstance(value, Mapping)]
    return nested or [given]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path.parent} is no Hugging Face model directory: config.json: {error.strerror}", kind="model"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not readable JSON: {error}", kind="model") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold a JSON object", kind="model")
    return content


def wrapper_type(directory: Path) -> str:
    """`model_type` of a wrapper whose text part is trained; empty of any other directory."""
    try:
        kind = str(_read_json(directory / "config.json").get("model_type", ""))
    except ConfigError:  # the checks before a start say so
        return ""
    return kind if kind in TEXT_PARTS else ""
