"""`[eval]`: `--phase eval`, and evaluation while training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.section import Address, Amount, Count, Section


class EvalSettings(Section):
    """`--phase eval`, and evaluation while training."""

    tasks: str | None = None
    """Task source of the evaluation (default: that of the run, held-out split)."""
    held_out_share: Annotated[float, Field(ge=0, le=0.5)] = 0
    """Share of the run's own tasks that is held out, by a hash of each one's name: never trained on, scored instead of
    `eval.tasks`, also by an evaluation with the same share. `micro` has a held-out split and needs none."""
    runs: Count = 10
    """Independent runs over all tasks; pass@1 is the mean over tasks of the share of their runs that solve them."""
    every: Amount = 0
    """Score held-out tasks while training, from the first version on every so many versions; 0: never. It takes a tenth
    of the episodes that run at once, more where training needs none, and never holds up a step by more than a batch."""
    tasks_in_training: Count = 64
    """At most so many of the tasks are scored while training."""
    runs_in_training: Count = 1
    """As `runs`, while training."""
    endpoint: Address | None = None
    """OpenAI-compatible endpoint to evaluate instead of a model directory (`http://host:port/v1`)."""
    model: str | None = None
    """Model name at that endpoint."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key, if it wants one."""
