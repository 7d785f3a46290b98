"""Actors, keeper, buffer and sandboxes are killed under a seed: the ledger balances, and nothing is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.boxes import Boxes, ContainerBoxes, NamespaceBoxes
from benchmarks.chaos.parts import Chaos
from sandbox.base import Backend
from sandbox.docker.backend import DockerBackend
from sandbox.namespace.backend import NamespaceBackend


async def _need(backend: Backend) -> None:
    capabilities = await backend.probe()
    await backend.close()
    if not capabilities.available:
        pytest.skip(capabilities.reason)


async def _strike(directory: Path, boxes: Boxes) -> None:
    chaos = Chaos(directory, seed=3, boxes=boxes)
    figures = chaos.figures(await chaos.run(seconds=8, every_s=2))
    assert figures["faults"]
    assert figures["episodes_leased"]
    for name in ("lost", "untold", "trained_twice", "fake_zero_rewards", "turns_repeated", "turns_lost", "orphans"):
        assert figures[name] == 0, figures


async def test_whatever_is_killed_nothing_is_lost_nor_done_twice(tmp_path: Path) -> None:
    await _need(NamespaceBackend("probe-chaos"))
    await _strike(tmp_path, NamespaceBoxes())


@pytest.mark.docker
async def test_nor_in_containers(tmp_path: Path) -> None:
    await _need(DockerBackend("probe-chaos"))
    await _strike(tmp_path, ContainerBoxes(tmp_path))
