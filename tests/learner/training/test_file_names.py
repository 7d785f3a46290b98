"""The learner's tensors under the names of the model's files, as transformers itself would save them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from learner.checkpoints.export import copy_config
from learner.training.file_names import FileNames, kept_buffers
from tiny.families import save_random_family

PACKED = ("qwen3_moe", "mixtral", "glm4_moe", "deepseek_v3", "granitemoe", "minimax_m2", "gpt_oss", "glm4", "phi3")


@pytest.mark.parametrize("name", PACKED)
def test_every_tensor_is_what_the_models_own_file_holds(tmp_path: Path, name: str) -> None:
    path = save_random_family(tmp_path, name)
    model = AutoModelForCausalLM.from_pretrained(path)
    names = FileNames(model)
    for _ in range(2):  # the second time from what it remembers
        ours = {n: t for key, parameter in model.named_parameters() for n, t in names.of(key, parameter.detach())}
        ours |= {n: t for key, buffer in kept_buffers(model) for n, t in names.of(key, buffer)}
        theirs = load_file(path / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_an_export_of_experts_loads_again(tmp_path: Path) -> None:
    path = save_random_family(tmp_path / "source", "deepseek_v3")
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    names = FileNames(model)
    tensors = [*((k, p.detach()) for k, p in model.named_parameters()), *kept_buffers(model)]
    exported = {n: t.contiguous() for key, tensor in tensors for n, t in names.of(key, tensor)}
    target = tmp_path / "export"
    target.mkdir()
    save_file(exported, target / "model.safetensors", metadata={"format": "pt"})
    copy_config(path, target, torch.float32)
    again = AutoModelForCausalLM.from_pretrained(target)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_an_exported_configuration_is_the_sources_own(tmp_path: Path) -> None:
    path = save_random_family(tmp_path / "source", "qwen2-yarn")
    source = json.loads((path / "config.json").read_text()) | {"unknown_to_transformers": {"a": [1]}}
    (path / "config.json").write_text(json.dumps(source))
    target = tmp_path / "export"
    target.mkdir()
    copy_config(path, target, torch.bfloat16)
    written = json.loads((target / "config.json").read_text())
    added = {"dtype": "bfloat16", "torch_dtype": "bfloat16", "rope_theta": 1e4}
    assert written == source | added
    old, new = AutoConfig.from_pretrained(path), AutoConfig.from_pretrained(target)
    assert new.dtype == torch.bfloat16
    assert new.rope_parameters == old.rope_parameters
