"""What `longhaul plan` prints, and that the docs say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import plan
from cluster.command_line.cli import parse
from cluster.hosts.commands import plan_command
from cluster.models_check import memory_lines
from protocol.model_family import ModelFamily

ROOT = Path(__file__).parents[2]
MODEL_72B = ROOT / "configs" / "models" / "qwen2.5-72b"


COMMANDS = {
    "7b": "--config configs/7b-one-host.toml --model configs/models/qwen2.5-7b --gpus 8 --gpu-gib 74",
    "30b-a3b": "--config configs/30b-a3b-two-hosts.toml --model configs/models/qwen3-30b-a3b",
    "stage1": "--config configs/paper-stage1.toml --model configs/models/qwen2.5-72b --tokens 131072",
    "stage2": "--config configs/paper-stage2.toml --model configs/models/qwen2.5-72b --tokens 131072",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_recipes_tables_are_what_the_command_prints(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = (ROOT / "docs" / "60-recipe.md").read_text()
    assert plan.main(COMMANDS[name].split()) == 0
    assert capsys.readouterr().out.strip() in recipe
    assert f"`longhaul plan {COMMANDS[name]}`" in recipe or name == "stage1", "the page says stage 1 is the same"


def test_the_laptops_memory_is_what_the_checks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    model = "configs/models/smollm2-135m"
    settings, _ = parse(["--config", "configs/smollm2-laptop.toml", "--model.path", model])
    lines = memory_lines(settings, ModelFamily.read(Path(model)), on_gpu=False)
    assert "\n".join(lines).strip() in (ROOT / "docs" / "60-recipe.md").read_text()


def test_a_missing_model_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    config = ROOT / "configs" / "paper-rft.toml"
    assert plan.main(["--config", str(config)]) == 2
    assert "no Hugging Face model directory" in capsys.readouterr().err


def test_a_7b_on_one_host_gets_a_split_without_any_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((MODEL_72B / "config.json").read_text())
    smaller = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    (tmp_path / "config.json").write_text(json.dumps(config | smaller | {"num_key_value_heads": 4}))
    assert plan.main(["--model", str(tmp_path), "--gpus", "8"]) == 0
    said = capsys.readouterr().out
    assert "8 GPUs of 131 GiB: 4 generators of 1 GPUs; 4 learner ranks" in said
    assert "| yes |" in said
    assert plan.main(["--model", str(MODEL_72B), "--gpus", "8"]) == 2
    assert "do not fit on 8 GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("command", [plan.main, plan_command])
def test_a_settings_file_is_read_as_a_run_reads_it(
    command: Callable[[list[str], str], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--hosts", "1:cpus=8,memory=64"] if command is plan_command else []
    for content in ('[[tasks]]\nsource = "micro"\n', "\ufeffsteps = 3\n"):
        (tmp_path / "run.toml").write_text(content, encoding="utf-8")
        assert command(["--config", str(tmp_path / "run.toml"), *more], "plan") == 0
    for content, said in (("learner = 3\n", "--learner: "), ("[learnr]\nlr = 1\n", "did you mean"), ("[", "TOML")):
        (tmp_path / "run.toml").write_text(content, encoding="utf-8")
        assert command(["--config", str(tmp_path / "run.toml"), *more], "plan") == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line


@pytest.mark.parametrize("wrong", [["--gpus", "0"], ["--gpu-gib", "nan"], ["--mfu", "0"], ["--tokens", "-1"]])
def test_numbers_that_cannot_be_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        plan.main(["--model", str(MODEL_72B), *wrong])
