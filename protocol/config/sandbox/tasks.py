"""`[tasks]`: which tasks are worked on."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from protocol.section import Amount, Count, Section


class TaskFields(Section):
    """A source of tasks, and what is taken of it."""

    source: str = "micro"
    """`micro` (made on the fly), the path of a task file (JSONL, Parquet), a task directory of harbor or a directory of
    such, or a Hugging Face dataset: its name, or a directory of its files. Files and directories may be at a URL that
    fsspec knows (`s3://...`)."""
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


class TaskSource(TaskFields):
    """`[[tasks]]`: one source of a mixture. What it leaves out is the run's."""

    name: str = ""
    """Under which metrics count it (default: the last part of `source`)."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often groups are drawn from it, against the other sources."""
    max_turns: Count | None = None
    """At most `episode.max_turns`."""
    max_context: Count | None = None
    """At most `model.max_context`."""
    memory_mib: Count | None = None
    """As `sandbox.memory_mib`."""
    cpus: Annotated[float, Field(gt=0)] | None = None
    """As `sandbox.cpus`."""
    disk_mib: Count | None = None
    """As `sandbox.disk_mib`."""
    max_processes: Count | None = None
    """As `sandbox.max_processes`."""

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name"):
            path = PurePath(str(values.get("source", "micro")))
            return values | {"name": re.sub(r"[^\w.-]", "-", path.stem if path.suffix else path.name)}
        return values

    @field_validator("name")
    @classmethod
    def _is_a_metric(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.-]{1,60}", name):
            raise ValueError(f"a source's name is made of letters, digits, `_`, `-` and `.`, got {name!r}")
        return name


class TaskSettings(TaskFields):
    """Which tasks are worked on."""

    sources: list[TaskSource] = []
    """A mixture, `[[tasks]]` in a settings file: each with a source as here, a weight, and limits of its own
    (docs/20-own-tasks.md). Then `source` and its like above are not read."""
    cache_dir: Path = Path("~/.cache/longhaul")
    """Where the trees and test requirements of tasks are unpacked once and kept."""

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: list[TaskSource]) -> list[TaskSource]:
        names = [source.name for source in sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named {name!r}: give each a name of its own (`name = ...`)")
        return sources

    def of_source(self, name: str) -> TaskSource | None:
        """A source of the mixture, by name."""
        return next((source for source in self.sources if source.name == name), None)
