"""Routes that a real engine recorded, replayed by the learner: each family whose pushes are taken is exact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe"])
def test_log_probs_by_an_engines_routes_are_the_engines(family: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.models.moe", str(out), family, "float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=350)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["moe_mismatch_replay_max"] < 2e-5
    assert found["moe_mismatch_wrong"] > 1e-2, "other routes would have been seen"
