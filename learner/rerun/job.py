"""What is to be run again, as the ranks read it."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

Figures = dict[str, float]


class Job(Struct, frozen=True, kw_only=True):
    """One rank's part. `settings` and `what_if` are JSON of `Settings`; the latter holds for the last step."""

    run_dir: str
    step: int
    start: str | None  # the checkpoint to begin from; None: the model that the run started from
    settings: str
    what_if: str
    rank: int
    world_size: int
    port: int
    out: str  # where rank 0 writes what came of it

    @property
    def out_path(self) -> Path:
        """As a path."""
        return Path(self.out)
