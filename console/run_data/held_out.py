"""Held-out scores of a run's checkpoints: evaluations that lie in its `evaluations` directory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def held_out(run_dir: Path) -> list[tuple[int, float]]:
    """Step and pass@1 of every evaluation of the run's policy, in the order of steps.

    `--eval.every` makes one every so many versions while the run trains (step: the version from which on tasks were
    attempted), `longhaul eval --model.path RUN/checkpoints/step-N/hf --run-dir RUN/evaluations/step-N` one of a
    checkpoint, which counts where a step has both.
    """
    found: dict[int, float] = {}
    of_checkpoints: dict[int, float] = {}
    for path in sorted((run_dir / "evaluations").glob("*/evaluation.json")):
        try:
            figures: Any = json.loads(path.read_bytes())
            score: Any = figures["pass_at_1"]["mean"]
            if not isinstance(score, int | float) or not 0 <= score <= 1:
                continue
            if "version" in figures:
                found[int(figures["version"])] = float(score)
                continue
            model: Any = json.loads(path.with_name("settings.json").read_bytes())["model"]["path"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
            continue
        if step := re.search(r"checkpoints/step-(\d{1,9})/", f"{model}/"):
            of_checkpoints[int(step[1])] = float(score)
    return sorted((found | of_checkpoints).items())
