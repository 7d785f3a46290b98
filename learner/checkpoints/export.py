"""What a Hugging Face directory holds beside the weights: the source's own configuration and tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


def copy_config(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Write the source's `config.json` as it is, for weights of `dtype`.

    Saving the loaded one would add what transformers made of it. The rope's base also stands at the top, where readers
    before transformers 5 look for it.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = config["torch_dtype"] = str(dtype).removeprefix("torch.")  # the new and the old spelling
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer and its chat template to another model directory, byte for byte.

    Loading and saving them instead would let transformers add the special tokens of the model's family.
    """
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
