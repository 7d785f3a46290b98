"""`[actors]`: the processes that host episodes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.section import Amount, Seconds, Section


class ActorSettings(Section):
    """The processes that host episodes."""

    processes: Amount = 0
    """Sandbox-actor processes; 0: one for every two cores, of four episodes or more. Each hosts its share of num_actors
    as asyncio tasks."""
    heartbeat_s: Seconds = 5
    """How often running leases are extended."""
    trajectory_log_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the episodes written, readable, to `trajectories/` in the run directory (described in
    docs/55-reading-trajectories.md)."""
