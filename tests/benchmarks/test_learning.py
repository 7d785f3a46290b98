"""The checks of `benchmarks.learning` come last in an hour of runs: their flags are tried here."""

import pytest

from benchmarks import learning
from cluster.command_line.cli import parse


@pytest.mark.parametrize(
    "flags", [learning.SYNC, learning.SHUFFLED, learning.PUSHED], ids=["sync", "shuffled", "pushed"]
)
def test_flags_are_understood(flags):
    config = f"--config={learning.ROOT}/configs/micro/rl1.toml"
    recipe, _ = parse([config])
    settings, _ = parse([config, *flags])
    assert settings != recipe
