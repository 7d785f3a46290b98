"""`[eval]`: `--phase eval`, and evaluation while training."""

from __future__ import annotations

from protocol.section import Amount, Count, Section


class EvalSettings(Section):
    """`--phase eval`, and evaluation while training."""

    tasks: str | None = None
    """Task source of the evaluation (default: that of the run, held-out split)."""
    runs: Count = 10
    """Independent runs over all tasks; pass@1 is their mean."""
    every: Amount = 0
    """Score held-out tasks while training, from the first version on every so many versions; 0: never. It takes a tenth
    of the episodes that run at once, more where training needs none, and never holds up a step by more than a batch."""
    tasks_in_training: Count = 64
    """At most so many of the tasks are scored while training."""
    runs_in_training: Count = 1
    """As `runs`, while training."""
    endpoint: str | None = None
    """OpenAI-compatible endpoint to evaluate instead of a model directory (`http://host:port/v1`)."""
    model: str | None = None
    """Model name at that endpoint."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key, if it wants one."""
