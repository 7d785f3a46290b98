"""Actors, their keeper and the buffer are killed under a seed; the ledger balances, and nothing is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.parts import Chaos
from sandbox.namespace.backend import NamespaceBackend


async def test_whatever_is_killed_nothing_is_lost_nor_done_twice(tmp_path: Path) -> None:
    backend = NamespaceBackend("probe-chaos")
    available = (await backend.probe()).available
    await backend.close()
    if not available:
        pytest.skip("no namespaces here")
    chaos = Chaos(tmp_path, seed=3)
    figures = chaos.figures(await chaos.run(seconds=8, every_s=2))
    assert figures["faults"]
    assert figures["episodes_leased"]
    for name in ("lost", "untold", "trained_twice", "fake_zero_rewards", "turns_repeated", "turns_lost", "orphans"):
        assert figures[name] == 0, figures
