"""A step of a real learner's run again: from its journal and its checkpoint, to the last digit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from learner.replay.service.batches import KeptBatches
from learner.rerun.command import logged_figures, main, rerun, with_settings
from protocol.arrays import unpack_arrays
from protocol.config import Settings
from protocol.errors import ConfigError, JournalError
from protocol.metrics import JsonlSink
from tiny.model import save_random_model

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
STEPS = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a real journal, checkpoints of steps 2 and 4, and a log of four steps."""
    folder = tmp_path_factory.mktemp("rerun")
    save_random_model(folder / "model")
    settings = Settings.model_validate(
        {
            "model": {"path": str(folder / "model"), "max_context": 128},
            "episode": {"max_turn_tokens": 32},
            "steps": STEPS,
            "max_staleness": 8,
            "replay": {"group_size": 2, "batch": 4},
            "actors": {"trajectory_log_share": 1.0},
            "checkpoint": {"every": 2, "keep": 2},
            "learner": {"lr": 1e-3, "ranks": 2, "self_test": False, "step_timeout_s": 120},
            "start_timeout_s": 200,
        }
    )
    job = [{"name": "run", "world": 2, "journal": True, "settings": settings.model_dump(mode="json")}]
    (folder / "job.json").write_text(json.dumps(job))
    script = ROOT / "tests" / "learner" / "checkpoints" / "learner_runs.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "job.json")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads((folder / "run" / "run-rank-0.json").read_text())
    assert outcome["error"] == "", outcome
    sink = JsonlSink(folder / "run" / "metrics.jsonl")
    for record in outcome["records"]:
        sink.write("step", record, int(record["step"]))
    sink.close()
    (folder / "run" / "settings.json").write_text(settings.model_dump_json())
    return folder / "run"


def test_a_step_comes_out_as_it_was_logged_and_otherwise_under_another_setting(run: Path) -> None:
    found = rerun(run, STEPS, ["learner.loss.eps_high=0.001", "learner.loss.eps_low=0.001"])
    assert found.differing == []
    assert found.is_equal and {"loss_mean", "gradient_norm", "clipped_high_share"} <= found.again.keys()
    assert found.what_if is not None
    assert found.what_if["clipped_high_share"] > found.again["clipped_high_share"]
    assert found.what_if["gradient_norm"] != found.again["gradient_norm"]
    assert found.what_if["entropy_mean"] == found.again["entropy_mean"]


def test_the_journal_keeps_the_batches_between_kept_checkpoints(run: Path) -> None:
    batches = KeptBatches(run)
    assert {3, 4} <= batches.positions.keys()
    assert [len(batches.load(step, "rl").trajectories) for step in (3, 4)] == [4, 4]
    with pytest.raises(JournalError, match="the batch of step 9 is not in the journal: it holds those of steps"):
        batches.load(9, "rl")


def test_what_is_recorded_of_a_step_adds_up_to_its_figures(run: Path) -> None:
    lines = (run / "steps" / "learner.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    packed = (run / "steps" / "learner.tokens").read_bytes()
    for record in map(json.loads, lines):
        figures = logged_figures(run / "metrics.jsonl", record["step"])
        arrays = [
            unpack_arrays(packed[start : start + size])
            for start, size in (episode["token_records"] for episode in record["episodes"])
        ]
        distances = np.abs(np.concatenate([a["log_ratios"] for a in arrays]).astype(np.float64))
        assert len(distances) == figures["trained_tokens"]
        assert distances.mean() == pytest.approx(figures["mismatch_abs_mean"], rel=1e-3)
        worst = [abs(token["learner"] - token["sampler"]) for token in record["worst"]]
        assert worst == sorted(worst, reverse=True) and len(worst) == 20
        assert worst[0] == pytest.approx(distances.max(), rel=1e-3)


def test_mistakes_are_named_before_anything_starts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--step", "1"]) == 2
    assert "is no run directory" in capsys.readouterr().err
    assert main([str(run), "--step", "9"]) == 2
    assert "the batch of step 9 is not in the journal" in capsys.readouterr().err
    for change in ("learner.loss.eps_hihg=1", "learner.loss=1", "learner.loss.eps_high", "learner.loss.eps_high=-1"):
        with pytest.raises(ConfigError, match="--what-if"):
            with_settings(Settings(), [change])
    assert with_settings(Settings(), ["learner.loss.eps-high=0.2"]).learner.loss.eps_high == 0.2
