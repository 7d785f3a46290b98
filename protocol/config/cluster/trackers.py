"""`[metrics]`: trackers beside the run's own files."""

from __future__ import annotations

from protocol.section import Section


class MetricsSettings(Section):
    """Trackers that get the metrics too, each from a process of its own that a step never waits for."""

    wandb: str = ""
    """Project at Weights & Biases (`pip install longhaul[wandb]`; key, host and offline mode as its own variables,
    `WANDB_API_KEY`, `WANDB_BASE_URL`, `WANDB_MODE`, say)."""
    mlflow: str = ""
    """MLflow tracking server (`http://host:5000`) or directory of its file store (`pip install longhaul[mlflow]`)."""
