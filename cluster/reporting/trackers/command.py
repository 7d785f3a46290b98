"""`longhaul track RUN_DIR`: a run's metrics to Weights & Biases or MLflow, live or over; also what a run starts."""

from __future__ import annotations

import argparse
import os
import selectors
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.reporting.trackers.following import alone
from cluster.reporting.trackers.sending import Sending, about
from cluster.reporting.trackers.table import KINDS, asked, check
from cluster.reporting.trackers.tracker import Status
from console.run_data.run import Run
from protocol.config import MetricsSettings, Settings
from protocol.errors import ConfigError

_LONGEST_S = 3600.0  # to send a run that is over
_STATUSES: tuple[Status, ...] = ("FINISHED", "FAILED", "KILLED")


def main(arguments: Sequence[str], program: str = "longhaul track") -> int:
    """0: all is sent; 1: some is not; 2: the user's mistake."""
    parser = argparse.ArgumentParser(
        prog=program, description="Send a run's metrics to trackers: those of its settings, or those that are named."
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--wandb", metavar="PROJECT", default="", help="project at Weights & Biases")
    parser.add_argument("--mlflow", metavar="URI", default="", help="MLflow server, or directory of its file store")
    parser.add_argument("--until-eof", action="store_true", help="go on until standard input ends, as a run does")
    chosen = parser.parse_args(arguments)
    try:
        where = _where(chosen.run, MetricsSettings(wandb=chosen.wandb, mlflow=chosen.mlflow))
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    ended = [_send(chosen.run, name, place, until_eof=chosen.until_eof) for name, place in where.items()]
    return 0 if all(ended) else 1


def _where(run_dir: Path, named: MetricsSettings) -> dict[str, str]:
    """Raises `ConfigError` where there is no run, no tracker, or one that cannot be had."""
    recorded = Run.check(run_dir).get("metrics", {})
    known = {name: value for name, value in recorded.items() if name in KINDS and isinstance(value, str)}
    settings = named if asked(named) else MetricsSettings(**known)
    if not asked(settings):
        raise ConfigError(
            f"{run_dir}: its settings name no tracker: give --wandb PROJECT or --mlflow URI", kind="metrics"
        )
    check(Settings(metrics=settings))
    return asked(settings)


def _send(run_dir: Path, name: str, where: str, *, until_eof: bool) -> bool:
    with alone(run_dir, name) as is_alone:
        if not is_alone:
            print(f"{name}: another process sends this run's metrics at the moment", flush=True)
            return False
        sending = Sending(about(run_dir), name, where, KINDS[name].open, lambda text: print(text, flush=True))
        sending.start()
        if until_eof:
            os.nice(10)  # the run comes first
            sending.end(_until_eof(sending))
        else:
            sending.end("FINISHED")
        until = time.monotonic() + _LONGEST_S
        while not sending.join(1.0) and time.monotonic() < until:
            pass
    return sending.is_done


def _until_eof(sending: Sending) -> Status:
    """Waits for the end of standard input, or of the sender. The status that was the last word; killed without one."""
    said = ""
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        while not sending.join(0):
            if not selector.select(1.0):
                continue
            read = os.read(sys.stdin.fileno(), 4096)
            if not read:
                break
            said += read.decode("utf-8", "replace")
    return next((status for status in _STATUSES if status == said.strip()), "KILLED")
