"""A rank's memory is estimated to what `python -m benchmarks.models.memory` measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.models.memory import settings_of
from cluster.memory import rank_gib

MEASURED = {
    "1280:float32:1": 6.07,
    "1280:bfloat16:1": 5.18,
    "2048:float32:1": 7.33,
    "2048:bfloat16:1": 5.27,
}
"""Peak GiB of a rank in a step of SmolLM2-135M: tokens, precision, ranks."""


@pytest.mark.parametrize(("case", "peak_gib"), MEASURED.items())
def test_a_ranks_memory_is_estimated_to_a_fifth_of_what_was_measured(case: str, peak_gib: float) -> None:
    settings = settings_of(Path(__file__).parents[2] / "configs" / "models" / "smollm2-135m", case)
    assert rank_gib(settings, settings.learner.ranks, on_gpu=False) == pytest.approx(peak_gib, rel=0.2)
