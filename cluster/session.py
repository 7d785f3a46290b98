"""One run from its checks to its summary; whatever happens, nothing of it is left but the run directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cluster import preflight, run_files
from cluster.cleanup import reap_dead_runs, remove_everything
from cluster.command_line.cli import exit_with, program_name
from cluster.evaluation.best import best_checkpoint
from cluster.evaluation.evaluation import with_evaluation_tasks, write_evaluation
from cluster.files.mirror import mirrored
from cluster.inputs import with_inputs_at_hand
from cluster.placement import Cluster
from cluster.reporting.audit import print_audit, write_audit
from cluster.reporting.console import console_beside
from cluster.reporting.progress import open_progress
from cluster.reporting.ray_metrics import RaySink
from cluster.reporting.summary import print_summary, summarise
from cluster.reporting.trackers.beside import trackers_beside
from cluster.run_files import RunFiles
from cluster.stop_signals import StopSignals
from cluster.supervision.part import LifeLost
from cluster.supervision.vigil import Restarts
from cluster.supervisor import Supervisor
from cluster.surroundings import allow_open_files, check_directories, put_foreign_ray_aside
from console.report.report import write_report
from console.run_data.held_out import held_out
from console.run_data.run import Run
from console.run_data.settings import FILE as VERSIONS
from console.run_data.settings import versions
from learner.replay.service.account import Account
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError
from protocol.messages import TaskRef
from protocol.metrics import JsonlSink, Sink, TensorBoardSink, Values


class Life(NamedTuple):
    """One life of a run, as it ended."""

    directory: Path
    steps: list[Values]  # what it trained
    system: Values  # its last sample
    tasks: list[TaskRef]
    account: Account | None  # what its buffer said at the end
    failure: LonghaulError | None


async def run(settings: Settings) -> int:
    """Check, run, clean up, report. Returns the exit status of the program.

    A run that loses a host of its learner, or Ray itself, lives again, from its newest checkpoint, `restarts_per_hour`
    times within an hour.
    """
    started = time.monotonic()
    stop = StopSignals()
    try:
        settings = with_inputs_at_hand(with_evaluation_tasks(settings), tell=lambda line: print(line, file=sys.stderr))
    except ConfigError as error:
        exit_with(error)
    restarts = Restarts(settings.restarts_per_hour)
    lives: list[Life] = []
    while True:
        try:
            life = await _live(settings, stop)
        except ConfigError as error:
            if not lives:
                exit_with(error)
            life = lives[-1]._replace(steps=[], system={}, failure=error)
        lives.append(life)
        if not isinstance(life.failure, LifeLost) or stop.received or not restarts.take("run", time.monotonic()):
            break
        step = run_files.newest_step(life.directory)
        where = f"its checkpoint of step {step}" if step else "where it began"
        said = f"{program_name()}: {life.failure}\n{program_name()}: the run goes on from {where}"
        print(said, file=sys.stderr)
        resume = "auto" if step else settings.resume or "auto"
        settings = settings.model_copy(update={"run_dir": life.directory, "resume": resume})
    has_scores = _report(settings, lives, time.monotonic() - started)
    if life.failure is not None:
        print(
            f"{program_name()}: {life.failure}\nContinue with --run-dir {life.directory} --resume auto", file=sys.stderr
        )
        return 1
    if stop.received:
        return 128 + stop.received
    if not has_scores:
        why = life.directory / "evaluation.md"
        print(f"{program_name()}: not one attempt of the evaluation has a score; {why} says why", file=sys.stderr)
        return 1
    return 0


async def _live(settings: Settings, stop: StopSignals) -> Life:
    """From the checks to nothing left. Raises `ConfigError` for what the user has to mend first."""
    check_directories(settings)
    allow_open_files(settings)
    put_foreign_ray_aside(settings)
    await reap_dead_runs(settings)
    directory = run_files.choose_directory(settings)
    with run_files.sole_use(directory):
        return await _live_in(directory, settings, stop)


async def _live_in(directory: Path, settings: Settings, stop: StopSignals) -> Life:
    files: RunFiles | None = None
    try:
        files = run_files.claim(directory)
        tasks, held_out = ([task.ref for task in part] for part in await preflight.check(settings, files.name))
        settings = settings.model_copy(update={"run_dir": files.directory})
        (files.directory / "settings.json").write_text(settings.model_dump_json(indent=2))
        (files.directory / VERSIONS).write_text(json.dumps(versions(), indent=2))
        return await _run(settings, files, tasks, held_out, stop)
    finally:
        if files is not None:
            await remove_everything(settings, files)


async def _run(
    settings: Settings, files: RunFiles, tasks: list[TaskRef], held_out: list[TaskRef], stop: StopSignals
) -> Life:
    cluster = Cluster(settings, files)
    failure: LonghaulError | None = None
    steps: list[Values] = []
    system: Values = {}
    account: Account | None = None
    with (
        open_progress(settings.steps, f"Longhaul {settings.phase}  {files.directory}") as progress,
        console_beside(settings.console, files.directory) as console,
        trackers_beside(settings.metrics, files.directory, progress.note) as trackers,
        mirrored(settings, files.directory, progress.note),
    ):
        try:
            await asyncio.to_thread(cluster.start)
            await asyncio.to_thread(cluster.reserve)
            stop.install()
            progress.note(f"run directory {files.directory}")
            if said := await console.where():
                progress.note(said)
            if cluster.dashboard_url:
                progress.note(f"Ray's dashboard {cluster.dashboard_url}{cluster.way_in}")
            with _open_sinks(files) as sinks:
                supervisor = Supervisor(settings, cluster, tasks, progress, sinks, stop, held_out)
                try:
                    await supervisor.run()
                finally:
                    steps, system, account = supervisor.steps, supervisor.system, supervisor.account
            trackers.status = "KILLED" if stop.received else "FINISHED"
        except ConfigError:
            raise
        except LonghaulError as error:
            failure = error
            trackers.status = "FAILED"
        finally:
            await asyncio.to_thread(cluster.stop, goes_on=isinstance(failure, LifeLost))
    return Life(files.directory, steps, system, tasks, account, failure)


def _report(settings: Settings, lives: list[Life], seconds: float) -> bool:
    """The summary of all lives; of an evaluation also its tables. Whether anything was scored that was to be."""
    has_scores = True
    directory = lives[-1].directory
    best = best_checkpoint(directory) if settings.checkpoint.keep_best else None
    figures = summarise([(life.steps, life.system) for life in lives], seconds, held_out(directory), best)
    (directory / "summary.json").write_text(json.dumps(figures, indent=2))
    print_summary(figures, directory, run_files.newest_checkpoint(directory), best)
    last = lives[-1]
    if last.account is not None:
        print_audit(write_audit(directory, last.account, last.system))
    model = settings.eval.model or settings.model.path
    if settings.phase == "eval" and last.tasks:
        has_scores = bool(write_evaluation(directory, last.tasks, model, settings.eval.runs, _why_unscored(last)))
        print((directory / "evaluation.md").read_text())
    _write_page(directory)
    return has_scores


def _why_unscored(life: Life) -> dict[str, str]:
    """By task, what to say of attempts that have no score."""
    early = f"the run ended before: {life.failure}".splitlines()[0] if life.failure else "the run was stopped before"
    known = life.account.unscored if life.account else {}
    return dict.fromkeys((task.task_id for task in life.tasks), early) | known


def _write_page(directory: Path) -> None:
    """The report as a page; a disk that takes no more costs the page, not the run's status."""
    try:
        run = Run.open(directory)
        with contextlib.closing(run.index):
            print(f"report         {write_report(run)}")
    except (ConfigError, OSError, sqlite3.Error) as error:
        print(f"{program_name()}: no report was written: {error}", file=sys.stderr)


@contextlib.contextmanager
def _open_sinks(files: RunFiles) -> Iterator[list[Sink]]:
    sinks: list[Sink] = [
        JsonlSink(files.directory / "metrics.jsonl"),
        TensorBoardSink(files.directory / "tensorboard"),
        RaySink(files.name),
    ]
    try:
        yield sinks
    finally:
        for sink in sinks:
            sink.close()
