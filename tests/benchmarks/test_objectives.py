"""Every objective has a small recipe of its name, which the benchmark runs."""

import pytest

from benchmarks import objectives as benchmark
from cluster.command_line.cli import parse
from protocol.objectives import objectives


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", objectives())
def test_the_recipe_of_an_objective_is_valid_and_trains_with_it(name, quick):
    settings, _ = parse(benchmark.flags_of(name, seed=3, steps=5, quick=quick))
    assert (settings.learner.loss.name, settings.seed, settings.steps) == (name, 3, 5)
    assert settings.phase == ("rft" if name == "rft" else "rl")
