"""Whole learner runs: stopped and continued, on other ranks, after a rank was killed, over batches without signal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learner.checkpoints import checkpoint
from learner.checkpoints.checkpoint import directory
from protocol.config import Settings
from protocol.errors import CheckpointError
from tiny.model import save_random_model

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
STEPS = 4
PPO = {"name": "ppo"}


def settings_of(
    folder: Path, resume: Path | str | None = None, phase: str = "rl", dtype: str = "auto", **learner: object
) -> dict:
    return Settings.model_validate(
        {
            "model": {"path": str(folder / "model"), "max_context": 128, "dtype": dtype},
            "episode": {"max_turn_tokens": 32},
            "steps": STEPS,
            "resume": None if resume is None else str(resume),
            "phase": phase,
            "checkpoint": {"every": 2, "keep": 2},
            "learner": {
                "lr": 1e-3,
                "step_timeout_s": 100,
                "warmup_steps": 2,
                "schedule": "cosine",
                "self_test": False,
                **learner,
            },
            "start_timeout_s": 200,
        }
    ).model_dump(mode="json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process start for all runs; the folder of each holds its checkpoints and `NAME-rank-R.json`."""
    folder = tmp_path_factory.mktemp("runs")
    save_random_model(folder / "model")
    half = folder / "whole" / "checkpoints" / "step-2"
    job = [
        {"name": "whole", "world": 2, "settings": settings_of(folder)},
        {"name": "continued", "world": 2, "settings": settings_of(folder, half)},
        {"name": "one_rank", "world": 1, "settings": settings_of(folder, half, zero_stage=3)},
        {"name": "four_ranks", "world": 4, "settings": settings_of(folder, half, zero_stage=1, sequence_parallel=2)},
        {
            "name": "killed",
            "world": 2,
            "settings": settings_of(folder),
            "batches_until": 3,
            "kill_rank": 1,
            "kill_after": 2,
        },
        {"name": "restarted", "folder": "killed", "world": 2, "settings": settings_of(folder, "auto")},
        {"name": "no_signal", "world": 2, "settings": settings_of(folder), "without_signal": [0, 1, 2, 3]},
        {"name": "no_room", "world": 2, "settings": settings_of(folder)},
        {"name": "beside", "world": 2, "settings": settings_of(folder), "hold_marks": True},
        {
            "name": "best",
            "world": 2,
            "settings": settings_of(folder)
            | {"checkpoint": {"every": 1, "keep": 1, "keep_best": True}, "eval": {"every": 2}},
            "wanted": [1, 1],
        },
        {"name": "full_disk", "world": 2, "settings": settings_of(folder), "full_disk": 1},
        {"name": "ppo", "world": 2, "settings": settings_of(folder, loss=PPO)},
        {
            "name": "ppo_continued",
            "world": 2,
            "settings": settings_of(folder, folder / "ppo" / "checkpoints" / "step-2", loss=PPO),
        },
        {"name": "ppo_without_a_head", "world": 2, "settings": settings_of(folder, half, loss=PPO)},
        {"name": "adapters", "world": 2, "settings": settings_of(folder, lora_rank=4)},
        {"name": "half_precision", "world": 2, "settings": settings_of(folder, dtype="bfloat16")},
        {"name": "rft", "world": 2, "settings": settings_of(folder, phase="rft")},
        {"name": "unproved", "world": 2, "settings": settings_of(folder, self_test=True)},
        {"name": "strict", "world": 2, "settings": settings_of(folder) | {"strict_parity": 1e-4}},
    ]
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "no_room" / "checkpoints").mkdir(parents=True)
    (folder / "no_room" / "checkpoints" / "step-2.partial").touch()  # a file where the directory must go
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("learner_runs.py")), str(folder / "job.json")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def outcome(runs: Path, name: str, rank: int = 0, folder: str = "") -> dict:
    return json.loads((runs / (folder or name) / f"{name}-rank-{rank}.json").read_text())


