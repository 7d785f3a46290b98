"""`[console]`: the pages of a run while it works."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from protocol.section import Section


class ConsoleSettings(Section):
    """The pages of a run while it works, on loopback; `longhaul console RUN_DIR` shows them at any time."""

    serve: bool = True
    """Serve them from a small process beside the run; its address is printed at the start."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port on loopback (0: any free one)."""
