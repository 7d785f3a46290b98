"""A recipe of several runs: every stage starts from the model before it, and a bad one ends it before it starts."""

from pathlib import Path

import pytest

from cluster.command_line.cli import parse
from cluster.stages import run_in_a_row, stage_settings
from protocol.config import Settings
from protocol.errors import ConfigError


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "first.toml").write_text('phase = "rft"\nsteps = 3\n')
    (tmp_path / "second.toml").write_text("steps = 5\n[learner]\nlr = 1e-4\n")
    (tmp_path / "score.toml").write_text('phase = "eval"\n')
    (tmp_path / "all.toml").write_text('stages = ["first.toml", "second.toml", "score.toml"]\n')
    return tmp_path / "all.toml"


def leave_checkpoint(run_dir: Path, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step-{step}"
    (folder / "hf").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint.json").write_text("{}")


def run(recipe: Path, *flags: str, fails_at: int | None = None) -> tuple[int, list[Settings]]:
    seen: list[Settings] = []

    async def one(settings: Settings) -> int:
        seen.append(settings)
        if len(seen) == fails_at:
            return 1
        if settings.phase != "eval":
            leave_checkpoint(settings.run_dir, settings.steps)
        return 0

    arguments = [f"--config={recipe}", "--run-dir", str(recipe.parent / "out"), *flags]
    _, command_line = parse(arguments)
    return run_in_a_row(arguments, command_line, one), seen


def test_every_stage_starts_from_the_model_before_it(recipe):
    status, seen = run(recipe, "--num-actors", "7")
    out = recipe.parent / "out"
    assert status == 0
    assert [(s.phase, s.steps, s.num_actors) for s in seen] == [("rft", 3, 7), ("rl", 5, 7), ("eval", 20, 7)]
    assert [s.run_dir for s in seen] == [out / "1-first", out / "2-second", out / "3-score"]
    assert [s.model.path for s in seen] == [
        "assets/tiny",
        str(out / "1-first" / "checkpoints" / "step-3" / "hf"),
        str(out / "2-second" / "checkpoints" / "step-5" / "hf"),
    ]
    assert seen[1].learner.lr == 1e-4


def test_a_failed_stage_ends_the_row(recipe):
    status, seen = run(recipe, fails_at=2)
    assert status == 1 and len(seen) == 2


def test_an_interrupted_row_goes_on_at_the_stage_that_was_interrupted(recipe):
    status, seen = run(recipe, fails_at=2)
    assert status == 1
    status, again = run(recipe, "--resume", "auto")
    assert status == 0
    assert [(s.run_dir.name, s.resume) for s in again] == [("2-second", "auto"), ("3-score", "auto")]
    assert again[0].model.path == seen[1].model.path  # what the ended stage left
    assert run(recipe, "--resume", "auto") == (0, [])  # nothing is left to do


def test_without_resume_nothing_is_passed_over(recipe):
    assert len(run(recipe)[1]) == len(run(recipe)[1]) == 3


def test_a_row_is_not_resumed_from_one_checkpoint(recipe):
    with pytest.raises(SystemExit) as ended:
        run(recipe, "--resume", "runs/x/checkpoints/step-3")
    assert ended.value.code == 2


def test_which_row_goes_on_must_be_said(recipe):
    _, command_line = parse([f"--config={recipe}", "--resume", "auto"])
    with pytest.raises(ConfigError, match="add --run-dir"):
        stage_settings([f"--config={recipe}", "--resume", "auto"], command_line, recipe.parent)


def test_a_bad_stage_is_refused_before_the_first_starts(recipe):
    (recipe.parent / "score.toml").write_text("stepps = 1\n")
    _, command_line = parse([f"--config={recipe}"])
    with pytest.raises(ConfigError, match="unknown setting stepps"):
        stage_settings([f"--config={recipe}"], command_line, recipe.parent)
    (recipe.parent / "score.toml").write_text('stages = ["first.toml"]\n')
    with pytest.raises(ConfigError, match="list them all in one file"):
        stage_settings([f"--config={recipe}"], command_line, recipe.parent)


@pytest.mark.parametrize("name", ["micro.toml"])
def test_the_recipes_in_the_repository_are_valid(name, tmp_path):
    path = Path(__file__).parents[2] / "configs" / name
    _, command_line = parse([f"--config={path}"])
    phases = [stage.phase for stage in stage_settings([f"--config={path}"], command_line, tmp_path)]
    assert phases == ["rft", "rl", "rl", "eval"]
