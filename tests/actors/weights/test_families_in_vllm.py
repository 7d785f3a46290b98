"""Mixtures of experts, models that fuse their own projections, and text parts of wrappers, in a real engine: as
transformers computes them, before and after new weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.model_family import TEXT_PARTS

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]
FAMILIES = ("qwen3_moe", "glm4_moe", "glm4", *TEXT_PARTS)


def test_log_probs_are_those_of_transformers_before_and_after_a_push(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.models.in_vllm", str(out), *FAMILIES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert set(found) == set(FAMILIES)
    for name, figures in found.items():
        assert figures.keys() == {"before", "after"}, f"{name}: {figures}"
        assert max(figures.values()) < 2e-5, f"{name}: {figures}"
