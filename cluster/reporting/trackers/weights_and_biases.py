"""Weights & Biases: a run of a project, at its server, one's own (`WANDB_BASE_URL`), or on disk (`WANDB_MODE`)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.reporting.trackers.tracker import About, Line, Status, metric_name

_STEP = "optimizer_step"
_BEGIN_S = 30.0


class WandbTracker:
    """A run of a project. Its library sends in the background and keeps what is not sent yet on disk."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._run: Any = None

    def begin(self, about: About, known: str) -> str:
        """See `Tracker`."""
        import wandb

        quiet = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=_BEGIN_S,
            x_disable_stats=True,
            x_disable_meta=True,
            # On disk every life is a directory of its own; `wandb sync` makes them one run by their id.
            x_sync_dir_suffix=secrets.token_hex(2),
        )
        self._run = wandb.init(
            project=self._project,
            id=known or secrets.token_hex(6),
            resume="allow",
            name=about.name,
            dir=about.directory,
            settings=quiet,
        )
        self._run.config.update(
            dict(about.settings) | {"versions": dict(about.versions)},
            allow_val_change=True,
        )
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)
        return str(self._run.id)

    def send(self, lines: Sequence[Line]) -> None:
        """See `Tracker`."""
        for line in lines:
            row = {metric_name(line, name): value for name, value in line.values.items()}
            self._run.log(row | {_STEP: line.step, "_timestamp": line.time})

    def end(self, status: Status) -> None:
        """See `Tracker`. Waits until all is sent."""
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)

    @property
    def where(self) -> str:
        """See `Tracker`."""
        return f"wandb sync {Path(self._run.dir).parent}" if self._run.offline else str(self._run.url)
