"""`[tasks]`: which tasks are worked on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from protocol.section import Amount, Count, Section


class TaskSettings(Section):
    """Which tasks are worked on."""

    source: str = "micro"
    """`micro` (made on the fly), the path of a task file (JSONL, Parquet), a task directory of harbor or a directory of
    such, or a Hugging Face dataset: its name, or a directory of its files."""
    format: Literal[
        "auto",
        "longhaul",
        "swe-bench",
        "swe-bench-live",
        "swe-bench-pro",
        "swe-rebench",
        "swe-rebench-v2",
        "swe-smith",
        "swe-gym",
        "r2e-gym",
        "multi-swe-rl",
        "harbor",
    ] = "auto"
    """Schema of the records; auto recognises that of each record by its fields."""
    split: str = "train"
    """Split of a Hugging Face dataset; for `micro`, `train` or `heldout` (other names, never seen in training)."""
    count: Count = 512
    """How many `micro` tasks there are; for a file, at most so many are taken."""
    difficulty: Amount = 0
    """Difficulty of `micro` tasks: 0 is one wrong sum in one file; each level adds files, families and steps."""
    seed: int = 0
    """Seed of the `micro` tasks."""
    cache_dir: Path = Path("~/.cache/longhaul")
    """Where the trees and test requirements of tasks are unpacked once and kept."""
