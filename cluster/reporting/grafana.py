"""`longhaul grafana`: the console's plots as a dashboard of Grafana over the run's series in Prometheus."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.reporting.ray_metrics import gauge_name
from console.plots.figures import FIGURES, Figure, Series

_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 8  # of Grafana's grid
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def main(arguments: Sequence[str], program: str = "longhaul grafana") -> int:
    """0: written, 2: the user's mistake."""
    parser = argparse.ArgumentParser(prog=program, description="A dashboard for Grafana's import, as JSON.")
    parser.add_argument("--out", type=Path, help="file to write (default: standard output)")
    chosen = parser.parse_args(arguments)
    text = json.dumps(dashboard(), indent=2)
    if chosen.out is None:
        print(text)
        return 0
    try:
        chosen.out.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        print(f"{program}: {chosen.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def dashboard() -> dict[str, Any]:
    """Grafana's model of it: a panel for each figure; data source and run are chosen at its top, so that the import
    asks nothing."""
    return {
        "uid": "longhaul",
        "title": "Longhaul",
        "tags": ["longhaul"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one cursor across all panels
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "run",
                    "label": "run",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": {"query": f"label_values({_series('system', 'seconds')}, run)", "refId": "run"},
                    "refresh": 2,  # when the range of time changes
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
                },
            ]
        },
        "panels": [_panel(number, figure) for number, figure in enumerate(FIGURES)],
    }


def query(series: Series) -> str:
    """In Prometheus's language, of the runs that are chosen."""
    return f'{_series(series.kind, series.metric)}{{run=~"$run"}}'


def _series(kind: str, metric: str) -> str:
    return f"ray_{gauge_name(kind, metric)}"


def _panel(number: int, figure: Figure) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS // _WIDTH)
    shown: dict[str, Any] = {"unit": _unit(figure)}
    if figure.share:
        shown |= {"min": 0, "max": 1}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": figure.title,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": shown, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": _SOURCE,
                "expr": query(series),
                "legendFormat": f"{series.label} {{{{run}}}}",
            }
            for place, series in enumerate(figure.series)
        ],
    }


def _unit(figure: Figure) -> str:
    """One that Grafana knows."""
    if figure.share or figure.unit == "share":
        return "percentunit"
    return {"": "short", "s": "s"}.get(figure.unit, f"suffix: {figure.unit}")
