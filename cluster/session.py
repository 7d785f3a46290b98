"""One run from its checks to its summary; whatever happens, nothing of it is left but the run directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cluster import preflight, run_files
from cluster.cleanup import reap_dead_runs, remove_everything
from cluster.cli import exit_with
from cluster.evaluation import with_evaluation_tasks, write_evaluation
from cluster.placement import Cluster
from cluster.progress import open_progress
from cluster.ray_metrics import RaySink
from cluster.run_files import RunFiles
from cluster.summary import print_summary, summarise
from cluster.supervisor import LearnerLost, Supervisor
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError
from protocol.messages import TaskRef
from protocol.metrics import JsonlSink, Sink, TensorBoardSink, Values


class StopSignals:
    """SIGINT and SIGTERM ask the run to stop in order; they interrupt nothing."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.received: signal.Signals | None = None
        self.install()

    def install(self) -> None:
        """Take the signals; again after Ray has started, which takes SIGTERM for itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._receive, number)

    def _receive(self, number: signal.Signals) -> None:
        self.received = number
        self.requested.set()


class Ended(NamedTuple):
    """How one life of a run ended."""

    status: int  # the program's, if it was the last one
    directory: Path
    failure: LonghaulError | None = None


async def run(settings: Settings) -> int:
    """Check, run, clean up, report. Returns the exit status of the program.

    A run that loses a learner rank lives again, from its newest checkpoint, as long as every life leaves a newer one.
    """
    stop = StopSignals()
    settings = with_evaluation_tasks(settings)
    reached = _newest_step(settings.run_dir)
    while True:
        ended = await _live(settings, stop)
        step = _newest_step(ended.directory)
        if ended.failure is None:
            return ended.status
        print(f"launch.py: {ended.failure}", file=sys.stderr)
        if not isinstance(ended.failure, LearnerLost) or step <= reached or stop.received:
            print(f"Continue with --run-dir {ended.directory} --resume auto", file=sys.stderr)
            return ended.status
        print(f"launch.py: the run goes on from its checkpoint of step {step}", file=sys.stderr)
        reached = step
        settings = settings.model_copy(update={"run_dir": ended.directory, "resume": "auto"})


async def _live(settings: Settings, stop: StopSignals) -> Ended:
    started = time.monotonic()
    await reap_dead_runs(settings)
    files: RunFiles | None = None
    try:
        files = run_files.claim(run_files.choose_directory(settings))
        tasks = [task.ref for task in await preflight.check(settings, files.name)]
        settings = settings.model_copy(update={"run_dir": files.directory})
        (files.directory / "settings.json").write_text(settings.model_dump_json(indent=2))
        return await _run(settings, files, tasks, stop, started)
    except ConfigError as error:
        exit_with(error)
    finally:
        if files is not None:
            await remove_everything(settings, files)


async def _run(settings: Settings, files: RunFiles, tasks: list[TaskRef], stop: StopSignals, started: float) -> Ended:
    cluster = Cluster(settings, files)
    failure: LonghaulError | None = None
    steps: list[Values] = []
    system: Values = {}
    with open_progress(settings.steps, f"Longhaul {settings.phase}  {files.directory}") as progress:
        try:
            await asyncio.to_thread(cluster.start)
            stop.install()
            progress.note(f"dashboard {cluster.dashboard_url}, run directory {files.directory}")
            with _open_sinks(files) as sinks:
                supervisor = Supervisor(settings, cluster, tasks, progress, sinks, stop.requested)
                try:
                    await supervisor.run()
                finally:
                    steps, system = supervisor.steps, supervisor.system
        except ConfigError:
            raise
        except LonghaulError as error:
            failure = error
        finally:
            await asyncio.to_thread(cluster.stop)
    figures = summarise(steps, system, time.monotonic() - started)
    (files.directory / "summary.json").write_text(json.dumps(figures, indent=2))
    print_summary(figures, files.directory, _newest_checkpoint(files.directory))
    model = settings.eval.model or settings.model.path
    if settings.phase == "eval" and write_evaluation(files.directory, tasks, model):
        print((files.directory / "evaluation.md").read_text())
    status = 128 + stop.received if stop.received else 0
    return Ended(1 if failure else status, files.directory, failure)


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


def _newest_checkpoint(run_dir: Path) -> Path | None:
    complete = [path.parent for path in run_dir.glob("checkpoints/step-*/checkpoint.json") if path.parent.suffix == ""]
    return max(complete, key=_step_of, default=None)


def _newest_step(run_dir: Path | None) -> int:
    checkpoint = _newest_checkpoint(run_dir) if run_dir else None
    return _step_of(checkpoint) if checkpoint else 0


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
