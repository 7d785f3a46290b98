"""Writes the report: the figures, what the watchers saw, plots, episodes, settings and versions, in one file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from console.episodes.story import Story, tell
from console.plots import figures
from console.plots.cached import Plots
from console.plots.png import write_images
from console.run_data import queries
from console.run_data.audit import read_audit
from console.run_data.evaluations import own_evaluation
from console.run_data.records import Record
from console.run_data.run import Run
from console.run_data.settings import flat, versions_of
from console.watchers.watch import watch
from console.web.templates import environment
from protocol.errors import ConfigError

_STATIC = Path(__file__).parents[1] / "web" / "static"
_EXAMPLES = 3
_LONGEST_EXAMPLE = 60  # turns


def write_report(run: Run, path: Path | None = None) -> Path:
    """Make the page; in the run directory also a few of its plots as images, where matplotlib is installed.

    Returns the page's path. Raises `ConfigError` where something cannot be written.
    """
    is_of_run = path is None
    path = path or run.directory / "report.html"
    run.metrics.update()
    run.index.update()
    axis: figures.Axis = "step" if run.metrics.steps else "time"
    changed, others = flat(run.settings)
    found_versions, is_recorded = versions_of(run.directory)
    text = (
        environment()
        .get_template("report.html")
        .render(
            run=run,
            sentence=run.sentence(),
            style=(_STATIC / "console.css").read_text(),
            findings=watch(run.metrics.records, run.metrics.samples, run.held_out),
            plots=Plots().of(run.metrics, axis, run.held_out),
            axis=axis,
            examples={outcome: _examples(run, outcome) for outcome in ("solved", "failed", "tampered")},
            changed=changed,
            others=others,
            audit=read_audit(run.directory),
            own=own_evaluation(run.directory),
            versions=found_versions,
            is_recorded=is_recorded,
            written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        )
    )
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(text.encode("utf-8", "replace"))
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}", kind="report") from error
    if is_of_run:
        write_images(figures.draw(run.metrics, axis, run.held_out), axis, run.directory / "plots")
    return path


def _examples(run: Run, outcome: str) -> list[tuple[Record, Story]]:
    """The newest ones that a person can read in one sitting, of different tasks."""
    found: dict[str, tuple[Record, Story]] = {}
    with run.index.connect() as db:
        rows = queries.episodes(db, queries.Filter(outcome=outcome)).rows
    for row in rows:
        if len(found) < _EXAMPLES and row["task"] not in found and row["turns"] <= _LONGEST_EXAMPLE:
            record = run.index.record(row)
            if record is not None:
                found[row["task"]] = (record, tell(record))
    return list(found.values())
