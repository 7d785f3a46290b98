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
from typing import Any, NamedTuple

from cluster import preflight, run_files
from cluster.cleanup import reap_dead_runs, remove_everything
from cluster.command_line.cli import exit_with, program_name
from cluster.evaluation.evaluation import with_evaluation_tasks, write_evaluation
from cluster.placement import Cluster
from cluster.reporting.audit import print_audit, write_audit
from cluster.reporting.console import console_beside
from cluster.reporting.progress import open_progress
from cluster.reporting.ray_metrics import RaySink
from cluster.reporting.summary import print_summary, summarise
from cluster.run_files import RunFiles
from cluster.stop_signals import StopSignals
from cluster.supervision.part import LearnerLost
from cluster.supervisor import Supervisor
from cluster.surroundings import check_directories, put_foreign_ray_aside
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

    A run that loses a learner rank lives again, from its newest checkpoint, as long as every life leaves a newer one.
    """
    started = time.monotonic()
    stop = StopSignals()
    settings = with_whole_paths(with_evaluation_tasks(settings))
    reached = run_files.newest_step(settings.run_dir) if settings.run_dir else 0
    lives: list[Life] = []
    while True:
        try:
            life = await _live(settings, stop)
        except ConfigError as error:
            if not lives:
                exit_with(error)
            life = lives[-1]._replace(steps=[], system={}, failure=error)
        lives.append(life)
        step = run_files.newest_step(life.directory)
        if not isinstance(life.failure, LearnerLost) or step <= reached or stop.received:
            break
        print(
            f"{program_name()}: {life.failure}\n{program_name()}: the run goes on from its checkpoint of step {step}",
            file=sys.stderr,
        )
        reached = step
        settings = settings.model_copy(update={"run_dir": life.directory, "resume": "auto"})
    _report(settings, lives, time.monotonic() - started)
    if life.failure is not None:
        print(
            f"{program_name()}: {life.failure}\nContinue with --run-dir {life.directory} --resume auto", file=sys.stderr
        )
        return 1
    return 128 + stop.received if stop.received else 0


def with_whole_paths(settings: Settings) -> Settings:
    """Paths are the launching user's: processes of the run may stand elsewhere, on other hosts for one."""
    model, source = Path(settings.model.path), Path(settings.tasks.source)
    evaluated = settings.eval.tasks or "micro"
    changed: dict[str, Any] = {}
    if model.exists():
        changed["model"] = settings.model.model_copy(update={"path": str(model.absolute())})
    if source.exists() and settings.tasks.source != "micro":
        changed["tasks"] = settings.tasks.model_copy(update={"source": str(source.absolute())})
    if evaluated != "micro" and Path(evaluated).exists():
        changed["eval"] = settings.eval.model_copy(update={"tasks": str(Path(evaluated).absolute())})
    return settings.model_copy(update=changed)


async def _live(settings: Settings, stop: StopSignals) -> Life:
    """From the checks to nothing left. Raises `ConfigError` for what the user has to mend first."""
    check_directories(settings)
    put_foreign_ray_aside(settings)
    await reap_dead_runs(settings)
    files: RunFiles | None = None
    try:
        files = run_files.claim(run_files.choose_directory(settings))
        tasks = [task.ref for task in await preflight.check(settings, files.name)]
        held_out = preflight.held_out_tasks(settings, tasks)
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
        except ConfigError:
            raise
        except LonghaulError as error:
            failure = error
        finally:
            await asyncio.to_thread(cluster.stop, goes_on=isinstance(failure, LearnerLost))
    return Life(files.directory, steps, system, tasks, account, failure)


def _report(settings: Settings, lives: list[Life], seconds: float) -> None:
    """The summary of all lives; of an evaluation also its tables."""
    directory = lives[-1].directory
    figures = summarise([(life.steps, life.system) for life in lives], seconds, held_out(directory))
    (directory / "summary.json").write_text(json.dumps(figures, indent=2))
    print_summary(figures, directory, run_files.newest_checkpoint(directory))
    last = lives[-1]
    if last.account is not None:
        print_audit(write_audit(directory, last.account, last.system))
    _write_page(directory)
    model = settings.eval.model or settings.model.path
    if settings.phase == "eval" and last.tasks:
        write_evaluation(directory, last.tasks, model, settings.eval.runs, _why_unscored(last))
        print((directory / "evaluation.md").read_text())


def _why_unscored(life: Life) -> dict[str, str]:
    """By task, what to say of attempts that have no score."""
    early = f"the run ended before: {life.failure}".splitlines()[0] if life.failure else "the run was stopped before"
    known = life.account.unscored if life.account else {}
    return dict.fromkeys((task.task_id for task in life.tasks), early) | known


def _write_page(directory: Path) -> None:
    """The report as a page; a disk that takes no more costs the page, not the run's status."""
    run = Run.open(directory)
    try:
        print(f"report         {write_report(run)}")
    except (ConfigError, OSError, sqlite3.Error) as error:
        print(f"{program_name()}: no report was written: {error}", file=sys.stderr)
    finally:
        run.index.close()


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
