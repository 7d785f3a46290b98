"""`longhaul top RUN_DIR`: a run's screen from another terminal, from its directory alone."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from cluster.reporting.screen import screen
from console.run_data.held_out import held_out
from console.run_data.metrics import Metrics
from console.run_data.run import Run, state_of
from console.watchers.watch import watch
from protocol.errors import ConfigError


def main(arguments: Sequence[str], program: str = "longhaul top") -> int:
    """0: the run is over, or its screen was left; 2: the user's mistake."""
    parser = argparse.ArgumentParser(prog=program, description="The screen of a running run, from another terminal.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--once", action="store_true", help="print it once (as into a pipe)")
    chosen = parser.parse_args(arguments)
    try:
        settings = Run.check(chosen.run)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    steps = settings.get("steps")
    metrics, num_steps = Metrics(chosen.run / "metrics.jsonl"), steps if isinstance(steps, int) else 0

    def shown() -> Panel:
        metrics.update()
        return picture(chosen.run, metrics, num_steps)

    console = Console()
    if chosen.once or not console.is_terminal:
        console.print(shown())
        return 0
    with contextlib.suppress(KeyboardInterrupt), Live(shown(), console=console, auto_refresh=False) as live:
        while state_of(chosen.run, metrics) in ("live", "starting", "silent"):
            time.sleep(1)
            live.update(shown(), refresh=True)
    return 0


def picture(run_dir: Path, metrics: Metrics, num_steps: int) -> Panel:
    """The screen of what `metrics` has read."""
    records = metrics.records
    findings = watch(records, metrics.samples, held_out(run_dir))
    warning = findings[-1].line if findings else ""
    elapsed_s = metrics.newest.get("seconds", 0.0)
    title = f"{run_dir}  {state_of(run_dir, metrics)}"
    return screen(title, num_steps, records, metrics.newest, elapsed_s, warning=warning)
