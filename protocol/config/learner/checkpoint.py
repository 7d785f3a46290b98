"""`[checkpoint]`: what is saved."""

from __future__ import annotations

from protocol.section import Amount, Count, Section


class CheckpointSettings(Section):
    """What is saved."""

    every: Amount = 10
    """Save a checkpoint every so many steps (0: only at the end; the replay journal keeps every batch until then)."""
    keep: Count = 2
    """Checkpoints kept; older ones are deleted after a newer one is complete."""
