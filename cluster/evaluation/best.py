"""`checkpoints/best`: a link to the checkpoint nearest the version that was best on held-out tasks.

The link moves from one moment to the next, and what it leads to has in `held_out.json` the evaluation that made it so.
The learner never removes what it leads to, nor what may become it (`learner/checkpoints/writer.py`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from msgspec import Struct

from cluster.run_files import complete_checkpoints
from learner.held_out import nearest

LINK = "best"
_SCORE = "held_out.json"


class Best(Struct, frozen=True, kw_only=True):
    """The best checkpoint of a run: `version` was evaluated, `step` is the checkpoint nearest it."""

    step: int
    version: int
    pass_at_1: float
    path: Path


class BestCheckpoint:
    """Keeps the link of one run right. It goes on from the evaluations that lie in the run's directory."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._figures: dict[str, Any] | None = None
        for path in (run_dir / "evaluations").glob("version-*/evaluation.json"):
            self.heed(path)

    def heed(self, path: Path) -> None:
        """Take an evaluation's file into account, if it has a score and is not of the model that the run began from."""
        try:
            figures: Any = json.loads(path.read_bytes())
            key = _rank(figures)
        except (OSError, ValueError, KeyError, TypeError):
            return
        if figures["version"] > 0 and (self._figures is None or key > _rank(self._figures)):
            self._figures = figures

    def point(self) -> Best | None:
        """Let the link lead to the right checkpoint; what it leads to now, if that has changed."""
        directory = self._run_dir / "checkpoints"
        there = complete_checkpoints(self._run_dir)
        step = nearest(there, self._figures["version"]) if self._figures else None
        if self._figures is None or step is None:
            return None
        score = {
            "version": self._figures["version"],
            "pass_at_1": self._figures["pass_at_1"]["mean"],
            "pass_at_1_of_all": self._figures["pass_at_1_of_all"],
        }
        known = best_checkpoint(self._run_dir)
        if known and (known.step, known.version) == (step, score["version"]):
            return None
        try:
            _replace_text(there[step] / _SCORE, json.dumps(score))
            new = directory / f"{LINK}.new"
            new.unlink(missing_ok=True)
            new.symlink_to(there[step].name)
            new.replace(directory / LINK)
        except OSError:  # it went meanwhile, or the disk is full: the next look finds another one, or room
            return None
        return best_checkpoint(self._run_dir)


def best_checkpoint(run_dir: Path) -> Best | None:
    """What `checkpoints/best` leads to; None where there is no such link, or nothing whole behind it."""
    link = run_dir / "checkpoints" / LINK
    try:
        name = link.readlink().name
        score: Any = json.loads((link / _SCORE).read_bytes())
        step = re.fullmatch(r"step-(\d{1,9})", name)
        if step is None or not (link / "checkpoint.json").is_file():
            return None
        return Best(
            step=int(step[1]),
            version=int(score["version"]),
            pass_at_1=float(score["pass_at_1"]),
            path=link.parent / name,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def behind_link(path: Path) -> Path:
    """The checkpoint, or what is in it, that a path through `checkpoints/best` means now: the link may move on."""
    for parent in (path, *path.parents):
        if parent.name == LINK and parent.parent.name == "checkpoints" and parent.is_symlink():
            return parent.parent / parent.readlink() / path.relative_to(parent)
    return path


def _rank(figures: dict[str, Any]) -> tuple[float, int]:
    """By what was resolved of all that was asked, so that an outage makes no best; of equals the first."""
    if figures["pass_at_1"] is None:
        raise ValueError("no attempt was scored")
    return float(figures["pass_at_1_of_all"]), -int(figures["version"])


def _replace_text(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
