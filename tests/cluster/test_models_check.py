"""The verdict on a model directory, and what checks before the start refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.memory import needed_gib
from cluster.models_check import main, settings_for
from cluster.preflight import check_model
from protocol.errors import ConfigError
from tiny.families import save_random_family
from tiny.model import save_random_model
from tiny.wrappers import save_random_wrapper


def altered(model: Path, **changes: object) -> Path:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return model


def test_a_model_that_can_be_trained_gets_a_verdict_by_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(save_random_model(tmp_path))]) == 0
    said = capsys.readouterr().out
    for part in ("Qwen2ForCausalLM", "generators", "learner", "optimizer", "keys and values", "Exact"):
        assert part in said
    assert "Refused" not in said


def test_a_wrapper_whose_text_part_is_trained_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(save_random_wrapper(tmp_path, "mistral3")), "--max-context", "256"]) == 0
    assert "its text part is what a run has; a checkpoint keeps all the rest as it is" in capsys.readouterr().out


def test_another_wrapper_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(save_random_wrapper(tmp_path, "paligemma")), "--max-context", "256"]) == 1
    assert "whose text part is trained for gemma3, llava, mistral3, qwen2_5_vl, qwen3_vl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("qwen3_5_text", [], "carry a state from one packed document into the next"),
        ("qwen3_moe", ["--lora-rank", "4"], "adapters (learner.lora_rank 4) leave out its 4 experts"),
        ("gpt_oss", [], "the names of its 4 experts are not translated"),
        ("qwen2-windowed", [], "windows on all of its layers or on none"),
        ("qwen3", ["--max-context", "9000"], "the model knows 512 positions"),
    ],
)
def test_what_is_refused_is_said_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str], sentence: str
) -> None:
    context = [] if "--max-context" in arguments else ["--max-context", "256"]
    assert main([str(save_random_family(tmp_path, name)), *arguments, *context]) == 1
    assert sentence in capsys.readouterr().out


def test_a_directory_without_a_model_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().out


def test_a_run_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model = save_random_model(tmp_path)
    check_model(settings_for(model, 256))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="no chat template"):
        check_model(settings_for(model, 256))


def test_a_run_whose_heads_are_too_small_for_the_cpu_is_refused(tmp_path: Path) -> None:
    model = altered(save_random_model(tmp_path), head_dim=16, hidden_size=64)
    with pytest.raises(ConfigError, match="heads of size 16"):
        check_model(settings_for(model, 256))


def test_an_evaluation_asks_for_no_learner_and_an_endpoint_for_no_generator(tmp_path: Path) -> None:
    settings = settings_for(save_random_model(tmp_path), 256)
    training = needed_gib(settings, on_gpu=False)
    evaluation = needed_gib(settings.model_copy(update={"phase": "eval"}), on_gpu=False)
    asked = settings.eval.model_copy(update={"endpoint": "http://127.0.0.1:1/v1"})
    endpoint = needed_gib(settings.model_copy(update={"phase": "eval", "eval": asked}), on_gpu=False)
    assert training.keys() - evaluation.keys() == {"learner", "published weights"}
    assert evaluation.keys() - endpoint.keys() == {"generators"}
    assert evaluation["generators"] < training["generators"]


def test_a_device_takes_what_is_trained_off_the_host(tmp_path: Path) -> None:
    settings = settings_for(save_random_model(tmp_path), 2048)
    host, device = (needed_gib(settings, on_gpu=on_gpu) for on_gpu in (False, True))
    assert device["learner"] <= host["learner"]
    assert device["published weights"] == host["published weights"] / 2
