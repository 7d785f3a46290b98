"""`[network]`: where sockets listen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from protocol.section import Section


class NetworkSettings(Section):
    """Where sockets listen."""

    bind: Literal["127.0.0.1", "0.0.0.0"] = "127.0.0.1"
    """`127.0.0.1`: sockets are files in a private directory of this host. `0.0.0.0`: every process listens on the
    address under which Ray knows its host, with encrypted, authenticated TCP."""
    dashboard_port: Annotated[int, Field(ge=0, le=65535)] = 8265
    """Port of the Ray dashboard on loopback (0: any free one)."""
    trusted: bool = False
    """Nobody but the run is on the network between its hosts: take a Ray cluster there without token or TLS, too, over
    which the run's keys are told (`longhaul cluster up` sets up both), and let NCCL and gloo, which neither encrypt nor
    ask who connects, go from host to host."""
