"""An outage of sandboxes leaves no mark on rewards."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.data.outage import zeros_under_outage
from benchmarks.data.outage_run import run_with_outage
from sandbox.base import Backend


async def test_no_zero_comes_of_a_broken_sandbox(namespace: Backend, tmp_path: Path) -> None:
    counts = await zeros_under_outage(namespace, 24, tmp_path, random.Random(1))
    assert counts["zeros"] == 0
    assert counts["broken"] > 8


async def test_no_zero_reaches_the_learner_of_a_run_in_an_outage(namespace: Backend, tmp_path: Path) -> None:
    counts = await run_with_outage(namespace, tmp_path, 3.0, random.Random(1), least_failed=3)
    assert (counts["zeros"], counts["trained"]) == (0, 24)
    assert counts["failed"] > 2