def weights(run: Path, version: int = STEPS) -> dict[str, torch.Tensor]:
    files = sorted((directory(run) / f"step-{version}").glob("state-*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).detach().abs().max()) for key in first)


def test_a_run_trains_its_steps_and_keeps_complete_checkpoints(runs: Path) -> None:
    result = outcome(runs, "whole")
    assert (result["error"], result["version"]) == ("", STEPS)
    assert [record["step"] for record in result["records"]] == [1, 2, 3, 4]
    assert [record["learning_rate"] for record in result["records"]] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    assert [path.name for path in checkpoint.kept(runs / "whole")] == ["step-2", "step-4"]
    events = [json.loads(line) for line in (runs / "whole" / "server.jsonl").read_text().splitlines()]
    assert [e["done"] for e in events if "done" in e] == [1, 2, 3, 4]
    offset = json.loads((runs / "whole" / "checkpoints" / "step-4" / "replay.json").read_text())
    assert offset == {"journal_offset": 400}


def test_continuing_at_the_same_ranks_is_bit_identical(runs: Path) -> None:
    assert outcome(runs, "continued")["started_at"] == 2
    assert largest_difference(weights(runs / "whole"), weights(runs / "continued")) == 0
    first, second = outcome(runs, "whole")["records"][2:], outcome(runs, "continued")["records"]
    for name in ("loss_mean", "gradient_norm", "entropy_mean", "learning_rate"):
        assert [r[name] for r in first] == [r[name] for r in second]


def test_a_value_head_goes_on_as_it_was(runs: Path) -> None:
    assert outcome(runs, "ppo_continued")["started_at"] == 2
    whole, continued = weights(runs / "ppo"), weights(runs / "ppo_continued")
    assert largest_difference(whole, continued) == 0
    heads = {key: tensor for key, tensor in whole.items() if "value_head" in key}
    assert heads and all(tensor.abs().max() > 0 for tensor in heads.values()), "weights and moments"
    first, second = outcome(runs, "ppo")["records"][2:], outcome(runs, "ppo_continued")["records"]
    assert [r["value_error_rms"] for r in first] == [r["value_error_rms"] for r in second]


def test_a_checkpoint_without_a_value_head_is_none_of_ppo_s(runs: Path) -> None:
    assert "objective ppo has a value head" in outcome(runs, "ppo_without_a_head")["error"]


@pytest.mark.parametrize("name", ["one_rank", "four_ranks"])
def test_continuing_at_other_ranks_and_stages_gives_the_same_weights(runs: Path, name: str) -> None:
    assert outcome(runs, name)["started_at"] == 2
    assert outcome(runs, name)["error"] == ""
    assert largest_difference(weights(runs / "whole"), weights(runs / name)) < 2e-5
    assert weights(runs / "whole", 2).keys() == weights(runs / name).keys()


def test_a_killed_rank_is_named_by_the_others(runs: Path) -> None:
    """As soon as gloo sees the connection close; once, on a loaded host, it saw that only at the step's deadline."""
    result = outcome(runs, "killed", folder="killed")
    assert result["kind"] == "rank_lost"
    assert "rank 1 is gone" in result["error"]


def test_after_a_kill_the_run_goes_on_from_its_last_checkpoint_to_the_same_weights(runs: Path) -> None:
    result = outcome(runs, "restarted", folder="killed")
    assert (result["started_at"], result["version"], result["error"]) == (2, STEPS, "")
    assert largest_difference(weights(runs / "whole"), weights(runs / "killed")) == 0


def test_batches_without_signal_move_the_version_and_never_the_weights(runs: Path) -> None:
    result = outcome(runs, "no_signal")
    assert [record["skipped_batches"] for record in result["records"]] == [1] * STEPS
    for record in result["records"]:
        assert record["version_bytes"] > 0 and record["sent_bytes"] == 0
        assert "delta_share" not in record, "no delta was asked for"
    start = load_file(runs / "model" / "model.safetensors")
    trained = weights(runs / "no_signal")
    for name, tensor in start.items():
        if f"{name}|master" in trained:
            assert torch.equal(trained[f"{name}|master"], tensor)


def test_log_probs_that_are_not_the_learners_end_a_strict_run(runs: Path) -> None:
    result = outcome(runs, "strict")
    assert (result["kind"], result["version"]) == ("parity", 0)
    assert re.search(
        r"differ by 0\.\d+ on average over the tokens that version 0 sampled; .* allows 0\.0001", result["error"]
    )


def test_tokens_that_no_generator_sampled_are_refused_before_the_first_step(runs: Path) -> None:
    result = outcome(runs, "unproved")
    assert (result["kind"], result["version"]) == ("self_test", 0)
    assert "refused before training" in result["error"]


def test_rft_learns_from_successes(runs: Path) -> None:
    records = outcome(runs, "rft")["records"]
    assert [r["left_out_unsolved"] for r in records] == [2] * STEPS
    assert records[0]["loss_mean"] == pytest.approx(6.24, abs=0.2)  # -log(1 / 512): nothing is learned yet


def test_the_export_loads_in_transformers_with_the_trained_weights(runs: Path) -> None:
    exported = checkpoint.latest(runs / "whole") / "hf"
    model = AutoModelForCausalLM.from_pretrained(exported)
    trained = weights(runs / "whole")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[f"{name}|master"]), name
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (exported / name).read_bytes() == (runs / "model" / name).read_bytes()
    assert largest_difference(dict(model.named_parameters()), dict(_start(runs).named_parameters())) > 1e-4


def test_a_checkpoint_that_cannot_be_written_is_counted_and_the_run_goes_on(runs: Path) -> None:
    result = outcome(runs, "no_room")
    assert (result["error"], result["version"]) == ("", STEPS)
    assert result["status"]["failed_checkpoints"] == 1
    assert [path.name for path in checkpoint.kept(runs / "no_room")] == ["step-4"]


def test_training_goes_on_while_a_checkpoint_is_written(runs: Path) -> None:
    assert outcome(runs, "beside")["error"] == ""
    events = [json.loads(line) for line in (runs / "beside" / "server.jsonl").read_text().splitlines()]
    assert events.index({"mark": 2}) > events.index({"done": 3, "version": 3})
    assert (
        largest_difference(weights(runs / "whole", 2), weights(runs / "beside", 2)) == 0
    )  # the cut, not what came after


def test_the_checkpoint_nearest_the_best_score_stays_beside_the_newest(runs: Path) -> None:
    assert outcome(runs, "best")["error"] == ""
    assert [path.name for path in checkpoint.kept(runs / "best")] == ["step-1", f"step-{STEPS}"]


def test_a_rank_without_space_costs_its_checkpoint_and_no_more(runs: Path) -> None:
    result = outcome(runs, "full_disk")
    assert (result["error"], result["version"]) == ("", STEPS)
    assert result["status"]["failed_checkpoints"] == 1
    assert [path.name for path in directory(runs / "full_disk").iterdir()] == ["step-4"]


def test_adapters_are_trained_alone_and_exported_merged(runs: Path) -> None:
    trained = weights(runs / "adapters")
    assert all(".longhaul.weight|" in key for key in trained)
    start = load_file(runs / "model" / "model.safetensors")
    exported = load_file(checkpoint.latest(runs / "adapters") / "hf" / "model.safetensors")
    assert exported.keys() == start.keys()
    changed = {name for name in start if not torch.equal(start[name], exported[name])}
    assert changed == {name for name in start if "_proj.weight" in name}
    name = "model.layers.0.self_attn.q_proj"
    a, b = (trained[f"{name}.lora_{factor}.longhaul.weight|master"] for factor in "AB")
    torch.testing.assert_close(exported[f"{name}.weight"], start[f"{name}.weight"] + 2 * b @ a)


def test_adapters_are_saved_as_peft_has_them_beside_the_merged_export(runs: Path) -> None:
    from peft import PeftModel

    step = checkpoint.latest(runs / "adapters")
    base = AutoModelForCausalLM.from_pretrained(runs / "model")
    put_on = PeftModel.from_pretrained(base, step / "adapter").merge_and_unload().state_dict()
    for name, tensor in load_file(step / "hf" / "model.safetensors").items():
        torch.testing.assert_close(put_on[name], tensor, atol=1e-6, rtol=0)
    assert not (checkpoint.latest(runs / "whole") / "adapter").exists()


def test_bfloat16_computes_beside_float32_master_weights(runs: Path) -> None:
    records, exact = outcome(runs, "half_precision")["records"], outcome(runs, "whole")["records"]
    assert outcome(runs, "half_precision")["error"] == ""
    assert records[0]["gradient_norm"] == pytest.approx(exact[0]["gradient_norm"], rel=0.05)
    masters = weights(runs / "half_precision")
    assert not torch.equal(
        *(masters["model.norm.weight|master"].to(t).float() for t in (torch.bfloat16, torch.float32))
    )
    exported = load_file(checkpoint.latest(runs / "half_precision") / "hf" / "model.safetensors")
    for name, tensor in exported.items():
        assert torch.equal(tensor, masters[f"{name}|master"].bfloat16()), name


def test_a_half_written_checkpoint_is_not_the_latest(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "whole" / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "step-4").rename(tmp_path / "checkpoints" / "step-4.partial")
    assert checkpoint.latest(tmp_path).name == "step-2"
    (tmp_path / "checkpoints" / "step-2" / "checkpoint.json").unlink()
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "missing", "not json", "another format"])
def test_a_damaged_checkpoint_is_refused(runs: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "step-4"
    shutil.copytree(runs / "whole" / "checkpoints" / "step-4", path)
    state = path / "state-00000.safetensors"
    match damage:
        case "truncated":
            state.write_bytes(state.read_bytes()[:-10])
        case "missing":
            state.unlink()
        case "not json":
            (path / "checkpoint.json").write_text("{")
        case "another format":
            (path / "checkpoint.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read_manifest(path)
    assert caught.value.kind == "damaged"


def test_a_path_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    run = Settings.model_validate({"resume": str(tmp_path)})
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoint.to_resume(run, tmp_path)


def _start(runs: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(runs / "model")
