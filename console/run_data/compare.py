"""Several runs beside each other: the settings in which they differ, what they amounted to, their curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from console.run_data.run import Run
from console.run_data.settings import leaves

_OF_ONE_RUN = {"run_dir", "resume"}
_STEP_FIGURES = ("reward_mean", "resolved_share", "loss_mean", "entropy_mean", "gradient_norm", "tokens_per_s")


class Comparison(NamedTuple):
    """Every row has one value a run; None where a run has none."""

    names: list[str]
    settings: dict[str, list[Any]]  # that are not the same in all
    figures: dict[str, list[float | None]]  # of their ends


def compare(runs: Sequence[Run]) -> Comparison:
    """What `runs` show now."""
    for run in runs:
        run.metrics.update()
    flat = [dict(leaves(run.settings)) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    settings = {name: [of_run.get(name) for of_run in flat] for name in names if name not in _OF_ONE_RUN}
    differing = {name: values for name, values in settings.items() if any(value != values[0] for value in values)}
    ends = [_ends(run) for run in runs]
    figures = {name: [of_run.get(name) for of_run in ends] for name in dict.fromkeys(n for e in ends for n in e)}
    return Comparison(labels(runs), differing, figures)


def labels(runs: Sequence[Run]) -> list[str]:
    """Names that tell the runs apart."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def _ends(run: Run) -> dict[str, float]:
    records = run.metrics.records
    last = records[-5:]
    figures = {name: float(value) for name, value in run.summary.items() if isinstance(value, int | float)}
    for name in _STEP_FIGURES:
        values = [record[name] for record in last if name in record]
        if values:
            figures[f"{name}, last {len(values)} steps"] = sum(values) / len(values)
    return {"steps": float(len(records))} | figures
