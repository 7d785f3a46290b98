"""Every objective can be benchmarked, by a small recipe of its name where there is one."""

import pytest

from benchmarks import objectives as benchmark
from cluster.command_line.cli import parse
from protocol.objectives import objectives


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", objectives())
def test_the_flags_of_an_objective_are_valid_and_train_with_it(name, quick):
    settings, _ = parse(benchmark.flags_of(name, seed=3, steps=5, quick=quick))
    assert (settings.learner.loss.name, settings.seed, settings.steps) == (name, 3, 5)
    assert settings.phase == ("rft" if name == "rft" else "rl")


@pytest.mark.parametrize("recipe", sorted(benchmark.CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_trains_with_the_objective_of_its_name(recipe):
    settings, _ = parse([f"--config={recipe}"])
    assert settings.learner.loss.name == recipe.stem
