"""`[grading]`: how much a verdict is trusted."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.section import Section


class GradingSettings(Section):
    """How much a verdict is trusted."""

    second_opinion: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the rewarded patches that are judged once more in another way: every function and class of tests in a
    process of its own with new canaries, logs as the public harness reads them. Disagreements are counted and put on
    the list for review."""
