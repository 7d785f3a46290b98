"""Held-out scores of a run's checkpoints: evaluations that lie in its `evaluations` directory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def held_out(run_dir: Path) -> list[tuple[int, float]]:
    """Step and pass@1 of every evaluation of one of the run's checkpoints, in the order of steps.

    `longhaul eval --model.path RUN/checkpoints/step-N/hf --run-dir RUN/evaluations/step-N` makes one.
    """
    found: dict[int, float] = {}
    for path in sorted((run_dir / "evaluations").glob("*/evaluation.json")):
        try:
            score: Any = json.loads(path.read_bytes())["pass_at_1"]["mean"]
            model: Any = json.loads(path.with_name("settings.json").read_bytes())["model"]["path"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        step = re.search(r"checkpoints/step-(\d{1,9})/", f"{model}/")
        if step and isinstance(score, int | float) and 0 <= score <= 1:
            found[int(step[1])] = float(score)
    return sorted(found.items())
