"""Metrics as Ray gauges, so that they are in the dashboard's Prometheus endpoint."""

from __future__ import annotations

import re
from typing import Any

from protocol.metrics import Values


class RaySink:
    """Every metric becomes the gauge `longhaul_<kind>_<name>`."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge  # not above: Ray reads its environment when it is imported

        self._make_gauge = Gauge
        self._run = run
        self._gauges: dict[str, Any] = {}

    def write(self, kind: str, values: Values, step: int) -> None:
        for name, value in values.items():
            key = re.sub(r"\W", "_", f"longhaul_{kind}_{name}")
            if key not in self._gauges:
                self._gauges[key] = self._make_gauge(key, description=f"{kind} metric {name}", tag_keys=("run",))
            self._gauges[key].set(value, tags={"run": self._run})

    def close(self) -> None:
        self._gauges.clear()
