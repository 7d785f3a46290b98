"""Wrappers of a language model: their text part is exact, and an export keeps all the rest byte for byte."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from benchmarks.models.in_learner import learner_differences
from learner.checkpoints.export import copy_config, copy_tokenizer
from learner.checkpoints.wrapper import copy_wrapper, is_text_part, text_part, whole
from learner.training.file_names import FileNames
from protocol.errors import ConfigError
from protocol.model_family import TEXT_PARTS, ModelFamily, wrapper_type
from tiny.model import save_random_model
from tiny.wrappers import WRAPPERS, save_random_wrapper

TRAINED = sorted(TEXT_PARTS)
IDS = torch.arange(30, 90)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wrappers")


def wrapper_of(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        save_random_wrapper(path, name)
        (path / "preprocessor_config.json").write_text('{"size": 28}')
    return path


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


def raw(directory: Path) -> dict[str, tuple[str, bytes]]:
    """Dtype and bytes of every tensor in a directory's files."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                tensor = file.get_tensor(name)
                found[name] = str(tensor.dtype), tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return found


def is_text(name: str) -> bool:
    return bool(re.match(r"(model\.)?(language_model\.)?(model\.)?(embed_tokens|layers|norm|lm_head)\.", name))


def export(part: Path, target: Path, causal_lm: Any, dtype: torch.dtype = torch.float32) -> None:
    """As a checkpoint's writer does it."""
    names = FileNames(causal_lm)
    trained = dict(named for n, p in causal_lm.named_parameters() for named in names.of(n, p.detach().to(dtype)))
    target.mkdir()
    save_file(whole(part, trained), target / "model.safetensors", metadata={"format": "pt"})
    copy_config(copy_wrapper(part, target), target, dtype)
    copy_tokenizer(part, target)


@pytest.mark.parametrize("name", TRAINED)
def test_the_text_part_is_the_wrapper_where_there_is_only_text(folder: Path, name: str) -> None:
    wrapper = wrapper_of(folder, name)
    assert wrapper_type(wrapper) == name
    ModelFamily.read(wrapper).check_trained(max_context=256, lora_rank=0)
    part = text_part(wrapper, folder / "cache")
    assert is_text_part(part) and not wrapper_type(part) and text_part(wrapper, folder / "cache") == part
    family = ModelFamily.read(part)
    family.check_trained(max_context=256, lora_rank=0)
    family.check_pushed()
    assert not family.wraps
    own = AutoModelForCausalLM.from_pretrained(part, attn_implementation="eager")
    theirs = AutoModelForImageTextToText.from_pretrained(wrapper, attn_implementation="eager")
    assert float((logits(own) - logits(theirs)).abs().max()) < 2e-5
    assert max(learner_differences(part)) < 2e-5, "packed, as the learner computes it"


@pytest.mark.parametrize("name", TRAINED)
def test_an_export_is_the_wrapper_with_what_was_trained(folder: Path, name: str) -> None:
    wrapper = wrapper_of(folder, name)
    part = text_part(wrapper, folder / "cache")
    moved = AutoModelForCausalLM.from_pretrained(part, attn_implementation="eager")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    target = folder / f"{name}-exported"
    export(part, target, moved)
    before, after = raw(wrapper), raw(target)
    assert before.keys() == after.keys()
    rest = {n for n in before if not is_text(n)}
    assert rest and all(before[n] == after[n] for n in rest), "byte for byte"
    assert all(before[n] != after[n] for n in before.keys() - rest)
    config, source = (json.loads((path / "config.json").read_text()) for path in (target, wrapper))
    assert source.items() <= config.items() and config.keys() - source.keys() <= {"torch_dtype", "rope_theta"}
    assert (target / "preprocessor_config.json").read_text() == '{"size": 28}'
    again = AutoModelForImageTextToText.from_pretrained(target, attn_implementation="eager")
    assert float((logits(again) - logits(moved)).abs().max()) < 2e-5
    following = text_part(target, folder / "cache")
    assert following != part, "the next run begins from it"
    assert raw(following) == {n: ("torch.float32", t.numpy().tobytes()) for n, t in _bytes_of(moved).items()}


