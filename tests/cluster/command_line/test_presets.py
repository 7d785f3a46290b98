"""What suits a model is told from its directory, stays below flags and files, and says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.command_line.cli import parse
from cluster.command_line.presets import gpus_gib, preset_for, with_split
from cluster.front_door.main import main
from protocol.config import Settings

ROOT = Path(__file__).parents[3]
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
BIG = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}


def directory(path: Path, template: str = "{{ messages }}", **changes: object) -> Path:
    (path / "config.json").write_text(json.dumps(SMOLLM2 | changes))
    (path / "chat_template.jinja").write_text(template)
    return path


def test_the_model_in_assets_keeps_the_defaults() -> None:
    settings, command_line = parse([f"--model.path={ROOT / 'assets' / 'tiny'}"])
    assert settings == Settings(model=settings.model)
    assert not command_line.from_preset


def test_a_model_that_others_trained_takes_small_steps_and_is_told_of_its_tools(tmp_path: Path) -> None:
    settings, command_line = parse([f"--model.path={directory(tmp_path)}"])
    assert (settings.learner.lr, settings.episode.prompt, settings.episode.max_turns) == (1e-6, "full", 40)
    assert settings.learner.logprob_chunk * 49152 <= 16_384 * 1024
    assert settings.model.max_context <= 8192
    assert any(line.startswith("learner.lr = 1e-06") and "2508.03501" in line for line in command_line.from_preset)


def test_flags_and_files_win_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[model]\npath = "{directory(tmp_path)}"\n[learner]\nlr = 2e-5\n')
    settings, command_line = parse([f"--config={file}", "--episode.max-turns", "12", "--model.max-context=1024"])
    assert (settings.learner.lr, settings.episode.max_turns, settings.model.max_context) == (2e-5, 12, 1024)
    assert settings.learner.betas == (0.9, 0.999)
    assert settings.episode.max_turn_tokens < settings.model.max_context == settings.learner.pack_tokens
    said = "\n".join(command_line.from_preset)
    assert "learner.betas" in said
    assert not any(name in said for name in ("learner.lr", "max_turns", "max_context"))


def test_a_large_model_recomputes_its_activations_and_one_that_thinks_gets_room(tmp_path: Path) -> None:
    model = directory(tmp_path, "{% if enable_thinking %}", **BIG, max_position_embeddings=32768)
    preset = preset_for(model, None, on_gpu=True)
    assert preset is not None and preset.name == "large"
    assert preset.values["learner.gradient_checkpointing"][0] is True
    assert preset.values["model.max_context"][0] == 32768
    assert preset.values["episode.max_turn_tokens"][0] == 4096


def test_what_is_no_model_has_no_preset(tmp_path: Path) -> None:
    assert preset_for(tmp_path, None, on_gpu=False) is None
    settings, _ = parse([f"--model.path={tmp_path}"])
    assert settings == Settings(model=settings.model)


def test_later_stages_of_a_row_take_the_preset_of_the_model_they_begin_with(tmp_path: Path) -> None:
    settings, _ = parse(["--steps", "3"], like=str(directory(tmp_path)))
    assert settings.learner.lr == 1e-6
    assert settings.model.path == Settings().model.path


def test_a_dry_run_says_where_settings_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dry-run", f"--model.path={directory(tmp_path)}"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["learner"]["lr"] == 1e-6
    assert 'episode.prompt = "full"  # preset small: ' in said.err


def test_a_host_of_eight_gpus_is_split_where_nothing_of_that_is_given(tmp_path: Path) -> None:
    model = directory(tmp_path, **BIG, num_key_value_heads=4, max_position_embeddings=32768)
    settings, _ = parse([f"--model.path={model}"])
    preset = preset_for(model, None, on_gpu=True)
    assert preset is not None
    split = with_split(preset, model, settings, set(), [139.0] * 8)
    values = {name: value for name, (value, _) in split.values.items()}
    assert (values["generator.count"], values["generator.tensor_parallel"], values["learner.ranks"]) == (4, 1, 4)
    assert any(line.startswith("learner.ranks = 4  # preset large: 8 GPUs of 139 GiB") for line in split.lines(set()))
    assert with_split(preset, model, settings, {"generator.count"}, [139.0] * 8) is preset
    assert with_split(preset, model, settings, set(), []) is preset
    crowded = with_split(preset, model, settings, set(), [12.0] * 8)
    assert crowded.values == preset.values
    assert any("do not fit on 8 GPUs of 12 GiB" in line for line in crowded.lines(set()))


def test_the_gpus_are_those_that_their_own_program_tells_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 143771\necho 143771\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus_gib() == [143771 / 1024] * 2
    program.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert gpus_gib() == []
    program.unlink()
    assert gpus_gib() == []
