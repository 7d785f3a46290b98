"""Which trackers there are, and whether what a run asks of them can be had."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cluster.reporting.trackers.mlflow_runs import MlflowTracker
from cluster.reporting.trackers.tracker import Tracker
from cluster.reporting.trackers.weights_and_biases import WandbTracker
from protocol.config import MetricsSettings, Settings
from protocol.errors import ConfigError


class Kind(NamedTuple):
    """One tracker, by the setting and the extra that are called after it."""

    name: str
    open: Callable[[str], Tracker]  # where -> a tracker that has not begun


KINDS = {kind.name: kind for kind in (Kind("wandb", WandbTracker), Kind("mlflow", MlflowTracker))}


def asked(settings: MetricsSettings) -> dict[str, str]:
    """Of each tracker that gets the metrics: where."""
    return {name: where for name in KINDS if (where := getattr(settings, name))}


def check(
    settings: Settings, is_installed: Callable[[str], bool] = lambda name: bool(importlib.util.find_spec(name))
) -> None:
    """Raises `ConfigError` in one line for what cannot work."""
    for name, where in asked(settings.metrics).items():
        if not is_installed(name):
            raise ConfigError(
                f"--metrics.{name} {where}: {name} is not installed here: pip install 'longhaul[{name}]'",
                kind="metrics",
            )
    where = settings.metrics.mlflow
    if is_directory(where) and Path(where).exists() and not Path(where).is_dir():
        raise ConfigError(
            f"--metrics.mlflow {where}: expected a directory or a tracking server, got a file", kind="metrics"
        )
    if where.partition("://")[0] in ("sqlite", "postgresql", "mysql", "mssql") and not is_installed("sqlalchemy"):
        raise ConfigError(
            f"--metrics.mlflow {where}: a database needs the whole of MLflow: pip install mlflow; or give its server "
            "(http://host:5000) or a directory",
            kind="metrics",
        )


def is_directory(where: str) -> bool:
    """Whether MLflow takes `where` for a directory of its file store."""
    return bool(where) and "://" not in where and not where.startswith(("databricks", "file:", "uc:"))
