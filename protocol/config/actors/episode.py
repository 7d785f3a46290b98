"""`[episode]`: limits of one episode."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.section import Amount, Count, Seconds, Section


class EpisodeSettings(Section):
    """Limits of one episode."""

    scaffold: Literal["react", "json"] = "react"
    """`react`: one fenced command a turn; `json`: shell only, JSON tool calls in the model's own chat format."""
    prompt: Literal["brief", "full"] = "brief"
    """`brief`: the issue alone, for a model that learned the tools by training; `full` teaches the tools first."""
    max_turns: Count = 8
    """T_max: an episode ends after so many model turns (40 then 80 in the paper)."""
    max_turn_tokens: Count = 128
    """Most tokens of one model turn."""
    max_observation_chars: Count = 2000
    """Longer tool output is shown as head and tail with the count of what was left out."""
    window_lines: Count = 100
    """Lines of a file that `open` and `scroll` show at once."""
    edit_context_lines: Amount = 0
    """Lines shown before and after a change that was made."""
    max_format_errors: Count = 3
    """So many unreadable actions in a row end the episode."""
    command_timeout_s: Seconds = 30
    """Deadline of one command of the agent."""
    wall_time_s: Seconds = 600
    """Deadline of a whole episode."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature. Training wants 1.0; log-probs are taken under the same temperature."""
