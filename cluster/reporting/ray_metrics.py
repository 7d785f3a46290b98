"""Metrics as Ray gauges, in the Prometheus endpoint of the driver's host; and where those of all hosts are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from protocol.metrics import Values

ENDPOINTS = "prometheus_targets.json"
"""In the run directory while the run works: Prometheus's file of targets, rewritten as hosts come and go."""


def gauge_name(kind: str, metric: str) -> str:
    """What Ray is asked to call a metric; in its endpoint `ray_` stands before it."""
    return re.sub(r"\W", "_", f"longhaul_{kind}_{metric}")


class RaySink:
    """Every metric becomes the gauge `longhaul_<kind>_<name>`."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge  # not above: Ray reads its environment when it is imported

        self._make_gauge = Gauge
        self._run = run
        self._gauges: dict[str, Any] = {}

    def write(self, kind: str, values: Values, step: int) -> None:
        for name, value in values.items():
            key = gauge_name(kind, name)
            if key not in self._gauges:
                self._gauges[key] = self._make_gauge(key, description=f"{kind} metric {name}", tag_keys=("run",))
            self._gauges[key].set(value, tags={"run": self._run})

    def close(self) -> None:
        self._gauges.clear()


def write_endpoints(directory: Path) -> None:
    """Write where Ray's hosts serve metrics now, whole or not at all: Prometheus may be reading."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"] > 0]  # where they are not off
    places = [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes]
    found = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in places]
    partial = directory / f".{ENDPOINTS}"
    partial.write_text(json.dumps([{"targets": sorted(found), "labels": {}}]), encoding="utf-8")
    partial.replace(directory / ENDPOINTS)


def read_endpoints(directory: Path) -> list[tuple[str, int]]:
    """Host and port of each; none where the run is over."""
    try:
        groups = json.loads((directory / ENDPOINTS).read_text(encoding="utf-8"))
        parts = [target.rpartition(":") for group in groups for target in group["targets"]]
        return [(host.strip("[]"), int(port)) for host, _, port in parts]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def remove_endpoints(directory: Path) -> None:
    """There are none any more."""
    (directory / ENDPOINTS).unlink(missing_ok=True)
