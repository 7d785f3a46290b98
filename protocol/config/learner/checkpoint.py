"""`[checkpoint]`: what is saved."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.section import Amount, Count, Section


class CheckpointSettings(Section):
    """What is saved."""

    every: Amount = 10
    """Save a checkpoint every so many steps (0: by time alone; the replay journal keeps every batch until then)."""
    every_s: Annotated[float, Field(ge=0)] = 1800
    """Save one also after the step in which the last one becomes so many seconds old: what a lost rank costs (0: by
    steps alone). There is always one at the end."""
    keep: Count = 2
    """Checkpoints kept; older ones are deleted after a newer one is complete."""
    keep_best: bool = False
    """Keep the one nearest the version that was best on held-out tasks, too, however old; `checkpoints/best` leads to
    it. Saves one also at every multiple of `eval.every`, which it needs."""
    url: str = ""
    """Where every complete checkpoint is copied to, exports included, beside the run directory: a URL that fsspec knows
    (`s3://bucket/run`, `gs://...`, `file:///...`), with the credentials of its own environment. `--resume URL` begins a
    run from the newest one there."""
