"""Models that wrap a language model beside other inputs: the text part is a model of its own while a run trains it, and
a checkpoint is the whole again, all that was not trained byte for byte as it was.

    wrapper directory -> text_part -> a plain model directory, with the rest and every name in `wrapper/` below it
    trained tensors of that -> whole -> tensors of the wrapper

Tokens of text alone give the same log-probs in both: rotations in several dimensions are plain where all of a token's
positions are equal, and only images see each other both ways.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.checkpoints.export import copy_tokenizer
from protocol.errors import ConfigError, border
from protocol.model_family import TEXT_PARTS, wrapper_type

if TYPE_CHECKING:  # checks before a start read this module without loading torch
    from torch import Tensor
    from transformers import PreTrainedConfig

_REST = "wrapper"
_NAMES = "names.json"
_INDEX = "model.safetensors.index.json"
Shapes = dict[str, tuple[int, ...]]
_HEADS_BY_WIDTH = frozenset(("qwen2_5_vl",))
"""Wrappers whose attention takes the size of a head from the width alone, whatever `head_dim` says."""
_TEXT_NAMES = (
    (re.compile(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?(?=(?:embed_tokens|layers|norm)\.)"), "model."),
    (re.compile(r"^(?:language_model\.)?(?=lm_head\.)"), ""),
)


def text_part(wrapper: Path, cache: Path) -> Path:
    """The text part of a wrapper as a model directory in `cache`, made once for these files.

    Raises:
        ConfigError: it is no wrapper whose text part is known, its files are not those of its configuration, or there
            is no room.
    """
    target = cache / _key(wrapper)
    if target.is_dir():
        return target
    with border(ConfigError, f"to take the text part of {wrapper} to {cache}", kind="model"):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="partial-") as made:
            folder = Path(made) / "model"
            (folder / _REST).mkdir(parents=True)
            _write_config(wrapper, folder, _write_tensors(wrapper, folder))
            copy_tokenizer(wrapper, folder)
            _copy_chat_template(wrapper, folder)
            for path in sorted(wrapper.glob("*.json")):
                if not path.name.endswith(".index.json"):
                    shutil.copyfile(path, folder / _REST / path.name)
            if not target.is_dir():  # another run may have been quicker
                folder.rename(target)
    return target


def is_text_part(directory: Path) -> bool:
    """Whether `text_part` made this model directory."""
    return (directory / _REST / _NAMES).is_file()


def whole(part: Path, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the wrapper's files: `trained` by their names there, and the rest as it was."""
    from safetensors import safe_open

    names: dict[str, str] = json.loads((part / _REST / _NAMES).read_text(encoding="utf-8"))
    tensors = {names[name]: tensor for name, tensor in trained.items()}
    for path in sorted((part / _REST).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return tensors


def copy_wrapper(part: Path, target: Path) -> Path:
    """Copy what else the wrapper's directory held to an export; the directory that its `config.json` is in."""
    for path in sorted((part / _REST).glob("*.json")):
        if path.name not in (_NAMES, "config.json"):
            shutil.copyfile(path, target / path.name)
    return part / _REST


def _key(wrapper: Path) -> str:
    """Of the very files: one that was replaced has another text part."""
    files = [wrapper / "config.json", *sorted(wrapper.glob("*.safetensors"))]
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def _text_name(name: str) -> str | None:
    """A tensor's name in the text part; None of the rest."""
    return next((pattern.sub(prefix, name) for pattern, prefix in _TEXT_NAMES if pattern.match(name)), None)


def _write_tensors(wrapper: Path, folder: Path) -> Shapes:
    """Every file of the wrapper's weights as two, of its text part and of the rest; what is in the text part."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    names: dict[str, str] = {}
    placed: dict[str, str] = {}
    shapes: Shapes = {}
    for number, path in enumerate(sorted(wrapper.glob("*.safetensors"))):
        with safe_open(path, framework="pt") as file:
            text, rest = {}, {}
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                own = _text_name(name)
                if own is None:
                    rest[name] = file.get_tensor(name)
                else:
                    text[own], names[own] = file.get_tensor(name), name
                    shapes[own] = tuple(text[own].shape)
            if text:
                here = f"model-{number:05}.safetensors"
                save_file(text, folder / here, metadata={"format": "pt"})
                placed |= dict.fromkeys(text, here)
            if rest:
                save_file(rest, folder / _REST / f"rest-{number:05}.safetensors", metadata={"format": "pt"})
    (folder / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / _REST / _NAMES).write_text(json.dumps(names))
    return shapes


def _write_config(wrapper: Path, folder: Path, found: Shapes) -> None:
    """The text part's own `config.json`. Raises `ConfigError` where its tensors are not those in the files."""
    config = _text_config(wrapper, tied="lm_head.weight" not in found)
    config.save_pretrained(folder)
    expected = _shapes(config)
    if apart := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        told = (f"{name} is {found.get(name, 'missing')} instead of {expected.get(name, 'none')}" for name in apart[:3])
        raise ConfigError(
            f"{wrapper}: its text part, a {config.model_type}, is not what its files hold: {', '.join(told)}",
            kind="model",
        )


def _text_config(wrapper: Path, *, tied: bool) -> PreTrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = AutoConfig.from_pretrained(wrapper).get_text_config()
    content: dict[str, Any] = text.to_dict()
    kind = TEXT_PARTS[wrapper_type(wrapper)] or content["model_type"]
    for rope in (content.get("rope_parameters"), content.get("rope_scaling")):
        if isinstance(rope, dict) and rope.pop("mrope_section", None) is not None:
            rope.pop("mrope_interleaved", None)
            rope |= {name: "default" for name in ("rope_type", "type") if rope.get(name) == "mrope"}
    left_out = {"model_type", "architectures"} | ({"head_dim"} if wrapper_type(wrapper) in _HEADS_BY_WIDTH else set())
    content = {key: value for key, value in content.items() if key not in left_out}
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**content | {"tie_word_embeddings": tied})
    config.architectures = [str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])]
    return config


def _shapes(config: PreTrainedConfig) -> Shapes:
    """Of a plain model's tensors, a tied output projection once; nothing is allocated."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        causal_lm: Any = AutoModelForCausalLM.from_config(config)
    return {name: tuple(parameter.shape) for name, parameter in causal_lm.named_parameters()}


def _copy_chat_template(wrapper: Path, folder: Path) -> None:
    """Processors keep it in a file of their own, which tokenizers do not read."""
    path = wrapper / "chat_template.json"
    if path.is_file() and not (folder / "chat_template.jinja").exists():
        template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(template, str):
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
