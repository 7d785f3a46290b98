"""When a checkpoint is due: by steps, by rank 0's clock alone, and on all ranks at once."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from learner.rank import LearnerRank
from protocol.config import Settings


def is_due(rank: int, old_s: float, version: int = 7, others_say: float = 0.0, **checkpoint: float) -> bool:
    """On one of two ranks, `others_say` being what the other one brings into the sum."""
    settings = Settings.model_validate({"checkpoint": checkpoint, "eval": {"every": 5}})
    learner = LearnerRank(settings, rank, 2, "127.0.0.1", 0, "", "", Path("unused"))
    learner.version = version
    group = SimpleNamespace(
        device=torch.device("cpu"), doing=lambda activity: contextlib.nullcontext(), sum=lambda mine: mine + others_say
    )
    learner._group = group  # type: ignore[assignment]
    return learner._is_due(time.monotonic() - old_s)


def test_by_steps() -> None:
    assert is_due(0, old_s=0, version=20, every=10)
    assert not is_due(0, old_s=0, version=21, every=10)


@pytest.mark.parametrize("every", [0, 10])
def test_by_the_clock_of_rank_0(every: int) -> None:
    assert is_due(0, old_s=101, every=every, every_s=100)
    assert not is_due(0, old_s=50, every=every, every_s=100)
    assert is_due(1, old_s=50, every=every, every_s=100, others_say=1.0), "rank 0 says so"
    assert not is_due(1, old_s=101, every=every, every_s=100), "its own clock is not asked"


def test_never_by_time_where_that_is_off() -> None:
    assert not is_due(0, old_s=1e9, every=10, every_s=0)


def test_where_the_best_is_kept_also_when_an_evaluation_is_due() -> None:
    assert is_due(0, old_s=0, version=15, every=10, keep_best=True, every_s=0)
    assert not is_due(0, old_s=0, version=15, every=10, every_s=0)
    assert not is_due(0, old_s=0, version=16, every=10, keep_best=True, every_s=0)
