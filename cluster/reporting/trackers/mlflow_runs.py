"""MLflow: a run of the experiment `longhaul` (or of `MLFLOW_EXPERIMENT_NAME`), on a server or in a directory."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from cluster.reporting.trackers.tracker import About, Line, Status, metric_name

_MOST_METRICS = 1000  # of one request, by MLflow's interface
_MOST_PARAMETERS = 100
_MOST_CHARS = 500  # of a parameter


class MlflowTracker:
    """A run at a tracking URI."""

    def __init__(self, uri: str) -> None:
        for name, value in (
            ("MLFLOW_ALLOW_FILE_STORE", "true"),  # a directory is what was asked for
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),  # trying again is the sender's
            ("MLFLOW_ENABLE_ASYNC_LOGGING", "false"),
        ):
            os.environ.setdefault(name, value)
        self._uri = uri
        self._run = ""
        self._experiment = ""
        self._client: Any = None

    def begin(self, about: About, known: str) -> str:
        """See `Tracker`."""
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        if known:
            run = self._client.get_run(known)
            self._client.update_run(known, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "longhaul")
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            tags = {f"version.{package}": version for package, version in about.versions.items()}
            tags["directory"] = str(about.directory)
            run = self._client.create_run(experiment, run_name=about.name, tags=tags)
        self._run, self._experiment = run.info.run_id, run.info.experiment_id
        self._say_settings(about, run.data.params)
        return self._run

    def _say_settings(self, about: About, said: dict[str, str]) -> None:
        """A parameter cannot change: what is another when a run is gone on with becomes a tag."""
        from mlflow.entities import Param

        now = {name: (str(value) or "-")[:_MOST_CHARS] for name, value in about.settings.items()}
        fresh = [Param(name, value) for name, value in now.items() if name not in said]
        for start in range(0, len(fresh), _MOST_PARAMETERS):
            self._client.log_batch(self._run, params=fresh[start : start + _MOST_PARAMETERS])
        for name, value in now.items():
            if said.get(name, value) != value:
                self._client.set_tag(self._run, f"changed.{name}", value)

    def send(self, lines: Sequence[Line]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        metrics = [
            Metric(re.sub(r"[^\w./: -]", "_", metric_name(line, name)), value, int(1000 * line.time), line.step)
            for line in lines
            for name, value in line.values.items()
        ]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[start : start + _MOST_METRICS])

    def end(self, status: Status) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run, status)

    @property
    def where(self) -> str:
        """See `Tracker`."""
        if self._uri.startswith("http"):
            return f"{self._uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self._run}"
        return f"{self._uri}, run {self._run}"
