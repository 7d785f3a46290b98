"""The evaluations of a run: the run itself where it is one, and those in its `evaluations` directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct, ValidationError, convert

FOLDER = "evaluations"


class Estimate(Struct):
    """A share with its standard error."""

    mean: float
    se: float = 0.0


class Figures(Struct):
    """What `evaluation.json` says of it; docs/30-own-model.md explains the figures."""

    num_tasks: int = 0
    num_tasks_asked: int = 0
    num_runs: int = 0
    num_attempts: int = 0
    num_attempts_asked: int = 0
    pass_at_1: Estimate | None = None
    pass_at_1_of_all: float | None = None
    interval: list[float] = []
    pass_at_k: dict[str, float | None] = {}
    by_repository: dict[str, Estimate] = {}
    by_difficulty: dict[str, Estimate] = {}
    end_reasons: dict[str, int] = {}
    not_scored: dict[str, int] = {}
    tasks_not_scored: list[str] = []
    turns: float | None = None
    tokens: float | None = None
    version: int | None = None  # of one beside the training: from which on its tasks were attempted
    oldest_version: int | None = None
    newest_version: int | None = None


class Evaluation(NamedTuple):
    """One of them. `name` is its folder's; empty: the run is an evaluation."""

    name: str
    model: str  # that was scored, where it is known
    figures: Figures | None  # None: it is under way, or was interrupted


def read_evaluations(run_dir: Path) -> list[Evaluation]:
    """Those that have begun, by version, then by name. What is no evaluation is left out."""
    own = own_evaluation(run_dir)
    folders = [path for path in (run_dir / FOLDER).glob("*") if path.is_dir()]
    found = [Evaluation(path.name, _model(path), _figures(path)) for path in folders]
    begun = [each for each in found if each.figures or any((run_dir / FOLDER / each.name).glob("trajectories/*.jsonl"))]
    return ([own] if own else []) + sorted(begun, key=_order)


def own_evaluation(run_dir: Path) -> Evaluation | None:
    """That which the run is, once it is over; None where it is none."""
    figures = _figures(run_dir)
    return Evaluation("", _model(run_dir), figures) if figures else None


def _order(each: Evaluation) -> tuple[int, str]:
    version = each.figures.version if each.figures and each.figures.version is not None else None
    if version is None and each.name.removeprefix("version-").isdecimal():
        version = int(each.name.removeprefix("version-")[:9])
    return (1 << 30 if version is None else version, each.name)


def _figures(directory: Path) -> Figures | None:
    read = _object(directory / "evaluation.json")
    try:
        return convert(read, Figures, strict=False) if read else None
    except (ValidationError, RecursionError):
        return None


def _model(directory: Path) -> str:
    settings = _object(directory / "settings.json")
    for section, name in (("eval", "model"), ("model", "path")):
        part = settings.get(section)
        if isinstance(part, dict) and part.get(name):
            return str(part[name])
    return ""


def _object(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
