"""Every family of `tiny/families.py` and `tiny/wrappers.py`: exact, refused with its reason, or silently wrong.

A family counts as exact if the learner's log-probs and, unless engines were left out, the engine's before and after a
push are those of transformers; as silently wrong if all checks take it and they are not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.models.in_learner import learner_differences
from benchmarks.models.made import made
from benchmarks.models.table import verdicts

EXACT = 2e-5
_DEADLINE_S = 560


def measure(*, engines: bool) -> tuple[dict[str, float | None], dict[str, object]]:
    """Figures, and a row a family. Without `engines` pushes are judged by the checks alone."""
    said = verdicts()
    taken = [name for name, (trained, _) in said.items() if trained.startswith("exact")]
    served = _in_engines([n for n in taken if said[n][1] == "accepted"]) if engines else {}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in taken:
            differences = learner_differences(made(name, Path(folder)))
            rows[name] = {"learner": max(differences)} | served.get(name, {})
    wrong = [name for name, row in rows.items() if not is_right(row)]
    figures: dict[str, float | None] = {
        "families": len(said),
        "families_exact": len(taken) - len(wrong),
        "families_refused": len(said) - len(taken),
        "families_silently_wrong": len(wrong),
    }
    return figures, {"families": rows, "silently_wrong": wrong}


def is_right(row: dict[str, Any]) -> bool:
    """Whether all of a family's differences are rounding; a start that failed with its reason is none."""
    return all(value <= EXACT for value in row.values() if not isinstance(value, str))


def _in_engines(names: list[str]) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.models.in_vllm", str(out), *names]
        subprocess.run(command, stdout=sys.stderr, timeout=_DEADLINE_S, check=False)  # what it found counts
        found: dict[str, dict[str, Any]] = json.loads(out.read_text())
    return found
