"""`[hosts]`: which hosts a run may use for what, and when one counts as gone."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.section import Section


class HostSettings(Section):
    """Which hosts a run may use for what; docs/40-own-cluster.md says how parts are placed."""

    sandbox_label: Annotated[str, Field(pattern=r"^$|^[^=]+=[^=]*$")] = ""
    """`key=value`: sandbox actors go to hosts with this Ray label only (`ray start --labels key=value`)."""
    unreachable_s: Annotated[float, Field(ge=5)] = 45
    """A host that hears nothing of the launcher for so long ends all that runs there; the launcher waits ten seconds
    more before it starts the same elsewhere."""
    fetch_s: Annotated[float, Field(gt=0)] = 7200
    """Longest time in which a host gets the model and the tasks from the launcher's, where it has not got them, and the
    launcher's what is named by URL."""
