"""`[eval]`: `--phase eval`."""

from __future__ import annotations

from protocol.section import Count, Section


class EvalSettings(Section):
    """`--phase eval`."""

    tasks: str | None = None
    """Task source of the evaluation (default: that of the run, held-out split)."""
    runs: Count = 10
    """Independent runs over all tasks; pass@1 is their mean."""
    endpoint: str | None = None
    """OpenAI-compatible endpoint to evaluate instead of a model directory (`http://host:port/v1`)."""
    model: str | None = None
    """Model name at that endpoint."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key, if it wants one."""
