"""`[model]`: the policy."""

from __future__ import annotations

from typing import Literal

from protocol.section import Count, Section


class ModelSettings(Section):
    """The policy."""

    path: str = "assets/tiny"
    """Hugging Face model directory that the run starts from (weights, tokenizer, chat template)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the generators' weights and of the learner's compute copy; auto: float32 on CPU, bfloat16 on GPU."""
    max_context: Count = 2048
    """Most tokens of one episode, prompt and observations included."""