def _bytes_of(causal_lm: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in causal_lm.named_parameters()}


def test_what_was_not_trained_keeps_its_own_precision_and_files_may_be_many(folder: Path) -> None:
    wrapper = folder / "two-files"
    shutil.copytree(wrapper_of(folder, "llava"), wrapper)
    tensors = load_file(wrapper / "model.safetensors")
    (wrapper / "model.safetensors").unlink()
    halves = {n: t if is_text(n) else t.half() for n, t in tensors.items()}
    first = dict(list(halves.items())[: len(halves) // 2])
    save_file(first, wrapper / "model-1.safetensors", metadata={"format": "pt"})
    save_file({n: t for n, t in halves.items() if n not in first}, wrapper / "model-2.safetensors", {"format": "pt"})
    part = text_part(wrapper, folder / "cache")
    export(part, folder / "bfloat16", AutoModelForCausalLM.from_pretrained(part), torch.bfloat16)
    kinds = {(is_text(n), dtype) for n, (dtype, _) in raw(folder / "bfloat16").items()}
    assert kinds == {(True, "torch.bfloat16"), (False, "torch.float16")}
    before = raw(wrapper)
    assert all(before[n] == t for n, t in raw(folder / "bfloat16").items() if not is_text(n))


@pytest.mark.parametrize("name", ["gemma3", "llava", "mistral3", "qwen2_5_vl"])
def test_the_names_of_newer_files_are_known_too(folder: Path, name: str) -> None:
    wrapper, renamed = wrapper_of(folder, name), folder / f"{name}-renamed"
    shutil.copytree(wrapper, renamed)
    plain = text_part(wrapper, folder / "cache")

    def newer(old: str) -> str:
        if not is_text(old):
            return f"model.{old}"
        found = re.sub(r"^(language_model\.)?(model\.)?", "", old)
        return found if found.startswith("lm_head") else f"model.language_model.{found}"

    tensors = {newer(n): t for n, t in load_file(wrapper / "model.safetensors").items()}
    save_file(tensors, renamed / "model.safetensors", metadata={"format": "pt"})
    assert raw(text_part(renamed, folder / "cache")) == raw(plain)


def test_a_chat_template_of_the_processor_is_that_of_the_text_part(folder: Path) -> None:
    wrapper = folder / "template"
    shutil.copytree(wrapper_of(folder, "llava"), wrapper)
    for path in wrapper.glob("chat_template*"):
        path.unlink()
    (wrapper / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    assert (text_part(wrapper, folder / "cache") / "chat_template.jinja").read_text() == "{{ messages }}"


def test_files_that_are_not_those_of_the_configuration_are_refused_and_leave_nothing(folder: Path) -> None:
    wrapper = folder / "lacks"
    shutil.copytree(wrapper_of(folder, "llava"), wrapper)
    tensors = load_file(wrapper / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.1.mlp.up_proj.weight") and is_text(n))
    del tensors[name]
    save_file(tensors, wrapper / "model.safetensors", metadata={"format": "pt"})
    cache = folder / "empty"
    sentence = (
        r"a llama, is not what its files hold: model\.layers\.1\.mlp\.up_proj\.weight is missing instead of \(96,"
    )
    with pytest.raises(ConfigError, match=sentence):
        text_part(wrapper, cache)
    assert not list(cache.iterdir())


def test_other_wrappers_and_plain_models_have_no_text_part(folder: Path, tmp_path: Path) -> None:
    assert sorted(set(WRAPPERS) - set(TRAINED)) == ["paligemma"]
    other = wrapper_of(folder, "paligemma")
    assert not wrapper_type(other) and not wrapper_type(save_random_model(tmp_path / "plain"))
    assert not wrapper_type(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="wraps a language model beside other inputs, whose text part is trained for"):
        ModelFamily.read(other).check_trained(max_context=256, lora_rank=0)
