"""`[replay]`: the replay buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from protocol.section import Count, Seconds, Section, Share


class ReplaySettings(Section):
    """The replay buffer."""

    group_size: Annotated[int, Field(ge=2)] = 8
    """G: episodes of one task from which advantages are computed."""
    batch: Count = 64
    """Trajectories of one optimizer step (whole groups)."""
    lease_s: Seconds = 60
    """A lease without a heartbeat for so long expires and its member is leased again."""
    max_attempts: Count = 3
    """Attempts of one member before its group is closed without it; a task of which nothing works is set aside."""
    give_up_s: Seconds = 600
    """Once nothing works any more, whichever task is tried at whichever sandbox actor, the run waits so long before it
    ends (a tenth of that if nothing has worked yet). What fails meanwhile uses up no attempts."""
    fsync: Literal["always", "interval", "never"] = "interval"
    """When the journal is forced to disk: before every acknowledgement, every 50 ms, or by the OS."""
    skip_corrupt: bool = False
    """Go on behind a damaged record in the middle of the journal instead of refusing to start."""
    curriculum: bool = True
    """Prefer tasks whose pass rate carries signal; every task keeps a floor of probability."""
    pass_rates: Path | None = None
    """`pass_rates.json` of an earlier run's directory: how often its tasks were solved. Stages in a row pass it on."""
    drop_solved_above: Share = 1.0
    """Tasks solved at least this often leave the pool (the paper's stage 2: 0.667; 1.0 keeps all)."""
    drop_unsolved: bool = False
    """Tasks never solved in earlier stages leave the pool (the paper's stage 2)."""
    keep_no_signal: bool = False
    """Train on groups whose members all have the same reward, too (off: dynamic sample filtering)."""
